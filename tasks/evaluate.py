"""The task of the stage `evaluate`."""

from pathlib import Path

from prefect.client.schemas.objects import State

from tasks.policy import stage_task
from tasks.stage import up_to_date
from tasks.workspace import Outcome


@stage_task
def evaluate(workspace: Path, *, known: bool = False, shared: bool = False) -> State[Outcome]:
    """Bring `data/evaluate` up to date: how often the LoRA's pictures are the person, and the report."""
    return up_to_date(workspace, "evaluate", known=known, shared=shared)
