"""Flow `publish`: make a release from a finished workspace, after a person's approval if `approval` is set."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.logging import get_run_logger
from prefect.states import Completed
from pydantic import Field

from flows.spec import PublishSpec
from tasks.log import log_line
from tasks.phases.phase import working_on
from tasks.prefect_api.artifacts import show_offer
from tasks.prefect_api.run_labels import name_this_run, tag_this_run
from tasks.release import publish as publishing
from tasks.release.hub.hub import publish_to_hub
from tasks.release.publish import Release
from tasks.release.review import take_review
from tasks.release.score import read_score
from tasks.settings import Settings, from_environment
from tasks.store.s3 import open_store
from tasks.transfer.repair import fetching, made_by
from tasks.transfer.state import Taken, checkout
from tasks.workspace.workspace import pull
from zimage.core.errors import InputError

WAITS_S = 14 * 24 * 3600
UNANSWERED = "Nothing was published: the run was resumed without an answer. Start `publish` again to be asked again."


class Approval(RunInput):
    """A person's decision about a release."""

    decision: Literal["publish", "refuse"] = Field("refuse", title="Decision")
    reason: str = Field("", title="Why", description="Kept with the run.")


@flow(name="publish", flow_run_name=name_this_run, on_running=[tag_this_run])
def publish(spec: PublishSpec) -> Release | State[Any]:
    """Publish the subject's workspace and return the release, or the state `Refused` or `Unanswered`.

    Prefect runs a suspended flow from its start when it goes on: what is offered is looked at again, and a result that
    changed in the meantime is asked for again.
    """
    settings = from_environment()
    workspace = settings.workspace(spec.subject)
    shared = spec.placement == "pools"
    score = read_score(spec.score) if spec.score else None
    with working_on(settings, workspace, shared=shared):
        if shared:
            _require_result(checkout(settings, spec.subject, only_reads=True), spec.subject)
            _fetch(settings, spec.subject)
        if spec.review:
            take_review(workspace, spec.review)
        if spec.approval and (refused := _refused(spec, workspace)):
            return refused
        store = open_store(settings.store)
        release = publishing.publish(
            workspace,
            spec.subject,
            store,
            accept_provisional=spec.accept_provisional,
            use=spec.use,
            accept_toy=spec.accept_toy,
            signing=settings.signing,
            score=score,
        )
        if spec.hub_repository:
            on_hub = publish_to_hub(settings, store, spec.subject, release.name, spec.hub_repository)
            release = replace(release, hub=on_hub.repository)
    if release.notice:
        get_run_logger().warning("%s", release.notice)
    return release


def _require_result(taken: Taken, subject: str) -> None:
    if taken.state is None or not {"train", "evaluate"} <= taken.state.stages:
        raise InputError(
            f"The store has no finished result of {subject}: run `personalize` with placement `pools`, or publish on "
            f"the machine that made it: python -m flows publish --subject {subject}."
        )


def _fetch(settings: Settings, subject: str) -> None:
    workspace, stages = settings.workspace(subject), ("train", "evaluate")
    fetching(
        settings,
        subject,
        lambda: pull(workspace, [*stages, "data/consent.yaml.dvc"], on_line=log_line),
        wants=[*made_by(workspace, stages), "data/consent.yaml"],
    )


def _refused(spec: PublishSpec, workspace: Path) -> State[Any] | None:
    """Ask a person, and return the state `Refused` or `Unanswered` unless they say `publish`.

    Nobody is asked about what the gate refuses.
    """
    publishing.gate(workspace, accept_provisional=spec.accept_provisional, use=spec.use, accept_toy=spec.accept_toy)
    offer = show_offer(from_environment(), workspace, shared=spec.placement == "pools")
    asked = Approval.with_initial_data(description=offer.text)
    answer = suspend_flow_run(wait_for_input=asked, timeout=WAITS_S, key=f"approve-{offer.content}")
    if not answer.model_fields_set:  # Prefect takes the defaults then
        return Completed(name="Unanswered", message=UNANSWERED)
    if answer.decision == "publish":
        return None
    return Completed(name="Refused", message=answer.reason or "A person refused it.")
