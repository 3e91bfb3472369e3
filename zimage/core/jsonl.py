"""Read and write rows as JSON lines, validated on reading."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from zimage.core.errors import InputError


class Row(BaseModel):
    """One line of a stage's table."""

    model_config = ConfigDict(frozen=True, extra="forbid")


R = TypeVar("R", bound=Row)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines (UTF-8), in the order given."""
    path.write_text("".join(row.model_dump_json() + "\n" for row in rows), encoding="utf-8")


def read_rows(path: Path, kind: type[R]) -> list[R]:
    """Return the rows of a JSON-lines file.

    Raises:
        InputError: the file is absent; the stage that writes it has to run first.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing; run the stage that writes {path.parent} first, or `dvc repro`.")
    return [kind.model_validate_json(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_metrics(path: Path, metrics: dict[str, Any]) -> None:
    """Write numbers as indented JSON with sorted keys, so that equal numbers give equal bytes."""
    path.write_text(json.dumps(metrics, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
