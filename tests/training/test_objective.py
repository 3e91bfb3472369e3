"""What a step minimises beside the subject's own error."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.recipe import MACHINE, recipe
from zimage.core.errors import InputError
from zimage.model.base import Base
from zimage.training.distributed import World
from zimage.training.setup import Run, build_run

PRESERVE: dict[str, Any] = {"weight": 2.0, "every": 2, "batch_size": 3, "pictures": "crops", "target": "base"}


def _prepared(base: Base, encoded: Path, **changes: object) -> Run:
    return build_run(encoded, Path(base.model), recipe(**changes), MACHINE, World())


def test_preservation_costs_nothing_while_the_adapters_change_nothing(tiny_base: Base, tiny_encoded: Path) -> None:
    loop = _prepared(tiny_base, tiny_encoded, prior_preservation=PRESERVE).loop
    step = loop.preservation_steps[0]
    chance = loop.objective.sample_noise(0, step, name="preservation")
    assert loop.preservation is not None
    loss = loop.objective.preservation_loss(step, chance, slice(0, 3), loop.preservation)
    assert float(loss.detach()) < 1e-9


def test_preservation_pulls_a_changed_model_back_to_the_base(tiny_base: Base, tiny_encoded: Path) -> None:
    prepared = _prepared(tiny_base, tiny_encoded, prior_preservation=PRESERVE)
    loop = prepared.loop
    prepared.adapters.values.add_(0.1 * torch.randn(len(prepared.adapters.values)))
    step = loop.preservation_steps[0]
    chance = loop.objective.sample_noise(0, step, name="preservation")

    def loss() -> torch.Tensor:
        assert loop.preservation is not None
        return loop.objective.preservation_loss(step, chance, slice(0, 3), loop.preservation)

    before = loss()
    before.backward()
    prepared.adapters.values.sub_(1e-2 * prepared.adapters.gradient / prepared.adapters.gradient.norm())
    assert 0 < float(loss().detach()) < float(before.detach())


def test_preservation_reads_captions_without_the_trigger(tiny_base: Base, tiny_encoded: Path) -> None:
    prepared = _prepared(tiny_base, tiny_encoded, prior_preservation=PRESERVE)
    texts = {text for step in prepared.loop.preservation_steps for text in step.texts}
    assert texts and not any("ohzw" in prepared.dataset.texts[text].prompt for text in texts)


def test_it_takes_its_turn_every_so_many_steps(tiny_base: Base, tiny_encoded: Path) -> None:
    without = _prepared(tiny_base, tiny_encoded)
    beside = _prepared(tiny_base, tiny_encoded, prior_preservation=PRESERVE)
    gradients = []
    for prepared in (without, beside):
        prepared.adapters.values.copy_(
            0.1 * torch.randn(len(prepared.adapters.values), generator=torch.Generator().manual_seed(0))
        )
        for number in (0, 1):
            prepared.adapters.gradient.zero_()
            prepared.loop.backward(number)
            gradients.append(prepared.adapters.gradient.clone())
    assert not torch.equal(gradients[0], gradients[2])
    assert torch.equal(gradients[1], gradients[3])


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [({"pictures": "class"}, "no class pictures"), ({"target": "picture"}, "would teach the class")],
)
def test_preservation_that_cannot_work_is_refused(
    changes: dict[str, str], complaint: str, tiny_base: Base, tiny_encoded: Path
) -> None:
    with pytest.raises(InputError, match=complaint):
        _prepared(tiny_base, tiny_encoded, prior_preservation={**PRESERVE, **changes})


def test_the_refined_captions_are_kept_unless_an_adapter_sits_before_them(tiny_base: Base, tiny_encoded: Path) -> None:
    for targets, same in ((["attention"], True), (["context_refiner"], False)):
        prepared = _prepared(tiny_base, tiny_encoded, targets=targets, precision="bfloat16")
        step = prepared.loop.steps[0]
        before = prepared.dataset.context(step, prepared.denoiser).clone()
        prepared.adapters.values.add_(0.1)
        assert torch.equal(prepared.dataset.context(step, prepared.denoiser), before) is same


def test_a_class_of_its_own_chance_is_drawn_for_preservation(tiny_base: Base, tiny_encoded: Path) -> None:
    objective = _prepared(tiny_base, tiny_encoded).loop.objective
    step = _prepared(tiny_base, tiny_encoded).loop.steps[0]
    one, again, other, later = (
        objective.sample_noise(number, step, name=name)
        for number, name in ((0, "step"), (0, "step"), (0, "preservation"), (1, "step"))
    )
    assert torch.equal(one.noise, again.noise) and torch.equal(one.sigma, again.sigma)
    assert not torch.equal(one.noise, other.noise)
    assert not torch.equal(one.noise, later.noise)
    assert not torch.equal(one.noise, one.spread)
