import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from tasks.erasure.forget import erase
from tasks.prefect_api.training_page import TrainingPage
from tasks.settings import PROJECT, Settings
from tasks.store.pages import served
from tasks.store.s3 import FolderStore
from tasks.workspace.tombstones import Counts, finish
from tests.album import Album
from tests.tasks.faults import unwell
from zimage.core.errors import InputError
from zimage.core.folder import aside_of
from zimage.training.checkpoint import TrainingState, write_state


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    """A workspace that trains for 80 steps, and a store whose pages are served."""
    with served(tmp_path / "store", 0) as pages:
        found = Settings(PROJECT, tmp_path / "workspaces", str(tmp_path / "store"), pages=pages)
        workspace = found.workspace("ada")
        aside_of(workspace / "data" / "train").mkdir(parents=True)
        values = {"train": {"steps": 80, "samples": {"steps": 1, "guidance_scale": 0.0, "seed": 0}}}
        (workspace / "params.yaml").write_text(yaml.safe_dump(values))
        (workspace / "data" / "encode").mkdir()
        row = '{"text": "t0", "prompt": "a photo of ohzw woman", "tokens": 9, "sample": true}\n'
        (workspace / "data" / "encode" / "texts.jsonl").write_text(row)
        yield found


def trained(folder: Path, step: int) -> None:
    """What a training leaves at a checkpoint, the state last."""
    for name in ("samples", "resume"):
        (folder / name).mkdir(exist_ok=True)
    rows = [f"{number},0.5,0.5,1,1\n" for number in range(1, step + 1)]
    (folder / "loss.csv").write_text("step,loss,smooth,gradient_norm,learning_rate\n" + "".join(rows))
    Image.new("RGB", (64, 64)).save(folder / "samples" / f"step-{step:06d}-0.png")
    write_state(folder / "resume", TrainingState(step, {"values": torch.zeros(1)}, devices=("a CPU",)), run="this run")


def told() -> tuple[str, str]:
    """What the artifact says, and where it leads."""
    with get_client(sync_client=True) as client:
        keys = ArtifactFilterKey(any_=["ada-training"])
        *_, found = client.read_artifacts(artifact_filter=ArtifactFilter(key=keys), limit=1)
    return str(found.description), str(found.data).partition("(")[2].removesuffix(")")


def test_a_training_is_seen_while_it_lasts_and_as_it_ended(settings: Settings, prefect_server: None) -> None:
    workspace, seen = settings.workspace("ada"), []
    aside, done = aside_of(workspace / "data" / "train"), workspace / "data" / "train"

    @flow
    def follow() -> None:
        course = TrainingPage(settings, workspace)
        course.refresh()
        assert FolderStore(Path(settings.store)).keys("") == []  # nothing to see yet
        for step in (40, 80):
            trained(aside, step)
            course.refresh()
            text, address = told()
            with urllib.request.urlopen(address) as answer:
                seen.append((text, address.partition("?")[0], answer.read().decode().count("data:image/jpeg")))
        aside.rename(done)
        course.end()

    follow()

    page = seen[0][1]
    assert seen == [
        ("step 40, loss 0.5; 1 picture of 1 checkpoint", page, 1),
        ("step 80, loss 0.5; 2 pictures of 2 checkpoints", page, 2),
    ]
    text, address = told()
    assert text == "step 80, loss 0.5; 2 pictures of 2 checkpoints; it has ended"
    assert address.startswith(page)
    assert [key.rpartition("/")[2] for key in FolderStore(Path(settings.store)).keys("subjects/ada/pages")] == [
        "training.html"
    ]


def test_of_a_person_who_is_forgotten_while_it_trains_nothing_more_is_shown(
    settings: Settings, prefect_server: None
) -> None:
    workspace, store = settings.workspace("ada"), FolderStore(Path(settings.store))

    @flow
    def follow() -> None:
        course = TrainingPage(settings, workspace)
        trained(aside_of(workspace / "data" / "train"), 40)
        course.refresh()
        erase(store, workspace.with_name("of another machine"), "ada", Counts())
        finish(store, "ada")
        trained(aside_of(workspace / "data" / "train"), 80)
        course.refresh()

    with pytest.raises(InputError, match="was forgotten after that was made"):
        follow()
    assert store.keys("subjects/ada") == []


def test_a_store_that_is_away_costs_the_picture_and_not_the_training(settings: Settings, prefect_server: None) -> None:
    workspace = settings.workspace("ada")
    trained(aside_of(workspace / "data" / "train"), 40)
    (Path(settings.store) / "subjects").write_text("in the way")

    @flow
    def follow() -> str:
        TrainingPage(settings, workspace).refresh()
        return "went on"

    assert follow() == "went on"


def test_a_store_that_forbids_the_page_costs_the_picture_and_not_the_training(
    settings: Settings, prefect_server: None, album: Album, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = settings.workspace("ada")
    trained(aside_of(workspace / "data" / "train"), 40)

    @flow
    def follow() -> str:
        TrainingPage(replace(settings, store="s3://album/project"), workspace).refresh()
        return "went on"

    with unwell("403 Forbidden", "AccessDenied", times=99) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
        assert follow() == "went on"
