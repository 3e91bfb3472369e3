"""A subject's workspace: made once, then kept in step with the project and with what was chosen for the subject."""

from pathlib import Path
from typing import Any

import yaml

from tasks.photos import bring_photos
from tasks.settings import DEMO, Settings
from tasks.sources import content
from tasks.workspace import is_tracked, make, write_changed
from zimage.errors import InputError
from zimage.faces.consent import MAX_CONSENT_BYTES
from zimage.folder import write_whole
from zimage.model.base import TINY, Base, identify
from zimage.params import with_values
from zimage.section import Section, checked, read_params

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
        InputError: something does not exist, or photos or consent were never given.
    """
    folder = settings.workspace(subject)
    if subject == DEMO:
        if any((photos, consent, overrides, base, preset, values)):
            raise InputError("The subject `demo` has photos and settings of its own; choose another name for yours.")
        return folder
    chosen = _chosen(choices(folder), base, preset, values or {})
    params = params_of(settings.project, chosen)
    make(folder, settings.project)
    write_choices(folder, chosen)
    write_changed(folder / "params.yaml", params)
    _bring_consent(consent, folder / "data" / "consent.yaml", subject)
    _bring_photos(photos, folder / "data" / "photos", subject)
    if overrides:
        bring_photos(overrides, folder / "data" / "overrides")
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


def _bring_consent(consent: str, target: Path, subject: str) -> None:
    if consent:
        found = content(consent, max_bytes=MAX_CONSENT_BYTES)
        if found is None:
            raise InputError(
                f"There is no consent file {consent}; name a file, or s3://bucket/key, that this machine can read."
            )
        if not target.is_file() or target.read_bytes() != found:
            write_whole(target, found)
    elif not target.is_file() and not is_tracked(target):
        raise InputError(f"{subject} has no consent yet; give its file with --consent.")


def _bring_photos(photos: str, target: Path, subject: str) -> None:
    if photos:
        bring_photos(photos, target)
    elif not target.exists() and not is_tracked(target):
        raise InputError(f"{subject} has no photos yet; give a folder or an archive with --photos.")
