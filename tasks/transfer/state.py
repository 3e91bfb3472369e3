"""Check out and commit the state of a subject in the store; DVC transfers the files.

A phase takes the state, works, sends its results, and writes the state back, unless somebody else did in between.
"""

import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError

from tasks.log import log_line
from tasks.policy import store_task
from tasks.settings import DEMO, Settings
from tasks.store.s3 import ConflictError, Store, open_store
from tasks.transfer.repair import made_by, mend_noted, pushing
from tasks.workspace import workspace as dvc
from tasks.workspace.sources import Source
from tasks.workspace.subject import Choices, params_of, write_choices
from tasks.workspace.tombstones import admit, refuse_if_forgotten, unless_forgotten
from zimage.consent import Consent, read_consent
from zimage.core.errors import InputError
from zimage.core.folder import write_whole
from zimage.core.plain_yaml import load_trusted
from zimage.core.section import Section

Input = Literal["photos", "consent.yaml", "overrides"]
STATES = "states"
INPUTS: tuple[Input, ...] = get_args(Input)  # what no stage makes, in `data/`


class State(Section):
    """The committed state of a subject, the same for all machines."""

    version: int
    """Counts its changes."""
    writer: str
    """Who wrote it, for a person to read."""
    choices: Choices
    """What was chosen for the subject."""
    sources: dict[str, Source]
    """Where photos, consent and overrides come from, and what they looked like when they were last taken over."""
    inputs: dict[Input, str]
    """DVC's description of each input, by its name in `data/`."""
    lock: str
    """The content of `dvc.lock`."""
    consent: Consent | None = None
    """What the person agreed to, for machines that cannot see the file; None in states that are older than this."""

    @property
    def stages(self) -> set[str]:
        """Return the stages that have a result."""
        return set(_stages(self.lock))


@dataclass(frozen=True)
class Taken:
    """A state as it was read.

    Args:
        state: None where the subject is new.
        tag: Of the version that was read; writing back succeeds only if it still is that one.
    """

    state: State | None
    tag: str | None


def state_key(subject: str) -> str:
    """Return the key of the state of `subject`; all states share a prefix, so that one request lists them."""
    return f"{STATES}/{subject}.json"


def old_state_key(subject: str) -> str:
    """Return where the state of `subject` was before 0.2; it is read there until it is next written."""
    return f"subjects/{subject}/state.json"


def read_state(store: Store, subject: str) -> Taken:
    """Return the subject's state.

    Raises:
        InputError: it was written by another version of this code.
    """
    found = store.read(state_key(subject))
    older = store.read(old_state_key(subject)) if found is None else None
    if found is None and older is None:
        return Taken(None, None)
    try:
        if older:
            return Taken(State.model_validate_json(older.content), None)
        return Taken(State.model_validate_json(found.content), found.tag) if found else Taken(None, None)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise InputError(
            f"{state_key(subject)} was written by another version ({where}); run `personalize` with all options again."
        ) from None


@store_task("take")
def checkout(settings: Settings, subject: str, *, only_reads: bool = False) -> Taken:
    """Check out the subject's state into this machine's workspace, and return it.

    Nothing is fetched yet. What lies here of another state is removed: DVC would take it for a change. What another
    machine found lost is sent anew from here, or its stage will be run again, except by a phase that `only_reads`.

    Raises:
        InputError: the demo, which stays where it is; the subject is being forgotten, or was since this machine's
            workspace was made; or it is new, and the store would lose writes or could not forget it.
    """
    if subject == DEMO:
        raise InputError("The demo is no subject of the store; run it with `make demo` or `--placement local`.")
    store = open_store(settings.store)
    folder = settings.workspace(subject)
    admit(store, subject, folder)
    taken = read_state(store, subject)
    if taken.state is None:
        store.require_usable(state_key(subject))
    dvc.make(folder, settings.project)
    dvc.connect(folder, settings.remote(subject), settings.endpoint)
    if taken.state is not None:
        _agree(folder, settings.project, taken.state)
        if not only_reads:
            mend_noted(settings, subject, remake=True)
    return taken


@store_task("hand over")
def commit(
    settings: Settings,
    subject: str,
    taken: Taken,
    *,
    stages: tuple[str, ...],
    sources: dict[str, Source],
    choices: Choices,
    run: str,
) -> State:
    """Upload the results of a phase and commit the new state; nothing is written if nothing changed. Return the state.

    Args:
        settings: Where things are.
        subject: The subject.
        taken: What the phase began with.
        stages: What it made.
        sources: Where its inputs came from; empty where it took none over.
        choices: What is chosen for the subject now.
        run: The run's name, for people.

    Raises:
        InputError: somebody else changed the state in between, the subject is being forgotten or was meanwhile, or its
            consent cannot be read.
    """
    store, folder = open_store(settings.store), settings.workspace(subject)
    before = taken.state
    state = State(
        version=before.version + 1 if before else 1,
        writer=f"{run} on {platform.node()}",
        choices=choices,
        sources=sources or (before.sources if before else {}),
        inputs=inputs_of(folder),
        lock=_lock(folder),
        consent=consent_of(folder, before),
    )
    if before is not None:
        mend_noted(settings, subject)
        if _same(state, before):
            return before
    tracked = [f"data/{name}.dvc" for name in state.inputs if sources]
    with unless_forgotten(store, subject, folder) as written:
        written.append(f"subjects/{subject}/dvc")
        pushing(
            settings,
            subject,
            lambda: dvc.push(folder, [*_locked(state.lock, stages), *tracked], on_line=log_line),
            wants=[*made_by(folder, stages), *(each.removesuffix(".dvc") for each in tracked)],
        )
        refuse_if_forgotten(store, subject, folder)
        try:
            store.compare_and_swap(state_key(subject), state.model_dump_json(indent=2).encode(), taken.tag)
        except ConflictError:
            raise InputError(
                f"The state of {subject} was changed by somebody else while this ran; run again: what was finished is "
                "kept."
            ) from None
        written.append(state_key(subject))  # not before: another's is not ours to take back
    return state


def track_inputs(folder: Path) -> None:
    """Track the inputs that are here with DVC; absent ones keep their tracked version."""
    present = [f"data/{name}" for name in INPUTS if (folder / "data" / name).exists()]
    if present:
        dvc.track(folder, present)


def has(folder: Path, name: str) -> bool:
    """Return whether an input is here, or tracked by DVC."""
    return (folder / "data" / name).exists() or (folder / "data" / f"{name}.dvc").is_file()


def _agree(folder: Path, project: Path, state: State) -> None:
    """Write the files of `state` into the workspace, and remove results of other states."""
    data = folder / "data"
    known = _stages(_lock(folder))
    for stage, entry in _stages(state.lock).items():
        if known.get(stage) != entry:
            _remove(data / stage)
    for name, text in state.inputs.items():
        description = data / f"{name}.dvc"
        if not description.is_file() or description.read_text(encoding="utf-8") != text:
            _remove(data / name)
            write_whole(description, text.encode())
    write_choices(folder, state.choices)
    dvc.write_changed(folder / "params.yaml", params_of(project, state.choices))
    dvc.write_changed(folder / "dvc.lock", state.lock)


def _remove(path: Path) -> None:
    """Remove what is here; what a link leads to is not."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _same(state: State, other: State) -> bool:
    passing = {"version", "writer"}
    return state.model_dump(exclude=passing) == other.model_dump(exclude=passing)


def inputs_of(folder: Path) -> dict[Input, str]:
    """Return DVC's description of each input of a workspace that DVC tracks."""
    paths = {name: folder / "data" / f"{name}.dvc" for name in INPUTS}
    return {name: path.read_text(encoding="utf-8") for name, path in paths.items() if path.is_file()}


def consent_of(folder: Path, before: State | None) -> Consent | None:
    """Return the consent that is here; where it was not fetched, it is the one that was handed over."""
    path = folder / "data" / "consent.yaml"
    if path.is_file():
        return read_consent(path)
    return before.consent if before else None


def _lock(folder: Path) -> str:
    path = folder / "dvc.lock"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _stages(lock: str) -> dict[str, Any]:
    found: dict[str, Any] = (load_trusted(lock) or {}).get("stages", {})
    return found


def _locked(lock: str, stages: tuple[str, ...]) -> list[str]:
    return [stage for stage in stages if stage in _stages(lock)]
