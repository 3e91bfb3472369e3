"""Crops in; the LoRA, its score and the report out: the leg that wants a GPU."""

from prefect import flow

from flows.spec import LearnSpec
from tasks.caption import caption
from tasks.encode import encode
from tasks.evaluate import evaluate
from tasks.settings import from_environment
from tasks.train import train
from tasks.workspace import Outcome, held, is_up_to_date


@flow(name="learn", flow_run_name="learn {spec.subject}")
def learn(spec: LearnSpec) -> dict[str, Outcome]:
    """Return what became of `caption`, `encode`, `train` and `evaluate`."""
    workspace = from_environment().workspace(spec.subject)
    with held(workspace):
        known = is_up_to_date(workspace, "evaluate")
        return {stage.name: stage(workspace, known=known).result() for stage in (caption, encode, train, evaluate)}
