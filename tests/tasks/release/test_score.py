"""A `zimage score` in a release: strength and settings of each way in which the LoRA was scored."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.release.publish import publish as publish_task
from tasks.release.score import read_score
from tasks.store.releases import Manifest, manifest_of
from tasks.store.s3 import FolderStore
from tests.scoring.test_score import place, request  # noqa: F401 - a fixture
from tests.tasks.finished import CHECKPOINT, finished
from zimage.core.errors import InputError
from zimage.scoring.score import score


@pytest.fixture(scope="module")
def scored(place: Path) -> Path:  # noqa: F811
    """The metrics.json of a score of `ada` at two strengths, apart and merged, and of `eve`."""
    params = yaml.safe_load((place / "params.yaml").read_text(encoding="utf-8"))
    params["evaluate"]["resampling"]["resamples"] = 200
    (place / "quick.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    loras = [f"{place / 'ada.safetensors'}:1", f"{place / 'ada.safetensors'}:0.5", f"{place / 'eve.safetensors'}:1"]
    asked = request(place, loras=loras, used_as=["merged,steps=2"], seeds=1, params_file=place / "quick.yaml")
    score(asked, place / "for-release")
    return place / "for-release" / "metrics.json"


@pytest.fixture
def workspace(tmp_path: Path, place: Path) -> Path:  # noqa: F811
    """A finished workspace whose evaluation chose `ada`."""
    workspace = finished(tmp_path / "ada")
    chosen = workspace / "data" / "train" / "checkpoints" / CHECKPOINT
    shutil.copyfile(place / "ada.safetensors", chosen)
    _changed(
        workspace / "data/evaluate/metrics.json", chosen={"sha256": hashlib.sha256(chosen.read_bytes()).hexdigest()}
    )
    params = yaml.safe_load((workspace / "params.yaml").read_text(encoding="utf-8"))
    params["subject"]["trigger"] = "zmkl"
    (workspace / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    return workspace


def _changed(path: Path, **changes: dict[str, Any]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    for key, values in changes.items():
        content[key] |= values
    path.write_text(json.dumps(content), encoding="utf-8")


def published(workspace: Path, store: FolderStore, found: Path) -> tuple[Path, Manifest]:
    release = publish_task.fn(workspace, "ada", store, score=read_score(str(found)))
    manifest = manifest_of(store, "ada", release.name)
    assert manifest is not None
    return store.root / release.key, manifest


def test_card_usage_and_manifest_have_strength_and_settings_of_each_way(
    workspace: Path, scored: Path, tmp_path: Path
) -> None:
    folder, manifest = published(workspace, FolderStore(tmp_path / "store"), scored)
    results = json.loads(scored.read_text(encoding="utf-8"))["results"]
    apart, merged = manifest.uses
    assert (apart.use, apart.steps, apart.merged_weights, apart.survival) == ("", 1, None, None)
    assert (merged.use, merged.steps, merged.merged_weights) == ("merged, steps=2", 2, "bfloat16")
    assert (merged.strength, merged.strengths, merged.side_px) == (0.5, [0.5, 1.0], 64)
    row = results["ada-2 (merged, steps=2)"]
    assert merged.survival == row["merging"]["share"]
    assert merged.same_of_all is not None and merged.same_of_all.model_dump() == row["estimates"]["same_of_all"]
    card, usage = (folder / "README.md").read_text(), (folder / "USAGE.txt").read_text()
    assert "| merged, steps=2 | model | merged into bfloat16 weights, 1.00 of its change is left | 0.5 | 64 px," in card
    assert "The same pictures\nchose it" in card
    assert "Scored, merged, steps=2: on model, merged into bfloat16 weights, 2 steps, cfg 1, euler, shift" in usage
    assert "64 px, strength 0.5: same person in 0 of 4 (0 % to " in usage


def test_a_strength_that_is_shown_to_be_better_is_taken(workspace: Path, scored: Path, tmp_path: Path) -> None:
    found = json.loads(scored.read_text(encoding="utf-8"))
    for one in found["differences"]:
        if (one["measure"], one["first"], one["second"]) == ("likeness", "ada", "ada-2"):
            one["better"] = "first"
    (tmp_path / "metrics.json").write_text(json.dumps(found), encoding="utf-8")
    _, manifest = published(workspace, FolderStore(tmp_path / "store"), tmp_path / "metrics.json")
    assert [one.strength for one in manifest.uses] == [1.0, 0.5]


def test_a_score_of_another_lora_or_by_another_word_is_refused(workspace: Path, scored: Path, tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    params = yaml.safe_load((workspace / "params.yaml").read_text(encoding="utf-8"))
    params["subject"]["trigger"] = "ohzw"
    (workspace / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    with pytest.raises(InputError, match="scored with the word 'zmkl', and 'ohzw' calls the person; score it again"):
        published(workspace, store, scored)
    with pytest.raises(InputError, match=r"The score is of other LoRAs than the one that is published"):
        published(finished(tmp_path / "eve"), store, scored)
    assert not list(store.root.rglob("*"))


@pytest.mark.parametrize(("content", "said"), [("{}", r"is not the metrics\.json of a"), (None, "There is no score")])
def test_what_is_no_score_is_one_sentence(content: str | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "metrics.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        read_score(str(tmp_path / "metrics.json"))
