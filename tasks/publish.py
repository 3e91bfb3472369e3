"""Publishing: what a subject's workspace holds becomes a release that never changes, or is refused with the reason."""

import datetime
import hashlib
import importlib.metadata
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from prefect.cache_policies import NO_CACHE
from prefect.tasks import task
from pydantic import BaseModel, ConfigDict

from tasks.policy import may_pass
from tasks.settings import PROJECT
from tasks.storage import ConflictError, Store
from zimage.errors import InputError
from zimage.faces.consent import read_consent, require
from zimage.summary import chosen_lora

# Their versions decide what the weights become; the rest of constraints.txt is tied by the code's commit.
PACKAGES = ("zimage", "torch", "diffusers", "transformers", "peft", "safetensors", "numpy")
LORA, METRICS, REPORT = "lora.safetensors", "metrics.json", "report.html"  # as they are called in a release
EVALUATE = Path("data/evaluate")
MANIFEST = "manifest.json"
RETRY_AFTER_S = [2.0, 10.0, 60.0]

Verdict = Literal["pass", "provisional", "fail"]


class PublishedFile(BaseModel):
    """A file of a release."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    sha256: str
    bytes: int


class Manifest(BaseModel):
    """What a release is made of and where it comes from; written last, so that a release with it is whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    subject: str
    release: str
    published_at: datetime.datetime
    verdict: Verdict
    files: list[PublishedFile]
    params: dict[str, Any]
    code: dict[str, str]
    code_commit: str | None
    dvc_lock: dict[str, Any]
    packages: dict[str, str]


@dataclass(frozen=True)
class Release:
    """Where a release is.

    Args:
        name: `<n>-<first 8 hex of its content's SHA-256>`.
        key: The folder-like key in the store.
        is_new: False where the same content had been published before.
    """

    name: str
    key: str
    is_new: bool


@task(
    name="publish",
    task_run_name="publish {subject}",
    tags=["cpu"],
    retries=len(RETRY_AFTER_S),
    retry_delay_seconds=RETRY_AFTER_S,
    retry_condition_fn=may_pass,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def publish(workspace: Path, subject: str, store: Store, *, accept_provisional: bool = False) -> Release:
    """Return the release of what `workspace` holds, made unless the same content is one already.

    Files come first and the manifest last, all under a name that holds the content's hash: what an interrupted attempt
    left is completed by the next one, and a release with a manifest never changes.

    Raises:
        InputError: the verdict or the consent forbids it, or the workspace is not finished.
    """
    verdict = gate(workspace, accept_provisional=accept_provisional)
    sources = _sources(workspace)
    files = [_described(name, path) for name, path in sources.items()]
    releases = f"subjects/{subject}/releases"
    name = _name(store.keys(releases), _short_hash(files))
    key = f"{releases}/{name}"
    if store.read(f"{key}/{MANIFEST}") is not None:
        return Release(name, key, is_new=False)
    for file in files:
        store.put_if_absent(f"{key}/{file.name}", sources[file.name])
    manifest = _manifest(workspace, subject, name, verdict, files)
    try:
        store.swap(f"{key}/{MANIFEST}", manifest.model_dump_json(indent=2).encode(), None)
    except ConflictError:  # the same content was published at the same time
        return Release(name, key, is_new=False)
    return Release(name, key, is_new=True)


def gate(workspace: Path, *, accept_provisional: bool) -> Verdict:
    """Return the verdict of a workspace that may be published.

    Raises:
        InputError: it may not, and why.
    """
    found = _metrics(workspace)
    verdict: Verdict = found["verdict"]
    if verdict == "fail":
        raise InputError(f"Not published, the verdict is fail: {found['why']}. More or better photos help most.")
    if verdict == "provisional" and not accept_provisional:
        raise InputError("Not published, the verdict is provisional; `--publish provisional` accepts that.")
    today = datetime.datetime.now(datetime.UTC).date()
    require(read_consent(workspace / "data" / "consent.yaml"), "publication", today)
    return verdict


def _sources(workspace: Path) -> dict[str, Path]:
    """Return the files of the release by name: the LoRA that was chosen, the numbers, the report."""
    chosen = _metrics(workspace)["chosen"]
    lora = chosen_lora(workspace, chosen["file"])
    if not lora.is_file() or _described(LORA, lora).sha256 != chosen["sha256"]:
        raise InputError(f"{lora} is not the LoRA that was evaluated; run the flow `learn` again.")
    return {LORA: lora, METRICS: workspace / EVALUATE / METRICS, REPORT: workspace / EVALUATE / REPORT}


def _metrics(workspace: Path) -> dict[str, Any]:
    path = workspace / EVALUATE / METRICS
    if not path.is_file():
        raise InputError(f"{workspace} has not been evaluated; run the flow `learn` first.")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _described(name: str, path: Path) -> PublishedFile:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return PublishedFile(name=name, sha256=sha256, bytes=path.stat().st_size)


def _short_hash(files: list[PublishedFile]) -> str:
    content = "".join(f"{file.name} {file.sha256}\n" for file in files)
    return hashlib.sha256(content.encode()).hexdigest()[:8]


def _name(keys: list[str], content: str) -> str:
    """Return the name of the release with this content: the one that was begun, or the next number."""
    names = sorted({key.split("/")[3] for key in keys}, key=lambda name: int(name.split("-")[0]))
    begun = [name for name in names if name.endswith(f"-{content}")]
    return begun[0] if begun else f"{int(names[-1].split('-')[0]) + 1 if names else 1}-{content}"


def _manifest(workspace: Path, subject: str, name: str, verdict: Verdict, files: list[PublishedFile]) -> Manifest:
    return Manifest(
        subject=subject,
        release=name,
        published_at=datetime.datetime.now(datetime.UTC),
        verdict=verdict,
        files=files,
        params=_yaml(workspace / "params.yaml"),
        code=_yaml(workspace / "code.yaml"),
        code_commit=_commit(),
        dvc_lock=_yaml(workspace / "dvc.lock"),
        packages={found.name: found.version for found in importlib.metadata.distributions() if found.name in PACKAGES},
    )


def _yaml(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def _commit() -> str | None:
    """Return the commit of the project's code, with `-dirty` where files differ from it, or None outside git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    answer = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None
