"""Score LoRA files, finished pictures or a base model for one person: run `zimage score`, and put its results away.

What was scored lies in the store below the subject's pages, so `forget` and `forget --photo` delete it with them; on
this machine only the generated pictures stay, which show no real photo.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tasks.log import log_line
from tasks.policy import RETRY_AFTER_S, store_task
from tasks.prefect_api.artifacts import FINISHED, Bar, how_stopped, show_score
from tasks.release.review import read_review
from tasks.settings import Settings
from tasks.store.bucket import Bucket
from tasks.store.s3 import open_store
from tasks.transfer.state import read_state
from tasks.workspace.dvc import Follower, StageFailedError, environment
from tasks.workspace.photos import brought, refuse_absent
from tasks.workspace.scratch import scratch
from tasks.workspace.subject import (
    CLASS_NOUN,
    DEFAULT_PRESET,
    Choices,
    choices,
    engine_values,
    given_consent,
    no_consent,
    pinned,
    planned_values,
)
from tasks.workspace.tombstones import unless_forgotten
from zimage.consent import read_consent
from zimage.core.errors import InputError
from zimage.core.folder import write_whole
from zimage.core.plain_yaml import dump, load_plain
from zimage.lora.files.given import file_and_strength
from zimage.model.base import Base
from zimage.permission import require_for, today
from zimage.photos.cache import cache_of

STAGES = ("ingest", "evaluate")  # what the person has to have agreed to
SCORED = (0, 3)  # exit codes of `zimage score`: 3 where a verdict is `fail`, which is a result
S3 = "s3://"
STOPS_WITHIN_S = 20.0
KEPT = Path("data", ".score.cache")  # in a workspace: generated pictures, so that none is made twice


@dataclass(frozen=True)
class Asked:
    """What is scored for a subject; see `flows.spec.ScoreSpec`.

    Args:
        photos: A folder, an archive or `s3://bucket/prefix`.
        consent: A file or `s3://bucket/key`; "" for the one that is known of the subject.
        loras: LoRA files, each with `:STRENGTH` behind it or not; files or `s3://bucket/key`.
        pictures: Folders, archives or `s3://bucket/prefix` of finished pictures.
        bases: Base models; none for the subject's.
        used_as: Further ways to use everything; see `zimage.scoring.usage.sampling_of`.
        preset: A name in presets.yaml; "" for the subject's.
        engine: A face engine; "" for the subject's.
        class_noun: What the base model calls the person; "" for the subject's.
        trigger: The word that calls the person; "" for what each file says.
        strength: Of LoRAs that say none.
        seeds: Pictures of each prompt; 0 for `evaluate.seeds.test`.
        precision: Half of the interval's width that is wanted, which chooses the seeds; 0 for none.
        review: What review.html of an earlier run of the same pictures saved; "" for none.
        blind: Also make a page without names.
        values: New values by `section.key`.
    """

    photos: str
    consent: str
    loras: Sequence[str]
    pictures: Sequence[str]
    bases: Sequence[str]
    used_as: Sequence[str]
    preset: str
    engine: str
    class_noun: str
    trigger: str
    strength: float
    seeds: int
    precision: float
    review: str
    blind: bool
    values: dict[str, Any]


@dataclass(frozen=True)
class Scored:
    """What a run found.

    Args:
        says: The comparisons, and a line for each result.
        key: Below which the results lie in the store.
        page: A link to the page.
    """

    says: list[str]
    key: str
    page: str


def check_consent(settings: Settings, subject: str, consent: str, *, shared: bool) -> bytes:
    """Return the consent that covers the scoring, as the content of a file.

    Args:
        settings: Where things are.
        subject: The subject.
        consent: A file or `s3://bucket/key`; "" for the one in the workspace or, where work is shared, in the state.
        shared: Other machines share the work.

    Raises:
        InputError: none is known, it is another person's, has expired or does not cover it.
        StoreError: a bucket is away.
    """
    known = settings.workspace(subject) / "data" / "consent.yaml"
    if consent:
        agreed, text = given_consent(consent, subject)
    elif known.is_file():
        agreed, text = read_consent(known), known.read_bytes()
    else:
        state = read_state(open_store(settings.store), subject).state if shared else None
        if state is None or state.consent is None:
            raise no_consent(subject)
        agreed, text = state.consent, dump(state.consent.model_dump()).encode()
    require_for(STAGES, agreed, today())
    return text


@store_task("score", tag="gpu", retry_after_s=RETRY_AFTER_S)
def run_score(settings: Settings, subject: str, asked: Asked, *, shared: bool) -> Scored:
    """Score, put the results into the store and show them in Prefect; a bucket that is away is waited for.

    Raises:
        InputError: `zimage score` refused something, in its own words; no consent covers it; or the subject is being
            forgotten, or was meanwhile.
        StageFailedError: it failed otherwise.
        StoreError: a bucket stayed away.
    """
    workspace = settings.workspace(subject)
    consent = check_consent(settings, subject, asked.consent, shared=shared)
    bases = [pinned(each) for each in asked.bases]
    params = _params(settings, subject, asked, bases[0] if bases else None, shared=shared)
    with scratch(workspace, "score") as folder:
        write_whole(folder / "consent.yaml", consent)
        write_whole(folder / "params.yaml", params.encode())
        out = folder / "result"
        options = [
            *("--consent", str(folder / "consent.yaml"), "--params", str(folder / "params.yaml")),
            *("--class-noun", load_plain(params)["subject"]["class_noun"], "--strength", f"{asked.strength:g}"),
            *(
                "--seeds",
                str(asked.seeds),
                "--precision",
                f"{asked.precision:g}",
                *(["--trigger", asked.trigger] if asked.trigger else []),
            ),
            *(f"--base={base.model}" for base in bases),
            *(f"--as={each}" for each in asked.used_as),
            *(["--review", _review(asked.review, folder / "review.json")] if asked.review else []),
            *(["--blind"] if asked.blind else []),
            *_given(asked, folder / "given"),
        ]
        with _kept_pictures(workspace / KEPT, cache_of(out) / "pictures"):
            bar = Bar(subject, "score")
            try:
                _run(["score", _local(asked.photos, folder / "given" / "photos"), str(out), *options], bar.update)
            except BaseException as error:
                bar.end("failed" if isinstance(error, Exception) else how_stopped())
                raise
            bar.end(FINISHED)
        key = _stored(settings, subject, out)
        says = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["says"]
        return Scored(says, key, show_score(settings, subject, out, f"{key}/score.html"))


def _params(settings: Settings, subject: str, asked: Asked, base: Base | None, *, shared: bool) -> str:
    """Return the text of a params.yaml: the subject's choices, those of the store where there is no workspace, and what
    was chosen now.
    """
    workspace = settings.workspace(subject)
    before = choices(workspace)
    if shared and not (workspace / "subject.yaml").is_file():
        state = read_state(open_store(settings.store), subject).state
        before = state.choices if state else Choices(preset=DEFAULT_PRESET, base=None, values={})
    noun = {CLASS_NOUN: asked.class_noun} if asked.class_noun else {}
    values = {**(engine_values(asked.engine) if asked.engine else {}), **noun, **asked.values}
    return planned_values(settings, subject, before, base=base, preset=asked.preset, values=values)[1]


def _given(asked: Asked, folder: Path) -> list[str]:
    """Return the options that name LoRAs and pictures; what lies in buckets is fetched into `folder`."""
    folder.mkdir()
    refuse_no_photos(asked.photos)
    loras = [_lora(each, folder / f"lora-{number}") for number, each in enumerate(asked.loras)]
    pictures = [
        _local(each, folder / f"pictures-{number}" / PurePosixPath(each).name)
        for number, each in enumerate(asked.pictures)
    ]
    return [*(f"--lora={each}" for each in loras), *(f"--pictures={each}" for each in pictures)]


def _local(address: str, target: Path) -> str:
    """Return a path of this machine; what lies in a bucket is fetched to `target`."""
    if not address.startswith(S3):
        return str(Path(address).expanduser().absolute())
    with brought(address, target):
        pass  # it is in place with the end of the block
    return str(target)


def _review(address: str, target: Path) -> str:
    """Return the path of a copy of a person's answers, which lie in a file or a bucket; see `read_review`."""
    write_whole(target, read_review(address))
    return str(target)


def refuse_no_photos(photos: str) -> None:
    """Pass if real photos were named, and are there as far as this machine can see.

    Raises:
        InputError: they were not, or are not.
    """
    if not photos:
        raise InputError("Real photos of the person are needed to score anything; give a folder or an archive: photos.")
    if not photos.startswith(S3):
        refuse_absent(photos)


def _lora(written: str, folder: Path) -> str:
    """Return `FILE` or `FILE:STRENGTH` with an absolute path; a file in a bucket is fetched into `folder`."""
    address, strength = file_and_strength(written)
    behind = "" if strength is None else f":{strength:g}"
    if not address.startswith(S3):
        return f"{Path(address).expanduser().absolute()}{behind}"
    found = Bucket.at(address).itself()
    if found is None:
        raise InputError(f"There is no LoRA file at {address}; check the bucket and the key.")
    bucket, one = found
    folder.mkdir()
    bucket.fetch(one, folder / one.key)
    return f"{folder / one.key}{behind}"


@contextmanager
def _kept_pictures(kept: Path, cache: Path) -> Iterator[None]:
    """Have the generated pictures of earlier runs in `cache` during the block, and keep those that are there after."""
    cache.parent.mkdir(parents=True)
    if kept.is_dir():
        kept.rename(cache)
    try:
        yield
    finally:
        if cache.is_dir():
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(kept, ignore_errors=True)
            cache.rename(kept)


def _run(arguments: list[str], on_progress: Callable[[dict[str, Any]], None]) -> None:
    """Run `zimage` in a process of its own, whose memory is free when it ends; its lines go to the run's log.

    Raises:
        InputError: it refused something; its own sentence.
        StageFailedError: it failed otherwise.
    """
    out = Path(arguments[2])
    progress = out.with_name("progress.jsonl")
    follower = Follower(progress, on_progress)
    command = [sys.executable, "-m", "zimage", *arguments]
    with subprocess.Popen(
        command,
        env=environment() | {"ZIMAGE_PROGRESS": str(progress)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                log_line(line.rstrip())
                follower.look()
        except BaseException:
            process.terminate()
            try:
                process.wait(STOPS_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    follower.look()
    if follower.error is not None:
        raise follower.error
    if process.returncode not in SCORED:
        raise StageFailedError(f"`zimage score` ended with code {process.returncode}; the log above says why.")


def _stored(settings: Settings, subject: str, out: Path) -> str:
    """Upload the results, and return the key below which they lie."""
    files = sorted(path for path in out.rglob("*") if path.is_file())
    digest = hashlib.sha256(b"".join((out / name).read_bytes() for name in ("metrics.json", "score.html")))
    key = f"subjects/{subject}/pages/score-{digest.hexdigest()[:16]}"
    store = open_store(settings.store)
    with unless_forgotten(store, subject, settings.workspace(subject)) as written:
        written.append(key)
        for file in files:
            store.put_if_absent(f"{key}/{file.relative_to(out).as_posix()}", file)
    return key
