"""What the last run of a workspace found, in a few lines for a person."""

import json
from pathlib import Path

from zimage.errors import InputError

RATES = {
    "face_found_rate": "a face is found in the pictures",
    "same_person_rate": "of those, the same person as in the held-out photos",
    "base_same_person_rate": "the same with the base model alone",
}


def summary(workspace: Path) -> list[str]:
    """Return lines with the verdict, the rates behind it, and where the report and the LoRA are.

    Raises:
        InputError: nothing has been evaluated in `workspace` yet.
    """
    metrics = workspace / "data" / "evaluate" / "metrics.json"
    if not metrics.is_file():
        raise InputError(f"Nothing has been evaluated in {workspace} yet; run `dvc repro` there first.")
    found = json.loads(metrics.read_text(encoding="utf-8"))
    chosen = found["chosen"]
    return [
        f"verdict  {found['verdict']}: {found['why']}",
        *(f"{found[key]:>7.1%}  {meaning}" for key, meaning in RATES.items()),
        f"report   {(metrics.parent / 'report.html').resolve()}",
        f"LoRA     {chosen_lora(workspace, chosen['file']).resolve()} at strength {chosen['strength']}",
    ]


def chosen_lora(workspace: Path, name: str) -> Path:
    """Return where the LoRA that was evaluated and chosen lies: the final one, or a checkpoint."""
    train = workspace / "data" / "train"
    return train / name if (train / name).exists() else train / "checkpoints" / name
