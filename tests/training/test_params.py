"""The params of training: what they refuse by themselves."""

import pytest

from tests.training.recipe import PARAMS
from zimage.core.errors import InputError
from zimage.core.section import checked
from zimage.training.params import TrainParams


def test_a_warm_up_longer_than_the_run_is_refused_with_the_remedy() -> None:
    checked({**PARAMS, "schedule": {**PARAMS["schedule"], "warmup_steps": 6}}, TrainParams, "train")
    with pytest.raises(
        InputError, match=r"warmup_steps is more than train\.steps, 6, .*; set train\.schedule\.warmup_st"
    ):
        checked({**PARAMS, "schedule": {**PARAMS["schedule"], "warmup_steps": 7}}, TrainParams, "train")
