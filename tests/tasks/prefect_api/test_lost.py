"""How long runs are silent, on a real server."""

import time
from collections.abc import Iterator

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Pending, Running

from flows.learn import learn
from tasks.prefect_api.lost import Silence


@pytest.fixture
def client(prefect_server: None) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


def run_in(client: SyncPrefectClient, state: State) -> FlowRun:
    run = client.create_flow_run(learn, parameters={"spec": {"subject": "ada-lost"}}, state=state)
    return client.read_flow_run(run.id)


def reasons(client: SyncPrefectClient, run: FlowRun, *, server_fails: bool) -> set[str | None]:
    """Why a run counts as lost, in looks of some seconds."""
    silence, begun, found = Silence(lost_after_s=2, pending_s=2), time.monotonic(), set()
    while time.monotonic() - begun < 6:
        found.add(silence.reason(client, run))
        if server_fails:
            silence.begin_again()
        time.sleep(0.2)
    client.delete_flow_run(run.id)
    return found - {None}


def test_a_run_that_waits_to_begin_is_lost_after_its_time_however_often_the_server_was_away(
    client: SyncPrefectClient,
) -> None:
    run = run_in(client, Pending())

    assert reasons(client, run, server_fails=True) == {"Its worker was lost before it began, within 2 s."}


@pytest.mark.parametrize("server_fails", [False, True])
def test_a_silent_run_is_lost_only_after_the_server_was_there_for_that_long(
    client: SyncPrefectClient, server_fails: bool
) -> None:
    run = run_in(client, Running())

    said = {"Its worker was lost, no heartbeat came for 2 s."}
    assert reasons(client, run, server_fails=server_fails) == (set() if server_fails else said)
