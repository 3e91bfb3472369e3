"""Take in one file: hash it, decode it and write a clean picture, or reject it with a reason."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from zimage.photos.cache import Cache, filled
from zimage.photos.clean import Suffix, clean_file
from zimage.photos.decode import BYTES_A_PIXEL, Limits, RefusedError, decoded
from zimage.photos.given_file import Given
from zimage.photos.kinds import SIDECAR, TIFF_HEADS, is_sidecar, name_refusal

PICTURE, FACTS = "photo", "facts.json"
COPIES = 3  # of a file's bytes: as it came over the line, unpickled, and a decoder's own
PROCESS_BYTES = 2 * 2**30  # address space of a process with all decoders and the pictures of one that keeps to the size


@dataclass(frozen=True)
class Facts:
    """Facts about a picture besides its pixels; its clean file is PICTURE with `suffix`."""

    suffix: Suffix
    format: str
    width: int
    height: int
    notes: list[str]
    taken_s: float | None


@dataclass(frozen=True)
class Taken:
    """The outcome of one file; `entry` holds its picture unless it was refused for `reason`."""

    sha256: str | None
    size_bytes: int
    entry: Path | None = None
    facts: Facts | None = None
    reason: str | None = None
    detail: str = ""


@dataclass(frozen=True)
class Intake:
    """Takes in files in a worker process.

    Args:
        limits: What a picture may take.
        max_bytes: Larger files are not read.
        cache, salt: Where clean pictures are kept by the hash of their file (see zimage.photos.cache).
    """

    limits: Limits
    max_bytes: int
    cache: Path
    salt: str

    def __call__(self, one: Given) -> Taken:
        """Return what became of one file."""
        digest = None
        try:
            content = one.read(self.max_bytes)
            digest = hashlib.sha256(content).hexdigest()
            if content[:4] in TIFF_HEADS and (refusal := name_refusal(one.name, content)) is not None:
                raise RefusedError(*refusal)  # a raw file by its name alone: what a decoder finds may be a thumbnail
            entry = filled(Cache(self.cache, self.salt).entry(digest), lambda folder: self._keep(content, folder))
        except RefusedError as error:
            reason, detail = _refusal(one.name, error)
            return Taken(digest, one.size_bytes, reason=reason, detail=detail)
        facts = Facts(**json.loads((entry / FACTS).read_bytes()))
        return Taken(digest, len(content), entry, facts)

    def _keep(self, content: bytes, folder: Path) -> None:
        picture = decoded(content, self.limits)
        height, width = picture.pixels_rgb.shape[:2]
        suffix, clean = clean_file(content, picture, self.limits)
        (folder / f"{PICTURE}{suffix}").write_bytes(clean)
        facts = Facts(suffix, picture.format, width, height, picture.notes, picture.taken_s)
        (folder / FACTS).write_text(json.dumps(asdict(facts)), encoding="utf-8")


def _refusal(name: str, error: RefusedError) -> tuple[str, str]:
    """Return code and sentence of a refusal, after the file's name where its content says too little."""
    if is_sidecar(name):
        return SIDECAR
    by_name = name_refusal(name, b"") if error.reason in ("not_an_image", "damaged") else None
    return by_name or (error.reason, error.detail)


def memory_needed(limits: Limits, max_bytes: int) -> int:
    """Return the address space, in bytes, in which a process can take in any file that the limits allow."""
    return PROCESS_BYTES + BYTES_A_PIXEL * limits.max_megapixels * 1_000_000 + COPIES * max_bytes
