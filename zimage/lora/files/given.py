"""Read `FILE` or `FILE:STRENGTH` as a person writes a LoRA, and pin one; the one place that knows this form."""

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


def pinned_lora(file: str) -> dict[str, str]:
    """Return the setting that names a LoRA file and pins its content.

    Raises:
        InputError: there is no such file.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise InputError(f"There is no LoRA file {file}; correct the path.")
    return {"file": str(path.absolute()), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
