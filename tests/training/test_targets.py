"""Targets: kinds of layers, some of their blocks, ranks and learning rates of their own."""

from pathlib import Path
from typing import Any

import pytest

from tests.tiny_base import tiny_transformer
from tests.training.crops import SUBJECT
from tests.training.recipe import MACHINE, PARAMS, recipe
from zimage.core.errors import InputError
from zimage.core.section import checked
from zimage.model.base import Base
from zimage.stages.train import train
from zimage.training.params import TargetParams, TrainParams
from zimage.training.targets import adapted_layers, kinds_of, largest_rank, said


def target(**values: Any) -> TargetParams:
    return TargetParams.model_validate(values)


@pytest.mark.parametrize(("blocks", "numbers"), [("1-2", {1, 2}), (3, {3}), ("0-0", {0}), (None, {0, 1, 2, 3})])
def test_a_range_of_blocks_has_both_its_ends(blocks: object, numbers: set[int]) -> None:
    found = adapted_layers(tiny_transformer(layers=4), [target(layers="attention", blocks=blocks)])
    parts = ("to_q", "to_k", "to_v", "to_out.0")
    assert set(found) == {f"layers.{number}.attention.{part}" for number in numbers for part in parts}


def test_modulation_of_some_blocks_is_not_that_of_the_final_layer() -> None:
    final = "all_final_layer.2-1.adaLN_modulation.1"
    assert final in adapted_layers(tiny_transformer(), ["modulation"])
    some = adapted_layers(tiny_transformer(), [target(layers="modulation", blocks="0-1")])
    assert set(some) == {"layers.0.adaLN_modulation.0", "layers.1.adaLN_modulation.0"}


def test_a_word_and_a_section_are_said_and_counted_alike() -> None:
    mixed = [target(layers="attention", blocks="10-29", rank=8, learning_rate_factor=0.5), "feed_forward"]
    params = recipe(targets=[mixed[0].model_dump(), "feed_forward"], rank=4)  # type: ignore[union-attr]
    assert params.targets == mixed and largest_rank(params) == 8
    assert kinds_of(params.targets) == {"attention", "feed_forward"}
    assert said(params.targets) == "attention 10-29 rank 8 learning rate x 0.5 feed_forward"


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([{"layers": "attention", "blocks": "1-9"}], None),
        ([{"layers": "attention", "blocks": "8-9"}], r"attention 8-9, but the base has only the blocks 0 to 1 of that"),
        (
            [{"layers": "attention", "blocks": "0-1"}, {"layers": "attention", "blocks": 1}],
            "names layers.* twice",
        ),
        (["attention", {"layers": "attention", "rank": 2}], r"to_q twice, by attention and by attention rank 2"),
        (["attention", "attention"], None),
    ],
)
def test_targets_that_do_not_fit_the_base_or_overlap_are_refused(targets: list[Any], message: str | None) -> None:
    chosen = recipe(targets=targets).targets
    if message is None:
        assert adapted_layers(tiny_transformer(), chosen)
    else:
        with pytest.raises(InputError, match=message):
            adapted_layers(tiny_transformer(), chosen)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("atention", "`targets.0` is 'atention': input should be 'attention'"),
        ({"layers": "attention", "blocks": "9-2"}, "`targets.0.blocks` is '9-2'.*the last block comes before"),
        ({"layers": "attention", "blocks": "2 to 4"}, "`targets.0.blocks` is '2 to 4'"),
        ({"layers": "final_layer", "blocks": 1}, "final_layer is one layer outside the blocks"),
        ({"layers": "attention", "block": 1}, "unknown key `targets.0.block`"),
        ({"blocks": 1}, "`targets.0.layers` is missing"),
    ],
)
def test_a_target_that_means_nothing_is_refused_by_its_place(item: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        checked({**PARAMS, "targets": [item]}, TrainParams, "params.yaml: train")


def test_prodigy_takes_no_factor_of_the_learning_rate(tiny_base: Base, tiny_encoded: Path, tmp_path: Path) -> None:
    params = recipe(targets=[{"layers": "attention", "learning_rate_factor": 0.5}], optimiser={"name": "prodigy"})
    with pytest.raises(InputError, match="finds one learning rate for all layers"):
        train(tiny_encoded, tmp_path / "train", params=params, base=tiny_base, subject=SUBJECT, machine=MACHINE)
