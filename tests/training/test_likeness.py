"""The curve of likeness beside the loss: of the sample pictures, against training photos alone."""

import csv
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file

from tests.evaluation.photos import nobody, others, small, views
from tests.training.crops import SUBJECT
from tests.training.recipe import MACHINE, recipe
from zimage.core.errors import InputError
from zimage.model.base import Base
from zimage.stages.train import train
from zimage.training.likeness import (
    CURVE,
    FACES,
    LikenessCurve,
    has_plateaued,
    mean_closeness,
    open_curve,
    read_likeness,
    write_faces,
)
from zimage.training.page import render, seen
from zimage.training.run_writer import RunWriter


@pytest.fixture(scope="module")
def encode(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encode")
    assert write_faces(folder, views(4, seed=1)) == 4
    return folder


def curve(encode: Path, train: Path, begin: int = 0) -> LikenessCurve:
    (train / CURVE).parent.mkdir(exist_ok=True)
    found = open_curve(encode, train, begin)
    assert found is not None
    return found


def test_the_person_is_nearer_than_others_and_nobody_counts_as_nothing(encode: Path, tmp_path: Path) -> None:
    record = curve(encode, tmp_path)
    stranger, person = record.add(10, small(others()[:2])), record.add(20, small(views(2, seed=9)))
    nothing = record.add(30, small(nobody()[:1]))

    assert person > 0.6 and stranger < 0.5
    assert nothing == 0
    rows = read_likeness(tmp_path / CURVE)
    assert [(row.step, row.picture) for row in rows] == [(10, 0), (10, 1), (20, 0), (20, 1), (30, 0)]
    assert rows[-1].distance is None
    assert mean_closeness(rows) == pytest.approx({10: stranger, 20: person, 30: nothing}, abs=1e-4)


def test_steps_that_are_made_again_replace_their_rows(encode: Path, tmp_path: Path) -> None:
    person = small(views(1, seed=9))
    record = curve(encode, tmp_path)
    for step in (10, 20, 30):
        record.add(step, person)
    whole = (tmp_path / CURVE).read_bytes()
    (tmp_path / CURVE).write_bytes(whole[:-4])  # torn where the run was killed

    again = curve(encode, tmp_path, begin=10)
    for step in (10, 20, 30):  # the pictures of the state's own checkpoint were due
        again.add(step, person)

    assert (tmp_path / CURVE).read_bytes() == whole


def test_crops_without_a_face_give_no_curve(tmp_path: Path) -> None:
    assert write_faces(tmp_path, small(nobody()[:1])) == 0
    assert open_curve(tmp_path, tmp_path, 0) is None


def test_a_training_scores_its_pictures_and_goes_on_with_the_same_curve(
    tiny_base: Base, tiny_encoded: Path, encode: Path, tmp_path: Path
) -> None:
    with_faces = tmp_path / "encode"
    shutil.copytree(tiny_encoded, with_faces)
    shutil.copyfile(encode / FACES, with_faces / FACES)
    params = recipe(steps=4, checkpoint_every=2, samples={"steps": 1, "guidance_scale": 0.0, "seed": 5})

    train(with_faces, tmp_path / "train", params=params, base=tiny_base, subject=SUBJECT, machine=MACHINE)
    train(tiny_encoded, tmp_path / "bare", params=params, base=tiny_base, subject=SUBJECT, machine=MACHINE)

    with (tmp_path / "train" / CURVE).open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["2", "4"]
    assert not (tmp_path / "bare" / CURVE).exists()
    losses = [(tmp_path / name / "loss.csv").read_bytes() for name in ("train", "bare")]
    assert losses[0] == losses[1]  # scoring draws no random number and changes no weight


def test_the_page_shows_the_curve_beside_the_loss(encode: Path, tmp_path: Path) -> None:
    (tmp_path / "loss.csv").write_text("step,loss,smooth,gradient_norm,learning_rate\n1,1.5,1.5,1,1\n2,1.2,1.4,1,1\n")
    record = curve(encode, tmp_path)
    record.add(1, [np.zeros((64, 64, 3), np.uint8)])

    def page() -> str:
        return render(seen(tmp_path), ["a"], title="Training of ada", total=8, pictured=True, working=True)

    assert "<h2>Likeness</h2>" not in page()
    record.add(2, small(views(1, seed=9)))
    assert "<h2>Likeness</h2>" in page()
    assert page().count("<polyline") == 4


def test_a_plateau_is_patience_checkpoints_without_a_gain_over_the_best_before() -> None:
    assert not has_plateaued([], 1, 0.0)
    assert not has_plateaued([0.5], 1, 0.0)
    assert has_plateaued([0.5, 0.5], 1, 0.0)
    assert not has_plateaued([0.5, 0.6], 1, 0.05)
    assert has_plateaued([0.5, 0.54], 1, 0.05)
    assert not has_plateaued([0.5, 0.4, 0.6], 2, 0.0)
    assert has_plateaued([0.2, 0.6, 0.5, 0.6], 2, 0.0)


STOP = {"likeness": "plateau", "patience": 1, "min_gain": 1.0}  # no checkpoint can gain that much
SAMPLES = {"steps": 1, "guidance_scale": 0.0, "seed": 5}


@pytest.fixture(scope="module")
def with_faces(tiny_encoded: Path, encode: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces") / "encode"
    shutil.copytree(tiny_encoded, folder)
    shutil.copyfile(encode / FACES, folder / FACES)
    return folder


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_ends_at_the_checkpoint_whose_pictures_came_no_nearer(
    processes: int, tiny_base: Base, with_faces: Path, share: Callable[[int], None], tmp_path: Path
) -> None:
    share(processes)
    params = recipe(steps=8, checkpoint_every=2, micro_batch_size=1, samples=SAMPLES, stop=STOP)

    train(with_faces, tmp_path / "train", params=params, base=tiny_base, subject=SUBJECT, machine=MACHINE)

    names = sorted(path.name for path in (tmp_path / "train" / "checkpoints").iterdir())
    assert names == ["step-000002.safetensors", "step-000004.safetensors"]
    last, result = load_file(tmp_path / "train" / "checkpoints" / names[-1]), tmp_path / "train" / "lora.safetensors"
    assert all(torch.equal(last[name], tensor) for name, tensor in load_file(result).items())
    with safe_open(str(result), "pt") as file:
        assert file.metadata()["zimage.steps"] == "4"
    assert json.loads((tmp_path / "train" / "metrics.json").read_text())["steps"] == 4


def test_a_run_that_was_lost_where_it_would_have_ended_ends_there(
    tiny_base: Base, with_faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = recipe(steps=8, checkpoint_every=2, samples=SAMPLES, stop=STOP)
    run = partial(train, with_faces, params=params, base=tiny_base, subject=SUBJECT, machine=MACHINE)
    run(tmp_path / "whole")
    with monkeypatch.context() as lost:  # after the last state was written, before the result was
        lost.setattr(RunWriter, "save_result", lambda *_: (_ for _ in ()).throw(OSError("no power")))
        with pytest.raises(OSError, match="no power"):
            run(tmp_path / "lost")

    run(tmp_path / "lost")

    whole, again = (tmp_path / name / "lora.safetensors" for name in ("whole", "lost"))
    assert again.read_bytes() == whole.read_bytes()


def test_a_stop_that_could_never_be_seen_is_refused(tiny_base: Base, tiny_encoded: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"train\.samples is null"):
        recipe(stop=STOP)
    params = recipe(samples=SAMPLES, stop=STOP)
    with pytest.raises(InputError, match="holds no face of a training photo"):
        train(tiny_encoded, tmp_path / "train", params=params, base=tiny_base, subject=SUBJECT, machine=MACHINE)
