"""Create a subject's workspace and keep it in step with the project and with the values chosen for the subject."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError, field_validator

from tasks.settings import DEMO, Settings
from tasks.workspace.photos import brought, refuse_absent, refuse_without_pictures
from tasks.workspace.sources import content, look
from tasks.workspace.workspace import is_tracked, make, write_changed
from zimage.captions.trigger import TriggerParams, checked_trigger
from zimage.consent import MAX_CONSENT_BYTES, Consent, consent_in, read_consent, require, template
from zimage.core.assets import asset
from zimage.core.errors import InputError
from zimage.core.folder import write_whole
from zimage.core.params import with_values
from zimage.core.plain_yaml import dump, load_plain, load_trusted
from zimage.core.renamed_keys import old_keys, renamed
from zimage.core.section import Section, checked, read_params
from zimage.core.signatures import STAGES, imported, signature
from zimage.faces.engine import EngineParams, identity_here
from zimage.faces.engine_defaults import OTHER_EMBEDDED, engine_of
from zimage.model.base import TINY, Base, find, identify
from zimage.model.pinned import identity_of
from zimage.model.tokens import open_tokenizer
from zimage.permission import today

logger = logging.getLogger(__name__)

PRESETS = asset("presets.yaml")
DEFAULT_PRESET = "tiny"
MODELS = {  # of params.yaml, besides the base: where one is named, and by which key
    "caption.vlm": "model",
    "detect.engine": "pack",
    "evaluate.engine": "pack",
    "evaluate.second_engine": "pack",
    "evaluate.clip": "model",
}
CLASS_NOUN = "subject.class_noun"
ENGINES = ("detect.engine", "evaluate.engine")  # what `engine` sets: who finds the person, and who judges
HEADER = "# The project's params.yaml with the choices of subject.yaml; each run writes it anew: change values there.\n"


class Preset(Section):
    """Values that belong together."""

    about: str
    """What it is for."""
    gpu_gb: int
    """GPU memory it is made for; GB, 0 for none."""
    values: dict[str, Any]
    """New values by `section.key`."""


class Choices(Section):
    """The choices for a subject, as stored in subject.yaml."""

    preset: str
    """A name in presets.yaml."""
    base: Base | None
    """The base model; null for the project's."""
    values: dict[str, Any]
    """New values by `section.key`; they win over the preset's. Keys of 0.1 are read as what they are called now."""

    @field_validator("values")
    @classmethod
    def _under_their_names_of_today(cls, values: dict[str, Any]) -> dict[str, Any]:
        return renamed(values)


@dataclass(frozen=True)
class Plan:
    """The checked content that `set_up` writes.

    Args:
        chosen: All that is chosen for the subject from now on.
        params: The text of its params.yaml.
        consent: What the person agreed to; None where DVC has to fetch the file first.
        new_consent: The content of the consent file that was given; None where none was.
    """

    chosen: Choices
    params: str
    consent: Consent | None
    new_consent: bytes | None


def presets() -> dict[str, Preset]:
    """Return all presets by name; keys with a dot in front are parts of which presets are made."""
    found = load_trusted(PRESETS.read_text(encoding="utf-8"))
    named = {name: values for name, values in found.items() if not name.startswith(".")}
    return {name: checked(values, Preset, f"{PRESETS.name}: {name}") for name, values in named.items()}


def set_up(
    settings: Settings,
    subject: str,
    *,
    photos: str = "",
    consent: str = "",
    overrides: str = "",
    base: str = "",
    preset: str = "",
    engine: str = "",
    values: Mapping[str, Any] | None = None,
) -> Path:
    """Create or update the subject's workspace and return it; arguments that are not given keep their earlier values.

    All that is given is looked at before anything is written, so that nothing changes where something is refused.

    Args:
        settings: Where the project and the workspaces are.
        subject: The subject; `demo` is the project itself, which is left as it is.
        photos: A folder, an archive or `s3://bucket/prefix`.
        consent: A consent file, or `s3://bucket/key` of one.
        overrides: A folder with a person's decisions on photos and captions.
        base: A folder or a hub id; it is identified anew whenever it is given.
        preset: A name in presets.yaml.
        engine: `yunet-sface`, `dlib`, the name of an insightface pack, or its folder, for `detect` and `evaluate`.
        values: New values by `section.key`, added to earlier ones.

    Raises:
        InputError: something does not exist or is not valid, the consent is another person's, or photos, consent or
            class noun were never given.
    """
    folder = settings.workspace(subject)
    if subject == DEMO:
        _refuse_for_demo(photos, consent, overrides, base, preset, engine, values)
        return folder
    pin = pinned(base) if base else None
    plan = _plan(settings, subject, consent=consent, base=pin, preset=preset, engine=engine, values=values or {})
    data = folder / "data"
    with _photos(photos, data / "photos", subject), _overrides(overrides, data / "overrides"):
        make(folder, settings.project)
        write_choices(folder, plan.chosen)
        write_changed(folder / "params.yaml", plan.params)
        if plan.new_consent is not None and not _holds(data / "consent.yaml", plan.new_consent):
            write_whole(data / "consent.yaml", plan.new_consent)
    return folder


def check(
    settings: Settings,
    subject: str,
    *,
    photos: str = "",
    consent: str = "",
    overrides: str = "",
    base: str = "",
    preset: str = "",
    engine: str = "",
    values: Mapping[str, Any] | None = None,
) -> Plan | None:
    """Return what `set_up` would write, after the same checks; None for the demo, for which nothing is written.

    Nothing is written, copied or downloaded, and the files of a base model are not hashed.

    Raises:
        InputError: see `set_up`.
        StoreError: a bucket that photos or consent come from is away.
    """
    if subject == DEMO:
        _refuse_for_demo(photos, consent, overrides, base, preset, engine, values)
        return None
    found = Base(model=str(find(base)), identity="") if base else None
    plan = _plan(settings, subject, consent=consent, base=found, preset=preset, engine=engine, values=values or {})
    data = settings.workspace(subject) / "data"
    if photos.startswith("s3://"):
        if not look(photos):
            raise InputError(f"There are no photos at {photos}; check the bucket and the prefix.")
    elif photos:
        refuse_absent(photos)
        least = load_plain(plan.params)["ingest"]["min_photos"]
        refuse_without_pictures(Path(photos).expanduser(), photos, least=least)
    elif not (data / "photos").exists() and not is_tracked(data / "photos"):
        raise InputError(_no_photos(subject))
    if overrides:
        _refuse_no_overrides(overrides)
    return plan


def planned_values(
    settings: Settings, subject: str, before: Choices, *, base: Base | None, preset: str, values: Mapping[str, Any]
) -> tuple[Choices, str]:
    """Return earlier choices with new ones and the text of the params.yaml they make, checked unless it is there.

    Raises:
        InputError: the preset, a key or a value does not exist or is not valid, or the class noun was never chosen.
    """
    folder = settings.workspace(subject)
    chosen = _chosen(before, base, preset, values)
    require_class_noun(subject, chosen)
    params = params_of(settings.project, chosen)
    if pins := _pins(load_plain(params), values):
        chosen = _chosen(chosen, None, "", pins)
        params = params_of(settings.project, chosen)
    if not _holds(folder / "params.yaml", params.encode()):
        _check(params, chosen, values, folder / "subject.yaml")
    return chosen, params


def require_class_noun(subject: str, chosen: Choices) -> None:
    """Pass if somebody has chosen what the base model calls the person; else a man would be trained as a woman.

    Raises:
        InputError: nobody has.
    """
    if CLASS_NOUN not in chosen.values:
        raise InputError(
            f"{subject} has no class noun yet, the word by which the base model knows such a person; "
            "give --class-noun man, woman or person once."
        )


def _refuse_for_demo(*given: object) -> None:
    if any(given):
        raise InputError("The subject `demo` has photos and settings of its own; choose another name for yours.")


def _plan(
    settings: Settings,
    subject: str,
    *,
    consent: str,
    base: Base | None,
    preset: str,
    engine: str,
    values: Mapping[str, Any],
) -> Plan:
    """Return what is going to be written, checked but for photos and overrides."""
    folder = settings.workspace(subject)
    given = {**(engine_values(engine) if engine else {}), **values}
    chosen, params = planned_values(settings, subject, choices(folder), base=base, preset=preset, values=given)
    agreed, content = _agreed(consent, folder / "data" / "consent.yaml", subject)
    return Plan(chosen, params, agreed, content)


def engine_values(engine: str) -> dict[str, Any]:
    """Return the values by which a face engine, with its own limits, is used wherever faces are compared.

    An embedded engine brings the other one as the second, which would else be the first again.
    """
    fields = engine_of(engine).model_dump()
    second = {"evaluate.second_engine": OTHER_EMBEDDED[engine].model_dump()} if engine in OTHER_EMBEDDED else {}
    return {f"{place}.{key}": value for place in ENGINES for key, value in fields.items()} | second


def params_of(project: Path, chosen: Choices) -> str:
    """Return the text of a subject's params.yaml: the project's, with what `layers` gives.

    Raises:
        InputError: there is no such preset or key.
    """
    text = (project / "params.yaml").read_text(encoding="utf-8")
    for where, values in layers(chosen, presets()):
        text = with_values(text, values, where)
    return HEADER + text


def layers(chosen: Choices, known: Mapping[str, Preset]) -> list[tuple[str, dict[str, Any]]]:
    """Return what changes the project's params.yaml, each with its origin: the preset, the base, the subject's values.

    Args:
        chosen: A subject's choices.
        known: All presets by name.

    Raises:
        InputError: there is no such preset.
    """
    if chosen.preset not in known:
        raise InputError(f"There is no preset `{chosen.preset}`; choose one of {', '.join(known)} with --preset.")
    base = {f"base.{key}": value for key, value in chosen.base} if chosen.base else {}
    return [(f"preset {chosen.preset}", known[chosen.preset].values), ("base", base), ("subject.yaml", chosen.values)]


def choices(folder: Path) -> Choices:
    """Return the choices of a workspace; the defaults without a subject.yaml.

    Raises:
        InputError: its subject.yaml is not one.
    """
    path = folder / "subject.yaml"
    if not path.is_file():
        return Choices(preset=DEFAULT_PRESET, base=None, values={})
    return checked(read_params(path), Choices, str(path))


def write_choices(folder: Path, chosen: Choices) -> None:
    """Write a workspace's subject.yaml; keys of 0.1 in an existing one are replaced, which is logged."""
    path = folder / "subject.yaml"
    before = read_params(path).get("values") if path.is_file() else None
    if isinstance(before, Mapping) and (old := old_keys(before)):
        names = ", ".join(f"{key} is {new}" for key, new in old.items())
        logger.warning("%s has names of 0.1 and is rewritten: %s now", path, names)
    write_changed(path, dump(chosen.model_dump()))


def _chosen(before: Choices, base: Base | None, preset: str, values: Mapping[str, Any]) -> Choices:
    """Return earlier choices with new ones; a new value replaces all earlier ones of the same key and below it."""
    own = {
        key: value
        for key, value in before.values.items()
        if not any(key == new or key.startswith(f"{new}.") for new in values)
    }
    return Choices(preset=preset or before.preset, base=base or before.base, values={**own, **values})


def _pins(params: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values that pin the models which are named without an identity, as far as they are on this machine.

    Args:
        params: A params.yaml with `values` in it.
        values: What was given now: a model that is named anew loses the identity of the one before.
    """
    pins: dict[str, Any] = {}
    for place, name in MODELS.items():
        section, key = place.split(".")
        named = params[section][key]
        if not isinstance(named, Mapping) or not named.get(name):
            continue
        anew = f"{place}.{name}" in values and f"{place}.identity" not in values
        if anew or not named.get("identity"):
            here = _identity_here(named) if name == "pack" else identity_of(str(named[name]))
            if here or anew:
                pins[place] = {**named, "identity": here}
    return pins


def _identity_here(engine: Mapping[str, Any]) -> str | None:
    try:
        return identity_here(EngineParams.model_validate(engine))
    except ValidationError:  # the check of all sections, which follows, reports it
        return None


def pinned(base: str) -> Base:
    """Return a base model that is a folder or a hub id, with what identifies it.

    Raises:
        InputError: see `zimage.model.base.identify`.
    """
    folder = Path(base).expanduser()
    model = str(folder.absolute()) if folder.is_dir() and base != TINY else base
    return Base(model=model, identity=identify(model))


def _check(params: str, chosen: Choices, values: Mapping[str, Any], file: Path) -> None:
    """Pass if every stage takes its sections of a params.yaml.

    Raises:
        InputError: one does not; the values of one's own there are named, with the file that holds them, if one does.
    """
    found = load_plain(params)
    for stage in map(signature, STAGES):
        _, kinds = imported(stage)
        for keyword, section in stage.sections.items():
            checked(found[section], kinds[keyword], _where(section, chosen, values, file))
    _check_trigger(found)


def _check_trigger(params: Mapping[str, Any]) -> None:
    """Pass if the trigger can stand for a person; its tokens are counted where the base model is on this machine."""
    try:
        folder = find(params["base"]["model"])
    except InputError:  # a machine without a GPU need not have it; `caption` checks the trigger where it is
        return
    limits = TriggerParams.model_validate(params["caption"]["trigger"])
    checked_trigger(params["subject"]["trigger"], open_tokenizer(folder), limits)


def _where(section: str, chosen: Choices, values: Mapping[str, Any], file: Path) -> str:
    own = [key for key in chosen.values if key.split(".")[0] == section]
    given = [key for key in own if key in values]
    listed = ", ".join(f"{key}={chosen.values[key]}" for key in given or own)
    return f"{section} with {listed}{'' if given else f' of {file}'}" if own else f"preset {chosen.preset}: {section}"


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def _agreed(consent: str, target: Path, subject: str) -> tuple[Consent | None, bytes | None]:
    """Return what the person agreed to, and the content of the consent file if one was given; both are checked."""
    if not consent:
        if target.is_file():
            return read_consent(target), None
        if is_tracked(target):
            return None, None
        raise no_consent(subject)
    given, found = given_consent(consent, subject)
    require(given, "training", today())
    return given, found


def no_consent(subject: str) -> InputError:
    """Return the refusal of a subject of whom no consent is known."""
    return InputError(f"{subject} has no consent yet; give its file with --consent. {_how_to_write(subject)}")


def given_consent(consent: str, subject: str) -> tuple[Consent, bytes]:
    """Return the consent in a file, or at s3://bucket/key, and the file's content.

    Raises:
        InputError: there is no such file, it is no consent, or it is another person's.
        StoreError: its bucket is away.
    """
    found = content(consent, max_bytes=MAX_CONSENT_BYTES)
    if found is None:
        raise InputError(
            f"There is no consent file {consent}; name a file, or s3://bucket/key, that this machine can read. "
            f"{_how_to_write(subject)}"
        )
    given = consent_in(found, consent)
    if given.pseudonym != subject:
        raise InputError(
            f"{consent} is the consent of {given.pseudonym!r} and not of {subject!r}; give the file whose `pseudonym` "
            f"is {subject}, or name the other subject."
        )
    return given, found


def _how_to_write(subject: str) -> str:
    command = f"zimage consent --subject {subject} --document FILE"
    return f"`{command}` writes one from the signed document:\n{template(subject)}"


def _no_photos(subject: str) -> str:
    return f"{subject} has no photos yet; give a folder or an archive with --photos."


def _refuse_no_overrides(overrides: str) -> None:
    if not overrides.startswith("s3://") and not Path(overrides).expanduser().is_dir():
        raise InputError(f"There is no folder {overrides} with decisions; name one, or s3://bucket/prefix.")


@contextmanager
def _photos(photos: str, target: Path, subject: str) -> Iterator[None]:
    """Move the given photos into place at the end of the block."""
    if not photos:
        if not target.exists() and not is_tracked(target):
            raise InputError(_no_photos(subject))
        yield
        return
    with brought(photos, target) as aside:
        refuse_without_pictures(aside or target, photos)
        yield


@contextmanager
def _overrides(overrides: str, target: Path) -> Iterator[None]:
    """Move the given decisions into place at the end of the block."""
    if not overrides:
        yield
        return
    _refuse_no_overrides(overrides)
    with brought(overrides, target):
        yield
