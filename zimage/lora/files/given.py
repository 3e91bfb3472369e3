"""Read `FILE` or `FILE:STRENGTH` as a person writes a LoRA, and pin one; the one place that knows these forms."""

import hashlib
from pathlib import Path

from zimage.core.errors import InputError


def file_and_strength(written: str) -> tuple[str, float | None]:
    """Return the file or address, and the strength behind its last colon; None where there is none.

    A file whose own name ends like that is itself, and so is an address such as `s3://bucket/key`.

    Raises:
        InputError: what stands behind the last colon is no number.
    """
    file, colon, strength = written.rpartition(":")
    if not colon or strength.startswith("//") or Path(written).is_file():
        return written, None
    try:
        return file, float(strength)
    except ValueError:
        raise InputError(
            f"The strength in {written} is not a number; write FILE:STRENGTH, such as ada.safetensors:0.8."
        ) from None


def require_pinned(file: str, sha256: str, *, setting: str, what: str) -> Path:
    """Return a LoRA file that params.yaml names, once it is clear that it is the one that was pinned.

    Args:
        file: As params.yaml names it.
        sha256: As params.yaml pins it.
        setting: Dotted key of the setting, for the messages.
        what: What the file is, for the messages.

    Raises:
        InputError: there is no such file, or another one.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise InputError(f"{setting} names {path}, which does not exist; correct it or set it to null.")
    found = _sha256(path)
    if found != sha256:
        raise InputError(
            f"The {what} {path} has SHA-256 {found}, but params.yaml pins {sha256}; restore the file, or set "
            f"{setting}.sha256 if the change is meant."
        )
    return path


def pinned_lora(file: str) -> dict[str, str]:
    """Return the setting that names a LoRA file and pins its content.

    Raises:
        InputError: there is no such file.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise InputError(f"There is no LoRA file {file}; correct the path.")
    return {"file": str(path.absolute()), "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
