"""What tests of whole stacks share: a client of the server, a webhook's receiver, a browser, small values."""

import contextlib
import datetime
import http.server
import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
from playwright.sync_api import Locator, Page

from flows.server import postgres
from flows.server.processes import started
from tests.agreed import agreed
from tests.processes import runs
from zimage.demo import make_demo_photos
from zimage.model.base import Base

HANGS_AFTER_S = 60


# A training has to last until a test on a busy machine has seen it: it does some 100 steps a second.
NUM_PHOTOS, NUM_CHECKPOINTS, EVERY = 16, 6, 500


SMALL = {
    "subject.class_noun": "woman",
    "ingest.min_photos": 6,
    "detect.split.min_train": 4,
    "detect.duplicates.same_shot": None,
    "detect.crops.side_px": 64,
    "train.steps": NUM_CHECKPOINTS * EVERY,
    "train.batch_size": 2,
    "train.micro_batch_size": 2,
    "train.rank": 2,
    "train.checkpoint_every": EVERY,
    "train.samples": {"steps": 1, "guidance_scale": 0.0, "seed": 0},
    "train.schedule.warmup_steps": 1,
    "evaluate.sampling.side_px": 64,
    "evaluate.sampling.steps": 2,
    "evaluate.seeds.test": 1,
    "evaluate.sweep.checkpoints": 0,
    "evaluate.sweep.strengths": [1.0],
    "evaluate.resampling.resamples": 200,
    "evaluate.gate.face_found_rate_min": None,
    "evaluate.gate.same_person_rate_min": None,
    "evaluate.gate.same_person_rate_low_min": None,
    "evaluate.gate.gain_low_min": None,
    "evaluate.gate.copy_rate_max": None,
    "evaluate.gate.nearest_share_max": None,
    "evaluate.gate.second_engine_rate_min": None,
}


BROWSERS = ("chromium", "chromium-browser", "google-chrome")


OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"


def until(what: str, look: Callable[[], Any], within_s: float = 600.0, every_s: float = 0.3) -> Any:
    """The first true thing that `look` returns."""
    begun = time.monotonic()
    while time.monotonic() - begun < within_s:
        with contextlib.suppress(httpx.TransportError):
            if found := look():
                return found
        time.sleep(every_s)
    raise AssertionError(f"{what}: not within {within_s} s")


# One client for all requests, as each new one reads the machine's certificates, but no connection outlives a request:
# a killed server leaves half-closed ones.
CLIENT = httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0))


@dataclass
class Api:
    """What any client can ask of a Prefect server, which wants a token of who changes something."""

    address: str
    auth: tuple[str, str] | None = None

    def post(self, path: str, content: dict[str, Any]) -> Any:
        return self.asked("POST", path, json=content)

    def get(self, path: str) -> Any:
        return self.asked("GET", path)

    def asked(self, method: str, path: str, **content: Any) -> Any:
        headers = {} if method == "GET" else self.token()
        answer = CLIENT.request(method, f"{self.address}{path}", auth=self.auth, headers=headers, **content)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def token(self) -> dict[str, str]:
        """Headers with a token against requests that a page forges; none where the server wants none."""
        client = str(uuid4())
        answer = CLIENT.get(f"{self.address}/csrf-token", params={"client": client}, auth=self.auth)
        return (
            {"Prefect-Csrf-Client": client, "Prefect-Csrf-Token": answer.json()["token"]} if answer.is_success else {}
        )

    def run(self, flow: str, spec: dict[str, Any]) -> str:
        deployment = self.get(f"/deployments/name/{flow}/{flow}")
        created = self.post(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": {"spec": spec}})
        return str(created["id"])

    def state(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get(f"/flow_runs/{run}")["state"]
        return found

    def ended(self, run: str, within_s: float = 600.0, *, goes_on: bool = False) -> str:
        final = {"COMPLETED", "FAILED", "CANCELLED"} | (set() if goes_on else {"CRASHED"})
        until(f"the end of run {run}", lambda: self.state(run)["type"] in final, within_s)
        return str(self.state(run)["name"])

    def runs(self, name: str) -> list[dict[str, Any]]:
        """The runs of a flow for a subject, such as `learn ada`, whatever their reason."""
        found: list[dict[str, Any]] = self.post(
            "/flow_runs/filter", {"flow_runs": {"name": {"like_": f"{name} ("}}, "sort": "START_TIME_ASC"}
        )
        return found

    def states(self, run: str) -> list[str]:
        found = self.get(f"/flow_run_states/?flow_run_id={run}")
        return [each["name"] for each in sorted(found, key=lambda each: each["timestamp"])]

    def log(self, run: str) -> list[str]:
        found = self.post("/logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}})
        return [each["message"] for each in found]

    def artifact(self, key: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get(f"/artifacts/{key}/latest")
        return found

    def place(self, key: str) -> str:
        """Where the UI shows the newest artifact of a key."""
        asked = {"artifacts": {"key": {"any_": [key]}}, "sort": "CREATED_DESC", "limit": 1}
        (found,) = self.post("/artifacts/filter", asked)
        return f"{self.address.removesuffix('/api')}/artifacts/artifact/{found['id']}"


class Receiver(http.server.BaseHTTPRequestHandler):
    """Takes notifications."""

    taken: list[dict[str, Any]]

    def do_POST(self) -> None:
        self.taken.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def receiving() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    taken: list[dict[str, Any]] = []
    handler = type("Taking", (Receiver,), {"taken": taken})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", taken
        server.shutdown()


@contextlib.contextmanager
def server(folder: Path, port: int) -> "Iterator[subprocess.Popen[bytes]]":
    """A server as a stack has it, on PostgreSQL, with everything of it in a folder."""
    with (
        postgres.running(folder / "postgres", folder / "postgres.log", template=postgres.migrated()) as database,
        started(
            ["server", "--host", "127.0.0.1", "--port", str(port)],
            folder / "server.log",
            {"PREFECT_HOME": str(folder), "PREFECT_SERVER_DATABASE_CONNECTION_URL": database.address},
        ) as process,
    ):
        yield process


def worker(pool: str, name: str, folder: Path) -> "contextlib.AbstractContextManager[subprocess.Popen[bytes]]":
    """A worker on a machine of its own: it shares nothing with the others but the server and the store."""
    command = ["worker", "start", "--pool", pool, "--type", "process", "--name", name]
    limit = ["--limit", "1"] if pool == "gpu" else []
    return started([*command, *limit], folder / f"{name}.log", {"ZIMAGE_WORKSPACES": str(folder / name)})


def processes_below(pid: int) -> list[psutil.Process]:
    top = psutil.Process(pid)
    return [top, *top.children(recursive=True)]  # the worker first: it must not see the rest die


def kill(pid: int) -> None:
    """As a machine goes that loses its power."""
    for process in processes_below(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)


def learns(api: Api, subject: str) -> bool:
    return any(run["state"]["type"] == "RUNNING" for run in api.runs(f"learn {subject}"))


def asked(folder: Path, base: Base) -> dict[str, Any]:
    """A spec with everything but the subject and its consent: few photos, few steps, a gate without rules."""
    make_demo_photos(folder / "photos", seed=1)
    for superfluous in sorted((folder / "photos").glob("IMG_1*.jpg"))[NUM_PHOTOS:]:
        superfluous.unlink()
    return {
        "placement": "pools",
        "photos": str(folder / "photos"),
        "base": base.model,
        "values": [f"{key}={json.dumps(value)}" for key, value in SMALL.items()],
    }


def consent(folder: Path, subject: str) -> str:
    """The file of a consent that allows all and soon ends."""
    until = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=20)
    scope = ["training", "evaluation", "publication"]
    return str(agreed(folder, subject, may_publish=True, scope=scope, expires=until))


def answer(page: Page, dialog: Locator) -> None:
    """Send what the dialog holds, once; the server has to take it."""
    with page.expect_response("**/resume") as answered:
        dialog.get_by_role("button", name="Submit").click()
    assert answered.value.ok, answered.value.text()


def running(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [each for each in processes if runs(each.pid)]
