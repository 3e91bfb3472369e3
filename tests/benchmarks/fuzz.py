"""Damaged photos and archives for ingest, as many as wanted.

Run with: python tests/benchmarks/fuzz.py [number of photos] [seed]
It ends with an error where a file got no row, a reason is not known, or ingest broke; else it prints the tally.
"""

import io
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pillow_heif
from PIL import ExifTags, Image, ImageCms
from skimage import data

from zimage.core.errors import InputError
from zimage.core.jsonl import read_rows
from zimage.photos.rows import PhotoRow
from zimage.stages.ingest import IngestParams, ingest

CONSENT = Path(__file__).parents[2] / "data" / "consent.yaml"
PARAMS = IngestParams(min_photos=1, max_files=1_000_000, max_file_mb=20, max_megapixels=30, max_side_px=2048)
REASONS = {
    "empty", "not_an_image", "damaged", "truncated", "too_many_pixels", "absurd_size", "archive", "same_file",
    "too_large", "crashed", "raw", "video", "sound",
}  # fmt: skip

Mutation = Callable[[bytes, np.random.Generator], bytes]


def whole_files() -> dict[str, bytes]:
    """Return one small photo for each format and kind that ingest reads, by name."""
    pillow_heif.register_heif_opener()
    picture = Image.fromarray(data.astronaut()).resize((96, 96))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2024:05:04 10:30:00"
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    grey16 = Image.fromarray(np.asarray(picture.convert("L"), np.uint16) * 257)
    frames = {"save_all": True, "append_images": [picture.rotate(90)]}
    return {
        "a.jpg": _encoded(picture, "JPEG", exif=exif, icc_profile=icc),
        "progressive.jpg": _encoded(picture, "JPEG", progressive=True),
        "cmyk.jpg": _encoded(picture.convert("CMYK"), "JPEG"),
        "two.jpg": _encoded(picture, "MPO", **frames),
        "a.png": _encoded(picture, "PNG", exif=exif, icc_profile=icc),
        "grey16.png": _encoded(grey16, "PNG"),
        "palette.png": _encoded(picture.quantize(32), "PNG", transparency=3),
        "moving.png": _encoded(picture, "PNG", **frames),
        "a.webp": _encoded(picture, "WEBP", exif=exif, icc_profile=icc),
        "moving.webp": _encoded(picture, "WEBP", **frames),
        "lzw.tif": _encoded(picture, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": _encoded(picture, "TIFF", compression="jpeg"),
        "grey16.tif": _encoded(grey16, "TIFF"),
        "a.bmp": _encoded(picture.quantize(16), "BMP"),
        "moving.gif": _encoded(picture, "GIF", **frames),
        "a.heic": _encoded(picture, "HEIF", exif=exif.tobytes()),
        "a.avif": _encoded(picture, "AVIF"),
    }


def _encoded(picture: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def _flipped(content: bytes, rng: np.random.Generator) -> bytes:
    """Flip a few bits anywhere."""
    damaged = bytearray(content)
    for place in rng.integers(0, len(damaged), rng.integers(1, 20)):
        damaged[place] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def _header(content: bytes, rng: np.random.Generator) -> bytes:
    """Write extreme numbers where sizes and offsets usually are."""
    damaged, place = bytearray(content), int(rng.integers(2, min(len(content), 400) - 8))
    extreme = [b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff", b"\xff\x7f", b"\x00\x01\x00\x00"]
    value = extreme[int(rng.integers(len(extreme)))]
    damaged[place : place + len(value)] = value
    return bytes(damaged)


def _cut(content: bytes, rng: np.random.Generator) -> bytes:
    """End anywhere."""
    return content[: int(rng.integers(0, len(content)))]


def _noisy(content: bytes, rng: np.random.Generator) -> bytes:
    """Overwrite a stretch with noise."""
    start = int(rng.integers(0, len(content)))
    stretch = rng.integers(0, 256, int(rng.integers(1, 200)), np.uint8).tobytes()
    return content[:start] + stretch + content[start + len(stretch) :]


def _moved(content: bytes, rng: np.random.Generator) -> bytes:
    """Repeat, drop or insert a stretch, so that everything after it has moved."""
    start, end = sorted(int(place) for place in rng.integers(0, len(content), 2))
    end = min(end, start + 500)
    choice = int(rng.integers(3))
    middle = (content[start:end] * 2, b"", rng.integers(0, 256, 64, np.uint8).tobytes())[choice]
    return content[:start] + middle + content[end:]


MUTATIONS: tuple[Mutation, ...] = (_flipped, _header, _cut, _noisy, _moved)


def damaged_files(count: int, seed: int) -> dict[str, bytes]:
    """Return `count` photos, each with one to three kinds of damage, by name; names lie about the format at times."""
    rng = np.random.default_rng(seed)
    whole = list(whole_files().items())
    files: dict[str, bytes] = {}
    for number in range(count):
        name, content = whole[number % len(whole)]
        if rng.random() < 0.1:  # two files spliced
            content = content[: len(content) // 2] + whole[int(rng.integers(len(whole)))][1][-len(content) // 2 :]
        for _ in range(int(rng.integers(1, 4))):
            content = MUTATIONS[int(rng.integers(len(MUTATIONS)))](content or b"\0" * 16, rng)
        lying = whole[int(rng.integers(len(whole)))][0] if rng.random() < 0.1 else name
        files[f"{number:06d}-{lying}"] = content
    return files


def packed(files: dict[str, bytes], kind: str) -> bytes:
    """Return files as a zip, tar or tar.gz."""
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(fileobj=file, mode="w:gz" if kind == "tar.gz" else "w") as tar:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def fuzz_photos(count: int, seed: int, folder: Path) -> Counter[str]:
    """Ingest `count` damaged photos and a whole one, and return how often each thing became of them."""
    photos = folder / "photos"
    photos.mkdir(parents=True)
    files = damaged_files(count, seed)
    for name, content in {"whole.jpg": whole_files()["a.jpg"], **files}.items():
        (photos / name).write_bytes(content)
    ingest(photos, CONSENT, folder / "data" / "ingest", params=PARAMS)
    rows = read_rows(folder / "data" / "ingest" / "photos.jsonl", PhotoRow)
    assert sorted(row.name for row in rows) == sorted([*files, "whole.jpg"]), "a file got no row, or two"
    outcomes = Counter(row.reason or "kept" for row in rows)
    unknown = set(outcomes) - REASONS - {"kept"}
    assert not unknown, f"reasons nobody explains: {unknown}"
    assert all(row.detail for row in rows if row.reason), "a rejection without a sentence"
    outside = {path.name for path in folder.iterdir()} - {"photos", "data"}
    assert not outside, f"files outside the output folder: {outside}"
    return outcomes


def fuzz_archives(count: int, seed: int, folder: Path) -> Counter[str]:
    """Ingest `count` damaged archives, and return how many were read and how many refused with a sentence."""
    rng = np.random.default_rng(seed)
    outcomes: Counter[str] = Counter()
    for number in range(count):
        kind = ("zip", "tar", "tar.gz")[number % 3]
        source = folder / f"{number}.{kind}"
        source.write_bytes(MUTATIONS[int(rng.integers(len(MUTATIONS)))](packed(whole_files(), kind), rng))
        try:
            ingest(source, CONSENT, folder / "data" / "ingest", params=PARAMS)
            outcomes["archive read"] += 1
        except InputError:
            outcomes["archive refused"] += 1
    return outcomes


def main(count: int, seed: int) -> None:
    """Fuzz `count` photos and a hundredth as many archives, and print what became of them."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = fuzz_photos(count, seed, Path(folder) / "photos")
        (Path(folder) / "archives").mkdir()
        outcomes += fuzz_archives(count // 100, seed, Path(folder) / "archives")
    print(f"{count} damaged photos, {count // 100} damaged archives, seed {seed}: {time.monotonic() - started:.0f} s")
    for outcome, number in outcomes.most_common():
        print(f"{number:7d} {outcome}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5000, int(sys.argv[2]) if len(sys.argv) > 2 else 1)
