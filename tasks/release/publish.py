"""Publish a subject's workspace as an immutable release, or refuse with the reason."""

import contextlib
import datetime
import importlib.metadata
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.policy import store_task
from tasks.release.card import engines
from tasks.release.files import agreed, collect, how_used, metrics_of, params_of, public_value, raw_params
from tasks.release.licences import check_use, licences_of
from tasks.release.provenance import check_signing, kept_key, signed_pictures, signer_of
from tasks.release.samples import is_sample
from tasks.release.score import Score, scored_uses
from tasks.settings import PROJECT, Signing, built_from
from tasks.store.protocol import ConflictError, Store, StoreError
from tasks.store.releases import (
    MANIFEST,
    SIGNATURE,
    Manifest,
    Published,
    ScoredUse,
    Use,
    Verdict,
    content_hash,
    described,
    numbered,
    published,
    release_key,
    releases_key,
    signature_key,
)
from tasks.store.signature import is_signature, public_key_of, sign
from tasks.workspace.scratch import scratch
from tasks.workspace.tombstones import refuse_if_forgotten, unless_forgotten
from zimage.consent import Consent, read_consent, require
from zimage.core.errors import InputError
from zimage.core.plain_yaml import load_trusted
from zimage.evaluation.wording import TOY
from zimage.model.base import is_packaged
from zimage.permission import today

# Their versions decide what the weights become; the rest of constraints.txt is tied by the code's commit.
PACKAGES = ("zimage", "torch", "diffusers", "transformers", "peft", "safetensors", "numpy")
RETRY_AFTER_S = [2.0, 10.0, 60.0]
ENDS_SOON = datetime.timedelta(days=30)


@dataclass(frozen=True)
class Release:
    """Where a release is.

    Args:
        name: `<n>-<first 8 hex of its content's SHA-256>`.
        key: The folder-like key in the store.
        is_new: False where the same content had been published before.
        notice: What the person who published should know, such as that the consent ends soon.
        hub: Where it is on the Hugging Face Hub, if it was put there.
    """

    name: str
    key: str
    is_new: bool
    notice: str | None = None
    hub: str | None = None


@store_task("publish", tag="cpu", retry_after_s=RETRY_AFTER_S)
def publish(
    workspace: Path,
    subject: str,
    store: Store,
    *,
    accept_provisional: bool = False,
    use: Use = "non-commercial",
    accept_toy: bool = False,
    signing: Signing | None = None,
    score: Score | None = None,
) -> Release:
    """Publish the content of `workspace` as a release, unless a release with it exists; return the release.

    Files come first and the manifest last, all under a name that holds the content's hash: what an interrupted attempt
    left is completed by the next one, and a release with a manifest never changes. Every file is checked in the store
    after it was sent. Signed pictures count as the unsigned ones and who signs, since no two signatures are equal. The
    manifest is signed too, and a release from before that is by publishing it again. `score` adds the ways in which the
    LoRA was scored, with strength and settings for each.

    Raises:
        InputError: the verdict, the consent or a licence forbids it, the workspace is not finished, pictures are to be
            signed and cannot be, the score is of another LoRA, or the subject was forgotten, before or meanwhile.
    """
    verdict = gate(workspace, accept_provisional=accept_provisional, use=use, accept_toy=accept_toy)
    if signing:
        check_signing(signing)
    consent = read_consent(workspace / "data" / "consent.yaml")
    uses = _uses(workspace, score) if score else []
    with unless_forgotten(store, subject, workspace) as written, scratch(workspace, "release") as aside:
        sources = collect(workspace, aside, subject, use=use, consent=consent, uses=uses)
        written.append(releases_key(subject))
        unsigned = [described(name, path) for name, path in sources.items()]
        name = numbered(store, subject, content_hash([*unsigned, *signer_of(signing)]))
        key, there, kept = release_key(subject, name), published(store, subject, name), {}
        finished = there.manifest if there else None
        if signing:
            pictures = {each: path for each, path in sources.items() if is_sample(each)}
            signed = signed_pictures(store, subject, name, pictures, finished, signing=signing, folder=aside / "signed")
            sources |= signed
            kept = {kept_key(subject, name, each): path for each, path in signed.items()}
        files = [described(each, path) for each, path in sorted(sources.items())]
        stored = kept | {f"{key}/{each}": path for each, path in sources.items()}
        damaged = [each.removeprefix(f"{key}/") for each, path in stored.items() if _put(store, each, path)]
        manifest = Manifest(
            subject=subject, release=name, verdict=verdict, use=use, consent=agreed(consent), files=files, uses=uses,
            **_origin(workspace, subject),
        )  # fmt: skip
        content = there.content if there else manifest.model_dump_json(indent=2).encode()
        if signing and signing.key and not _is_signed(there, signing.key):
            _refuse_to_sign_another(there, manifest)
            (aside / SIGNATURE).write_bytes(sign(content, signing.key))
            if _put(store, signature_key(subject, name, content), aside / SIGNATURE):
                damaged.append(SIGNATURE)
        notice = " ".join(filter(None, [ends_soon(consent), _mended(damaged)])) or None
        if finished:
            return Release(name, key, is_new=False, notice=notice)
        refuse_if_forgotten(store, subject, workspace)
        try:
            store.compare_and_swap(f"{key}/{MANIFEST}", content, None)
        except ConflictError:  # the same content was published at the same time
            return Release(name, key, is_new=False, notice=notice)
    return Release(name, key, is_new=True, notice=notice)


def gate(workspace: Path, *, accept_provisional: bool, use: Use, accept_toy: bool = False) -> Verdict:
    """Return the verdict of a workspace that may be published.

    Raises:
        InputError: it may not, and why.
    """
    found, params = metrics_of(workspace), raw_params(workspace)
    verdict: Verdict = found["verdict"]
    if verdict == "fail":
        raise InputError(
            "Not published, the verdict is fail; the report says why.",
            names=" ".join([f"{found['why'].rstrip('.')}.", *found.get("advice", [])]),
        )
    if is_packaged(params["base"]["model"]) and not accept_toy:
        raise InputError(f"Not published. {TOY} `--accept-toy` publishes this one all the same.")
    if verdict == "provisional" and not accept_provisional:
        raise InputError(
            "Not published, the verdict is provisional; "
            f"`python -m flows publish --subject {workspace.name} --accept-provisional` publishes it all the same.",
            names=f"{found['why'].rstrip('.')}.",
        )
    require(read_consent(workspace / "data" / "consent.yaml"), "publication", today())
    check_use(use, licences_of(params, found))
    return verdict


def ends_soon(consent: Consent) -> str | None:
    """Return a sentence if a consent ends within a month, before it happens."""
    left = consent.expires - today()
    if left > ENDS_SOON:
        return None
    return f"The consent of {consent.pseudonym} ends in {left.days} days ({consent.expires}); renew it, or forget them."


def _uses(workspace: Path, score: Score) -> list[ScoredUse]:
    """Return the ways in which the LoRA that is published was scored; see `scored_uses`."""
    trigger = params_of(workspace)["subject"]["trigger"]
    return scored_uses(score, sha256=metrics_of(workspace)["chosen"]["sha256"], trigger=trigger)


def _put(store: Store, key: str, source: Path) -> bool:
    """Upload a file unless the store has it; return whether another content lay under its key.

    The key holds the hash of the content, so what is not that content is damaged.
    """
    put = store.put_if_absent(key, source)
    if store.holds(key, source):
        return False
    store.overwrite(key, source)
    if not store.holds(key, source):
        raise StoreError(f"{key} arrives damaged in the store each time; nothing was published.")
    return not put


def _is_signed(there: Published | None, key: Path) -> bool:
    """Return whether a release is there with a signature that this private key made."""
    return bool(there and there.signature and is_signature(there.signature, there.content, public_key_of(key)))


def _refuse_to_sign_another(there: Published | None, manifest: Manifest) -> None:
    """Pass if a release that is there without a good signature says what this workspace would publish.

    When it was published and what software computed it may differ: neither changes what a reader gets.

    Raises:
        InputError: it says something else; somebody may have changed it.
    """
    if there is None:
        return
    may_differ = {name: getattr(there.manifest, name) for name in ("published_at", "code", "code_commit", "packages")}
    if manifest.model_copy(update=may_differ) != there.manifest:
        raise InputError(
            f"The manifest of {manifest.release} in the store has no signature of this key and is not what this "
            f"workspace would publish, so it is not signed; look who wrote it, delete {MANIFEST} there, and publish "
            "again."
        )


def _mended(damaged: list[str]) -> str | None:
    return f"Damaged in the store, and mended: {', '.join(damaged)}." if damaged else None


def _origin(workspace: Path, subject: str) -> dict[str, Any]:
    """Return the fields of a manifest about content and origin."""
    metrics, lora = metrics_of(workspace), how_used(workspace, subject)
    return {
        "published_at": datetime.datetime.now(datetime.UTC),
        "why": metrics["why"],
        "lora": lora.lora,
        "strength": lora.strength,
        "trigger": lora.trigger,
        "engines": engines(metrics),
        "licences": licences_of(raw_params(workspace), metrics),
        "params": params_of(workspace),
        "code": _yaml(workspace / "code.yaml"),
        "code_commit": _commit(),
        "dvc_lock": public_value(_yaml(workspace / "dvc.lock")),
        "packages": dict(_versions()),
    }


def _versions() -> Iterator[tuple[str, str]]:
    """Yield the packages that are installed, with their versions."""
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield name, importlib.metadata.version(name)


def _yaml(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = load_trusted(path.read_text(encoding="utf-8"))
    return content


def _commit() -> str | None:
    """Return the commit of the project's code, with `-dirty` where files differ from it; None if nothing tells it.

    Where there is no git, as in an image, ZIMAGE_COMMIT says what it was made of.
    """
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        answer = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        answer = ""
    return answer or built_from()
