"""What a person reads in the state of a stage's task: a real server, real DVC, and stages that do next to nothing."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prefect import flow
from prefect.client.schemas.objects import State

from tasks.prefect_api.artifacts import show_results
from tasks.settings import Settings
from tasks.stages import train
from tasks.workspace.dvc import preloaded
from tasks.workspace.workspace import Outcome, make
from tests.processes import runs
from zimage.core.signatures import STAGES

TIMEOUT_S = 10.0  # DVC has begun the stage in a second, on a quiet machine
TRAIN = """
import json, os, pathlib, subprocess, sys, time, yaml
with open(os.environ["ZIMAGE_PROGRESS"], "a") as progress:  # as every command of `zimage` reports
    print(json.dumps({"stage": os.environ["DVC_STAGE"]}), file=progress)
params = yaml.safe_load(pathlib.Path("params.yaml").read_text())["train"]
if params["sleeps"]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    pathlib.Path("sleeping").write_text(f"{os.getpid()} {child.pid}")
    time.sleep(600)
out = pathlib.Path("data/train")
out.mkdir(parents=True)
(out / "loss.csv").write_text("step,loss\\n1,0.5\\n2,0.4\\n")
"""
PARAMS: dict[str, Any] = {"steps": 4, "rank": 8, "sleeps": False}


@pytest.fixture
def workspace(tmp_path: Path, prefect_server: None) -> Iterator[Path]:
    """A workspace whose `train` writes a loss, or sleeps with a child if its params say so; with DVC at hand."""
    project, folder = tmp_path / "project", tmp_path / "kim"
    project.mkdir()
    stages = {
        stage: {"cmd": "python train.py", "params": [stage, {"code.yaml": [stage]}], "outs": [f"data/{stage}"]}
        for stage in STAGES
    }
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    (project / "code.yaml").write_text(yaml.safe_dump(dict.fromkeys(STAGES, "sha256:00")))
    (project / ".dvcignore").write_text(".*.part\n")
    make(folder, project)
    (folder / "train.py").write_text(TRAIN)
    with preloaded():
        yield folder


def trained(workspace: Path, *, timeout_s: float | None = None, retries: int = 0, **params: Any) -> State[Any]:
    """The final state of the task, with these params."""
    (workspace / "params.yaml").write_text(json.dumps({stage: {} for stage in STAGES} | {"train": PARAMS | params}))
    task = train.with_options(timeout_seconds=timeout_s, retries=retries, retry_delay_seconds=0)
    ended: list[State[Any]] = []

    @flow
    def learn() -> None:
        ended.append(task(workspace, return_state=True))

    learn()
    return ended[0]


def test_the_state_of_a_stage_says_why_it_ran(workspace: Path) -> None:
    first, longer = trained(workspace), trained(workspace, steps=5)
    code = (workspace / "code.yaml").read_text()
    (workspace / "code.yaml").write_text(code.replace("train: sha256:00", "train: sha256:01"))
    rewritten, same = trained(workspace, steps=5), trained(workspace, steps=5)
    (workspace / "code.yaml").write_text(code)
    back = trained(workspace, steps=4)

    assert [(each.name, each.message) for each in (first, longer, rewritten, same, back)] == [
        ("Completed", "train: ran, because it never ended here"),
        ("Completed", "train: ran, because train.steps changed from 4 to 5"),
        ("Completed", "train: ran, because the code of train changed"),
        ("Unchanged", "train: nothing it reads changed"),
        ("Restored", "train: restored, because the code of train changed; train.steps changed from 5 to 4"),
    ]
    assert back.result() is Outcome.RESTORED


def test_what_a_stage_found_is_shown_though_the_server_was_away_when_it_ended(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    def show(settings: Settings, workspace: Path, stage: str, *, shared: bool) -> None:
        shown.append(stage)
        if len(shown) == 1:
            raise httpx.ConnectError("away")
        show_results(settings, workspace, stage, shared=shared)

    monkeypatch.setattr("tasks.stages.show_results", show)
    state = trained(workspace, retries=1)

    assert shown == ["train", "train"]
    assert (state.name, state.result()) == ("Completed", Outcome.RAN)


def test_a_stage_that_takes_too_long_ends_with_all_its_processes_and_the_next_run_works(workspace: Path) -> None:
    given_up = trained(workspace, timeout_s=TIMEOUT_S, sleeps=True)

    assert given_up.is_failed()
    assert given_up.message == f"Task run exceeded timeout of {TIMEOUT_S} second(s)"
    stage, child = map(int, (workspace / "sleeping").read_text().split())
    assert not runs(stage) and not runs(child)
    assert trained(workspace).name == "Completed"
