"""Old names of params.yaml keys are read as today's."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from zimage.core.params import parsed
from zimage.core.renamed_keys import MOVED, RENAMED, new_name, old_keys, renamed

NOW = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "new", sorted({*map(new_name, RENAMED), *MOVED.values()} - {"train.prior_preservation.batch_size"})
)
def test_every_new_name_is_a_key_of_params_yaml(new: str) -> None:
    place: Any = NOW
    for name in new.split("."):
        place = place[name]


def test_single_keys_and_sections_given_as_a_whole_are_read_under_their_new_names() -> None:
    assert renamed({"train.batch": 2, "train.sigma.law": "uniform", "train.sigma.mean": 0.5, "train.steps": 9}) == {
        "train.batch_size": 2,
        "train.timestep_sampling.distribution": "uniform",
        "train.timestep_sampling.mean": 0.5,
        "train.steps": 9,
    }
    assert renamed({"train.preservation": {"weight": 1.0, "every": 2, "batch": 4}, "train.memory.graphs": True}) == {
        "train.prior_preservation": {"weight": 1.0, "every": 2, "batch_size": 4},
        "machine.cuda_graphs": True,
    }
    assert renamed(
        {"train": {"memory": {"frozen": "plain", "compile": True, "checkpointing": "full"}, "stored": "float32"}}
    ) == {
        "machine.checkpointing": "full",
        "train": {"memory": {"base_quantization": "none", "compile": True}, "save_dtype": "float32"},
    }


def test_names_of_today_stay_as_they_are() -> None:
    assert renamed(NOW) == NOW
    assert not old_keys(NOW)
    assert parsed(["train.batch=2", "train.micro_batch_size=1"]) == {"train.batch_size": 2, "train.micro_batch_size": 1}


def test_old_keys_are_named_with_their_new_names() -> None:
    assert old_keys({"train": {"batch": 1, "sigma": {"law": "uniform"}}, "train.memory.graphs": False}) == {
        "train.batch": "train.batch_size",
        "train.sigma": "train.timestep_sampling",
        "train.sigma.law": "train.timestep_sampling.distribution",
        "train.memory.graphs": "machine.cuda_graphs",
    }
