"""The settings of a sweep: which values of params.yaml are tried."""

import re
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from zimage.core.errors import InputError
from zimage.core.plain_yaml import load_plain
from zimage.core.section import Section, checked

NAME = re.compile(r"[\w.,=+ -]{1,80}")


class SweepFile(Section):
    """What a sweep file says. Names of values are dotted keys of params.yaml, such as `train.steps`."""

    runs: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings by name; the first is what all others are compared with."""
    grid: dict[str, list[Any]] = Field(default_factory=dict)
    """Values that are tried in all combinations, after `runs`; the first combination is the first value of each."""
    common: dict[str, Any] = Field(default_factory=dict)
    """Values of `train` or `evaluate` for all runs, such as `evaluate.sweep.checkpoints: 0`."""
    seeds: list[int] = Field(default_factory=lambda: [0])
    """Values of `train.seed`; every setting is trained once with each."""


def read_sweep(path: Path) -> tuple[dict[str, dict[str, Any]], list[int]]:
    """Return the values of every setting by its name, those for all included, and the seeds.

    Raises:
        InputError: the file is absent or no such file, or tries nothing, something twice, or something that is not of
            the training.
    """
    if not path.is_file():
        raise InputError(f"There is no file {path}; write one with `runs` or `grid`, see infra/guide.md.")
    try:
        content = load_plain(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no YAML file: {error}") from error
    asked = checked(content, SweepFile, str(path))
    settings = dict(asked.runs)
    for values in product(*asked.grid.values()) if asked.grid else ():
        setting = dict(zip(asked.grid, values, strict=True))
        settings[_name(setting)] = setting
    _check(settings, asked, path)
    return {name: {**asked.common, **setting} for name, setting in settings.items()}, asked.seeds


def _name(setting: Mapping[str, Any]) -> str:
    """Return `steps=500, targets=attention+feed_forward` for such values."""
    return ", ".join(f"{key.rpartition('.')[2]}={_spelled(value)}" for key, value in setting.items())


def _spelled(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def _check(settings: Mapping[str, Mapping[str, Any]], asked: SweepFile, path: Path) -> None:
    if not settings or not asked.seeds:
        raise InputError(f"{path} tries nothing; give `runs` or `grid`, and at least one of `seeds`.")
    if len(set(asked.seeds)) < len(asked.seeds):
        raise InputError(f"{path} names a seed twice; give each once.")
    for name, setting in settings.items():
        if not NAME.fullmatch(name):
            raise InputError(
                f"{path}: `{name}` cannot name a folder; use at most 80 letters, digits and `_ . , = + -`; a grid of "
                "long values is better written as `runs`."
            )
        wrong = [key for key in setting if not key.startswith("train.") or key == "train.seed"]
        if wrong:
            raise InputError(
                f"{path}: `{name}` sets {wrong[0]}, and only values of `train` can be compared on the same data; "
                "seeds go into `seeds`, and values of `evaluate` for all runs into `common`."
            )
    wrong = [key for key in asked.common if not key.startswith(("train.", "evaluate."))]
    if wrong:
        raise InputError(f"{path}: `common` sets {wrong[0]}; it can set values of `train` and `evaluate`.")
