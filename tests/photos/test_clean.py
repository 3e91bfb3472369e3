import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageOps
from skimage import data

from tests.benchmarks.fuzz import whole_files
from tests.photos.test_decode import encoded
from tests.photos.test_strip import exif_of_a_phone, from_a_phone, photo, telling_profile
from zimage.photos.clean import clean_file, read_clean
from zimage.photos.decode import Limits, decoded

# Coded with loss, in containers that are written.
KEPT = {"a.jpg", "progressive.jpg", "cmyk.jpg", "two.jpg", "a.webp", "a.heic", "a.avif"}


@pytest.mark.parametrize("max_side_px", [4096, 40], ids=["whole", "brought down"])
@pytest.mark.parametrize("name", list(whole_files()))
def test_a_clean_picture_shows_what_was_given_to_the_last_bit(name: str, max_side_px: int, tmp_path: Path) -> None:
    limits = Limits(max_megapixels=10, max_side_px=max_side_px)
    given = whole_files()[name]
    picture = decoded(given, limits)
    suffix, content = clean_file(given, picture, limits)
    path = tmp_path / f"clean{suffix}"
    path.write_bytes(content)
    assert np.array_equal(read_clean(path, max(picture.pixels_rgb.shape)), picture.pixels_rgb)
    assert (suffix != ".png") == (name in KEPT)
    if suffix != ".png":
        assert len(content) < len(given) + 8


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_phones_photo_is_upright_and_in_srgb_when_it_is_read(orientation: int, tmp_path: Path) -> None:
    limits = Limits(max_megapixels=10, max_side_px=4096)
    given = from_a_phone(orientation)
    suffix, content = clean_file(given, decoded(given, limits), limits)
    (tmp_path / f"clean{suffix}").write_bytes(content)
    with Image.open(io.BytesIO(given)) as image:
        upright = ImageOps.exif_transpose(image)
    profile = ImageCms.ImageCmsProfile(io.BytesIO(telling_profile()))
    expected = ImageCms.profileToProfile(upright, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert suffix == ".jpg"
    assert expected is not None and not np.array_equal(np.asarray(expected), np.asarray(upright))
    assert np.array_equal(read_clean(tmp_path / "clean.jpg", 200), np.asarray(expected))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("max_side_px", [4096, 100], ids=["whole", "brought down"])
@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2}, {"progressive": True}], ids=str)
def test_a_plain_jpeg_is_read_to_the_bits_that_ingest_saw(
    options: dict[str, int], max_side_px: int, orientation: int, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file, noisy = io.BytesIO(), np.asarray(data.astronaut(), np.uint8)[:201, :307]
    Image.fromarray(noisy).save(file, "JPEG", quality=88, exif=exif, **options)
    limits = Limits(max_megapixels=10, max_side_px=max_side_px)
    picture = decoded(file.getvalue(), limits)
    suffix, content = clean_file(file.getvalue(), picture, limits)
    (tmp_path / "clean.jpg").write_bytes(content)
    assert suffix == ".jpg"
    assert np.array_equal(read_clean(tmp_path / "clean.jpg", max(picture.pixels_rgb.shape)), picture.pixels_rgb)


def table_profile() -> bytes:
    """Return a profile of a scanner: a table from RGB to Lab with two entries for each channel (ICC.1:2022, 10.11)."""
    ramp = bytes(range(256)) * 3
    corners = bytes(np.random.default_rng(1).integers(0, 256, 24, np.uint8))
    matrix = struct.pack(">9i", *(65536 * (at % 4 == 0) for at in range(9)))
    tag = b"mft1\0\0\0\0" + bytes([3, 3, 2, 0]) + matrix + ramp + corners + ramp
    size = 128 + 4 + 12 + len(tag)
    header = struct.pack(">I4sI4s4s4s", size, b"", 0x02400000, b"scnr", b"RGB ", b"Lab ") + bytes(12)
    header += b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I4sII", 1, b"A2B0", 144, len(tag)) + tag


def test_a_photo_with_a_table_of_colours_becomes_a_png_and_one_with_a_broken_profile_stays_a_jpeg() -> None:
    limits = Limits(max_megapixels=10, max_side_px=4096)
    for profile, suffix in ((b"broken", ".jpg"), (table_profile(), ".png")):
        given = encoded(photo(), "JPEG", icc_profile=profile, exif=exif_of_a_phone(1))
        picture = decoded(given, limits)
        with Image.open(io.BytesIO(given)) as image:
            converted = not np.array_equal(picture.pixels_rgb, np.asarray(image))
        assert converted == (suffix == ".png")
        assert clean_file(given, picture, limits)[0] == suffix
