"""A subject's workspace: made once, then kept in step with the project and with what was chosen for the subject."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tasks.photos import brought, refuse_without_pictures
from tasks.settings import DEMO, Settings
from tasks.sources import content
from tasks.workspace import is_tracked, make, write_changed
from zimage.errors import InputError
from zimage.faces.consent import MAX_CONSENT_BYTES, consent_in, require
from zimage.folder import write_whole
from zimage.model.base import TINY, Base, identify
from zimage.params import with_values
from zimage.permission import today
from zimage.plain_yaml import load_plain
from zimage.section import Section, checked, read_params
from zimage.signatures import STAGES, imported, signature

PRESETS = Path(__file__).with_name("presets.yaml")
DEFAULT_PRESET = "tiny"
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
    """What was chosen for a subject, in its subject.yaml."""

    preset: str
    """A name in presets.yaml."""
    base: Base | None
    """The base model; null for the project's."""
    values: dict[str, Any]
    """New values by `section.key`; they win over the preset's."""


def presets() -> dict[str, Preset]:
    """Return all presets by name; keys with a dot in front are parts of which presets are made."""
    found = yaml.safe_load(PRESETS.read_text(encoding="utf-8"))
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
    values: dict[str, Any] | None = None,
) -> Path:
    """Return the subject's workspace, made or brought up to date; what is not given stays as it was chosen before.

    All that is given is looked at before anything is written, so that nothing changes where something is refused.

    Args:
        settings: Where the project and the workspaces are.
        subject: Whose it is; `demo` is the project itself, which is left as it is.
        photos: A folder, an archive or `s3://bucket/prefix`.
        consent: A consent file, or `s3://bucket/key` of one.
        overrides: A folder with a person's decisions on photos and captions.
        base: A folder or a hub id; it is identified anew whenever it is given.
        preset: A name in presets.yaml.
        values: New values by `section.key`, added to earlier ones.

    Raises:
        InputError: something does not exist or is not valid, the consent is another person's, or photos or consent
            were never given.
    """
    folder = settings.workspace(subject)
    if subject == DEMO:
        if any((photos, consent, overrides, base, preset, values)):
            raise InputError("The subject `demo` has photos and settings of its own; choose another name for yours.")
        return folder
    chosen = _chosen(choices(folder), base, preset, values or {})
    params = params_of(settings.project, chosen)
    if not _holds(folder / "params.yaml", params.encode()):
        _check(params, chosen, values or {}, folder / "subject.yaml")
    data = folder / "data"
    agreed = _agreed(consent, data / "consent.yaml", subject)
    with _photos(photos, data / "photos", subject), _overrides(overrides, data / "overrides"):
        make(folder, settings.project)
        write_choices(folder, chosen)
        write_changed(folder / "params.yaml", params)
        if agreed is not None and not _holds(data / "consent.yaml", agreed):
            write_whole(data / "consent.yaml", agreed)
    return folder


def params_of(project: Path, chosen: Choices) -> str:
    """Return the text of a subject's params.yaml: the project's, then the preset's values, the base, own values.

    Raises:
        InputError: there is no such preset or key.
    """
    known = presets()
    if chosen.preset not in known:
        raise InputError(f"There is no preset `{chosen.preset}`; there are {', '.join(known)}.")
    text = (project / "params.yaml").read_text(encoding="utf-8")
    text = with_values(text, known[chosen.preset].values, f"preset {chosen.preset}")
    if chosen.base is not None:
        text = with_values(text, {f"base.{key}": value for key, value in chosen.base}, "base")
    return HEADER + with_values(text, chosen.values, "subject.yaml")


def choices(folder: Path) -> Choices:
    """Return what was chosen in a workspace; the defaults where nothing was.

    Raises:
        InputError: its subject.yaml is not one.
    """
    path = folder / "subject.yaml"
    if not path.is_file():
        return Choices(preset=DEFAULT_PRESET, base=None, values={})
    return checked(read_params(path), Choices, str(path))


def write_choices(folder: Path, chosen: Choices) -> None:
    """Write a workspace's subject.yaml."""
    write_changed(folder / "subject.yaml", yaml.safe_dump(chosen.model_dump(), sort_keys=False, allow_unicode=True))


def _chosen(before: Choices, base: str, preset: str, values: dict[str, Any]) -> Choices:
    return Choices(
        preset=preset or before.preset,
        base=_pinned(base) if base else before.base,
        values={**before.values, **values},
    )


def _pinned(base: str) -> Base:
    folder = Path(base).expanduser()
    model = str(folder.absolute()) if folder.is_dir() and base != TINY else base
    return Base(model=model, identity=identify(model))


def _check(params: str, chosen: Choices, values: Mapping[str, Any], file: Path) -> None:
    """Pass if every stage takes its sections of a params.yaml.

    Raises:
        InputError: one does not; the values of one's own there are named, with the file they are kept in if they are.
    """
    found = load_plain(params)
    for stage in map(signature, STAGES):
        _, kinds = imported(stage)
        for keyword, section in stage.sections.items():
            checked(found[section], kinds[keyword], _where(section, chosen, values, file))


def _where(section: str, chosen: Choices, values: Mapping[str, Any], file: Path) -> str:
    own = [key for key in chosen.values if key.split(".")[0] == section]
    given = [key for key in own if key in values]
    told = ", ".join(f"{key}={chosen.values[key]}" for key in given or own)
    return f"{section} with {told}{'' if given else f' of {file}'}" if own else f"preset {chosen.preset}: {section}"


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def _agreed(consent: str, target: Path, subject: str) -> bytes | None:
    """Return what the consent file that was given holds, once it is found good; None if none was given."""
    if not consent:
        if not target.is_file() and not is_tracked(target):
            raise InputError(f"{subject} has no consent yet; give its file with --consent.")
        return None
    found = content(consent, max_bytes=MAX_CONSENT_BYTES)
    if found is None:
        raise InputError(
            f"There is no consent file {consent}; name a file, or s3://bucket/key, that this machine can read."
        )
    given = consent_in(found, consent)
    if given.pseudonym != subject:
        raise InputError(
            f"{consent} is the consent of {given.pseudonym!r} and not of {subject!r}; give the file whose `pseudonym` "
            f"is {subject}, or name the other subject."
        )
    require(given, "training", today())
    return found


@contextmanager
def _photos(photos: str, target: Path, subject: str) -> Iterator[None]:
    """Put the photos that were given into place at the end of the block."""
    if not photos:
        if not target.exists() and not is_tracked(target):
            raise InputError(f"{subject} has no photos yet; give a folder or an archive with --photos.")
        yield
        return
    with brought(photos, target) as aside:
        refuse_without_pictures(aside or target, photos)
        yield


@contextmanager
def _overrides(overrides: str, target: Path) -> Iterator[None]:
    """Put the decisions that were given into place at the end of the block."""
    if not overrides:
        yield
        return
    if not overrides.startswith("s3://") and not Path(overrides).expanduser().is_dir():
        raise InputError(f"There is no folder {overrides} with decisions; name one, or s3://bucket/prefix.")
    with brought(overrides, target):
        yield
