import io
import struct
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageOps
from skimage import data

from tests.photos.test_decode import difference, encoded
from tests.photos.test_strip import SECRET, exif_of_a_phone, photo, telling_profile
from zimage.photos.clean import clean_file, read_clean
from zimage.photos.decode import Limits, decoded
from zimage.photos.heif import bare_heif, colour_codes

LIMITS = Limits(max_megapixels=10, max_side_px=4096)
SUFFIXES = {"HEIF": ".heic", "AVIF": ".avif"}

pillow_heif.register_heif_opener()


def large_photo() -> Image.Image:
    return Image.fromarray(np.asarray(data.astronaut())).resize((1100, 900))


def heic_of_a_phone(orientation: int = 6) -> bytes:
    """Return a HEIC as phones write it: a grid of tiles, a second picture, thumbnails, EXIF, XMP and a profile."""
    return encoded(
        large_photo(),
        "HEIF",
        tile_size=512,
        thumbnails=[128, 256],
        exif=exif_of_a_phone(orientation).tobytes(),
        xmp=SECRET,
        icc_profile=telling_profile(),
        save_all=True,
        append_images=[large_photo().rotate(90)],
    )


def parts(content: bytes) -> set[str]:
    """Return what libheif finds in a file besides its primary picture."""
    file = pillow_heif.open_heif(io.BytesIO(content))
    names = ("exif", "xmp", "metadata", "thumbnails", "depth_images", "aux")
    return {name for name in names if file.info.get(name)} | ({"second picture"} if len(file) > 1 else set())


def test_of_a_phones_heic_only_the_tiles_of_its_picture_are_left() -> None:
    given = heic_of_a_phone()
    assert given.count(b"hvc1") > 9 and given.count(SECRET) >= 8
    assert parts(given) == {"exif", "xmp", "thumbnails", "second picture"}
    bare = bare_heif(given)
    assert parts(bare) == set()
    for word in (SECRET, SECRET[:4], b"2024", b"Exif", b"mime", b"thmb", b"auxl"):
        assert word not in bare, word
    assert bare.count(b"hvc1") == 6 and b"grid" in bare and b"irot" in bare
    tiles = bare[bare.index(b"mdat") + 4 + 8 :]  # after the grid's own eight bytes
    assert len(tiles) > 20_000 and tiles in given
    assert np.array_equal(decoded(bare, LIMITS).pixels_rgb, decoded(given, LIMITS).pixels_rgb)
    assert bare_heif(bare) == bare  # there is nothing more to leave out


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["HEIF", "AVIF"])
def test_a_photo_that_lies_stays_coded_and_is_read_upright(form: str, orientation: int, tmp_path: Path) -> None:
    given = encoded(photo(), form, exif=exif_of_a_phone(orientation).tobytes(), xmp=SECRET, quality=95)
    assert SECRET in given
    suffix, content = clean_file(given, decoded(given, LIMITS), LIMITS)
    assert suffix == SUFFIXES[form] and SECRET not in content and b"Exif" not in content
    path = tmp_path / f"clean{suffix}"
    path.write_bytes(content)
    lying = photo()
    lying.getexif()[0x0112] = orientation
    assert difference(read_clean(path, 200), ImageOps.exif_transpose(lying)) < 8


@pytest.mark.parametrize("form", ["HEIF", "AVIF"])
def test_a_photo_with_transparent_parts_becomes_a_png(form: str) -> None:
    given = encoded(photo().convert("RGBA").rotate(20), form)
    assert clean_file(given, decoded(given, LIMITS), LIMITS)[0] == ".png"


def test_the_primary_picture_is_the_photo_wherever_it_stands() -> None:
    file = pillow_heif.from_pillow(ImageOps.mirror(photo()))
    file.add_from_pillow(photo())
    written = io.BytesIO()
    file.save(written, primary_index=1, quality=95)
    picture = decoded(written.getvalue(), LIMITS)
    assert difference(picture.pixels_rgb, photo()) < 8 < difference(picture.pixels_rgb, ImageOps.mirror(photo()))
    assert picture.notes == ["several pictures: only the primary one is used"]
    suffix, content = clean_file(written.getvalue(), picture, LIMITS)
    assert suffix == ".heic" and len(content) < 0.6 * len(written.getvalue())


def test_a_thumbnail_is_never_taken_for_the_photo() -> None:
    given = encoded(large_photo(), "HEIF", thumbnails=[512])
    small = Limits(max_megapixels=10, max_side_px=300)
    assert np.array_equal(decoded(given, small).pixels_rgb, decoded(bare_heif(given), small).pixels_rgb)


def boxes(*kinds_and_contents: tuple[bytes, bytes]) -> bytes:
    return b"".join(struct.pack(">I4s", len(content) + 8, kind) + content for kind, content in kinds_and_contents)


def test_a_file_of_another_form_is_left_to_the_decoder() -> None:
    given = heic_of_a_phone()
    with_loop = given.replace(b"pitm\0\0\0\0\0\1", b"pitm\0\0\0\0\xff\xff")
    assert bare_heif(with_loop) == b""
    for content in (b"", b"no boxes", given[:300], boxes((b"ftyp", b"heic\0\0\0\0"), (b"meta", bytes(4)))):
        assert bare_heif(content) == b""
        assert colour_codes(content) is None
    assert bare_heif(given.replace(b"ftypheic", b"ftypmp42")) == b""


def test_a_file_whose_extents_claim_more_than_it_holds_takes_no_memory() -> None:
    given = encoded(photo(), "AVIF")
    at = given.index(b"iloc")
    data_at, size = struct.unpack_from(">II", given, at + 18)
    assert data_at + size == len(given)
    extents = struct.pack(">II", data_at, size) * 1000
    iloc = given[at + 4 : at + 16] + struct.pack(">H", 1000) + extents
    start, end = at - 4, at - 4 + struct.unpack_from(">I", given, at - 4)[0]
    assert bare_heif(given[:start] + boxes((b"iloc", iloc)) + given[end:]) == b""


def test_the_colours_that_a_file_states_are_read() -> None:
    wide = encoded(photo(), "HEIF", color_primaries=12, transfer_characteristics=13, full_range_flag=1)
    assert colour_codes(wide) == (12, 13)
    assert colour_codes(bare_heif(wide)) == (12, 13)
    assert colour_codes(encoded(photo(), "AVIF")) == (1, 13)


def test_a_photo_whose_colours_are_named_by_codes_is_kept_in_srgb() -> None:
    for primaries, suffix in ((12, ".png"), (1, ".heic")):
        given = encoded(photo(), "HEIF", color_primaries=primaries, transfer_characteristics=13, full_range_flag=1)
        found, content = clean_file(given, decoded(given, LIMITS), LIMITS)
        assert found == suffix
        with Image.open(io.BytesIO(content)) as clean:
            assert np.array_equal(np.asarray(clean), decoded(given, LIMITS).pixels_rgb)
