"""`zimage sweep`: real trainings and evaluations of the real classes with several settings."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.test_main import zimage
from tests.evaluation.photos import DLIB, views, write_detect
from tests.stages.test_evaluate import after_training, cheap_params
from zimage.core.errors import InputError
from zimage.evaluation.rows import read_tested
from zimage.faces.engine import open_engine
from zimage.model.base import Base
from zimage.sweep.settings import read_sweep

ROOT = Path(__file__).parents[2]
SMALL = {
    "train.steps": 4, "train.batch_size": 2, "train.micro_batch_size": 2, "train.checkpoint_every": 4,
    "train.targets": ["attention", "feed_forward"], "train.rank": 4, "train.precision": "float32",
    "train.schedule.warmup_steps": 0, "train.optimiser.learning_rate": 1e-3,
}  # fmt: skip


@pytest.fixture(scope="module")
def workspace(tiny_base: Base, tiny_encoded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    data = folder / "data"
    write_detect(data / "detect", open_engine(DLIB), training=views(2, seed=1), holdout=views(3, seed=2))
    after_training(folder)
    shutil.move(folder / "caption", data / "caption")
    shutil.copytree(tiny_encoded, data / "encode")
    shutil.copyfile(ROOT / "data" / "consent.yaml", data / "consent.yaml")
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["base"] = tiny_base.model_dump()
    params["evaluate"] = json.loads(cheap_params(folder).model_dump_json())
    (folder / "params.yaml").write_text(yaml.safe_dump(params, allow_unicode=True), encoding="utf-8")
    return folder


def write(folder: Path, **content: Any) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def test_settings_are_trained_scored_and_compared_once(workspace: Path) -> None:
    common = {**SMALL, "evaluate.sweep.checkpoints": 0, "evaluate.sweep.strengths": [1.0]}
    common["evaluate.copy_correlation"] = 0.05
    runs: dict[str, Any] = {"own": {}, "long": {"train.steps": 8}, "too wide": {"train.rank": 500}}
    file, out = write(workspace, runs=runs, common=common), workspace / "out"
    first = zimage("sweep", file, out, cwd=workspace)
    assert first.returncode == 0, first.stderr
    assert "3 of 3: too wide, seed 0" in first.stderr
    shown = [line for line in first.stdout.splitlines() if line.startswith("|")]
    assert [row.split(" | ")[0] for row in shown[2:]] == ["| own", "| long"]
    assert "too wide, seed 0: could not be trained" in first.stdout
    found = json.loads((out / "sweep.json").read_text(encoding="utf-8"))
    assert {one["measure"] for one in found["differences"]} >= {"likeness", "same_person", "copies"}
    assert {(one["first"], one["second"]) for one in found["differences"]} == {("long", "own")}
    assert found["settings"]["long"]["train.steps"] == 8
    rows = read_tested(out / "runs" / "own seed 0" / "evaluate" / "scores.csv")
    copies = sum(row.likeness_to_copy >= 0.05 for row in rows)
    assert copies > 0 and found["results"]["own"]["copies"]["value"] == copies / len(rows)
    trained = {name: out / "runs" / f"{name} seed 0" / "train" / "lora.safetensors" for name in ("own", "long")}
    assert trained["own"].read_bytes() != trained["long"].read_bytes()

    before = {name: path.stat().st_mtime_ns for name, path in trained.items()}
    scored = (out / "runs" / "own seed 0" / "evaluate" / "scores.csv").stat().st_mtime_ns
    runs.pop("too wide")
    runs["long"] = {"train.steps": 6}
    second = zimage("sweep", write(workspace, runs=runs, common=common), out, cwd=workspace)
    assert second.returncode == 0, second.stderr
    assert trained["own"].stat().st_mtime_ns == before["own"] and trained["long"].stat().st_mtime_ns > before["long"]
    assert (out / "runs" / "own seed 0" / "evaluate" / "scores.csv").stat().st_mtime_ns == scored
    assert (out / "sweep.md").read_text(encoding="utf-8").splitlines() == second.stdout.splitlines()[:-1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "tries nothing"),
        ({"runs": {"a": {}}, "seeds": []}, "at least one of `seeds`"),
        ({"runs": {"a": {}}, "seeds": [1, 1]}, "names a seed twice"),
        ({"runs": {"a/b": {}}}, "cannot name a folder"),
        ({"runs": {"a": {"evaluate.suite": "full"}}}, "only values of `train` can be compared"),
        ({"runs": {"a": {"train.seed": 3}}}, "seeds go into `seeds`"),
        ({"runs": {"a": {}}, "common": {"encode.mirror": True}}, "values of `train` and `evaluate`"),
        ({"runs": {"a": {}}, "trains": {}}, "unknown key `trains`"),
    ],
)
def test_a_file_that_compares_nothing_is_refused_in_a_sentence(
    content: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        read_sweep(write(tmp_path, **content))


def test_a_value_that_does_not_exist_is_refused_before_anything_is_trained(workspace: Path, tmp_path: Path) -> None:
    file = write(tmp_path, runs={"own": SMALL, "typo": {"train.step": 8}})
    ended = zimage("sweep", file, tmp_path / "out", cwd=workspace)
    assert ended.returncode == 2 and "train.steps" in ended.stderr and not (tmp_path / "out").exists()


def test_a_grid_names_every_combination(tmp_path: Path) -> None:
    grid = {"train.steps": [500, 1000], "train.targets": [["attention"], ["attention", "feed_forward"]]}
    settings, seeds = read_sweep(write(tmp_path, grid=grid, seeds=[1, 2], common={"train.rank": 8}))
    assert list(settings) == [
        "steps=500, targets=attention", "steps=500, targets=attention+feed_forward",
        "steps=1000, targets=attention", "steps=1000, targets=attention+feed_forward",
    ]  # fmt: skip
    assert settings["steps=500, targets=attention"] == {
        "train.rank": 8, "train.steps": 500, "train.targets": ["attention"]
    }  # fmt: skip
    assert seeds == [1, 2]
