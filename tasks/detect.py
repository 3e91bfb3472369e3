"""The task of the stage `detect`."""

from pathlib import Path

from prefect.client.schemas.objects import State

from tasks.policy import stage_task
from tasks.stage import up_to_date
from tasks.workspace import Outcome


@stage_task
def detect(workspace: Path, *, known: bool = False, shared: bool = False) -> State[Outcome]:
    """Bring `data/detect` up to date: whose face it is, which photos are good, and the crops of them."""
    return up_to_date(workspace, "detect", known=known, shared=shared)
