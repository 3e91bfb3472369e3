"""The task of the stage `caption`."""

from pathlib import Path

from prefect.client.schemas.objects import State

from tasks.policy import stage_task
from tasks.stage import up_to_date
from tasks.workspace import Outcome


@stage_task
def caption(workspace: Path, *, known: bool = False, shared: bool = False) -> State[Outcome]:
    """Bring `data/caption` up to date: what each training picture shows besides the person."""
    return up_to_date(workspace, "caption", known=known, shared=shared)
