"""The stack as it runs: a server, workers in folders of their own, a store over HTTP, a browser, and what goes wrong.

One story is told once, and each test looks at a part of it. Ports have to be there. Without a browser the clicking is
skipped, and the summary says so; `.ci/run` installs one.
"""

import contextlib
import datetime
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import httpx
import psutil
import pytest
import yaml
from playwright.sync_api import Locator, Page, sync_playwright

from flows.__main__ import LASTING, QUIET
from flows.publish import UNANSWERED
from flows.stack import ENDING, MARK, end, ended_as_by_ctrl_c, started
from tasks.policy import FLOWS
from tasks.settings import PROJECT
from tests.agreed import agreed
from tests.flows.faulty import Fault, Relay
from tests.ports import free_port
from tests.postgres import serving_postgres
from tests.processes import runs
from tests.tasks.faults import serving_s3
from zimage.demo import make_demo_photos
from zimage.folder import aside_of
from zimage.model.base import Base

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]

BUCKET, STORE = "faces", "s3://faces/project"
FAULTS: tuple[Fault, ...] = ("refuse", "error", "cut", "slow")
CANCELLED_WITHIN_S = 10  # promised; it takes 2 (infra/benchmarks.md), and 20 where only Prefect cancels
HANGS_AFTER_S = 60
LOST_AFTER_S = 60  # instead of 90: twice as long as between two heartbeats
NUM_PHOTOS, NUM_CHECKPOINTS, EVERY = 16, 6, 50
SMALL = {
    "subject.class_noun": "woman",
    "ingest.min_photos": 6,
    "detect.split.min_train": 4,
    "detect.crops.side_px": 64,
    "train.steps": NUM_CHECKPOINTS * EVERY,
    "train.batch": 2,
    "train.at_once": 2,
    "train.rank": 2,
    "train.checkpoint_every": EVERY,
    "train.samples": {"steps": 1, "guidance_scale": 0.0, "seed": 0},
    "train.schedule.warmup_steps": 1,
    "evaluate.sampling.side_px": 64,
    "evaluate.sampling.steps": 2,
    "evaluate.seeds.reporting": 1,
    "evaluate.sweep.checkpoints": 0,
    "evaluate.sweep.strengths": [1.0],
    "evaluate.resampling.resamples": 200,
    "evaluate.gate.face_found_rate_min": None,
    "evaluate.gate.same_person_rate_min": None,
    "evaluate.gate.same_person_rate_low_min": None,
    "evaluate.gate.gain_low_min": None,
    "evaluate.gate.copy_rate_max": None,
    "evaluate.gate.nearest_share_max": None,
}
PICTURES = Path(os.environ.get("CI_ARTIFACTS", PROJECT / "build")) / "ui"  # what a person sees, for whoever runs this
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"


def until(what: str, look: Callable[[], Any], within_s: float = 400.0, every_s: float = 0.3) -> Any:
    """The first true thing that `look` returns."""
    begun = time.monotonic()
    while time.monotonic() - begun < within_s:
        with contextlib.suppress(httpx.TransportError):
            if found := look():
                return found
        time.sleep(every_s)
    raise AssertionError(f"{what}: not within {within_s} s")


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
        asked = {"timeout": 60, "auth": self.auth, "headers": headers}
        answer = httpx.request(method, f"{self.address}{path}", **asked, **content)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def token(self) -> dict[str, str]:
        """Headers with a token against requests that a page forges; none where the server wants none."""
        client = str(uuid4())
        answer = httpx.get(f"{self.address}/csrf-token", params={"client": client}, timeout=60, auth=self.auth)
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

    def ended(self, run: str, within_s: float = 300.0, *, goes_on: bool = False) -> str:
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


@dataclass
class Story:
    """What happened."""

    folder: Path
    api: Api
    relay: Relay
    client: Any
    notified: list[dict[str, Any]]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def ui(self) -> str:
        return self.api.address.removesuffix("/api")

    def stored(self, key: str) -> bytes | None:
        try:
            content: bytes = self.client.get_object(Bucket=BUCKET, Key=f"project/{key}")["Body"].read()
        except self.client.exceptions.NoSuchKey:
            return None
        return content

    def keys(self, below: str) -> list[str]:
        found = self.client.list_objects_v2(Bucket=BUCKET, Prefix=f"project/{below}").get("Contents", [])
        return [entry["Key"].removeprefix("project/") for entry in found]

    def lora(self, subject: str) -> bytes:
        return self._trained(subject, "lora.safetensors").read_bytes()

    def metrics(self, subject: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._trained(subject, "metrics.json").read_text())
        return found

    def _trained(self, subject: str, name: str) -> Path:
        """A file on the one machine that trained; others may have fetched it."""
        places = [self.folder / worker / subject / "data" / "train" / name for worker in ("one", "two")]
        (path,) = [place for place in places if place.is_file()]
        return path


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
def bucket() -> Iterator[tuple[Relay, Any]]:
    """A store over HTTP behind a relay that can fail, and a client that goes around the relay."""
    with serving_s3() as address:
        client = boto3.client("s3", endpoint_url=address)
        client.create_bucket(Bucket=BUCKET)
        relay = Relay(address)
        yield relay, client
        relay.close()


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


def spoil(relay: Relay, faults: tuple[Fault, ...]) -> None:
    """Let the store fail in each way, until it has been noticed each time."""
    for fault in faults:
        relay.fail(fault)
        begun = time.monotonic()
        enough = 4.0 if fault == "refuse" else 60.0  # refused connections cannot be counted
        while relay.spoilt.get(fault, 0) < 2 and time.monotonic() - begun < enough:
            if fault == "refuse":
                with socket.socket() as probe:
                    assert probe.connect_ex(("127.0.0.1", relay.port)) != 0
            time.sleep(0.1)
    relay.fail("none")


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, tiny_base: Base) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("stack")
    port = free_port()
    server = ["server", "start", "--host", "127.0.0.1", "--port", str(port)]
    api = Api(f"http://127.0.0.1:{port}/api")
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        for name, value in {
            **QUIET,
            **LASTING,
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": api.address,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "2",
            "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",  # as `serve` has it
            "PYTHONPATH": str(PROJECT),
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "ZIMAGE_STORE": STORE,
            "ZIMAGE_AT_ONCE": "4",  # whatever the size of this machine
            "ZIMAGE_LOST_AFTER_S": str(LOST_AFTER_S),
            "OMP_NUM_THREADS": "1",
        }.items():
            patch.setenv(name, value)
        relay, client = stack.enter_context(bucket())
        patch.setenv("AWS_ENDPOINT_URL_S3", relay.address)
        webhook, notified = stack.enter_context(receiving())
        patch.setenv("ZIMAGE_NOTIFY", webhook)
        told = Story(folder, api, relay, client, notified)
        running = contextlib.ExitStack()
        stack.callback(running.close)
        running.enter_context(started(server, folder / "server.log"))
        until("the server", lambda: httpx.get(f"{api.address}/health").is_success)
        subprocess.run([sys.executable, "-m", "flows", "deploy"], cwd=PROJECT, check=True)
        stack.enter_context(started(["watch"], folder / "watch.log"))
        workers = {"cpu": stack.enter_context(worker("cpu", "cpu", folder))}
        workers |= {name: stack.enter_context(worker("gpu", name, folder)) for name in ("one", "two")}

        spec = asked(folder, tiny_base)
        runs = {
            subject: api.run("personalize", {"subject": subject, **spec, "consent": consent(folder, subject)})
            for subject in ("bob", "ada")
        }
        until("the store knows ada", lambda: told.stored("states/ada.json"))
        spoiling = threading.Thread(target=spoil, args=(relay, FAULTS))
        spoiling.start()
        until("both legs", lambda: all(learns(api, subject) for subject in runs), every_s=0.05)
        kill(workers["cpu"].pid)  # both parents go with it
        until("bob's first checkpoint in the store", lambda: last_kept(told, "bob"), every_s=0.05)
        (aside,) = folder.glob("*/bob/data/.train.part")
        lost = aside.relative_to(folder).parts[0]
        kill(workers[lost].pid)
        stack.enter_context(worker("cpu", "spare", folder))
        told.facts["lost"] = lost
        first = last_kept(told, "bob")
        until("bob's training goes on", lambda: last_kept(told, "bob") > first)

        running.close()  # the server goes too, in the middle of it all
        running.enter_context(started(server, folder / "server.log"))
        told.facts["ends"] = {subject: api.ended(run, goes_on=True) for subject, run in runs.items()}
        spoiling.join()
        yield told


def learns(api: Api, subject: str) -> bool:
    return any(run["state"]["type"] == "RUNNING" for run in api.runs(f"learn {subject}"))


def last_kept(story: Story, subject: str) -> str:
    """The last checkpoint of a training that has not ended."""
    return str(json.loads(story.stored(f"subjects/{subject}/unfinished/index.json") or b"{}").get("last", ""))


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


def test_two_subjects_at_once_become_loras_on_other_machines(story: Story) -> None:
    assert story.facts["ends"] == {"ada": "Completed", "bob": "Completed"}
    for subject in ("ada", "bob"):
        state = json.loads(story.stored(f"states/{subject}.json") or b"")
        assert set(yaml.safe_load(state["lock"])["stages"]) == {
            *("ingest", "detect", "caption", "encode", "train", "evaluate"),
        }


def test_no_photo_reaches_the_machine_that_learns(story: Story) -> None:
    """It fetches what its stages read, and nothing before that."""
    for learning in ("one", "two"):
        for workspace in (story.folder / learning).iterdir():
            assert not (workspace / "data" / "photos").exists()
            assert not (workspace / "data" / "ingest").exists()
    assert (story.folder / "cpu" / "ada" / "data" / "photos").is_dir()


def test_a_lost_worker_s_training_ends_elsewhere_with_the_same_lora(story: Story) -> None:
    lost, done = story.api.runs("learn bob")

    assert (lost["state"]["name"], done["state"]["name"]) == ("Crashed", "Completed")
    assert "Its worker was lost" in lost["state"]["message"]
    assert not list(story.folder.glob(f"{story.facts['lost']}/bob/data/train"))
    assert story.metrics("bob")["resumed_after"] > 0
    assert story.metrics("ada")["resumed_after"] == 0
    assert story.lora("bob") == story.lora("ada")


def test_a_lost_parent_goes_on_as_the_same_run_and_starts_no_leg_twice(story: Story) -> None:
    for subject, learnt in (("ada", 1), ("bob", 2)):
        (run,) = story.api.runs(f"personalize {subject}")
        states = story.api.states(run["id"])

        assert states.count("Crashed") == states.count("AwaitingRetry") == 1
        assert (states[-1], run["run_count"]) == ("Completed", 2)
        assert len(story.api.runs(f"prepare {subject}")) == 1
        assert len(story.api.runs(f"learn {subject}")) == learnt
    # Nobody was taken for lost a second time.
    assert "Run is already in terminal state CRASHED" not in (story.folder / "server.log").read_text()


def test_what_was_kept_of_an_unfinished_training_is_gone_when_it_ends(story: Story) -> None:
    assert [key for subject in ("ada", "bob") for key in story.keys(f"subjects/{subject}/unfinished")] == []


def test_a_store_that_fails_in_every_way_is_waited_for(story: Story) -> None:
    assert {fault for fault, count in story.relay.spoilt.items() if count} == set(FAULTS) - {"refuse"}
    assert set(story.facts["ends"].values()) == {"Completed"}


def told_of(story: Story, title: str) -> str:
    """The text of the notification that a webhook got under a title."""
    found = until(f"a notification `{title}`", lambda: [each for each in story.notified if each["title"] == title], 60)
    return str(found[0]["text"])


def test_a_leg_that_is_too_early_says_so_and_a_webhook_is_told(story: Story) -> None:
    run = story.api.run("learn", {"subject": "eve", "placement": "pools"})

    assert story.api.ended(run) == "Failed"
    said = "eve is not prepared: no consent is known here"
    assert said in story.api.state(run)["message"]
    assert said in told_of(story, "learn eve (asked): Failed")


def test_a_webhook_is_told_of_lost_runs(story: Story) -> None:
    assert "Its worker was lost, no heartbeat came" in told_of(story, "learn bob (asked): Crashed")
    assert "Its worker was lost, no heartbeat came" in told_of(story, "personalize ada (asked): Crashed")


def test_a_webhook_is_told_of_a_gate_that_failed(story: Story) -> None:
    evaluated = story.folder / "joe" / "data" / "evaluate"
    evaluated.mkdir(parents=True)
    (evaluated / "metrics.json").write_text(json.dumps({"verdict": "fail", "why": "too few faces are found"}))
    warn = "import pathlib as p, sys, tasks.shown as shown; shown.warn_of_verdict(p.Path(sys.argv[1]))"

    subprocess.run([sys.executable, "-c", warn, str(evaluated.parents[1])], cwd=PROJECT, check=True)

    assert told_of(story, "joe: the verdict is fail").endswith("Its report says which limits were missed.")


def test_the_ui_shows_progress_and_numbers(story: Story) -> None:
    progress = story.api.artifact("ada-train-progress")
    assert progress["data"] == 100.0
    assert progress["description"].startswith(f"finished: train {NUM_CHECKPOINTS * EVERY} of {NUM_CHECKPOINTS * EVERY}")
    numbers = {row["number"]: row["value"] for row in json.loads(story.api.artifact("ada-evaluate")["data"])}
    assert numbers["verdict"] == "provisional"


def test_a_scan_starts_nothing_where_nothing_changed_and_warns_of_consents_that_end(story: Story) -> None:
    looks = [story.api.run("retrain", {}) for _ in range(2)]

    assert [story.api.ended(run) for run in looks] == ["Completed", "Completed"]
    waited = ["AwaitingConcurrencySlot" in story.api.states(run) for run in looks]
    assert sorted(waited) == [False, True]  # one after the other: both would start what changed
    assert story.api.artifact("retrain")["description"] == "2 subjects in the store: 2 unchanged"
    ends = yaml.safe_load((story.folder / "ada.yaml").read_text())["expires"]
    for subject in ("ada", "bob"):
        assert "It will have to be renewed." in told_of(story, f"{subject}: consent until {ends}")


@pytest.fixture
def page() -> Iterator[Page]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("NO BROWSER, so nothing was clicked; `apt-get install chromium` and run again")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", OFFLINE])
        found = browser.new_page(viewport={"width": 1400, "height": 1200})
        found.set_default_timeout(60_000)
        yield found
        browser.close()


def picture(page: Page, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}.png", full_page=True)


def question(story: Story, page: Page, run: str) -> Locator:
    """What the UI asks a person, once a run waits for an answer."""
    inputs = f"/flow_runs/{run}/input/filter"
    until("the question", lambda: story.api.post(inputs, {"prefix": "suspended-", "limit": 3})[1:])  # form and text
    assert story.api.state(run)["name"] == "Suspended"
    page.goto(f"{story.ui}/runs/flow-run/{run}")
    page.get_by_role("button", name="Resume").first.click()
    return page.get_by_role("dialog")


def answer(page: Page, dialog: Locator) -> None:
    """Send what the dialog holds, once; the server has to take it."""
    with page.expect_response("**/resume") as answered:
        dialog.get_by_role("button", name="Submit").click()
    assert answered.value.ok, answered.value.text()


OFFER = {"subject": "bob", "placement": "pools", "accept_provisional": True, "approval": True}


def suspended(story: Story) -> str:
    """A run of `publish` that waits for a person."""
    run = story.api.run("publish", OFFER)
    until("the question", lambda: story.api.state(run)["name"] == "Suspended")
    return run


def test_a_run_that_is_resumed_without_an_answer_says_so_and_publishes_nothing(story: Story) -> None:
    run = suspended(story)
    story.api.post(f"/flow_runs/{run}/resume", {})

    assert story.api.ended(run) == "Unanswered"
    assert story.api.state(run)["message"] == UNANSWERED
    assert story.keys("subjects/bob/releases") == []


def test_a_question_that_nobody_answers_in_time_fails_and_a_webhook_is_told(story: Story) -> None:
    run = suspended(story)
    now = datetime.datetime.now(datetime.UTC).isoformat()
    details = {**story.api.state(run)["state_details"], "pause_timeout": now}
    state = {"type": "PAUSED", "name": "Suspended", "state_details": details}
    story.api.post(f"/flow_runs/{run}/set_state", {"state": state, "force": True})

    assert story.api.ended(run) == "Failed"
    assert "was paused and never resumed" in told_of(story, "publish bob (asked): Failed")
    assert story.keys("subjects/bob/releases") == []


def test_a_release_is_refused_by_clicking_and_nothing_is_published(story: Story, page: Page) -> None:
    run = story.api.run("publish", OFFER)
    dialog = question(story, page, run)
    dialog.locator("textarea").fill("not her smile")  # `refuse` is chosen until somebody chooses otherwise
    page.keyboard.press("Tab")
    answer(page, dialog)

    assert story.api.ended(run) == "Refused"
    assert story.api.state(run)["message"] == "not her smile"
    page.goto(f"{story.ui}/runs/flow-run/{run}")
    page.get_by_text("Refused").first.wait_for()
    picture(page, "9-refused")
    assert story.keys("subjects/bob/releases") == []


def test_a_release_is_asked_for_and_approved_by_clicking(story: Story, page: Page) -> None:
    page.goto(f"{story.ui}/deployments")
    page.get_by_role("link", name="publish", exact=True).first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    page.locator("textarea").first.fill("ada")
    page.keyboard.press("Tab")  # the form takes a value over when it is left
    picture(page, "1-form")
    with page.expect_response("**/create_flow_run"):
        page.get_by_role("button", name="Submit").click()
    (run,) = until("the run", lambda: story.api.runs("publish ada"))

    dialog = question(story, page, run["id"])
    assert run["id"] in told_of(story, "publish ada (asked): waits for a decision")  # the link to the question
    dialog.get_by_text("ada: provisional").wait_for()
    dialog.get_by_text("of the pictures are copies of a training photo").wait_for()
    picture(page, "2-question")
    assert story.keys("subjects/ada/releases") == []  # nothing before somebody said so
    choice = dialog.locator("button.p-select-button__control")
    choice.focus()
    choice.press("ArrowDown")
    page.locator(".p-select-option", has_text="publish").click()
    answer(page, dialog)

    assert story.api.ended(run["id"]) == "Completed"
    page.goto(f"{story.ui}/runs/flow-run/{run['id']}")
    page.get_by_text("Completed").first.wait_for()
    picture(page, "3-released")
    assert any(key.endswith("/manifest.json") for key in story.keys("subjects/ada/releases"))


def test_a_person_sees_what_a_run_did_and_opens_its_pages(story: Story, page: Page) -> None:
    *_, run = story.api.runs("learn bob")
    page.goto(f"{story.ui}/runs/flow-run/{run['id']}")
    page.get_by_text("Artifacts", exact=True).first.click()
    page.get_by_text("bob-train-progress").first.wait_for()
    picture(page, "4-artifacts")
    page.goto(story.api.place("bob-loss"))
    loss = page.locator("img[alt='training loss']")
    until("the curve", lambda: loss.evaluate("image => image.complete && image.naturalWidth"))
    picture(page, "5-loss")
    for key, name, heading in (
        ("bob-training", "6-training", "Training of bob"),
        ("bob-report", "7-report", "look like the person"),
        ("bob-contact-sheet", "8-contact-sheet", "Contact sheet"),
    ):
        page.goto(story.api.place(key))
        with page.expect_popup() as opened:
            page.locator("a[target=_blank]", has_text="of bob").click()
        opened.value.get_by_role("heading", level=1, name=heading).wait_for()
        until("its pictures", lambda: opened.value.locator("img").first.evaluate("image => image.naturalWidth"))
        picture(opened.value, name)
        if name == "6-training":
            pictures = opened.value.locator("tbody img")
            until("one of each", lambda: pictures.count() == NUM_CHECKPOINTS, HANGS_AFTER_S)  # noqa: B023


def test_a_person_sees_what_retrain_found_where_a_channel_points_and_what_there_is_of_somebody(
    story: Story, page: Page
) -> None:
    assert story.api.ended(story.api.run("promote", {"subject": "ada", "channel": "staging"})) == "Completed"
    photos = story.folder / "photos"
    first = min(photos.glob("*.jpg"))
    first.rename(photos / f"new-{first.name}")
    for flow, spec in (("retrain", {"only_look": True}), ("forget", {"subject": "ada"})):
        assert story.api.ended(story.api.run(flow, spec)) == "Completed"
    (photos / f"new-{first.name}").rename(first)

    for number, (key, said) in enumerate(
        (
            ("retrain", "skipped: this run only looked"),
            ("subjects", "provisional"),
            ("ada-promote", "The channel staging of ada points to"),
            ("ada-forget", "Nothing was deleted"),
        ),
        start=10,
    ):
        page.goto(story.api.place(key))
        page.get_by_text(said).first.wait_for()
        picture(page, f"{number}-{key}")


def test_cancelling_ends_every_process_within_seconds_and_the_next_run_goes_on(story: Story) -> None:
    values = ["train.steps=5000"]
    run = story.api.run("personalize", {"subject": "ada", "placement": "pools", "values": values})
    index = "subjects/ada/unfinished/index.json"
    until("a checkpoint", lambda: story.stored(index))
    (workspace,) = (path.parent.parent for path in story.folder.glob("*/ada/data/.train.part"))

    cancel(story, run, workspace)

    assert story.api.ended(run) == "Cancelled"
    assert until("the leg's end", lambda: story.api.runs("learn ada")[-1]["state"]["type"] == "CANCELLED")
    assert story.api.artifact("ada-train-progress")["description"].startswith("cancelled: train ")
    kept = last_kept(story, "ada")
    here = max(path.name for path in aside_of(workspace / "data" / "train").glob("resume/step-*.safetensors"))
    assert kept <= here  # the last one may not have been sent yet

    again = story.api.run("learn", {"subject": "ada", "placement": "pools"})
    until("a later checkpoint", lambda: last_kept(story, "ada") > here)
    goes_on = "going on after step "
    (said,) = until(
        "that it goes on",
        lambda: [line.removeprefix(goes_on) for line in story.api.log(again) if line.startswith(goes_on)],
        within_s=HANGS_AFTER_S,
    )
    assert int(said) in (step_of(kept), step_of(here))  # another machine knows what was sent only
    cancel(story, again, workspace)
    assert story.api.ended(again) == "Cancelled"


def step_of(checkpoint: str) -> int:
    return int(checkpoint.removeprefix("step-").partition(".")[0])


def cancel(story: Story, run: str, workspace: Path) -> None:
    """Cancel a run that trains in a workspace, and see every process there end."""
    assert any("zimage" in process.cmdline() for process in working_in(workspace))

    story.api.post(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}, "force": False})

    until("the end of all processes", lambda: not working_in(workspace), CANCELLED_WITHIN_S, every_s=0.1)


def working_in(folder: Path) -> list[psutil.Process]:
    """All processes whose working directory is a workspace: DVC, and the stage below it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


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


def running(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [each for each in processes if runs(each.pid)]


def test_one_command_runs_a_stack_and_ctrl_c_ends_all_of_it(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, api):
        assert process.stdout is not None
        assert process.stdout.readline() == f"UI       {api.address.removesuffix('/api')}\n"
        deployed = {each["name"] for each in api.post("/deployments/filter", {})}
        for pool in ("cpu", "gpu"):
            until(f"the worker of {pool}", lambda: api.post(f"/work_pools/{pool}/workers/filter", {}))  # noqa: B023
        below = processes_below(process.pid)
        sockets = [each for one in below for each in one.net_connections()]
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)

    assert deployed >= {"personalize", "prepare", "learn", "publish", "retrain"}
    assert {each.laddr.ip for each in sockets if each.status == "LISTEN"} == {"127.0.0.1"}
    assert process.returncode == 0
    assert running(below) == []


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


def test_a_schedule_starts_a_run_by_itself_on_postgresql(tmp_path: Path) -> None:
    with (
        serving_postgres() as address,
        serving(tmp_path, PREFECT_SERVER_DATABASE_CONNECTION_URL=address) as (process, api),
    ):
        assert process.stdout is not None and process.stdout.readline()
        deployment = api.get("/deployments/name/retrain/retrain")
        fired = ended_run(api, add_schedule(api, deployment["id"]))

    assert fired["auto_scheduled"]
    assert fired["state"]["name"] == "Completed"
    assert not (tmp_path / "prefect" / "prefect.db").exists()


def lock_of(home: Path, *, other_than: str = "") -> str:
    """What the lock of a home says, once a server has taken it."""
    path = home / "zimage-server.lock"
    return str(
        until("the lock", lambda: path.is_file() and path.read_text() != other_than and path.read_text(), HANGS_AFTER_S)
    )


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


def test_a_page_of_another_origin_can_neither_read_nor_do_anything(tmp_path: Path, page: Page) -> None:
    with serving(tmp_path) as (process, api), receiving() as (foreign, _):
        assert process.stdout is not None and process.stdout.readline()
        page.goto(foreign)  # an error page, and of its origin all the same
        found = page.evaluate(FOREIGN, api.address)
        forged = httpx.post(f"{api.address}/flows/", json={"name": "foreign"})  # as a page that could hide its origin
        flows = {each["name"] for each in api.post("/flows/filter", {})}
        rebound = [
            httpx.get(f"{api.address}/version", headers={"Host": host})
            for host in ("foreign.example:4200", "prefect-in-memory")
        ]
        environment = {**os.environ, "PREFECT_API_URL": api.address, "ZIMAGE_STORE": str(tmp_path / "store")}
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


def test_the_address_of_a_webhook_is_in_no_answer_no_database_and_no_worker(tmp_path: Path) -> None:
    failed = {
        "event": "zimage.gate.failed",
        "occurred": datetime.datetime.now(datetime.UTC).isoformat(),
        "resource": {"prefect.resource.id": "zimage.subject.joe"},
        "payload": {"why": "too few faces are found"},
        "id": str(uuid4()),
    }
    with receiving() as (webhook, notified):
        address = f"{webhook}services/a-secret-word"
        with serving(tmp_path, ZIMAGE_NOTIFY=address) as (process, api):
            assert process.stdout is not None and process.stdout.readline()
            api.post("/events", [failed])
            until("the notification", lambda: notified, 60)
            blocks = {"include_secrets": True}
            answers = [
                api.post(f"/{kind}/filter", blocks if kind == "block_documents" else {})
                for kind in ("block_documents", "automations", "events", "deployments", "work_pools")
            ]
            below = [psutil.Process(each.pid) for each in processes_below(process.pid)[1:]]
            knowing = [each.cmdline() for each in below if address in each.environ().values()]
        stored = [path for path in (tmp_path / "prefect").rglob("*") if path.is_file()]

    assert [each["title"] for each in notified] == ["joe: the verdict is fail"]
    assert "zimage.gate.failed" in json.dumps(answers) and "a-secret-word" not in json.dumps(answers)
    assert [path for path in stored if b"zimage-gate-failed" in path.read_bytes()]
    assert [path for path in stored if b"a-secret-word" in path.read_bytes()] == []
    assert knowing and all("flows.server" in " ".join(command) for command in knowing)


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
    command = ["server", "start", "--host", "127.0.0.1", "--port", str(port)]
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
    spec = asked(tmp_path, tiny_base) | {
        "subject": "ada",
        "consent": consent(tmp_path, "ada"),
        "publish": "provisional",
    }
    spec["values"] += ["train.steps=100"]

    with serving(tmp_path) as (process, api):
        until("the deployments", lambda: len(api.post("/deployments/filter", {})) == len(FLOWS))
        run = api.run("personalize", spec)
        until("a leg", lambda: api.state(run)["type"] == "RUNNING" and api.runs("prepare ada"), every_s=0.05)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    with serving(tmp_path) as (process, api):
        until("the training", lambda: learns(api, "ada"), every_s=0.05)
        stopped = api.states(run)
        kill(process.pid)
    with serving(tmp_path) as (process, api):
        assert api.ended(run, within_s=400, goes_on=True) == "Completed"
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
