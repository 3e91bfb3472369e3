"""The task of the stage `encode`."""

from pathlib import Path

from prefect.client.schemas.objects import State

from tasks.policy import stage_task
from tasks.stage import up_to_date
from tasks.workspace import Outcome


@stage_task
def encode(workspace: Path, *, known: bool = False, shared: bool = False) -> State[Outcome]:
    """Bring `data/encode` up to date: latents and text embeddings, so that training needs only the transformer."""
    return up_to_date(workspace, "encode", known=known, shared=shared)
