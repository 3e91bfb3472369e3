"""Runs that nobody does any more, on a real server with a real watch: a run whose process is gone is a state, no more.

The watch is impatient here: seconds instead of minutes. That real workers and runs die is in `test_stack.py`.
"""

import contextlib
import datetime
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.__main__ import LASTING, QUIET
from flows.server.processes import started
from flows.server.stack import RETIRED, apply_automations
from tasks.policy import CRASH_SETTLES_S, FLOWS, GOES_ON, NEVER_BEGAN, PARENT_LOST
from tasks.settings import PROJECT
from tests.flows import stack_parts
from tests.ports import free_port

pytestmark = pytest.mark.timeout(400)

LOST_AFTER_S, PENDING_S, LOOKS = 8, 12, 4  # seconds; the watch looks every 5
SPECS: dict[str, dict[str, str]] = {"retrain": {}}
STOPPED = {"type": "CRASHED", "message": "Execution was aborted by a termination signal."}
LOST = {"type": "CRASHED", "message": "Its worker was lost, no heartbeat came for 90 s."}


@dataclass
class Server:
    """A Prefect server, and the runs that stand for those of lost processes."""

    api: str
    runs: dict[str, str] = field(default_factory=dict)

    def asked(self, method: str, path: str, content: Any = None) -> Any:
        answer = httpx.request(method, f"{self.api}{path}", json=content, timeout=60)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def run(self, flow: str, *states: dict[str, Any], subject: str = "") -> str:
        """A run of a deployment that has been in these states."""
        deployment = self.asked("GET", f"/deployments/name/{flow}/{flow}")["id"]
        spec = SPECS.get(flow, {"subject": subject or f"s{uuid4().hex[:8]}"})
        asked = {"parameters": {"spec": spec}, "state": states[0]}
        run = str(self.asked("POST", f"/deployments/{deployment}/create_flow_run", asked)["id"])
        for state in states[1:]:
            self.set(run, state)
        return run

    def set(self, run: str, state: dict[str, Any]) -> None:
        self.asked("POST", f"/flow_runs/{run}/set_state", {"state": state, "force": True})

    def state(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = self.asked("GET", f"/flow_runs/{run}")["state"]
        return found

    def name(self, run: str) -> str:
        return str(self.state(run)["name"])

    def beat(self, run: str) -> None:
        """A sign of life, as the process of a run sends it."""
        event = {
            "id": str(uuid4()),
            "occurred": datetime.datetime.now(datetime.UTC).isoformat(),
            "event": "prefect.flow-run.heartbeat",
            "resource": {"prefect.resource.id": f"prefect.flow-run.{run}", "prefect.resource.name": "x"},
            "related": [],
            "payload": {},
        }
        self.asked("POST", "/events", [event])


def until(what: str, look: Callable[[], Any], within_s: float = 90.0) -> None:
    begun = time.monotonic()
    while time.monotonic() - begun < within_s:
        with contextlib.suppress(httpx.TransportError):
            if look():
                return
        time.sleep(0.2)
    raise AssertionError(f"{what}: not within {within_s} s")


@contextlib.contextmanager
def serving(folder: Path, *, deploys: bool) -> Iterator[Server]:
    """A server with this project's deployments and automations, and its watch, in a folder that may have had one."""
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            **QUIET,
            **LASTING,
            "PREFECT_HOME": str(folder),
            "PREFECT_API_URL": api,
            "PYTHONPATH": str(PROJECT),
            "ZIMAGE_LOST_AFTER_S": str(LOST_AFTER_S),
            "ZIMAGE_PENDING_S": str(PENDING_S),
        }.items():
            patch.setenv(name, value)
        with stack_parts.server(folder, port) as server:
            until("the server", lambda: httpx.get(f"{api}/health").is_success)
            if deploys:
                subprocess.run([sys.executable, "-m", "flows", "deploy"], cwd=PROJECT, check=True)
            with started(["watch"], folder / "watch.log") as watch:
                yield Server(api)
                for process in (watch, server):  # as a machine goes that loses its power
                    process.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("watch")
    with serving(folder, deploys=True) as before:
        cut = before.run("personalize", {"type": "RUNNING"}), before.run("learn", {"type": "CANCELLING"})
        stopped = before.run("personalize", STOPPED | {"message": "Execution was aborted by an interrupt signal."})
    with serving(folder, deploys=False) as told:
        told.runs |= dict(zip(("cut off", "cut off while cancelling", "stopped before"), (*cut, stopped), strict=True))
        told.runs |= {f"{flow} lost": told.run(flow, {"type": "RUNNING"}) for flow in FLOWS}
        told.runs |= {f"{flow} never began": told.run(flow, {"type": "PENDING"}) for flow in ("learn", "personalize")}
        told.runs["stopped often"] = told.run("personalize", *[STOPPED, {"type": "RUNNING"}] * 5, STOPPED)
        told.runs["lost often"] = told.run("personalize", *[{"type": "RUNNING"}, LOST] * (PARENT_LOST + 1))
        told.runs["lost, said twice"] = told.run("personalize", *[{"type": "RUNNING"}, LOST, LOST] * PARENT_LOST)
        told.runs["began late"] = told.run("personalize", *[{"type": "PENDING"}, LOST] * (PARENT_LOST + 2))
        told.runs["cannot begin"] = told.run("personalize", *[{"type": "PENDING"}, LOST] * (NEVER_BEGAN + 1))
        told.runs["followed"] = told.run("personalize", STOPPED, subject="ada")
        told.runs["following"] = told.run("personalize", {"type": "COMPLETED"}, subject="ada")
        suspended, alive = told.run("learn", {"type": "RUNNING"}), told.run("learn", {"type": "RUNNING"})
        told.runs |= {"suspended": suspended, "alive": alive}
        told.set(suspended, {"type": "PAUSED", "name": "Suspended", "state_details": {"pause_reschedule": True}})
        told.beat(suspended)  # late
        flow = told.asked("GET", f"/flow_runs/{alive}")["flow_id"]
        local = {"flow_id": flow, "state": STOPPED, "parameters": {"spec": {"subject": "local"}}}
        told.runs["of no worker"] = str(told.asked("POST", "/flow_runs/", local)["id"])
        begun = time.monotonic()
        while time.monotonic() - begun < LOOKS * 5 + PENDING_S + CRASH_SETTLES_S:
            told.beat(alive)
            time.sleep(1)
        yield told


@pytest.mark.parametrize("flow", FLOWS)
def test_a_lost_run_of_any_flow_is_noticed_and_goes_on_where_that_does_it_no_harm(server: Server, flow: str) -> None:
    states = server.asked("GET", f"/flow_run_states/?flow_run_id={server.runs[f'{flow} lost']}")
    crashed = [each for each in states if each["type"] == "CRASHED"]

    assert [each["message"] for each in crashed] == [f"Its worker was lost, no heartbeat came for {LOST_AFTER_S} s."]
    assert server.name(server.runs[f"{flow} lost"]) == ("AwaitingRetry" if flow in GOES_ON else "Crashed")


@pytest.mark.parametrize(("flow", "ends"), [("learn", "Crashed"), ("personalize", "AwaitingRetry")])
def test_a_run_that_no_worker_began_is_given_up(server: Server, flow: str, ends: str) -> None:
    assert server.name(server.runs[f"{flow} never began"]) == ends


def test_runs_that_a_power_cut_ended_go_on_or_are_cancelled_after_the_next_start(server: Server) -> None:
    assert server.name(server.runs["cut off"]) == "AwaitingRetry"
    assert server.name(server.runs["cut off while cancelling"]) == "Cancelled"


def test_a_run_that_was_stopped_goes_on_after_the_next_start_however_often_that_happens(server: Server) -> None:
    assert server.name(server.runs["stopped before"]) == "AwaitingRetry"
    assert server.name(server.runs["stopped often"]) == "AwaitingRetry"


def test_a_run_that_is_lost_again_and_again_is_given_up(server: Server) -> None:
    state = server.state(server.runs["lost often"])

    assert state["name"] == "Failed"
    assert state["message"] == f"This run was lost with its worker {PARENT_LOST + 1} times; it is given up."


def test_one_crash_that_is_reported_twice_is_one_loss(server: Server) -> None:
    assert server.name(server.runs["lost, said twice"]) == "AwaitingRetry"


def test_a_process_that_ended_before_its_flow_began_is_no_loss_but_is_not_started_for_ever(server: Server) -> None:
    given_up = server.state(server.runs["cannot begin"])

    assert server.name(server.runs["began late"]) == "AwaitingRetry"
    assert given_up["name"] == "Failed"
    assert f"did not begin in {NEVER_BEGAN + 1} tries; it is given up." in given_up["message"]


def test_a_run_that_tells_of_itself_is_left_alone(server: Server) -> None:
    assert server.name(server.runs["alive"]) == "Running"


def test_nothing_goes_on_that_a_newer_run_followed_or_that_no_worker_takes(server: Server) -> None:
    assert server.name(server.runs["followed"]) == "Crashed"
    assert server.name(server.runs["of no worker"]) == "Crashed"


def test_a_suspended_run_stays_so_until_it_is_resumed_though_a_heartbeat_came_late(server: Server) -> None:
    assert server.name(server.runs["suspended"]) == "Suspended"

    server.asked("POST", f"/flow_runs/{server.runs['suspended']}/resume", {})

    assert server.state(server.runs["suspended"])["type"] == "SCHEDULED"


def test_deploying_again_changes_no_automation_and_switches_none_on(server: Server) -> None:
    def stored() -> dict[str, Any]:
        return {each["name"]: each for each in server.asked("POST", "/automations/filter", {})}

    with temporary_settings({PREFECT_API_URL: server.api}):
        apply_automations(notify=True)
        server.asked("PATCH", f"/automations/{stored()['zimage-gate-failed']['id']}", {"enabled": False})
        before = stored()
        retired = {
            key: value for key, value in before["zimage-run-failed"].items() if key not in {"id", "created", "updated"}
        }
        server.asked("POST", "/automations/", retired | {"name": RETIRED[0]})
        apply_automations(notify=True)

    assert before["zimage-run-failed"]["trigger"]["id"]
    assert stored() == before
