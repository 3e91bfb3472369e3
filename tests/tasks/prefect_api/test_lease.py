import threading
from contextlib import ExitStack

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from tasks.prefect_api.lease import leased
from tasks.prefect_api.runs import limit_of
from zimage.core.errors import InputError


@flow(name="learn", flow_run_name="learn {subject}")
def learn(subject: str, holds: threading.Event, lets_go: threading.Event) -> None:
    with leased(subject):
        holds.set()
        lets_go.wait(timeout=60)


@flow(name="publish", flow_run_name="publish {subject}")
def publish(subject: str, wait_s: float) -> str:
    with leased(subject, wait_s=wait_s):
        return "done"


@flow(name="prepare", flow_run_name="prepare {subject}")
def prepare(subject: str, away: ExitStack) -> str:
    """Work whose server goes away before it has ended, and comes back with the end of `away`."""
    nobody = {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}
    with away:
        with leased(subject):
            away.enter_context(temporary_settings(nobody))
        return "done"


@pytest.fixture
def held(prefect_server: None) -> threading.Event:
    """`ada` is held by another run until the event is set."""
    holds, lets_go = threading.Event(), threading.Event()
    threading.Thread(target=learn, args=("ada", holds, lets_go), daemon=True).start()
    assert holds.wait(timeout=60)
    return lets_go


def test_who_comes_second_is_told_who_holds_the_subject(held: threading.Event) -> None:
    with pytest.raises(InputError, match=r"ada is still being worked on by `learn ada` \(run [-0-9a-f]+\); wait for"):
        publish("ada", 1.0)
    held.set()


def test_who_comes_second_goes_on_when_the_first_has_ended(held: threading.Event) -> None:
    threading.Timer(2.0, held.set).start()

    assert publish("ada", 60.0) == "done"


def test_who_waits_while_the_subject_is_forgotten_is_told_so(held: threading.Event) -> None:
    with get_client(sync_client=True) as client:
        threading.Timer(3.0, client.delete_global_concurrency_limit_by_name, [limit_of("ada")]).start()

        with pytest.raises(InputError, match=r"The subject was forgotten while this run waited for it; start it again"):
            publish("ada", 60.0)
    held.set()


def test_another_subject_is_not_in_the_way(held: threading.Event) -> None:
    assert publish("bob", 1.0) == "done"
    held.set()


def test_work_stands_when_the_server_is_away_as_the_lease_ends(
    prefect_server: None, caplog: pytest.LogCaptureFixture
) -> None:
    assert prepare("eve", ExitStack()) == "done"

    assert "eve is held for up to 60 s more, as the server is away: " in caplog.text
