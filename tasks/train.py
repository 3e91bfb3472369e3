"""The task of the stage `train`."""

from pathlib import Path

from prefect.client.schemas.objects import State

from tasks.policy import stage_task
from tasks.stage import up_to_date
from tasks.workspace import Outcome


@stage_task
def train(workspace: Path, *, known: bool = False, shared: bool = False) -> State[Outcome]:
    """Bring `data/train` up to date: the LoRA, its checkpoints and its loss."""
    return up_to_date(workspace, "train", known=known, shared=shared)
