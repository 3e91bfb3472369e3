import io
import struct

import numpy as np
import pytest
from PIL import ExifTags, Image
from skimage import data

from tests.photos.test_decode import encoded, wide_gamut_profile
from zimage.photos.strip import stripped

SECRET = b"SECRET"  # stands in every field that a camera, a phone or an editor fills
SCAN = b"\xff\xda"


def photo() -> Image.Image:
    return Image.fromarray(np.asarray(data.astronaut())).resize((200, 136))


def exif_of_a_phone(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Make] = exif[ExifTags.Base.Model] = exif[ExifTags.Base.Artist] = SECRET.decode()
    inner = exif.get_ifd(ExifTags.IFD.Exif)
    inner[ExifTags.Base.DateTimeOriginal] = "2024:05:04 10:30:00"
    inner[ExifTags.Base.MakerNote] = SECRET
    inner[ExifTags.Base.BodySerialNumber] = SECRET.decode()
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSAreaInformation] = SECRET
    return exif


def telling_profile() -> bytes:
    """Return a profile of a camera with a text and a private tag, as some devices write their serial number."""
    profile = bytearray(wide_gamut_profile().replace(b"Wide test", SECRET + b"..."))
    profile[48:56] = profile[80:84] + SECRET[:4]  # manufacturer and model of the device
    return bytes(profile)


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def from_a_phone(orientation: int = 6, **options: object) -> bytes:
    """Return a JPEG with all that phones and editors put into one: two pictures, texts, places, and a trailer."""
    file = io.BytesIO()
    photo().save(
        file,
        "MPO",
        save_all=True,
        append_images=[photo().rotate(90)],
        exif=exif_of_a_phone(orientation),
        icc_profile=telling_profile(),
        comment=SECRET,
        quality=88,
        **options,
    )
    content = file.getvalue()
    more = [
        segment(0xE0, b"JFXX\0\x10" + encoded(photo().resize((40, 40)), "JPEG")),  # a thumbnail
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x='adobe:ns:meta/'>" + SECRET),
        segment(0xED, b"Photoshop 3.0\0" + SECRET),
        segment(0xEB, b"JP" + SECRET),
        segment(0xFE, SECRET),
    ]
    at = content.index(b"\xff\xdb")  # the tables of the first picture
    return content[:at] + b"".join(more) + content[at:] + b"SEFT" + SECRET


def told_by(content: bytes) -> set[str]:
    """Return what Pillow finds in a file besides the picture."""
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        exif = image.getexif()
        found = {ExifTags.TAGS.get(tag, str(tag)) for tag in exif}
        found |= {name for name in ("xmp", "comment", "mp", "photoshop") if name in image.info}
        return found | {ifd.name for ifd in ExifTags.IFD if exif.get_ifd(ifd)}


def test_nothing_of_a_phones_jpeg_is_left_but_its_scans_orientation_and_colours() -> None:
    given = from_a_phone()
    assert given.count(SECRET) >= 9
    assert {"Make", "GPSInfo", "xmp", "comment", "mp", "photoshop"} <= told_by(given)
    found = stripped(given, "MPO", 6, telling_profile())
    assert found is not None and found[0] == ".jpg"
    clean = found[1]
    assert told_by(clean) == {"Orientation"}
    for word in (SECRET, SECRET[:4], b"2024", b"MPF", b"JFXX", b"Photoshop", b"xmp", b"SEFT", b"http"):
        assert word not in clean, word
    assert clean.count(b"\xff\xd8\xff") == 1 and clean.endswith(b"\xff\xd9")
    scans = clean[clean.index(SCAN) :]
    assert len(scans) > 3000 and scans in given
    with Image.open(io.BytesIO(clean)) as image, Image.open(io.BytesIO(given)) as before:
        assert (image.format, before.format) == ("JPEG", "MPO")
        assert image.getexif()[ExifTags.Base.Orientation] == 6
        assert np.array_equal(np.asarray(image), np.asarray(before))


def kinds() -> dict[str, bytes]:
    return {
        "baseline": encoded(photo(), "JPEG", comment=SECRET),
        "progressive": encoded(photo(), "JPEG", progressive=True, comment=SECRET),
        "restarts": encoded(photo(), "JPEG", restart_marker_blocks=3, comment=SECRET),
        "4:4:4": encoded(photo(), "JPEG", subsampling=0, comment=SECRET),
        "grey": encoded(photo().convert("L"), "JPEG", comment=SECRET),
        "CMYK": encoded(photo().convert("CMYK"), "JPEG", comment=SECRET),
        "RGB without JFIF": encoded(photo(), "JPEG", keep_rgb=True, comment=SECRET),
        "WebP": encoded(photo(), "WEBP", exif=exif_of_a_phone(1).tobytes(), xmp=SECRET),
        "WebP without loss": encoded(photo(), "WEBP", lossless=True, exif=exif_of_a_phone(1).tobytes()),
        "WebP with alpha": encoded(photo().convert("RGBA").rotate(20), "WEBP", xmp=SECRET),
    }


@pytest.mark.parametrize("kind", list(kinds()))
def test_each_kind_of_coded_picture_shows_the_same(kind: str) -> None:
    given = kinds()[kind]
    with Image.open(io.BytesIO(given)) as before:
        found = stripped(given, str(before.format), 1, b"")
        assert found is not None
        with Image.open(io.BytesIO(found[1])) as image:
            assert SECRET in given and SECRET not in found[1]
            assert (image.mode, told_by(found[1])) == (before.mode, set())
            assert np.array_equal(np.asarray(image), np.asarray(before))
    assert stripped(found[1], str(before.format), 1, b"") == found  # there is nothing more to leave out


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_says_how_it_lies_and_nothing_else(form: str, orientation: int) -> None:
    given = encoded(photo(), form, exif=exif_of_a_phone(orientation))
    found = stripped(given, form, orientation, b"")
    assert found is not None
    with Image.open(io.BytesIO(found[1])) as image:
        assert dict(image.getexif()) == ({} if orientation == 1 else {ExifTags.Base.Orientation: orientation})


def test_an_animation_and_formats_without_a_rule_are_coded_anew() -> None:
    moving = encoded(photo(), "WEBP", save_all=True, append_images=[photo().rotate(90)])
    assert stripped(moving, "WEBP", 1, b"") is None
    assert stripped(encoded(photo(), "PNG"), "PNG", 1, b"") is None
