"""Queues, with a real server and real workers: how many runs are under way at once, and who takes which."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.__main__ import LASTING, QUIET
from flows.server.processes import started
from flows.server.stack import worker
from tasks.settings import PROJECT
from tests.flows.stack_parts import server
from tests.ports import free_port

pytestmark = pytest.mark.timeout(300)
SUBJECTS = ("ada", "bob", "eve")


def until(what: str, look: Any, within_s: float) -> None:
    begun = time.monotonic()
    while time.monotonic() - begun < within_s:
        with contextlib.suppress(httpx.TransportError):
            if look():
                return
        time.sleep(0.3)
    raise AssertionError(f"{what}: not within {within_s} s")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that has our deployments."""
    folder, port = tmp_path_factory.mktemp("limit"), free_port()
    api = f"http://127.0.0.1:{port}/api"
    settings = {
        **QUIET,
        **LASTING,
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": api,
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PYTHONPATH": str(PROJECT),
        "ZIMAGE_STORE": str(folder / "store"),
        "ZIMAGE_WORKSPACES": str(folder / "workspaces"),
        "ZIMAGE_AT_ONCE": "1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        with server(folder / "prefect", port):
            until("the server", lambda: httpx.get(f"{api}/health").is_success, 90)
            subprocess.run([sys.executable, "-m", "flows", "deploy"], cwd=PROJECT, check=True, env=os.environ)
            yield api


def test_parents_wait_in_order_for_their_limit_and_their_phases_do_not(tmp_path: Path, api: str) -> None:
    queue = httpx.get(f"{api}/work_pools/cpu/queues/personalize", timeout=60).json()
    deployment = httpx.get(f"{api}/deployments/name/personalize/personalize", timeout=60).json()
    given = {"placement": "pools", "class_noun": "woman", "photos": str(tmp_path / "none"), "consent": "none.yaml"}
    asked = [{"parameters": {"spec": {"subject": each, **given}}} for each in SUBJECTS]
    start = f"{api}/deployments/{deployment['id']}/create_flow_run"
    runs = [httpx.post(start, json=each, timeout=60).json()["id"] for each in asked]

    def read() -> list[dict[str, Any]]:
        return [httpx.get(f"{api}/flow_runs/{run}", timeout=60).json() for run in runs]

    with started(worker("cpu", name="cpu"), tmp_path / "worker.log"):
        until("the end of all", lambda: all(each["state"]["type"] == "FAILED" for each in read()), 200)
    ended = read()
    phases = httpx.post(f"{api}/flow_runs/filter", json={"flows": {"name": {"any_": ["prepare"]}}}, timeout=60).json()

    assert queue["concurrency_limit"] == 1
    assert len(phases) == len(SUBJECTS)  # each parent waited for one that refused: there are no photos
    assert all(phase["state"]["type"] == "FAILED" and phase["work_queue_name"] == "default" for phase in phases)
    for before, after in pairwise(ended):
        assert before["end_time"] <= after["start_time"]


def test_a_worker_of_a_queue_leaves_the_runs_of_other_rights_to_others(tmp_path: Path, api: str) -> None:
    runs = [started_run(api, name) for name in ("forget", "promote")]
    with started(worker("cpu", name="publisher", queues=["publish"]), tmp_path / "publisher.log"):
        until("the end of one", lambda: states(api, runs)[1] == "FAILED", 200)  # there is no release
    left = states(api, runs)[0]
    with started(worker("cpu", name="eraser", queues=["forget"]), tmp_path / "eraser.log"):
        until("the end of the other", lambda: states(api, runs)[0] == "COMPLETED", 200)

    assert left == "SCHEDULED"


def started_run(api: str, name: str) -> str:
    """Start a run of a deployment about somebody who is not there, and return its id."""
    deployment = httpx.get(f"{api}/deployments/name/{name}/{name}", timeout=60).json()
    asked = {"parameters": {"spec": {"subject": "joe"}}}
    made = httpx.post(f"{api}/deployments/{deployment['id']}/create_flow_run", json=asked, timeout=60).json()
    return str(made["id"])


def states(api: str, runs: list[str]) -> list[str]:
    return [httpx.get(f"{api}/flow_runs/{run}", timeout=60).json()["state"]["type"] for run in runs]
