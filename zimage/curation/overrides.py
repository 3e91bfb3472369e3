"""Read a person's decisions about single photos; they take precedence and are always shown."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from zimage.core.errors import InputError
from zimage.core.plain_yaml import load_plain

Choice = Literal["keep", "reject", "holdout"]

MAX_BYTES = 5_000_000
HASH = re.compile(r"[0-9a-f]{16}([0-9a-f]{48})?")
EXAMPLE = "`4f1d0c2b9a8e7766: {decision: reject, reason: eyes closed}`"


@dataclass(frozen=True)
class Override:
    """A person's decision about one photo, with its reason."""

    decision: Choice
    reason: str


def read_overrides(folder: Path) -> dict[str, Override]:
    """Return the decisions in `folder`/decisions.yaml by the photo's short hash; none where there is no such file.

    Raises:
        InputError: the file is not a mapping from a photo's hash to a decision and its reason.
    """
    path = folder / "decisions.yaml"
    if not path.is_file():
        return {}
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path} is larger than {MAX_BYTES} bytes; it should hold a line for each decision.")
    try:
        # As text: a hash of digits only would else be a number, and lose leading zeros.
        content = load_plain(path.read_text(encoding="utf-8"), as_text=True)
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(
            f"{path} is not valid YAML ({' '.join(str(error).split())}); correct it and run again."
        ) from None
    if content in (None, ""):
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{path} must map a photo's hash to a decision, one a line: {EXAMPLE}.")
    return {_checked_hash(photo, path)[:16]: _checked(photo, value, path) for photo, value in content.items()}


def _checked_hash(photo: object, path: Path) -> str:
    if not isinstance(photo, str) or not HASH.fullmatch(photo):
        raise InputError(
            f"{path}: {photo!r} is not the hash of a photo; copy it from the contact sheet, as in {EXAMPLE}."
        )
    return photo


def _checked(photo: str, value: Any, path: Path) -> Override:
    choices = ", ".join(get_args(Choice))
    if not isinstance(value, Mapping) or set(value) != {"decision", "reason"} or not value["reason"]:
        raise InputError(f"{path}: {photo} needs a decision ({choices}) and a reason, as in {EXAMPLE}.")
    if value["decision"] not in get_args(Choice):
        raise InputError(f"{path}: the decision for {photo} is {value['decision']!r}; choose one of {choices}.")
    return Override(value["decision"], str(value["reason"]))
