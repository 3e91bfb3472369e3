"""What all stage tasks share: DVC brings the stage up to date, and Prefect shows it while it happens."""

import json
import time
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed

from tasks.workspace import Outcome, bring_up_to_date

SHOWN_EVERY_S = 2.0  # an update of an artifact takes about 10 ms of the server
NAMES = {Outcome.RAN: "Completed", Outcome.RESTORED: "Restored", Outcome.UNCHANGED: "Unchanged"}


def up_to_date(workspace: Path, stage: str, *, known: bool) -> State[Outcome]:
    """Return the task's final state, named by what DVC did; its result is the outcome.

    Args:
        workspace: The subject's workspace.
        stage: The stage that shall be up to date.
        known: DVC was asked for the whole leg and found it up to date, so that it need not be asked again.

    Raises:
        InputError: the stage refused its input.
        StageFailedError: it failed otherwise.
    """
    logger = get_run_logger()
    if known:
        logger.info("Stage '%s' didn't change, nothing to do", stage)
        return Completed(name=NAMES[Outcome.UNCHANGED], data=Outcome.UNCHANGED)
    shown = _Shown(workspace.name, stage)
    outcome = bring_up_to_date(workspace, stage, on_line=logger.info, on_progress=shown.update)
    if outcome is not Outcome.UNCHANGED:
        _show_metrics(workspace, stage)
    return Completed(name=NAMES[outcome], message=f"{stage}: {outcome}", data=outcome)


class _Shown:
    """A progress artifact that is made with the first step and updated at most every few seconds."""

    def __init__(self, subject: str, stage: str) -> None:
        self._key = f"{subject}-{stage}-progress"
        self._stage = stage
        self._artifact: UUID | None = None
        self._last = float("-inf")

    def update(self, event: dict[str, Any]) -> None:
        """Show one progress event of the stage: its share as a bar, its numbers as text."""
        now = time.monotonic()
        if now - self._last < SHOWN_EVERY_S and event["done"] < event["total"]:
            return
        self._last = now
        share = 100.0 * event["done"] / max(event["total"], 1)
        text = ", ".join(f"{key} {value}" for key, value in event.items())
        if self._artifact is None:
            self._artifact = create_progress_artifact(progress=share, key=self._key, description=text)  # type: ignore[assignment]
        else:
            update_progress_artifact(artifact_id=self._artifact, progress=share, description=text)


def _show_metrics(workspace: Path, stage: str) -> None:
    metrics = workspace / "data" / stage / "metrics.json"
    if metrics.is_file():
        found = json.loads(metrics.read_text(encoding="utf-8"))
        rows = [{"number": key, "value": value} for key, value in found.items() if not isinstance(value, dict | list)]
        create_table_artifact(rows, key=f"{workspace.name}-{stage}", description=f"Numbers of {stage}")
