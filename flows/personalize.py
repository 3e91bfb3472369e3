"""From photos to a LoRA that was scored: all legs, one after the other, on this machine."""

from dataclasses import dataclass

from prefect import flow

from flows.learn import learn
from flows.prepare import prepare
from flows.publish import publish
from flows.spec import LearnSpec, PersonalizeSpec, PrepareSpec, PublishSpec
from tasks.publish import Release
from tasks.workspace import Outcome
from zimage.errors import InputError


@dataclass(frozen=True)
class Personalized:
    """What a run did.

    Args:
        outcomes: What became of each stage, in pipeline order.
        release: The release, if one was asked for and the gate let it pass.
        refusal: Why there is none although it was asked for; a poor score is a result and no failure of the run.
    """

    outcomes: dict[str, Outcome]
    release: Release | None = None
    refusal: str | None = None


@flow(name="personalize", flow_run_name="personalize {spec.subject}")
def personalize(spec: PersonalizeSpec) -> Personalized:
    """Return what became of each stage and, if publishing was asked for, the release."""
    outcomes = prepare(PrepareSpec(**spec.model_dump(exclude={"publish"})))
    outcomes |= learn(LearnSpec(subject=spec.subject))
    if spec.publish == "never":
        return Personalized(outcomes)
    try:
        asked = PublishSpec(subject=spec.subject, accept_provisional=spec.publish == "provisional")
        return Personalized(outcomes, release=publish(asked))
    except InputError as error:
        return Personalized(outcomes, refusal=str(error))
