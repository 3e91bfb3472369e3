"""Locate models other than the base (captioner, CLIP) and pin them by the hash of their files."""

from pathlib import Path

from zimage.core.errors import InputError
from zimage.model.base import cached_snapshot, identify_folder


def folder_of(model: str, identity: str | None = None) -> Path | None:
    """Return the folder of a model on this machine; None if it is absent.

    Args:
        model: A folder, or a hub id whose files are in the local cache.
        identity: What pins it, see `identity_of`; None takes a hub id's newest cached commit.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    kind, _, commit = (identity or "").partition(":")
    return cached_snapshot(model, commit if kind == "hub" else None)


def identity_of(model: str) -> str | None:
    """Return `sha256:<hex>` over a folder's files, `hub:<commit>` of a cached hub id, None where it is not here."""
    folder = folder_of(model)
    if folder is None:
        return None
    return identify_folder(folder) if Path(model).expanduser().is_dir() else f"hub:{folder.name}"


def require_pinned(model: str, identity: str | None, key: str) -> None:
    """Pass if a model is the one that was pinned, or is not on this machine at all.

    Args:
        model: A folder, or a hub id.
        identity: What pins it; None is refused.
        key: Where it stands in params.yaml, for example `evaluate.clip`.

    Raises:
        InputError: it is not pinned, or its files are others than those that were pinned.
    """
    here = identity_of(model)
    if here is None:
        return
    if identity is None:
        raise InputError(
            f"Nothing pins the model `{model}` of {key}, so exchanged weights would go unnoticed; "
            f"set {key}.identity to {here}, which is what lies here now."
        )
    other_commit_is_cached = identity.startswith("hub:") and folder_of(model, identity) is not None
    if here != identity and not other_commit_is_cached:
        raise InputError(
            f"The model `{model}` of {key} is {here}, but {key}.identity pins {identity}; "
            f"restore the pinned files, or set {key}.identity to {here} if the change is meant."
        )
