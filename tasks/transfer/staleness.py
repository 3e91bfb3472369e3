"""Decide which stages of a subject are stale by comparing hashes of photos, params, code and base; runs nothing."""

import datetime
import functools
import json
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tasks.settings import Settings
from tasks.store.s3 import Store, StoreError
from tasks.transfer.scan_index import INDEX, Kind, Known, Reason, ScanIndex, identity
from tasks.transfer.state import STATES, Input, State, consent_of, inputs_of, read_state, state_key
from tasks.workspace.sources import content, look
from tasks.workspace.subject import Choices, layers, presets, require_class_noun
from zimage.consent import MAX_CONSENT_BYTES, Consent, consent_in
from zimage.core.errors import InputError
from zimage.core.params import set_values
from zimage.core.plain_yaml import load_trusted
from zimage.core.signatures import STAGES
from zimage.permission import require_for

logger = logging.getLogger(__name__)

Verdict = Literal["unchanged", "changed", "stopped"]
AT_ONCE = 16  # states and sources that are looked at side by side
SHOWN = 4  # changed values of one section that are spelt out
INPUTS: dict[str, Kind] = {"photos": "photos changed", "consent": "consent changed", "overrides": "decisions changed"}
ABSENT = object()  # stands for a value that params.yaml does not have
NOT_KNOWN = "its consent cannot be seen from here, and no phase has handed over its last day"


@dataclass(frozen=True)
class Finding:
    """The result of scanning a subject.

    Args:
        subject: The subject.
        verdict: Whether it has to be run again; `stopped` where it must not be.
        reason: Why, in words, and what could not be looked at; empty where it is unchanged and all was looked at.
        consent_until: The last day of the consent, where it is known.
        kinds: The reasons in two words each, for the name and the tags of the run that is started.
    """

    subject: str
    verdict: Verdict
    reason: str
    consent_until: datetime.date | None
    kinds: tuple[Kind, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Project:
    """Settings, code and stages that all subjects share, read once.

    Args:
        params: params.yaml.
        code: code.yaml.
        wanted: For each stage of dvc.yaml, the keys of params.yaml that it depends on.
    """

    params: dict[str, Any]
    code: dict[str, str]
    wanted: dict[str, list[str]]

    @property
    def identity(self) -> str:
        """Return a hash of this and of the presets."""
        named = {name: preset.values for name, preset in _presets().items()}
        return identity([self.params, self.code, self.wanted, named])


def read_project(folder: Path) -> Project:
    """Return the project's settings, code and stages."""
    stages = _yaml(folder / "dvc.yaml")["stages"]
    wanted = {name: [key for key in stages[name]["params"] if isinstance(key, str)] for name in STAGES}
    return Project(_yaml(folder / "params.yaml"), _yaml(folder / "code.yaml"), wanted)


def scan_all(settings: Settings, store: Store, project: Project, today: datetime.date) -> list[Finding]:
    """Return the finding of each subject with a state, by name; unchanged states are not opened.

    Args:
        settings: Where things are.
        store: Where the states are.
        project: See `read_project`.
        today: For the consent.
    """
    stamps = store.stamps(STATES)
    index = ScanIndex.read(store, project.identity)
    known = {key.removeprefix(f"{STATES}/").removesuffix(".json"): stamp for key, stamp in stamps.items()}
    older = set(store.list_children("subjects")) - set(
        known
    )  # without a state, or with one of a version that stored it elsewhere

    def look(subject: str) -> Finding | None:
        return scan(settings, store, project, subject, today, index=index, stamp=known.get(subject, ""))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(look, sorted({*known, *older})))
    _write(index, store)
    return [finding for finding in found if finding is not None]


def _write(index: ScanIndex, store: Store) -> None:
    """Write the index, unless a subject in it was forgotten meanwhile; without an index a scan is only slower."""
    try:
        if index.write(store) and not {state_key(subject) for subject in index.new_lines} <= set(store.stamps(STATES)):
            store.delete(INDEX)
    except (InputError, StoreError) as error:
        logger.warning("The index of states could not be written: %s", error)


def scan(
    settings: Settings,
    store: Store,
    project: Project,
    subject: str,
    today: datetime.date,
    *,
    index: ScanIndex | None = None,
    stamp: str = "",
) -> Finding | None:
    """Return the finding of a subject; None if it has no state (never prepared, or forgotten).

    Args:
        settings: Where things are.
        store: Where the states are.
        project: See `read_project`.
        subject: The subject.
        today: For the consent.
        index: What is known of states, and gets what is read now; None for nothing.
        stamp: Of the state, as it was listed; "" where it was not.
    """
    until = None
    try:
        known = index.get(subject, stamp) if index else None
        if known is None:
            known = _opened(store, project, subject, stamp)
            if known is None:
                return None
            if index:
                index.put(known)
        looks = _looks(known)
        consent = _consent(known, looks, settings.workspace(subject))
        until = consent.expires if consent else None
        if consent:
            require_for(STAGES, consent, today)
        reasons = [*_inputs(known, looks), *known.reasons]
    except (InputError, StoreError) as error:  # a source that is away keeps no other subject from being looked at
        return Finding(subject, "stopped", str(error), until)
    texts = [*(each.text for each in reasons), *([] if consent else [NOT_KNOWN])]
    kinds = tuple(dict.fromkeys(each.kind for each in reasons))
    return Finding(subject, "changed" if reasons else "unchanged", "; ".join(texts), until, kinds)


def _opened(store: Store, project: Project, subject: str, stamp: str) -> Known | None:
    """Return what a state says, with its stamp if it surely is the state that was listed; None if there is no state."""
    taken = read_state(store, subject)
    if taken.state is None:
        return None
    is_listed = stamp and taken.tag and store.is_stamped(state_key(subject), taken.tag, stamp)
    return _known(taken.state, subject, project, stamp if is_listed else "")


def _known(state: State, subject: str, project: Project, stamp: str) -> Known:
    require_class_noun(subject, state.choices)
    return Known(
        subject=subject,
        stamp=stamp,
        sources=state.sources,
        consent=state.consent,
        reasons=list(_results(state, project)),
    )


def consents(store: Store, subject: str, workspace: Path | None) -> list[Consent]:
    """Return the current consents of a subject: of its state, and of the workspace on this machine.

    Raises:
        InputError: one of them cannot be read.
    """
    state = read_state(store, subject).state
    found = [_consent(state, _looks(state), workspace), _here(workspace)] if state else [_here(workspace)]
    return [each for each in found if each]


def _here(workspace: Path | None) -> Consent | None:
    return consent_of(workspace, None) if workspace else None


def _looks(state: State | Known) -> str:
    return look(state.sources["consent"].address) if "consent" in state.sources else ""


def _consent(state: State | Known, looks: str, workspace: Path | None) -> Consent | None:
    """Return the consent as it is now, or None where it is not known.

    One that looks at its source as it did, or cannot be seen there, is the one that was handed over; older states have
    none, and then the workspace on this machine may.
    """
    if looks and not (state.consent and looks == state.sources["consent"].seen):
        return _read(state.sources["consent"].address)
    if state.consent:
        return state.consent
    return _here(workspace)


def _read(address: str) -> Consent | None:
    """Return the consent at an address; None if it has just gone."""
    found = content(address, max_bytes=MAX_CONSENT_BYTES)
    return None if found is None else consent_in(found, address)


def _inputs(state: State | Known, consent_looks: str) -> Iterator[Reason]:
    """Yield the inputs that changed at their source; a source that this machine cannot see counts as unchanged."""
    for name, source in state.sources.items():
        now = consent_looks if name == "consent" else look(source.address)
        if now and now != source.seen:
            yield Reason(kind=INPUTS[name], text=f"{name} at {source.address} changed")


def _results(state: State, project: Project) -> Iterator[Reason]:
    """Yield which stages are missing, or were made with other settings, code, base model, inputs or results."""
    locked = (load_trusted(state.lock) or {}).get("stages", {})
    params = params_now(project.params, state.choices)
    for stage in STAGES:
        if stage in locked:
            yield from _changes(stage, locked[stage].get("params", {}), params, project)
            yield from _stale_reads(stage, locked, state.inputs)
        else:
            yield Reason(kind="not finished", text=f"{stage} was not finished")


def why(workspace: Path, stage: str) -> str:
    """Return the reason why a stage has to run, by settings, code and locked hashes; "" if there is none."""
    path = workspace / "dvc.lock"
    locked = (_yaml(path) if path.is_file() else {}).get("stages", {})
    if stage not in locked:
        return "it never ended here"
    here = read_project(workspace)
    changes = _changes(stage, locked[stage].get("params", {}), here.params, here)
    found = [*changes, *_stale_reads(stage, locked, inputs_of(workspace))]
    return "; ".join(each.text for each in found)


def _changes(stage: str, was: Mapping[str, Any], params: Mapping[str, Any], project: Project) -> Iterator[Reason]:
    """Yield the changes of a stage's code and settings since its last run."""
    if was.get("code.yaml", {}).get(stage) != project.code[stage]:
        yield Reason(kind="code changed", text=f"the code of {stage} changed")
    for key in project.wanted[stage]:
        kind: Kind = "base model changed" if key.split(".")[0] == "base" else "settings changed"
        found = list(_differing(was.get("params.yaml", {}).get(key, ABSENT), _at(params, key), key))
        yield from (Reason(kind=kind, text=text) for text in found[:SHOWN])
        if len(found) > SHOWN:
            yield Reason(kind=kind, text=f"{len(found) - SHOWN} other values of {key} changed")


def _stale_reads(stage: str, locked: Mapping[str, Any], inputs: Mapping[Input, str]) -> Iterator[Reason]:
    """Yield which dependencies of a stage have another hash than what makes them has now.

    Args:
        stage: Its name, a key of `locked`.
        locked: The stages of dvc.lock.
        inputs: DVC's description of each input, by its name in `data/`.
    """
    made = {out["path"]: (name, _hash(out)) for name, each in locked.items() for out in each.get("outs", [])}
    for name, description in inputs.items():
        made[f"data/{name}"] = ("", _hash(load_trusted(description)["outs"][0]))
    for read in locked[stage].get("deps", []):
        maker, now = made.get(read["path"], ("", None))
        if now is not None and now != _hash(read):
            made_by = f", which {maker} made" if maker else ""
            yield Reason(kind="newer results", text=f"{stage} has not read the newest {read['path']}{made_by}")


def _hash(entry: Mapping[str, Any]) -> str | None:
    """Return the hash of a dependency or an output, under the name of its algorithm as DVC 3 writes it."""
    found: str | None = entry.get(entry.get("hash", "md5"))
    return found


PRIVATE = "subject."  # values of these keys are never shown: the trigger identifies the person


def _differing(was: Any, now: Any, key: str) -> Iterator[str]:
    """Yield the dotted keys below `key` whose values differ, each with both values, as params.yaml has them."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for each in [*was, *(each for each in now if each not in was)]:
            yield from _differing(was.get(each, ABSENT), now.get(each, ABSENT), f"{key}.{each}")
    elif key.startswith(PRIVATE) and was != now:  # this text stays in states, and so in events
        yield f"{key} changed"
    elif was is ABSENT:
        yield f"{key} is new: {_written(now)}"
    elif now is ABSENT:
        yield f"{key} exists no more; it was {_written(was)}"
    elif was != now:
        yield f"{key} changed from {_written(was)} to {_written(now)}"


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def params_now(project: Mapping[str, Any], chosen: Choices) -> dict[str, Any]:
    """Return a subject's values of params.yaml as they would be written today, as plain data.

    Raises:
        InputError: its preset or one of its keys exists no more.
    """
    params = deepcopy(dict(project))
    for where, values in layers(chosen, _presets()):
        set_values(params, values, where)
    return params


def _at(params: Any, dotted: str) -> Any:
    return functools.reduce(lambda place, name: place.get(name, {}), dotted.split("."), params)


_presets = functools.cache(presets)


def _yaml(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = load_trusted(path.read_text(encoding="utf-8"))
    return found
