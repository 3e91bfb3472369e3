"""What other trainers' own code does with noise levels and loss weights, from checkouts of them.

Nothing of them is here: variables name the checkouts, and tests that ask them are skipped where none is named.

- ZIMAGE_ONETRAINER: Nerogar/OneTrainer (tried at 23df3832)
- ZIMAGE_AI_TOOLKIT: ostris/ai-toolkit (tried at 27a03a91)
- ZIMAGE_MUSUBI_TUNER: kohya-ss/musubi-tuner (tried at 30c658c4)

OneTrainer's classes are imported as they are. ai-toolkit's scheduler is imported without the `__init__` of its package,
which changes huggingface_hub's progress bars. Of musubi-tuner and of OneTrainer's model one method runs alone, since
their modules import all of a training.
"""

import argparse
import ast
import importlib
import math
import sys
import types
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from tests.checkouts import checkout

# A file of each by which its checkout is known.
ONETRAINER = ("ZIMAGE_ONETRAINER", "modules/modelSetup/mixin/ModelSetupNoiseMixin.py")
AI_TOOLKIT = ("ZIMAGE_AI_TOOLKIT", "toolkit/samplers/custom_flowmatch_sampler.py")
MUSUBI_TUNER = ("ZIMAGE_MUSUBI_TUNER", "src/musubi_tuner/training/trainer_base.py")
STEPS = 1000  # that all three cut the noise levels into


def needs(trainer: tuple[str, str]) -> pytest.MarkDecorator:
    """Return the mark of a test that asks a trainer."""
    return pytest.mark.skipif(checkout(*trainer) is None, reason=f"{trainer[0]} names no checkout")


def onetrainer(module: str) -> Any:
    """Return a module of OneTrainer, such as `modelSetup.mixin.ModelSetupNoiseMixin`."""
    folder = str(checkout(*ONETRAINER))
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(f"modules.{module}")


def onetrainer_config(**values: Any) -> Any:
    """Return OneTrainer's default settings with some changed."""
    config = onetrainer("util.config.TrainConfig").TrainConfig.default_values()
    for name, value in values.items():
        assert hasattr(config, name), name
        setattr(config, name, value)
    return config


def onetrainer_sigma(timestep: Tensor) -> Tensor:
    """Return the share of noise (B,) that OneTrainer mixes into pictures at these timesteps, 0 to 999."""
    mixin = onetrainer("modelSetup.mixin.ModelSetupFlowMatchingMixin").ModelSetupFlowMatchingMixin()
    clean, noise = torch.zeros(len(timestep), 1, 1, 1), torch.ones(len(timestep), 1, 1, 1)
    noisy: Tensor = mixin._add_noise_discrete(clean, noise, timestep, torch.arange(STEPS))[0]
    return noisy.flatten()


def onetrainer_losses(loss_weight: str, timestep: Tensor, predicted: Tensor, target: Tensor) -> Tensor:
    """Return OneTrainer's loss of each sample (B,) at these timesteps, by one of its loss weights."""
    weight = onetrainer("util.enum.LossWeight").LossWeight[loss_weight]
    mixin = onetrainer("modelSetup.mixin.ModelSetupDiffusionLossMixin").ModelSetupDiffusionLossMixin()
    data = {"loss_type": "target", "predicted": predicted, "target": target, "timestep": timestep}
    losses: Tensor = mixin._flow_matching_losses(
        {"loss_weight": torch.ones(len(timestep))},
        data,
        onetrainer_config(loss_weight_fn=weight),
        torch.device("cpu"),
        torch.zeros(STEPS),
    )
    return losses


def onetrainer_timesteps(distribution: str, count: int, generator: torch.Generator, **values: Any) -> Tensor:
    """Return timesteps (count,), 0 to 999, that OneTrainer draws from one of its distributions."""
    law = onetrainer("util.enum.TimestepDistribution").TimestepDistribution[distribution]
    mixin = onetrainer("modelSetup.mixin.ModelSetupNoiseMixin").ModelSetupNoiseMixin()
    config = onetrainer_config(timestep_distribution=law, **values)
    drawn: Tensor = mixin._get_timestep_discrete(STEPS, False, generator, count, config)
    return drawn


def onetrainer_shift(side_px: int) -> float:
    """Return the shift that OneTrainer's `dynamic_timestep_shifting` gives to square pictures for Z-Image."""
    folder = checkout(*ONETRAINER)
    assert folder is not None
    method = "calculate_timestep_shift"
    model = types.SimpleNamespace(noise_scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
    shift: float = _extracted(folder / "modules/model/ZImageModel.py", {method})[method](
        model, side_px // 8, side_px // 8
    )
    return shift


@cache
def ai_toolkit_scheduler() -> Any:
    """Return a scheduler of ai-toolkit with the settings that it gives to Z-Image (27a03a91: z_image.py)."""
    folder = checkout(*AI_TOOLKIT)
    assert folder is not None
    package = types.ModuleType("toolkit")
    package.__path__ = [str(folder / "toolkit")]
    sys.modules["toolkit"] = package
    module = importlib.import_module("toolkit.samplers.custom_flowmatch_sampler")
    return module.CustomFlowMatchEulerDiscreteScheduler(
        num_train_timesteps=STEPS, use_dynamic_shifting=False, shift=3.0
    )


def musubi_sigma(sampling: str, uniform: Tensor, side_px: int = 1024, **values: Any) -> Tensor:
    """Return the share of noise (B,) that musubi-tuner mixes into pictures of this size.

    Args:
        sampling: Its `--timestep_sampling`.
        uniform: The samples of the uniform distribution that it is to use (B,).
        side_px: Of square pictures.
        values: Of its other arguments.
    """
    count, side = len(uniform), side_px // 8
    clean, noise = torch.zeros(count, 1, side, side), torch.ones(count, 1, side, side)
    found = _musubi()(
        None,
        argparse.Namespace(
            timestep_sampling=sampling,
            **{"min_timestep": None, "max_timestep": None, "preserve_distribution_shape": False, **values},
        ),
        *(noise, clean, uniform.tolist(), None, torch.device("cpu"), torch.float32),
    )
    noisy: Tensor = found[0]
    return noisy[:, 0, 0, 0]


@cache
def _musubi() -> Any:
    folder = checkout(*MUSUBI_TUNER)
    assert folder is not None
    source = folder / "src" / "musubi_tuner"
    names = _extracted(source / "utils" / "train_utils.py", {"get_lin_function"})
    names["train_utils"] = types.SimpleNamespace(get_lin_function=names["get_lin_function"])
    method = "get_noisy_model_input_and_timesteps"
    return _extracted(source / "training" / "trainer_base.py", {method}, names)[method]


def _extracted(path: Path, wanted: set[str], names: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the functions and methods of a file that have these names, defined with `names` about them."""
    nodes = ast.walk(ast.parse(path.read_bytes()))
    found = [node for node in nodes if isinstance(node, ast.FunctionDef) and node.name in wanted]
    assert {node.name for node in found} == wanted
    scope = {**(names or {}), "torch": torch, "math": math}
    future = ast.parse("from __future__ import annotations").body  # so that annotations name nothing
    exec(compile(ast.Module([*future, *found], []), str(path), "exec"), scope)
    return scope
