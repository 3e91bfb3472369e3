"""The task of the stage `ingest`."""

from pathlib import Path

from prefect.client.schemas.objects import State

from tasks.policy import stage_task
from tasks.stage import up_to_date
from tasks.workspace import Outcome


@stage_task
def ingest(workspace: Path, *, known: bool = False, shared: bool = False) -> State[Outcome]:
    """Bring `data/ingest` up to date: photos with consent, decoded, upright, in sRGB and without metadata."""
    return up_to_date(workspace, "ingest", known=known, shared=shared)
