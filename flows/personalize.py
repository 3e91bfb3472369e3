"""Flow `personalize`: run the phases prepare, learn and publish in order, in this process or in work pools."""

from dataclasses import dataclass
from typing import Any

from prefect import Flow, flow, tags
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.runtime import deployment

from flows.learn import learn
from flows.preflight import refuse, refuse_values
from flows.prepare import prepare
from flows.publish import publish
from flows.spec import LearnSpec, PersonalizeSpec, PrepareSpec, PublishSpec
from tasks.phases.remote_runs import run_phase, start
from tasks.prefect_api.lost import cancel_parts
from tasks.prefect_api.run_labels import name_this_run, tag_this_run, why_tags
from tasks.release.publish import Release
from tasks.settings import from_environment
from tasks.workspace.workspace import Outcome
from zimage.core.errors import InputError


@dataclass(frozen=True)
class Personalized:
    """The result of a run.

    Args:
        outcomes: What became of each stage, in pipeline order.
        release: The release, if one was asked for and the gate let it pass.
        refusal: Why there is none although it was asked for; a poor score is a result and no failure of the run.
    """

    outcomes: dict[str, Outcome]
    release: Release | None = None
    refusal: str | None = None


def _cancel_parts(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Cancel the phases of a cancelled run, which Prefect leaves running."""
    with get_client(sync_client=True) as client:
        cancel_parts(client, flow_run)


@flow(
    name="personalize",
    flow_run_name=name_this_run,
    on_running=[tag_this_run],
    on_cancellation=[_cancel_parts],
)
def personalize(spec: PersonalizeSpec) -> Personalized:
    """Run all phases; return the outcome of each stage and, if publishing was asked for, the release."""
    if deployment.id:  # at a shell it was checked before this run existed
        settings = from_environment()
        refuse(spec, settings, served=True)
        if spec.placement == "pools":
            refuse_values(spec, settings)
    prepared = PrepareSpec(**spec.model_dump(exclude={"publish", "accept_toy", "hub_repository"}))
    learned = LearnSpec(subject=spec.subject, placement=spec.placement)
    if spec.placement == "pools":
        outcomes = run_phase("prepare", prepared) | run_phase("learn", learned)
    else:
        with tags(*why_tags()):
            outcomes = prepare(prepared) | learn(learned)
    return _published(spec, outcomes)


def _published(spec: PersonalizeSpec, outcomes: dict[str, Outcome]) -> Personalized:
    if spec.publish == "never":
        return Personalized(outcomes)
    ask = spec.publish == "ask"
    asked = PublishSpec(
        subject=spec.subject,
        placement=spec.placement,
        accept_provisional=ask or spec.publish == "provisional",
        accept_toy=spec.accept_toy,
        approval=ask,
        hub_repository=spec.hub_repository,
    )
    try:
        if ask:  # the person may take days; this run does not wait
            start("publish", asked, as_part=False)
        elif spec.placement == "pools":
            run_phase("publish", asked)
        else:
            with tags(*why_tags()):
                release = publish(asked)
            assert isinstance(release, Release), "only a flow with approval ends otherwise"
            return Personalized(outcomes, release=release)
    except InputError as error:
        return Personalized(outcomes, refusal=" ".join(filter(None, [str(error), error.names])))
    return Personalized(outcomes)
