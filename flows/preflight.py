"""Validate a request before a flow run exists, so that a mistake gives one message instead of a failed run.

Nothing is written here, and all is checked again where it is used, since it may change in between.
"""

from pathlib import Path

from flows.prepare import chosen, given
from flows.spec import (
    LearnSpec,
    PersonalizeSpec,
    PlacedSpec,
    PrepareSpec,
    PromoteSpec,
    PublishSpec,
    ScoreSpec,
    SubjectSpec,
)
from tasks.phases.phase import require_workspace
from tasks.phases.scoring import check_consent, refuse_no_photos
from tasks.release import channels
from tasks.release import publish as publishing
from tasks.release.provenance import check_signing
from tasks.settings import Settings
from tasks.store.s3 import open_store
from tasks.transfer.state import consent_of, read_state
from tasks.workspace.subject import DEFAULT_PRESET, Choices, check, planned_values
from zimage.consent import Consent, require
from zimage.core.errors import InputError
from zimage.core.plain_yaml import load_plain
from zimage.core.section import checked
from zimage.core.signatures import STAGES
from zimage.evaluation.wording import TOY
from zimage.faces.engine_defaults import EMBEDDED
from zimage.model.base import Base, find, is_packaged
from zimage.permission import require_for, today
from zimage.training.params import TrainParams
from zimage.training.turbo import turbo_warning

SERVER = "set PREFECT_API_URL to a server with workers, such as the one of `make serve` (http://127.0.0.1:4200/api)"
PREPARES = ("ingest", "detect")


def warnings_of(asked: SubjectSpec, settings: Settings) -> list[str]:
    """Return what a run of `asked` on this machine would warn of only once it trains; the request is allowed.

    Args:
        asked: The request; its type names the flow.
        settings: Where things are.
    """
    if not isinstance(asked, PersonalizeSpec | LearnSpec) or asked.placement == "pools":
        return []
    plan = check(settings, asked.subject, **given(asked), **chosen(asked)) if isinstance(asked, PrepareSpec) else None
    params = plan.params if plan else (settings.workspace(asked.subject) / "params.yaml").read_text(encoding="utf-8")
    content = load_plain(params)
    try:
        base = checked({**content["base"], "identity": ""}, Base, "base")  # a base that is given is not hashed yet
        warning = turbo_warning(base, find(base.model), checked(content["train"], TrainParams, "train"))
    except InputError:  # the base is not needed where everything is up to date; the stage refuses it otherwise
        return []
    return [warning] if warning else []


def refuse(asked: SubjectSpec, settings: Settings, *, served: bool) -> None:
    """Raise the refusal that a run of `asked` on this machine would end in, if it can be foreseen.

    Args:
        asked: The request; its type names the flow.
        settings: Where things are.
        served: A Prefect server is configured that goes on when this process ends.

    Raises:
        InputError: the run would be refused, by the sentence that it would be refused with.
        StoreError: a bucket is away.
    """
    if not served:
        _refuse_without_server(asked)
    if isinstance(asked, PlacedSpec) and asked.placement == "pools":
        return  # other machines see other files; their runs tell
    workspace = settings.workspace(asked.subject)
    match asked:
        case PrepareSpec():
            _refuse_prepare(asked, settings, workspace)
        case LearnSpec():
            require_workspace(workspace)
            _require_consent(consent_of(workspace, None), STAGES)
        case ScoreSpec():
            refuse_no_photos(asked.photos)
            check_consent(settings, asked.subject, asked.consent, shared=False)
        case PublishSpec():
            require_workspace(workspace)
            publishing.gate(
                workspace,
                accept_provisional=asked.accept_provisional,
                use=asked.use,
                accept_toy=asked.accept_toy,
            )
            if settings.signing:
                check_signing(settings.signing)
        case PromoteSpec() if not asked.back:
            channels.promotable(
                open_store(settings.store),
                asked.subject,
                asked.channel,
                asked.release,
                workspace=workspace,
                accept_provisional=asked.accept_provisional,
            )


def refuse_values(asked: PersonalizeSpec, settings: Settings) -> None:
    """Pass unless the values chosen for a subject of the store are known to be refused by the phase that takes them.

    Raises:
        InputError: they would be.
    """
    state = read_state(open_store(settings.store), asked.subject).state
    before = state.choices if state else Choices(preset=DEFAULT_PRESET, base=None, values={})
    _, params = planned_values(settings, asked.subject, before, base=None, preset=asked.preset, values=asked.chosen())
    if asked.publish != "never":
        embedded = asked.engine in EMBEDDED or (not asked.engine and _is_embedded(params))
        _refuse_publishing(asked, state.consent if state and not asked.consent else None, embedded=embedded)


def _refuse_prepare(asked: PrepareSpec, settings: Settings, workspace: Path) -> None:
    plan = check(settings, asked.subject, **given(asked), **chosen(asked))
    consent = plan.consent if plan else consent_of(workspace, None)
    personalizes = isinstance(asked, PersonalizeSpec)
    _require_consent(consent, STAGES if personalizes else PREPARES)
    if isinstance(asked, PersonalizeSpec) and asked.publish != "never":
        params = plan.params if plan else (workspace / "params.yaml").read_text(encoding="utf-8")
        if is_packaged(load_plain(params)["base"]["model"]) and not asked.accept_toy:
            raise InputError(f"{TOY} `--accept-toy` publishes its release all the same.")
        _refuse_publishing(asked, consent, embedded=_is_embedded(params))
        if settings.signing:
            check_signing(settings.signing)


def _require_consent(consent: Consent | None, stages: tuple[str, ...]) -> None:
    if consent:
        require_for(stages, consent, today())


def _refuse_publishing(asked: PersonalizeSpec, consent: Consent | None, *, embedded: bool) -> None:
    """Pass unless no verdict could lead to the release that is asked for."""
    if consent:
        require(consent, "publication", today())
    if asked.publish == "pass" and embedded:
        raise InputError(
            "`--publish` releases a verdict of `pass`, and the embedded face engine gives `provisional` at best; use "
            "`--publish provisional` to release that too, or judge with an insightface pack, such as "
            "`--engine buffalo_l`."
        )


def _is_embedded(params: str) -> bool:
    engine: str = load_plain(params)["evaluate"]["engine"]["name"]
    return engine in EMBEDDED


def _refuse_without_server(asked: SubjectSpec) -> None:
    if isinstance(asked, PlacedSpec) and asked.placement == "pools":
        raise InputError(f"`--placement pools` sends the work to workers of a Prefect server; {SERVER}.")
    if isinstance(asked, PersonalizeSpec) and asked.publish == "ask":
        raise InputError(f"`--publish ask` waits for a person in Prefect's UI; {SERVER}.")
    if isinstance(asked, PublishSpec) and asked.approval:
        raise InputError(
            f"`--approval` waits for a person in Prefect's UI; {SERVER}, or leave it out and decide by this command."
        )
