"""Summarise the last run of a workspace in a few lines."""

import hashlib
import json
from pathlib import Path
from typing import Any

from zimage.core.errors import InputError
from zimage.evaluation.wording import TOY, lines

FINAL = "lora.safetensors"
ANSWERS = Path("data/review.json")  # what a person answered in review.html, in a workspace


def summary(workspace: Path) -> list[str]:
    """Return lines with the verdict, the figures for and against it, and where report and LoRA are, if up to date.

    Raises:
        InputError: nothing has been evaluated in `workspace` yet.
    """
    found = evaluated(workspace)
    return [
        f"verdict  {found['verdict']}: {found['why']}",
        *(f"next     {each}" for each in found.get("advice", [])),
        *lines(found),
        *_change(found),
        *_review(found),
        f"report   {(workspace / 'data' / 'evaluate' / 'report.html').resolve()}",
        f"LoRA     {_lora(workspace, found['chosen'])}",
        f"prompt   {prompt(workspace)}",
        *([f"note     {TOY}"] if found.get("sampled", {}).get("packaged") else []),
    ]


def _change(found: dict[str, Any]) -> list[str]:
    """Return one line with the first advice that is not said below the verdict; the report has the others."""
    tips = [tip["sentence"] for tip in found.get("coaching", []) if tip["sentence"] not in found.get("advice", [])]
    more = f" ({len(tips) - 1} more in the report)" if len(tips) > 1 else ""
    return [f"change   {tips[0]}{more}"] if tips else []


def _review(found: dict[str, Any]) -> list[str]:
    if "review" not in found:
        return []
    from zimage.evaluation.review import summary_line

    return [f"review   {summary_line(found['review'])}"]


def evaluated(workspace: Path) -> dict[str, Any]:
    """Return what the last evaluation of `workspace` found, its metrics.json, with a person's review if there is one.

    Raises:
        InputError: nothing has been evaluated there yet, or the file of the review is not one.
    """
    metrics = workspace / "data" / "evaluate" / "metrics.json"
    if not metrics.is_file():
        raise InputError(f"Nothing has been evaluated in {workspace} yet; run `dvc repro` there first.")
    found: dict[str, Any] = json.loads(metrics.read_text(encoding="utf-8"))
    if (workspace / ANSWERS).is_file():
        from zimage.evaluation.review import with_review  # it loads numpy

        return with_review(found, metrics.parent, workspace / ANSWERS)
    return found


def prompt(workspace: Path) -> str:
    """Return the words that draw the person: trigger and class noun, as in the captions."""
    from zimage.captions.subject import Subject
    from zimage.captions.template import subject
    from zimage.core.section import read_section

    named = read_section(workspace / "params.yaml", "subject", Subject)
    return f"a photo of {subject(named.trigger, named.class_noun, 'en')}"


def _lora(workspace: Path, chosen: dict[str, Any]) -> str:
    """Return where the LoRA is and how it is used, or that the result is not of what is there now."""
    lora, remedy = chosen_lora(workspace, chosen["file"]).resolve(), f"run `dvc repro` in {workspace.resolve()}"
    if not lora.is_file():
        return f"is not there ({lora}): this result is out of date, or was made elsewhere; {remedy}"
    if _sha256(lora) != chosen["sha256"]:
        return f"{lora} is another one than was evaluated: this result is out of date; {remedy}"
    return f"{lora} at strength {chosen['strength']}"


def chosen_lora(workspace: Path, name: str) -> Path:
    """Return where the LoRA that was evaluated and chosen lies: the final one, or a checkpoint."""
    train = workspace / "data" / "train"
    return train / name if name == FINAL else train / "checkpoints" / name


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
