"""`make serve` as it runs: schedules, doors, taken ports, a second stack, and how everything ends."""

import contextlib
import datetime
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest
from playwright.sync_api import Page

from flows.server.processes import MARK, end, started
from flows.server.stack import ENDING, ended_as_by_ctrl_c
from tasks.policy import FLOWS
from tasks.settings import PROJECT
from tests.flows.stack_parts import (
    HANGS_AFTER_S,
    Api,
    asked,
    consent,
    kill,
    learns,
    processes_below,
    receiving,
    running,
    until,
)
from tests.ports import free_port
from tests.processes import runs
from zimage.model.base import Base

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]


@contextlib.contextmanager
def serving(folder: Path, port: int = 0, **variables: str) -> Iterator[tuple["subprocess.Popen[str]", Api]]:
    """`python -m flows serve` with everything of it in a folder."""
    port = port or free_port()
    environment = {
        **os.environ,
        **variables,
        "PREFECT_HOME": str(folder / "prefect"),
        "ZIMAGE_WORKSPACES": str(folder / "workspaces"),
        "ZIMAGE_STORE": str(folder / "store"),
    }
    command = [sys.executable, "-m", "flows", "serve", "--port", str(port)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process, Api(f"http://127.0.0.1:{port}/api")
        finally:
            end(process.pid)  # or a failure in the block would wait for it for ever


@dataclass
class Served:
    """A stack that has told a webhook of a gate; its tests run in their order, as Ctrl-C ends it before the last."""

    folder: Path
    process: "subprocess.Popen[str]"
    api: Api
    said: str
    webhook: str
    notified: list[dict[str, Any]]

    def interrupt(self) -> None:
        """End it as Ctrl-C does, if it still runs."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(timeout=60)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    failed = {
        "event": "zimage.gate.failed",
        "occurred": datetime.datetime.now(datetime.UTC).isoformat(),
        "resource": {"prefect.resource.id": "zimage.subject.joe"},
        "payload": {"why": "too few faces are found"},
        "id": str(uuid4()),
    }
    with receiving() as (receiver, notified):
        webhook = f"{receiver}services/a-secret-word"
        with serving(folder, ZIMAGE_NOTIFY=webhook) as (process, api):
            assert process.stdout is not None
            said = process.stdout.readline()
            api.post("/events", [failed])
            until("the notification", lambda: notified, 60)
            yield Served(folder, process, api, said, webhook, notified)


FOREIGN = """async (api) => {
    const tried = async (what) => { try { return await what() } catch (error) { return "refused" } };
    const asked = (path, options) => tried(async () => (await fetch(api + path, options)).status);
    const flow = {method: "POST", headers: {"Content-Type": "application/json"}, body: '{"name": "foreign"}'};
    const form = {method: "POST", mode: "no-cors", body: '{"name": "foreign"}'};  // sent, and its answer is hidden
    const socket = () => new Promise((resolve) => {
        const opened = new WebSocket(api.replace("http", "ws") + "/events/in");
        opened.onopen = () => resolve("open"); opened.onerror = () => resolve("refused");
    });
    return [await asked("/flows/", flow), await asked("/flows/", form), await asked("/version"), await socket()];
}"""


def test_a_page_of_another_origin_can_neither_read_nor_do_anything(served: Served, page: Page) -> None:
    api = served.api
    with receiving() as (foreign, _):
        page.goto(foreign)  # an error page, and of its origin all the same
        found = page.evaluate(FOREIGN, api.address)
    forged = httpx.post(f"{api.address}/flows/", json={"name": "foreign"})  # as a page that could hide its origin
    flows = {each["name"] for each in api.post("/flows/filter", {})}
    rebound = [
        httpx.get(f"{api.address}/version", headers={"Host": host})
        for host in ("foreign.example:4200", "prefect-in-memory")
    ]
    environment = {**os.environ, "PREFECT_API_URL": api.address, "ZIMAGE_STORE": str(served.folder / "store")}
    command = [sys.executable, "-m", "flows", "forget", "--subject", "ada"]
    own = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    for name in ("127.0.0.1", "localhost"):
        page.goto(f"{api.address.removesuffix('/api').replace('127.0.0.1', name)}/deployments")
        page.get_by_role("link", name="publish", exact=True).first.wait_for()

    assert found == ["refused", 0, "refused", "refused"]
    assert own.returncode == 0 and "Nothing was deleted" in own.stdout, own.stderr
    assert (forged.status_code, forged.json()) == (403, {"detail": "Missing CSRF token."})
    assert "retrain" in flows and "foreign" not in flows
    refused = (403, "This server is only reached as 12")
    assert [(each.status_code, each.text[:33]) for each in rebound] == [refused, refused]


def test_the_address_of_a_webhook_is_in_no_answer_and_no_worker(served: Served) -> None:
    blocks = {"include_secrets": True}
    answers = [
        served.api.post(f"/{kind}/filter", blocks if kind == "block_documents" else {})
        for kind in ("block_documents", "automations", "events", "deployments", "work_pools")
    ]
    below = [psutil.Process(each.pid) for each in processes_below(served.process.pid)[1:]]
    knowing = [each.cmdline() for each in below if served.webhook in each.environ().values()]

    assert [each["title"] for each in served.notified] == ["joe: the verdict is fail"]
    assert "zimage.gate.failed" in json.dumps(answers) and "a-secret-word" not in json.dumps(answers)
    assert knowing and all("flows.server" in " ".join(command) for command in knowing)


def test_one_command_runs_a_stack_and_ctrl_c_ends_all_of_it(served: Served) -> None:
    deployed = {each["name"] for each in served.api.post("/deployments/filter", {})}
    for pool in ("cpu", "gpu"):
        until(f"the worker of {pool}", lambda: served.api.post(f"/work_pools/{pool}/workers/filter", {}))  # noqa: B023
    below = processes_below(served.process.pid)
    sockets = [each for one in below for each in one.net_connections()]
    served.interrupt()

    assert served.said == f"UI       {served.api.address.removesuffix('/api')}\n"
    assert deployed >= {"personalize", "prepare", "learn", "publish", "retrain"}
    assert {each.laddr.ip for each in sockets if each.status == "LISTEN"} == {"127.0.0.1"}
    assert served.process.returncode == 0
    assert running(below) == []


def test_the_address_of_a_webhook_is_in_no_database(served: Served) -> None:
    served.interrupt()
    stored = [path for path in (served.folder / "prefect").rglob("*") if path.is_file()]

    assert [path for path in stored if b"zimage-gate-failed" in path.read_bytes()]
    assert [path for path in stored if b"a-secret-word" in path.read_bytes()] == []


@dataclass
class Nights:
    """What became of the schedule of `retrain` in a stack that was paused, and then started again."""

    waited: set[str]
    late: list[dict[str, Any]]
    fired: dict[str, Any]
    log: list[str]
    before: list[dict[str, Any]]
    after: list[dict[str, Any]]


def retrain_runs(api: Api, schedule: str) -> list[dict[str, Any]]:
    """The runs that a schedule of `retrain` has made and that were due by now."""
    due = {"expected_start_time": {"before_": datetime.datetime.now(datetime.UTC).isoformat()}}
    asked = {"flow_runs": due, "deployments": {"name": {"any_": ["retrain"]}}, "sort": "EXPECTED_START_TIME_ASC"}
    found = api.post("/flow_runs/filter", asked)
    return [each for each in found if (each["created_by"] or {}).get("id") == schedule]


def add_schedule(api: Api, deployment: str) -> str:
    """Add a schedule as the UI does; return its identity."""
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=5)
    often = {"interval": 20, "anchor_date": soon.isoformat(), "timezone": "UTC"}  # Prefect plans every 5 s
    (added,) = api.post(f"/deployments/{deployment}/schedules", [{"schedule": often, "active": True}])
    return str(added["id"])


def ended_run(api: Api, schedule: str) -> dict[str, Any]:
    """The first run that a schedule has made, after its end."""
    run = until("a run that a schedule started", lambda: retrain_runs(api, schedule))[0]
    api.ended(run["id"])
    found: dict[str, Any] = api.get(f"/flow_runs/{run['id']}")
    return found


def schedules(api: Api) -> list[dict[str, Any]]:
    found = api.get("/deployments/name/retrain/retrain")["schedules"]
    return sorted(
        ({key: each[key] for key in ("id", "slug", "active", "schedule")} for each in found),
        key=lambda each: str(each["id"]),
    )


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    """No worker takes runs while three nights pass; then a schedule is added in the UI, and the stack started again."""
    folder = tmp_path_factory.mktemp("nights")
    now = datetime.datetime.now(datetime.UTC)
    with serving(folder, PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS="2") as (process, api):
        assert process.stdout is not None and process.stdout.readline()
        deployment = api.get("/deployments/name/retrain/retrain")
        (nightly,) = deployment["schedules"]
        api.asked("PATCH", "/work_pools/cpu", json={"is_paused": True})
        api.asked("PATCH", f"/deployments/{deployment['id']}/schedules/{nightly['id']}", json={"active": True})
        week = {"start_time": (now - datetime.timedelta(days=3)).isoformat(), "end_time": now.isoformat()}
        api.post(f"/deployments/{deployment['id']}/schedule", week)
        late = retrain_runs(api, nightly["id"])
        until("late runs", lambda: {api.state(each["id"])["name"] for each in late} == {"Late"})
        waited = {api.state(each["id"])["name"] for each in late}
        api.asked("PATCH", "/work_pools/cpu", json={"is_paused": False})
        for each in late:
            api.ended(each["id"])
        late = [api.get(f"/flow_runs/{each['id']}") for each in late]
        fired = ended_run(api, add_schedule(api, deployment["id"]))
        log = until("its log", lambda: "Finished in state" in str(api.log(fired["id"])) and api.log(fired["id"]))
        before = schedules(api)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    with serving(folder) as (process, api):
        assert process.stdout is not None and process.stdout.readline()
        return Nights(waited, late, fired, log, before, schedules(api))


def test_after_a_pause_of_the_workers_one_late_run_catches_up(nights: Nights) -> None:
    assert nights.waited == {"Late"}
    assert sorted(each["state"]["name"] for each in nights.late) == ["Completed", "Skipped", "Skipped"]


def test_a_schedule_starts_a_run_by_itself(nights: Nights) -> None:
    assert nights.fired["auto_scheduled"]
    assert nights.fired["state"]["name"] == "Completed"
    assert any("Finished in state Completed" in line for line in nights.log)


def test_schedules_stay_as_people_left_them_when_the_stack_starts_again(nights: Nights) -> None:
    assert [each["active"] for each in nights.before] == [True, True]
    assert nights.after == nights.before


def said_of_database(process: "subprocess.Popen[str]") -> list[str]:
    """The lines about the database that a stack prints when it is up."""
    assert process.stdout is not None
    said = list(iter(process.stdout.readline, "Ctrl-C stops all of it.\n"))
    return [line.rstrip("\n") for line in said if line.startswith(("database", "note"))]


def test_a_configured_database_is_used_and_the_default_one_tells_of_a_stack_s_sqlite(tmp_path: Path) -> None:
    home = tmp_path / "prefect"
    address = f"sqlite+aiosqlite:///{home / 'prefect.db'}"
    with serving(tmp_path, PREFECT_SERVER_DATABASE_CONNECTION_URL=address) as (process, api):
        configured = said_of_database(process)
        deployment = api.get("/deployments/name/retrain/retrain")
        fired = ended_run(api, add_schedule(api, deployment["id"]))
        assert not (home / "postgres").exists()
    with serving(tmp_path) as (process, api):
        default = said_of_database(process)
        runs = api.post("/flow_runs/count", {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}})

    assert configured == [f"database {address}"]
    assert fired["auto_scheduled"]
    assert fired["state"]["name"] == "Completed"
    assert default == [
        f"database PostgreSQL in {home / 'postgres'}",
        f"note     Runs, and schedules that were switched on, of an earlier version are in {home / 'prefect.db'} "
        f"and not here; PREFECT_SERVER_DATABASE_CONNECTION_URL={address} uses that database again.",
    ]
    assert runs == 0


def lock_of(home: Path, *, other_than: str = "") -> str:
    """What the lock of a home says, once a server has taken it."""
    path = home / "zimage-server.lock"
    return str(
        until("the lock", lambda: path.is_file() and path.read_text() != other_than and path.read_text(), HANGS_AFTER_S)
    )


def test_a_stack_with_a_password_comes_up_and_answers_nobody_else(tmp_path: Path) -> None:
    with serving(tmp_path, PREFECT_SERVER_API_AUTH_STRING="admin:a-password") as (process, api):
        assert process.stdout is not None
        assert process.stdout.readline() == f"UI       {api.address.removesuffix('/api')}\n"
        asked = f"{api.address}/deployments/name/retrain/retrain"
        without = httpx.get(asked)
        with_it = httpx.get(asked, auth=("admin", "a-password"))
        known = replace(api, auth=("admin", "a-password"))
        workers = until("the worker", lambda: known.post("/work_pools/cpu/workers/filter", {}))

    assert without.status_code == 401
    assert with_it.json()["name"] == "retrain"
    assert workers


def test_a_second_stack_with_the_same_home_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    home = tmp_path / "prefect"
    with serving(tmp_path) as (first, api):
        taken = lock_of(home)
        with serving(tmp_path) as (second, _):
            said = second.communicate(timeout=60)[1]
        first.kill()
        first.wait()
        with serving(tmp_path):
            lock_of(home, other_than=taken)

    where = f"{api.address.removesuffix('/api')} (process {first.pid})"
    assert second.returncode == 2
    assert said == (
        f"flows: A server runs at {where} with PREFECT_HOME {home} already; use that one, or stop it first.\n"
    )


def test_a_port_with_another_prefect_server_is_refused_and_no_other_port_suggested(tmp_path: Path) -> None:
    """It may have the same database, and a stack's server on another port would be a second one on it."""
    port = free_port()
    command = ["server", "--host", "127.0.0.1", "--port", str(port)]
    with started(command, tmp_path / "server.log", {"PREFECT_HOME": str(tmp_path / "other")}):
        until("the server", lambda: httpx.get(f"http://127.0.0.1:{port}/api/health").is_success)
        with serving(tmp_path, port=port) as (process, _):
            said = process.communicate(timeout=60)[1]

    assert process.returncode == 2
    assert said == f"flows: A Prefect server answers on port {port} already; stop that one first.\n"


def test_a_port_of_another_program_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with serving(tmp_path, port=port) as (process, _):
            said = process.communicate(timeout=60)[1]

    assert process.returncode == 2
    assert (
        said
        == f"flows: Port {port} is used by a program that is no Prefect server; stop it, or choose a free --port.\n"
    )


def test_a_run_goes_on_by_itself_after_its_stack_was_stopped_and_after_a_power_cut(
    tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZIMAGE_LOST_AFTER_S", "40")  # heartbeats come every 30 s
    monkeypatch.setenv("ZIMAGE_PENDING_S", "60")  # the phase may be stopped before its process has begun
    spec = asked(tmp_path, tiny_base) | {
        "subject": "ada",
        "consent": consent(tmp_path, "ada"),
        "publish": "provisional",
    }
    spec["values"] += ["train.steps=100", "train.checkpoint_every=50"]

    with serving(tmp_path) as (process, api):
        until("the deployments", lambda: len(api.post("/deployments/filter", {})) == len(FLOWS))
        run = api.run("personalize", spec)
        until("a phase", lambda: api.state(run)["type"] == "RUNNING" and api.runs("prepare ada"), every_s=0.05)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    with serving(tmp_path) as (process, api):
        until("the training", lambda: learns(api, "ada"), every_s=0.05)
        stopped = api.states(run)
        kill(process.pid)
    with serving(tmp_path) as (process, api):
        assert api.ended(run, goes_on=True) == "Completed"
        states = api.states(run)
        process.send_signal(signal.SIGINT)

    assert stopped.count("Crashed") == stopped.count("AwaitingRetry") == 1
    assert states.count("Crashed") == states.count("AwaitingRetry") == 2
    assert len(list(tmp_path.glob("store/subjects/ada/releases/*/manifest.json"))) == 1


def test_a_taken_port_for_pages_is_told_before_anything_is_started(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, api), socket.socket() as other:
        other.bind(("127.0.0.1", httpx.URL(api.address).port + 1))  # type: ignore[operator]
        process.wait(timeout=60)

    assert process.returncode == 2
    assert not (tmp_path / "workspaces").exists()


@pytest.mark.parametrize("how", ENDING)
def test_what_asks_to_end_is_ctrl_c_and_does_not_disturb_the_tidying_up(how: signal.Signals) -> None:
    before = signal.getsignal(how)
    tidied = False

    with pytest.raises(KeyboardInterrupt), ended_as_by_ctrl_c():
        try:
            signal.raise_signal(how)
        finally:
            for each in ENDING:
                signal.raise_signal(each)
            tidied = True

    assert tidied
    assert signal.getsignal(how) == before


def test_a_stack_below_nohup_outlives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_as_by_ctrl_c():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_stack_that_is_told_to_end_does_so_after_all_its_parts(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, _):
        below = started_by(process)
        process.terminate()
        process.wait(timeout=60)
        assert running(below) == []

    assert process.returncode == 0


def test_what_a_part_starts_while_it_ends_ends_too(tmp_path: Path) -> None:
    """Whose parent is gone by then, so that nobody finds it below anything."""
    late = tmp_path / "pid"
    starts = f"""
import signal, subprocess, sys
def end(*_):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    open({str(late)!r}, "w").write(str(child.pid))
    sys.exit()
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
signal.pause()
"""
    environment = {**os.environ, MARK: "a part"}
    command = [sys.executable, "-c", starts]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as part:
        assert part.stdout is not None and part.stdout.readline() == "ready\n"
        end(part.pid)

    assert late.is_file()
    assert not runs(int(late.read_text()))


def test_a_stack_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, _):
        below = started_by(process)
        process.kill()
        until("the end of all parts", lambda: not running(below), within_s=HANGS_AFTER_S)


def started_by(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The processes of a stack that has a server and is still making its deployments."""
    until("the deployments", lambda: len(processes_below(process.pid)) > 2, every_s=0.05)
    return processes_below(process.pid)
