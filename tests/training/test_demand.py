"""The LoRA and the pictures of a running training, on demand."""

import threading
import time
from pathlib import Path

import pytest

from tests.training.crops import SUBJECT
from tests.training.recipe import MACHINE, recipe
from zimage.cli.main import main
from zimage.core.folder import aside_of
from zimage.model.base import Base
from zimage.stages.train import train
from zimage.training.demand import DEMAND, demand


def test_a_running_training_writes_what_it_is_asked_for_and_changes_no_bit(
    tiny_base: Base, tiny_encoded: Path, tmp_path: Path
) -> None:
    samples = {"steps": 1, "guidance_scale": 0.0, "seed": 5}
    asked, plain = tmp_path / "asked", tmp_path / "plain"
    written = aside_of(asked) / "samples"

    def ask() -> None:
        while not (aside_of(asked) / "metrics.json").exists():
            time.sleep(0.001)
        assert demand(asked) == written

    asking = threading.Thread(target=ask)
    asking.start()
    params = recipe(steps=60, checkpoint_every=60, samples=samples)
    train(tiny_encoded, asked, params=params, base=tiny_base, subject=SUBJECT, machine=MACHINE)
    asking.join()
    each = params.model_copy(update={"checkpoint_every": 1, "samples": None})
    train(tiny_encoded, plain, params=each, base=tiny_base, subject=SUBJECT, machine=MACHINE)

    (demanded,) = (asked / "samples").glob("*.safetensors")
    assert demanded.name != "step-000060.safetensors"
    assert demanded.read_bytes() == (plain / "checkpoints" / demanded.name).read_bytes()
    assert {path.name for path in (asked / "samples").glob("*.png")} == {f"{demanded.stem}-0.png", "step-000060-0.png"}
    for file in ("lora.safetensors", "loss.csv"):
        assert (asked / file).read_bytes() == (plain / file).read_bytes()
    assert [path.name for path in (asked / "checkpoints").iterdir()] == ["step-000060.safetensors"]
    assert not (asked / DEMAND).exists()


def test_where_no_training_has_begun_there_is_nobody_to_ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample-now", str(tmp_path / "train")]) == 2
    assert f"No training that would write {tmp_path / 'train'} has begun" in capsys.readouterr().err
