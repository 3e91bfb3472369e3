"""The stack as it runs: a server, workers in folders of their own, a store over HTTP, a browser, and what goes wrong.

One story is told once, and each test looks at a part of it. Ports have to be there. Without a browser the clicking is
skipped, and the summary says so; `.ci/run` installs one.
"""

import contextlib
import datetime
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import httpx
import psutil
import pytest
import yaml
from playwright.sync_api import Locator, Page

from flows.__main__ import LASTING, QUIET
from flows.publish import UNANSWERED
from flows.server.processes import started
from flows.spec import PublishSpec
from tasks.settings import PROJECT
from tests.flows.faulty import Fault, Relay
from tests.flows.stack_parts import (
    EVERY,
    HANGS_AFTER_S,
    NUM_CHECKPOINTS,
    Api,
    answer,
    asked,
    consent,
    kill,
    learns,
    receiving,
    server,
    until,
    worker,
)
from tests.ports import free_port
from tests.tasks.faults import serving_s3
from zimage.core.folder import aside_of
from zimage.model.base import Base

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]


BUCKET, STORE = "faces", "s3://faces/project"


FAULTS: tuple[Fault, ...] = ("refuse", "error", "cut", "slow")


CANCELLED_WITHIN_S = 10  # promised; it takes 2 (infra/benchmarks.md), and 20 where only Prefect cancels


LOST_AFTER_S = 60  # instead of 90: twice as long as between two heartbeats


PICTURES = Path(os.environ.get("CI_ARTIFACTS", PROJECT / "build")) / "ui"  # what a person sees, for whoever runs this


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


@contextlib.contextmanager
def bucket() -> Iterator[tuple[Relay, Any]]:
    """A store over HTTP behind a relay that can fail, and a client that goes around the relay."""
    with serving_s3() as address:
        client = boto3.client("s3", endpoint_url=address)
        client.create_bucket(Bucket=BUCKET)
        relay = Relay(address)
        yield relay, client
        relay.close()


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
    api = Api(f"http://127.0.0.1:{port}/api")
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        for name, value in {
            **QUIET,
            **LASTING,
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": api.address,
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
        running.enter_context(server(folder / "prefect", port))
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
        until("both phases", lambda: all(learns(api, subject) for subject in runs), every_s=0.05)
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
        running.enter_context(server(folder / "prefect", port))
        told.facts["ends"] = {subject: api.ended(run, goes_on=True) for subject, run in runs.items()}
        spoiling.join()
        yield told


def last_kept(story: Story, subject: str) -> str:
    """The last checkpoint of a training that has not ended."""
    return str(json.loads(story.stored(f"subjects/{subject}/unfinished/index.json") or b"{}").get("last", ""))


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


def test_a_lost_parent_goes_on_as_the_same_run_and_starts_no_phase_twice(story: Story) -> None:
    for subject, learnt in (("ada", 1), ("bob", 2)):
        (run,) = story.api.runs(f"personalize {subject}")
        states = story.api.states(run["id"])

        assert states.count("Crashed") == states.count("AwaitingRetry") == 1
        assert (states[-1], run["run_count"]) == ("Completed", 2)
        assert len(story.api.runs(f"prepare {subject}")) == 1
        assert len(story.api.runs(f"learn {subject}")) == learnt
    # Nobody was taken for lost a second time.
    assert "Run is already in terminal state CRASHED" not in (story.folder / "prefect" / "server.log").read_text()


def test_what_was_kept_of_an_unfinished_training_is_gone_when_it_ends(story: Story) -> None:
    assert [key for subject in ("ada", "bob") for key in story.keys(f"subjects/{subject}/unfinished")] == []


def test_a_store_that_fails_in_every_way_is_waited_for(story: Story) -> None:
    assert {fault for fault, count in story.relay.spoilt.items() if count} == set(FAULTS) - {"refuse"}
    assert set(story.facts["ends"].values()) == {"Completed"}


def told_of(story: Story, title: str) -> str:
    """The text of the notification that a webhook got under a title."""
    found = until(f"a notification `{title}`", lambda: [each for each in story.notified if each["title"] == title], 60)
    return str(found[0]["text"])


def test_a_phase_that_is_too_early_says_so_and_a_webhook_is_told(story: Story) -> None:
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
    warn = "import pathlib as p, sys, tasks.prefect_api.artifacts as shown; shown.warn_of_verdict(p.Path(sys.argv[1]))"

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
    fields = page.locator(".schema-form-property")  # the parameter, then the fields of its model
    fields.nth(len(PublishSpec.model_fields)).wait_for()
    titles = [text.splitlines()[0].removesuffix(" (Optional)") for text in fields.all_inner_texts()]
    assert titles[1:] == [field.title for field in PublishSpec.model_fields.values()]
    fields.nth(1).locator("textarea").fill("ada")
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
    values = ["train.steps=20000"]  # cancelled long before
    run = story.api.run("personalize", {"subject": "ada", "placement": "pools", "values": values})
    index = "subjects/ada/unfinished/index.json"
    until("a checkpoint", lambda: story.stored(index))
    (workspace,) = (path.parent.parent for path in story.folder.glob("*/ada/data/.train.part"))

    cancel(story, run, workspace)

    assert story.api.ended(run) == "Cancelled"
    assert until("the phase's end", lambda: story.api.runs("learn ada")[-1]["state"]["type"] == "CANCELLED")
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
