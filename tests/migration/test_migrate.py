"""Migrating: drawn pictures go through the real stages, and nobody can miss that they were drawn."""

import datetime
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from PIL import Image
from safetensors import safe_open

from tests.evaluation.photos import views
from tests.evaluation.suites import WITH_A_SECOND_PERSON
from tests.lora.old_model import write_sdxl_lora, write_tiny_sdxl
from zimage.core.errors import InputError
from zimage.lora.files.inspection import inspect_file
from zimage.migration.migrate import PACKAGED_RENDER, Migration, migrate
from zimage.model.base import Base

# Of diffusers' Euler scheduler with numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ROOT = Path(__file__).parents[2]
NUM_DRAWN = 9


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, tiny_base: Base) -> Migration:
    """An SDXL LoRA, its model, real photos, and params of the project made cheap."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "photos").mkdir()
    for number, picture in enumerate(views(3, seed=7)):
        Image.fromarray(picture).save(folder / "photos" / f"day{number}.png")
    (folder / "suite.yaml").write_text(WITH_A_SECOND_PERSON, encoding="utf-8")
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["base"] = tiny_base.model_dump()
    params["ingest"]["min_photos"] = 4
    params["detect"]["split"] |= {"min_train": 3, "min_holdout": 1}
    params["detect"]["crops"]["side_px"] = 64
    params["caption"]["trigger"] |= {"min_tokens": 1, "max_tokens": 100}
    params["train"] |= {"steps": 2, "batch_size": 1, "micro_batch_size": 1, "rank": 2, "checkpoint_every": 2}
    params["train"]["targets"], params["train"]["schedule"]["warmup_steps"] = ["attention"], 1
    params["evaluate"] |= {"suite": str(folder / "suite.yaml")}
    params["evaluate"]["sampling"] = {"side_px": 64, "steps": 1, "guidance_scale": 0.0}
    params["evaluate"]["seeds"] = {"base": 1, "selection": 1, "test": 1, "leaks": 1}
    params["evaluate"]["sweep"] = {"checkpoints": 1, "strengths": [1.0], "reference_strength": 1.0}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    render = yaml.safe_load(PACKAGED_RENDER.read_text(encoding="utf-8"))
    render["render"] |= {"pictures": NUM_DRAWN, "side_px": 64, "steps": 1}
    (folder / "render.yaml").write_text(yaml.safe_dump(render), encoding="utf-8")
    return Migration(
        lora=write_sdxl_lora(folder / "old.safetensors"),
        old_base=write_tiny_sdxl(folder / "sdxl"),
        person="ohwx woman",
        class_noun="man",
        trigger="zmkl",
        consent=ROOT / "data" / "consent.yaml",
        photos=folder / "photos",
        params_file=folder / "params.yaml",
        render_file=folder / "render.yaml",
    )


@pytest.fixture(scope="module")
def finished(given: Migration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole migration; the drawn pictures are handed in, for a random SDXL draws no face."""
    out = tmp_path_factory.mktemp("finished") / "ada"
    with pytest.raises(InputError, match="only 0 are left for training"):  # noise shows nobody; it goes on below
        migrate(given, out)
    hand_in(out)
    migrate(given, out)
    return out


def hand_in(out: Path) -> None:
    """Replace what was drawn by views of a person, and forget what the stages made of the noise."""
    for number, picture in enumerate(views(NUM_DRAWN, seed=3)):
        assert (out / "renders" / f"render-{number:04d}.png").is_file()
        Image.fromarray(picture).save(out / "renders" / f"render-{number:04d}.png")
    shutil.rmtree(out / "data")


def test_the_whole_way_ends_in_a_portable_lora_and_a_report(finished: Path) -> None:
    found = inspect_file(finished / "lora.safetensors")
    assert (found.family, found.dialect, found.verdict) == ("Z-Image", "portable", "usable")
    metrics = json.loads((finished / "data" / "evaluate" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["verdict"] in {"pass", "provisional", "fail"}
    assert (finished / "data" / "evaluate" / "report.html").is_file()


def test_that_the_training_set_was_drawn_is_told_wherever_one_looks(finished: Path, given: Migration) -> None:
    record = json.loads((finished / "migration.json").read_text(encoding="utf-8"))
    captions = (finished / "data" / "caption" / "captions.jsonl").read_text(encoding="utf-8")
    assert "zmkl man" in captions
    assert "woman" not in captions
    assert (record["training_set"], record["pictures"], record["person"]) == ("synthetic", NUM_DRAWN, "ohwx woman")
    with safe_open(finished / "lora.safetensors", "pt") as file:
        told = file.metadata()["zimage.training_set"]
    assert told.startswith(f"synthetic: {NUM_DRAWN} pictures drawn by")
    assert record["lora_sha256"] in told
    report = (finished / "data" / "evaluate" / "report.html").read_text(encoding="utf-8")
    assert "The training set is synthetic: old.safetensors and its own model drew it." in report
    assert "It is scored against real photos, none of which was trained on." in report


def test_real_photos_are_all_held_out_and_drawn_ones_are_all_trained_on(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "data" / "detect" / "manifest.jsonl").read_text().splitlines()]
    decisions: dict[str, set[str]] = {}
    for row in rows:
        decisions.setdefault(row["name"].split("-")[0], set()).add(row["decision"])
    assert decisions["real"] == {"holdout"}
    assert "train" in decisions["render"]
    assert "holdout" not in decisions["render"]


def test_a_second_run_makes_nothing_again(finished: Path, given: Migration) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "data").glob("*/metrics.json")}
    migrate(given, finished)
    assert len(before) == 6
    assert {path: path.stat().st_mtime_ns for path in (finished / "data").glob("*/metrics.json")} == before


def test_a_folder_of_another_migration_or_of_other_things_is_left_alone(
    finished: Path, given: Migration, tmp_path: Path
) -> None:
    other = Migration(**{**vars(given), "person": "someone else"})
    with pytest.raises(InputError, match="holds a migration from other files or settings"):
        migrate(other, finished)
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="is not empty; name a new folder"):
        migrate(given, tmp_path)


def test_nothing_is_drawn_or_trained_after_the_consent_s_last_day(
    finished: Path, given: Migration, tmp_path: Path
) -> None:
    ended = yaml.safe_load(given.consent.read_text(encoding="utf-8")) | {"expires": datetime.date(2020, 1, 1)}
    (tmp_path / "consent.yaml").write_text(yaml.safe_dump(ended), encoding="utf-8")
    late = Migration(**{**vars(given), "consent": tmp_path / "consent.yaml"})
    for out in (tmp_path / "out", finished):
        with pytest.raises(InputError, match="expired on 2020-01-01"):
            migrate(late, out)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora": Path("absent.safetensors")}, "There is no file absent.safetensors"),
        ({"old_base": Path("absent")}, "There is no folder absent; name the old model"),
        ({"photos": Path("absent")}, "There is no folder absent with real photos"),
        ({"consent": Path("absent.yaml")}, "There is no consent file absent.yaml"),
        ({"params_file": Path("absent.yaml")}, "There is no (file )?absent.yaml"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_drawn(
    given: Migration, tmp_path: Path, change: dict[str, Path], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        migrate(Migration(**{**vars(given), **change}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expires": "2020-01-01"}, "`expires` is '2020-01-01'"),
        ({"expires": datetime.date(2020, 1, 1)}, "The consent of 'demo' expired on 2020-01-01"),
        ({"adult": False}, "does not affirm an adult"),
        ({"scope": ["evaluation"]}, "covers evaluation but not training"),
        ({"scope": ["training"]}, "covers training but not evaluation"),
    ],
)
def test_without_consent_nothing_is_drawn(
    given: Migration, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    consent = tmp_path / "consent.yaml"
    consent.write_text(yaml.safe_dump(yaml.safe_load(given.consent.read_text(encoding="utf-8")) | change))
    with pytest.raises(InputError, match=message):
        migrate(replace(given, consent=consent), tmp_path / "out")
    assert not (tmp_path / "out").exists()
