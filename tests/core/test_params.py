from pathlib import Path

import pytest
import yaml

from zimage.core.errors import InputError
from zimage.core.params import parsed, with_values

PROJECT = Path(__file__).parents[2]
TEXT = """\
# All values.

train:
  steps: 800        # steps
  rates: [1, 2]     # per step
  loss:
    weight: 0.5     # share
base:
  model: tiny       # the packaged one
  identity: "sha256:00"
"""


def test_a_value_is_changed_and_the_comments_stay() -> None:
    text = with_values(TEXT, {"train.steps": 20, "train.loss.weight": 0.25}, "here")

    assert text == TEXT.replace("800 ", "20  ").replace("0.5 ", "0.25")


def test_a_number_in_quotes_replaces_a_number_as_a_number() -> None:
    values = {"train.loss": {"weight": "1e-4"}, "base.model": "1e-4", "train.steps": "1e3"}

    found = yaml.safe_load(with_values(TEXT, values, "here"))

    assert found["train"]["loss"] == {"weight": 0.0001} and found["base"]["model"] == "1e-4"
    assert found["train"]["steps"] == "1e3"  # a count is no float; its section refuses a text
    key = "train.loss.weight"
    assert with_values(TEXT, {key: "1e-4"}, "here") == with_values(TEXT, {key: 0.0001}, "here")


def test_text_lists_and_null_can_be_set() -> None:
    text = with_values(TEXT, {"base.model": "/weights/base", "train.rates": [3], "train.loss": None}, "here")

    found = yaml.safe_load(text)
    assert found["base"]["model"] == "/weights/base"
    assert found["train"] == {"steps": 800, "rates": [3], "loss": None}


def test_nothing_to_change_changes_nothing_in_the_project_s_own_file() -> None:
    text = (PROJECT / "params.yaml").read_text(encoding="utf-8")

    assert with_values(text, {}, "here") == text


@pytest.mark.parametrize("key", ["train.stepz", "trian.steps", "steps", "train.steps.more"])
def test_a_key_that_does_not_exist_is_refused(key: str) -> None:
    with pytest.raises(InputError, match=rf"preset 8gb: params.yaml has no key `{key}`"):
        with_values(TEXT, {key: 1}, "preset 8gb")


def test_the_nearest_key_is_named() -> None:
    with pytest.raises(InputError, match=r"did you mean `train\.steps`\?"):
        with_values(TEXT, {"train.stepz": 1}, "here")


def test_assignments_are_read_as_yaml() -> None:
    found = parsed(["train.steps=20", "a.b=0.5", "a.c=null", "a.d=[en, zh]", "a.e=x=y", "a.f=true"])

    assert found == {"train.steps": 20, "a.b": 0.5, "a.c": None, "a.d": ["en", "zh"], "a.e": "x=y", "a.f": True}


@pytest.mark.parametrize("text", ["train.steps", "=3", ""])
def test_what_is_no_assignment_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"sets nothing; write SECTION\.KEY=VALUE"):
        parsed([text])


def test_what_is_no_yaml_is_refused() -> None:
    with pytest.raises(InputError, match="is not a YAML value"):
        parsed(["a.b=[1"])
