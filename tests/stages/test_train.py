"""The train stage: what it leaves behind, going on after a kill, and what stops it."""

import csv
import hashlib
import json
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.tiny_base import whole_pipeline
from tests.training.crops import SUBJECT
from tests.training.recipe import MACHINE, recipe
from tests.training.stage_process import FORKED, stage_process
from zimage.core.errors import InputError
from zimage.core.folder import aside_of
from zimage.lora.files.header import read_header
from zimage.lora.files.inspection import inspect_file
from zimage.model.base import Base
from zimage.model.latents import image_of
from zimage.stages.train import _out_of_memory_explained, train
from zimage.training.page import seen
from zimage.training.params import MachineParams, OptimiserName, TrainParams

ROOT = Path(__file__).parents[2]
LITTLE = MACHINE.model_copy(update={"checkpointing": "full", "offloaded_blocks": 1})


def _trained(
    encoded: Path, out: Path, base: Base, machine: MachineParams = MACHINE, **changes: Any
) -> dict[str, torch.Tensor]:
    train(encoded, out, params=recipe(**changes), base=base, subject=SUBJECT, machine=machine)
    return load_file(out / "lora.safetensors")


def test_it_leaves_a_lora_checkpoints_numbers_and_no_rest(tiny_base: Base, tiny_encoded: Path, tmp_path: Path) -> None:
    _trained(tiny_encoded, tmp_path / "train", tiny_base)
    files = [path.relative_to(tmp_path / "train").as_posix() for path in (tmp_path / "train").rglob("*.*")]
    found = sorted(name for name in files if not name.startswith("tensorboard/"))
    steps = [f"checkpoints/step-{step:06d}.safetensors" for step in (2, 4, 6)]
    assert found == [
        *steps,
        "lora.safetensors",
        "loss.csv",
        "metrics.json",
        *[f"samples/first-batch-{step}.jpg" for step in (1, 2, 3, 4)],
        "samples/first_batches.csv",
        "samples/noise_levels.csv",
        "samples/prompts.txt",
        "samples/validation.csv",
    ]
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["train"]
    outs = {f"data/train/{path.name}" for path in (tmp_path / "train").iterdir()}
    assert outs == set(stage["outs"])
    assert not aside_of(tmp_path / "train").exists()
    with (tmp_path / "train" / "loss.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    metrics = json.loads((tmp_path / "train" / "metrics.json").read_text())
    assert metrics["steps"] == 6 and metrics["sampler_shift"] == 3.0


def test_the_same_seed_gives_the_same_lora_and_another_seed_another(
    tiny_base: Base, tiny_encoded: Path, tmp_path: Path
) -> None:
    one, again, other = (
        _trained(tiny_encoded, tmp_path / name, tiny_base, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    assert (tmp_path / "a" / "lora.safetensors").read_bytes() == (tmp_path / "b" / "lora.safetensors").read_bytes()


@pytest.mark.parametrize(("adapter", "falls_to"), [("lora", 0.9), ("lokr", 0.95), ("dora", 0.9)])
def test_it_learns(adapter: str, falls_to: float, tiny_base: Base, tiny_encoded: Path, tmp_path: Path) -> None:
    """The loss on fixed noise of one checkpoint after another falls: the LoRA fits its two pictures."""
    changes: dict[str, Any] = {
        "steps": 60,
        "batch_size": 4,
        "micro_batch_size": 4,
        "checkpoint_every": 30,
        "caption_dropout": 0.0,
    }
    changes["adapter"] = adapter
    _trained(tiny_encoded, tmp_path / "train", tiny_base, **changes)
    losses = _losses(tmp_path / "train")
    assert np.mean(losses[-10:]) < falls_to * np.mean(losses[:10])


@pytest.mark.parametrize(
    ("frozen", "near", "adapter"), [("int8", 0.01, "lora"), ("nf4", 0.05, "lora"), ("int8", 0.01, "lokr")]
)
def test_a_run_in_little_memory_takes_the_course_of_one_in_much(  # noqa: PLR0917
    frozen: str, near: float, adapter: str, tiny_base: Base, tiny_encoded: Path, tmp_path: Path
) -> None:
    _trained(tiny_encoded, tmp_path / "much", tiny_base, adapter=adapter)
    _trained(
        tiny_encoded, tmp_path / "little", tiny_base, LITTLE, adapter=adapter, memory={"base_quantization": frozen}
    )
    much, little = (_losses(tmp_path / name) for name in ("much", "little"))
    assert np.abs(little / much - 1).max() < near
    assert not np.array_equal(little, much)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "bfloat16"},
        {"adapter": "lokr"},
        {"adapter": "dora"},
        {"dropout": 0.1},
        {"dropout": 0.1, "memory": {"base_quantization": "int8"}},
        {"memory": {"base_quantization": "nf4"}},
    ],
)
def test_the_memory_of_a_machine_changes_no_bit_of_a_lora(
    changes: dict[str, Any], tiny_base: Base, tiny_encoded: Path, tmp_path: Path
) -> None:
    _trained(tiny_encoded, tmp_path / "much", tiny_base, **changes)
    _trained(tiny_encoded, tmp_path / "little", tiny_base, LITTLE, **changes)
    for name in ("lora.safetensors", "loss.csv"):
        assert (tmp_path / "little" / name).read_bytes() == (tmp_path / "much" / name).read_bytes()


def test_a_run_goes_on_in_less_memory_and_ends_with_the_same_lora(
    tiny_base: Base, tiny_encoded: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"steps": 16, "checkpoint_every": 1}
    _trained(tiny_encoded, tmp_path / "whole", tiny_base, **changes)
    _kill_after_first_state(tiny_encoded, tmp_path / "killed", tiny_base, recipe(**changes))
    here = {"ZIMAGE_MACHINE": "checkpointing=full offloaded_blocks=2"}

    with stage_process(tiny_encoded, tmp_path / "killed", tiny_base, recipe(**changes), environment=here) as process:
        process.join(300)

    assert process.exitcode == 0
    assert json.loads((tmp_path / "killed" / "metrics.json").read_text())["resumed_after"] >= 1
    for name in ("lora.safetensors", "loss.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("preserving", "adapter", "optimiser"),
    [
        (False, "lora", "adamw"),
        (True, "lora", "adamw"),
        (True, "lokr", "adamw"),
        (True, "dora", "adamw"),
        *((False, "lora", name) for name in get_args(OptimiserName) if name != "adamw"),
    ],
)
def test_a_run_killed_at_any_step_ends_with_the_lora_of_one_never_interrupted(  # noqa: PLR0917
    preserving: bool,
    adapter: str,
    optimiser: str,
    tiny_base: Base,
    tiny_encoded: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    if imports := optimiser == "adamw_8bit":  # which bitsandbytes has
        request.getfixturevalue("bitsandbytes")
    preservation = {"weight": 1.0, "every": 2, "batch_size": 2, "pictures": "crops", "target": "base"}
    changes: dict[str, Any] = {
        "steps": 16,
        "checkpoint_every": 1,
        "prior_preservation": preservation if preserving else None,
    }
    changes["adapter"], changes["optimiser"] = adapter, {"name": optimiser}
    whole = _trained(tiny_encoded, tmp_path / "whole", tiny_base, **changes)
    killed = tmp_path / "killed"
    _kill_after_first_state(tiny_encoded, killed, tiny_base, recipe(**changes), imports=imports)
    assert not killed.exists()
    found = _trained(tiny_encoded, tmp_path / "killed", tiny_base, **changes)
    assert json.loads((tmp_path / "killed" / "metrics.json").read_text())["resumed_after"] >= 1
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert (tmp_path / "killed" / "loss.csv").read_bytes() == (tmp_path / "whole" / "loss.csv").read_bytes()


def test_other_parameters_begin_anew_and_sweep_away_what_was_left(
    tiny_base: Base, tiny_encoded: Path, tmp_path: Path
) -> None:
    _kill_after_first_state(tiny_encoded, tmp_path / "train", tiny_base, recipe(steps=16, checkpoint_every=1))
    (aside_of(tmp_path / "train") / "checkpoints" / "step-000099.safetensors").touch()
    _trained(tiny_encoded, tmp_path / "train", tiny_base, steps=4)
    assert json.loads((tmp_path / "train" / "metrics.json").read_text())["resumed_after"] == 0
    assert len(list((tmp_path / "train" / "checkpoints").iterdir())) == 2


@pytest.mark.parametrize(("worn", "adapter"), [(False, "lora"), (True, "lora"), (False, "lokr"), (False, "dora")])
def test_the_pipeline_loads_every_key_and_draws_the_trainers_own_pictures(
    worn: bool, adapter: str, tiny_base: Base, tiny_encoded: Path, tmp_path: Path
) -> None:
    """On the base as it is, also where a training adapter was worn."""
    samples = {"steps": 3, "guidance_scale": 1.5, "seed": 5}
    targets = ["attention", "feed_forward", "image_embedder", "final_layer"]
    wide = ["layers.0.attention.to_k", "layers.1.attention.to_out.0", "layers.1.feed_forward.w3"]
    to_wear = _training_adapter(tmp_path, {**dict.fromkeys(wide[:2], (48, 48)), wide[2]: (128, 48)})
    lora = _trained(
        tiny_encoded,
        tmp_path / "train",
        tiny_base,
        samples=samples,
        targets=targets,
        training_adapter=to_wear if worn else None,
        adapter=adapter,
    )
    pipeline = whole_pipeline(tiny_base)
    pipeline.load_lora_weights(str(tmp_path / "train" / "lora.safetensors"))
    loaded = {name for name, _ in pipeline.transformer.named_parameters() if ".lora_" in name or ".lokr_" in name}
    layers = 2 * 7 + 2
    if adapter == "dora":  # one of the two vectors of a layer is ComfyUI's
        assert len(loaded) == 3 * layers and len(lora) == 4 * layers
    else:
        assert len(loaded) == len(lora) and len(lora) > layers
    assert adapter != "lora" or len(lora) == 2 * layers
    found = inspect_file(tmp_path / "train" / "lora.safetensors")
    assert (found.verdict, found.diffusers, found.comfyui) == ("usable", "all", "all")
    from PIL import Image

    from zimage.training.noise import generator_of

    noise = torch.randn((1, 16, 8, 6), generator=generator_of(5, "sample", 0))
    pixels = pipeline(
        "a photo of ohzw woman",
        height=64,
        width=48,
        num_inference_steps=3,
        guidance_scale=1.5,
        latents=noise,
        output_type="pt",
    ).images[0]
    expected = image_of(pixels * 2 - 1).astype(int)
    drawn = np.asarray(Image.open(tmp_path / "train" / "samples" / "step-000006-0.png")).astype(int)
    assert np.abs(drawn - expected).max() <= 1


def _training_adapter(folder: Path, shapes: dict[str, tuple[int, int]]) -> dict[str, object]:
    """One that changes these layers, (outputs, inputs), a lot."""
    tensors = {}
    for layer, (outputs, inputs) in shapes.items():
        tensors[f"diffusion_model.{layer}.lora_A.weight"] = torch.randn(2, inputs) * 0.3
        tensors[f"diffusion_model.{layer}.lora_B.weight"] = torch.randn(outputs, 2) * 0.3
    path = folder / "adapter.safetensors"
    save_file(tensors, path)
    return {"file": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "strength": 0.8}


def test_a_training_adapter_is_worn_while_learning_and_left_out_of_the_result(
    tiny_base: Base, tiny_encoded: Path, tmp_path: Path
) -> None:
    pinned = _training_adapter(tmp_path, {"layers.0.attention.to_q": (48, 48)})
    plain = _trained(tiny_encoded, tmp_path / "plain", tiny_base, targets=["feed_forward"])
    worn = _trained(tiny_encoded, tmp_path / "worn", tiny_base, targets=["feed_forward"], training_adapter=pinned)
    assert worn.keys() == plain.keys()
    assert not any(torch.equal(worn[name], plain[name]) for name in worn if "lora_B" in name)
    with pytest.raises(InputError, match="SHA-256"):
        _trained(tiny_encoded, tmp_path / "x", tiny_base, training_adapter={**pinned, "sha256": "00"})


def test_a_training_adapter_that_sample_pictures_cannot_take_off_is_told(
    tiny_base: Base, tiny_encoded: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, layer = tmp_path / "lokr.safetensors", "diffusion_model.layers.0.attention.to_q"
    save_file({f"{layer}.lokr_w1": torch.eye(6), f"{layer}.lokr_w2": torch.full((8, 8), 0.1)}, path)
    pinned = {"file": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "strength": 1.0}

    _trained(tiny_encoded, tmp_path / "train", tiny_base, steps=2, training_adapter=pinned)

    told = "sample pictures wear what the training adapter changes otherwise than by two matrices, in 1 of 1 layers"
    assert told in caplog.messages


def test_a_loss_that_is_no_number_stops_with_step_photos_sigma_and_norm(
    tiny_base: Base, tiny_encoded: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        _trained(tiny_encoded, tmp_path / "train", tiny_base, optimiser={"learning_rate": 1e30, "clip_norm": 0.0})
    pattern = r"stopped at step \d: .*photos train/.*; sigma 0\.\d+, 0\.\d+; gradient norm .*learning_rate"
    assert re.search(pattern, str(caught.value))
    assert not (tmp_path / "train").exists()


def test_a_gpu_that_is_too_small_is_told_with_the_presets_that_fit(tiny_base: Base, tiny_encoded: Path) -> None:
    params = recipe(memory={"base_quantization": "none"}, micro_batch_size=10_000_000, batch_size=10_000_000)
    with (
        pytest.raises(InputError, match=r"10000000 picture\(s\) of 64 x 64 px.*or choose a preset that fits \(80gb"),
        _out_of_memory_explained(tiny_encoded, Path(tiny_base.model), params, MACHINE),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_base_that_was_changed_is_refused_before_training(
    tiny_base: Base, tiny_encoded: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="pins sha256:00"):
        _trained(tiny_encoded, tmp_path / "train", tiny_base.model_copy(update={"identity": "sha256:00"}))


@pytest.mark.parametrize("adapter", ["lokr", "dora"])
def test_dropout_of_inputs_is_refused_for_a_lokr_or_dora(
    adapter: str, tiny_base: Base, tiny_encoded: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"does nothing in a (LoKr|DoRA); set it to 0"):
        _trained(tiny_encoded, tmp_path / "train", tiny_base, adapter=adapter, dropout=0.1)


def test_a_dora_is_not_trained_on_a_training_adapter(tiny_base: Base, tiny_encoded: Path, tmp_path: Path) -> None:
    worn = _training_adapter(tmp_path, {"layers.0.attention.to_k": (48, 48)})
    with pytest.raises(InputError, match=r"magnitudes are those of the weights .* set train\.adapter to lora or lokr"):
        _trained(tiny_encoded, tmp_path / "train", tiny_base, adapter="dora", training_adapter=worn)


def test_a_rank_above_the_width_of_the_base_is_refused(tiny_base: Base, tiny_encoded: Path, tmp_path: Path) -> None:
    _trained(tiny_encoded, tmp_path / "train", tiny_base, rank=48, steps=2)
    with pytest.raises(
        InputError, match=r"^train\.rank is 500, but .* are 48 wide .*; set train\.rank to 48 or less\.$"
    ):
        _trained(tiny_encoded, tmp_path / "train", tiny_base, rank=500)


def test_a_run_that_explodes_before_its_first_checkpoint_writes_no_lora(
    tiny_base: Base, tiny_encoded: Path, tmp_path: Path
) -> None:
    changes = {"targets": ["final_layer"], "optimiser": {"learning_rate": 2.0}, "divergence_factor": 5.0}
    with pytest.raises(InputError, match=r"stopped at step \d: the mean loss of the first \d steps, .* began with"):
        _trained(tiny_encoded, tmp_path / "train", tiny_base, **changes)
    assert not (tmp_path / "train").exists()


def test_a_running_training_shows_its_warnings_on_its_page(tiny_base: Base, tiny_encoded: Path, tmp_path: Path) -> None:
    """The tiny base of the tests has Turbo's noise schedule."""
    _kill_after_first_state(tiny_encoded, tmp_path / "train", tiny_base, recipe(steps=16, checkpoint_every=1))

    page = seen(aside_of(tmp_path / "train"))

    assert 0 < page.done < 16
    assert len(page.warnings) == 1 and "is Turbo by its name or its noise schedule (shift 3)" in page.warnings[0]


def test_turbo_without_a_training_adapter_is_warned_of_in_the_log_and_in_the_metrics(
    tiny_base: Base, tiny_encoded: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The tiny base of the tests has Turbo's noise schedule."""
    _trained(tiny_encoded, tmp_path / "train", tiny_base, steps=2)
    told = [message for message in caplog.messages if "is Turbo by its name or its noise schedule (shift 3)" in message]
    assert len(told) == 1 and "set train.training_adapter" in told[0]
    assert json.loads((tmp_path / "train" / "metrics.json").read_text())["warnings"] == told
    caplog.clear()

    pinned = _training_adapter(tmp_path, {"layers.0.attention.to_q": (48, 48)})
    _trained(tiny_encoded, tmp_path / "worn", tiny_base, steps=2, training_adapter=pinned)
    assert not any("Turbo" in message for message in caplog.messages)
    assert json.loads((tmp_path / "worn" / "metrics.json").read_text())["warnings"] == []


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("texts.safetensors", r"texts\.safetensors is missing; run the encode stage again, or `dvc repro`"),
        ("latents.safetensors", r"latents\.safetensors is missing; run the encode stage again"),
        ("masks.safetensors", r"masks\.safetensors is missing; run the encode stage again"),
        ("texts.jsonl", r"texts\.jsonl is missing; run the stage that writes"),
    ],
)
def test_an_encode_folder_without_one_of_its_files_is_refused_with_the_remedy(
    file: str, said: str, tiny_base: Base, tiny_encoded: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_encoded, tmp_path / "encode")
    (tmp_path / "encode" / file).unlink()
    with pytest.raises(InputError, match=said):
        _trained(tmp_path / "encode", tmp_path / "train", tiny_base)


def test_an_encode_folder_whose_tables_and_tensors_do_not_belong_together_is_refused(
    tiny_base: Base, tiny_encoded: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "encode"
    for file, content, said in [
        ("texts.jsonl", b"", r"texts\.jsonl lacks texts of its pictures; run the encode stage again"),
        ("texts.safetensors", (5).to_bytes(8, "little"), r"texts\.safetensors is damaged \(.*\); run the encode"),
        ("texts.safetensors", (2).to_bytes(8, "little") + b"{}", r"texts\.safetensors lacks (\d+) of \1 tensors; run"),
    ]:
        shutil.copytree(tiny_encoded, folder, dirs_exist_ok=True)
        (folder / file).write_bytes(content)
        with pytest.raises(InputError, match=said):
            _trained(folder, tmp_path / "train", tiny_base)


def _losses(folder: Path) -> "np.ndarray[Any, np.dtype[np.float64]]":
    with (folder / "loss.csv").open() as file:
        return np.array([float(row["loss"]) for row in csv.DictReader(file)])


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_loses_no_step_and_ends_with_the_lora_of_one_never_interrupted(
    how: signal.Signals, tiny_base: Base, tiny_encoded: Path, tmp_path: Path
) -> None:
    params = recipe(steps=16, checkpoint_every=16)
    train(tiny_encoded, tmp_path / "whole", params=params, base=tiny_base, subject=SUBJECT, machine=MACHINE)
    steps, made = FORKED.Pipe(duplex=False)
    with stage_process(tiny_encoded, tmp_path / "stopped", tiny_base, params, made=made, slowly=True) as process:
        numbers = [steps.recv() for _ in range(5)]
        for _ in range(2):  # a terminal's and a parent's come together
            psutil.Process(process.pid).send_signal(how)
        process.join(300)
    assert (process.exitcode, numbers) == (2, [0, 1, 2, 3, 4])

    train(tiny_encoded, tmp_path / "stopped", params=params, base=tiny_base, subject=SUBJECT, machine=MACHINE)

    assert json.loads((tmp_path / "stopped" / "metrics.json").read_text())["resumed_after"] >= len(numbers)
    for name in ("lora.safetensors", "loss.csv"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_run_stopped_while_it_makes_sample_pictures_makes_them_when_it_goes_on(
    tiny_base: Base, tiny_encoded: Path, tmp_path: Path
) -> None:
    params = recipe(steps=6, checkpoint_every=3, samples={"steps": 60, "guidance_scale": 1.5, "seed": 5})
    train(tiny_encoded, tmp_path / "whole", params=params, base=tiny_base, subject=SUBJECT, machine=MACHINE)
    with stage_process(tiny_encoded, tmp_path / "stopped", tiny_base, params, slowly=True) as process:
        while not (aside_of(tmp_path / "stopped") / "checkpoints" / "step-000003.safetensors").exists():
            assert process.exitcode is None
            time.sleep(0.001)
        process.terminate()
        process.join(300)
    assert not list((aside_of(tmp_path / "stopped") / "samples").glob("*.png"))

    train(tiny_encoded, tmp_path / "stopped", params=params, base=tiny_base, subject=SUBJECT, machine=MACHINE)

    assert json.loads((tmp_path / "stopped" / "metrics.json").read_text())["resumed_after"] == 3
    for name in (
        "lora.safetensors",
        "loss.csv",
        "samples/step-000003-0.png",
        "samples/step-000006-0.png",
        "samples/validation.csv",
    ):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_run_begun_with_another_instruction_set_is_refused_or_gone_on_with_or_begun_anew(
    tiny_base: Base, tiny_encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("NOT CHECKED: this CPU has one instruction set only")
    changes: dict[str, Any] = {"steps": 16, "checkpoint_every": 1}
    whole = _trained(tiny_encoded, tmp_path / "whole", tiny_base, **changes)
    here = json.loads((tmp_path / "whole" / "metrics.json").read_text())["devices"]
    begun = tmp_path / "begun"
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")  # which torch reads when it is imported
    _kill_after_first_state(tiny_encoded, begun, tiny_base, recipe(**changes), imports=True)
    shutil.copytree(aside_of(begun), aside_of(tmp_path / "anew"))

    with pytest.raises(InputError, match=rf"on CPU .*DEFAULT.*; on {re.escape(here)} it would not end with the LoRA"):
        _trained(tiny_encoded, begun, tiny_base, **changes)
    _trained(tiny_encoded, begun, tiny_base, resume="any", **changes)
    anew = _trained(tiny_encoded, tmp_path / "anew", tiny_base, resume="restart", **changes)

    metrics = json.loads((begun / "metrics.json").read_text())
    first, second = metrics["devices"].split("; ")
    assert metrics["resumed_after"] >= 1 and " DEFAULT " in first and second == here
    assert read_header(begun / "lora.safetensors").metadata["zimage.devices"] == metrics["devices"]
    assert json.loads((tmp_path / "anew" / "metrics.json").read_text())["devices"] == here
    assert all(torch.equal(anew[name], whole[name]) for name in whole)


def _kill_after_first_state(
    encoded: Path, out: Path, base: Base, params: TrainParams, *, imports: bool = False
) -> None:
    """Run the stage in a process of its own and kill it, without mercy, once it has left a state behind."""
    with stage_process(encoded, out, base, params, imports=imports, slowly=True) as process:
        deadline = time.monotonic() + 300
        while not list((aside_of(out) / "resume").glob("step-*.safetensors")):
            assert process.exitcode is None and time.monotonic() < deadline
            time.sleep(0.001)
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL
