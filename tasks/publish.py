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

from tasks.settings import PROJECT
from tasks.storage import Store
from zimage.errors import InputError
from zimage.faces.consent import read_consent, require

# Their versions decide what the weights become; the rest of constraints.txt is tied by the code's commit.
PACKAGES = ("zimage", "torch", "diffusers", "transformers", "peft", "safetensors", "numpy")
# Name in the release: where it lies in a workspace. No photo of the person and no embedding is among them.
FILES = {
    "lora.safetensors": "data/train/lora.safetensors",
    "metrics.json": "data/evaluate/metrics.json",
    "report.html": "data/evaluate/report.html",
}
MANIFEST = "manifest.json"
RETRY_AFTER_S = [2, 10, 60]

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


@task(name="publish", task_run_name="publish {subject}", tags=["cpu"], cache_policy=NO_CACHE, persist_result=False)
def publish(workspace: Path, subject: str, store: Store, *, accept_provisional: bool = False) -> Release:
    """Return the release of what `workspace` holds, made unless the same content is one already.

    Raises:
        InputError: the verdict or the consent forbids it, or the workspace is not finished.
    """
    verdict = gate(workspace, accept_provisional=accept_provisional)
    files = _files(workspace)
    releases = f"subjects/{subject}/releases"
    wanted = _short_hash(files)
    done = {key.split("/")[3] for key in store.keys(releases) if key.endswith(f"/{MANIFEST}")}
    name = next((name for name in done if name.endswith(f"-{wanted}")), None)
    if name is not None:
        return Release(name, f"{releases}/{name}", is_new=False)
    name = f"{_next_number(store, releases)}-{wanted}"
    for file in files:
        store.put_if_absent(f"{releases}/{name}/{file.name}", workspace / FILES[file.name])
    manifest = _manifest(workspace, subject, name, verdict, files)
    store.swap(f"{releases}/{name}/{MANIFEST}", manifest.model_dump_json(indent=2).encode(), None)
    return Release(name, f"{releases}/{name}", is_new=True)


def gate(workspace: Path, *, accept_provisional: bool) -> Verdict:
    """Return the verdict of a workspace that may be published.

    Raises:
        InputError: it may not, and why.
    """
    metrics = workspace / FILES["metrics.json"]
    if not metrics.is_file():
        raise InputError(f"{workspace} has not been evaluated; run the flow `learn` first.")
    verdict: Verdict = json.loads(metrics.read_text(encoding="utf-8"))["verdict"]
    if verdict == "fail":
        raise InputError("Not published: the verdict is fail. The report says why; more or better photos help most.")
    if verdict == "provisional" and not accept_provisional:
        raise InputError("Not published: the verdict is provisional. Ask for `--publish provisional` to accept that.")
    today = datetime.datetime.now(datetime.UTC).date()
    require(read_consent(workspace / "data" / "consent.yaml"), "publication", today)
    return verdict


def _files(workspace: Path) -> list[PublishedFile]:
    return [_described(name, workspace / place) for name, place in FILES.items()]


def _described(name: str, path: Path) -> PublishedFile:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return PublishedFile(name=name, sha256=sha256, bytes=path.stat().st_size)


def _short_hash(files: list[PublishedFile]) -> str:
    content = "".join(f"{file.name} {file.sha256}\n" for file in files)
    return hashlib.sha256(content.encode()).hexdigest()[:8]


def _next_number(store: Store, releases: str) -> int:
    names = {key.split("/")[3] for key in store.keys(releases)}
    return 1 + max((int(name.split("-")[0]) for name in names), default=0)


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
        packages={package: importlib.metadata.version(package) for package in PACKAGES},
    )


def _yaml(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def _commit() -> str | None:
    """Return the commit of the project's code, with `-dirty` where files differ from it, or None outside git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    answer = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None
