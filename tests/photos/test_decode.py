import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms
from skimage import data

from tests.benchmarks.fuzz import whole_files
from zimage.photos.decode import BYTES_A_PIXEL, Limits, RefusedError, decoded

LIMITS = Limits(max_megapixels=10, max_side_px=4096)


def photo(width: int = 96, height: int = 64) -> Image.Image:
    return Image.fromarray(np.asarray(data.astronaut())).resize((width, height))


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def refusal(content: bytes, limits: Limits = LIMITS) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        decoded(content, limits)
    return caught.value


def difference(one: NDArray[np.uint8], other: Image.Image) -> float:
    return float(np.abs(one.astype(int) - np.asarray(other.convert("RGB"), int)).mean())


@pytest.mark.parametrize("name", list(whole_files()))
def test_every_format_opens_and_shows_the_same_picture(name: str) -> None:
    content = whole_files()[name]
    picture = decoded(content, LIMITS)
    expected = Image.fromarray(data.astronaut()).resize((96, 96))
    if name == "a.heic" or "turned upright as its EXIF says" in picture.notes:
        expected = expected.transpose(Image.Transpose.ROTATE_270)
    if "grey" in name:
        expected = expected.convert("L")
    assert picture.pixels_rgb.shape == (96, 96, 3)
    assert picture.pixels_rgb.dtype == np.uint8
    assert difference(picture.pixels_rgb, expected) < (25 if name in {"palette.png", "a.bmp"} else 12), name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_turned_upright(orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = encoded(photo(), "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert difference(decoded(content, LIMITS).pixels_rgb, upright) == 0


def test_a_heic_that_lies_on_its_side_is_turned_once() -> None:
    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    content = encoded(photo(96, 64), "HEIF", exif=exif.tobytes(), quality=95)
    picture = decoded(content, LIMITS).pixels_rgb
    assert picture.shape == (96, 64, 3)
    assert difference(picture, photo(96, 64).transpose(Image.Transpose.ROTATE_270)) < 8


def test_a_lying_extension_and_a_made_up_one_do_not_matter() -> None:
    assert decoded(encoded(photo(), "WEBP"), LIMITS).format == "WEBP"


def test_capture_time_is_read_with_its_fraction() -> None:
    exif = Image.Exif()
    inner = exif.get_ifd(ExifTags.IFD.Exif)
    inner[ExifTags.Base.DateTimeOriginal] = "2024:05:04 10:30:00"
    inner[ExifTags.Base.SubsecTimeOriginal] = "25"
    assert decoded(encoded(photo(), "JPEG", exif=exif), LIMITS).taken_s == pytest.approx(1714818600.25)


@pytest.mark.parametrize("time", ["0000:00:00 00:00:00", "yesterday", "", "2024-05-04"])
def test_a_capture_time_that_is_none_is_left_out(time: str) -> None:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = time
    assert decoded(encoded(photo(), "JPEG", exif=exif), LIMITS).taken_s is None


@pytest.mark.parametrize("day", ["1970:01:01", "1980:01:01", "2000:01:01"])
def test_a_clock_that_nobody_set_tells_no_time(day: str) -> None:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = f"{day} 00:14:09"
    assert decoded(encoded(photo(), "JPEG", exif=exif), LIMITS).taken_s is None


def test_when_a_file_was_written_or_a_print_scanned_is_not_when_it_was_taken() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.DateTime] = "2026:05:04 10:30:00"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeDigitized] = "2026:05:04 10:30:00"
    assert decoded(encoded(photo(), "JPEG", exif=exif), LIMITS).taken_s is None


def wide_gamut_profile() -> bytes:
    """Return an ICC profile with Display P3's primaries (D50-adapted, SMPTE EG 432-1) and a gamma of 2.2."""
    colorants = {
        b"rXYZ": (0.51512, 0.24120, -0.00105),
        b"gXYZ": (0.29198, 0.69225, 0.04189),
        b"bXYZ": (0.15710, 0.06657, 0.78407),
        b"wtpt": (0.96420, 1.0, 0.82491),
    }
    tags = {
        tag: b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(x * 65536) for x in xyz)) for tag, xyz in colorants.items()
    }
    curve = b"curv\0\0\0\0" + struct.pack(">IH2x", 1, round(2.2 * 256))
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    tags[b"desc"] = b"desc\0\0\0\0" + struct.pack(">I", 10) + b"Wide test\0" + bytes(80)
    table, body, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, content in tags.items():
        table += struct.pack(">4sII", tag, offset + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    size = offset + len(body)
    header = struct.pack(">I4sI4s4s4s", size, b"", 0x02400000, b"mntr", b"RGB ", b"XYZ ") + bytes(12)
    header += b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def test_a_wide_gamut_photo_is_converted_to_srgb() -> None:
    orange = Image.new("RGB", (64, 64), (200, 100, 40))
    picture = decoded(encoded(orange, "PNG", icc_profile=wide_gamut_profile()), LIMITS)
    red, green, blue = (int(x) for x in picture.pixels_rgb[32, 32])
    # By hand: Display P3 to XYZ (D50) to linear sRGB is (0.689, 0.108, -0.003), clipped and encoded as below.
    assert (red, green, blue) == pytest.approx((216, 93, 0), abs=2)
    assert picture.notes == ["converted from the colour profile 'Wide test'"]


def test_a_broken_profile_is_left_out_and_told() -> None:
    picture = decoded(encoded(photo(), "PNG", icc_profile=b"no profile at all"), LIMITS)
    assert difference(picture.pixels_rgb, photo()) == 0
    assert picture.notes == ["its colour profile is broken and was left out"]


def test_a_profile_of_another_colour_space_does_no_harm() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = decoded(encoded(photo().convert("CMYK"), "JPEG", icc_profile=profile, quality=95), LIMITS)
    assert difference(picture.pixels_rgb, photo()) < 12
    assert "converted from CMYK" in picture.notes


def test_sixteen_bits_keep_their_range() -> None:
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    picture = decoded(encoded(Image.fromarray(ramp), "PNG"), LIMITS)
    assert difference(picture.pixels_rgb, Image.fromarray((ramp // 257).astype(np.uint8))) < 1
    assert picture.notes == ["brought from 16 or more bits to 8"]


def test_floating_point_keeps_its_range_and_survives_what_is_no_number() -> None:
    ramp = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    ramp[0, :3] = [np.nan, np.inf, -np.inf]
    picture = decoded(encoded(Image.fromarray(ramp), "TIFF"), LIMITS)
    assert picture.pixels_rgb.max() == 255 and picture.pixels_rgb[0, 0, 0] == 0


def test_what_is_transparent_lies_over_white() -> None:
    clear = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    picture = decoded(encoded(clear, "PNG"), LIMITS)
    assert (picture.pixels_rgb == 255).all()
    assert picture.notes == ["transparent parts laid over white"]


def test_only_the_first_frame_counts_and_this_is_said() -> None:
    content = encoded(photo(), "GIF", save_all=True, append_images=[Image.new("RGB", (96, 64), "blue")])
    picture = decoded(content, LIMITS)
    assert picture.notes == ["several frames: only the first is used"]
    assert picture.pixels_rgb[:, :, 2].mean() < 200


def test_a_large_photo_is_brought_down() -> None:
    picture = decoded(encoded(photo(600, 300), "JPEG"), Limits(max_megapixels=10, max_side_px=200))
    assert picture.pixels_rgb.shape == (100, 200, 3)
    assert picture.notes == ["brought down to 200x100 px"]


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "reason", "said"),
    [
        (b"", "empty", "no bytes"),
        (b"GPS coordinates of a holiday", "not_an_image", "none of JPEG, PNG"),
        (b"PK\x03\x04" + bytes(100), "archive", "unpack all of them into one folder"),
        (png_claiming(60000, 60000), "too_many_pixels", "60000x60000 px .3600 MP; ingest.max_megapixels is 10"),
        (png_claiming(9000, 40), "absurd_size", "9000x40 px is no photo"),
        (png_claiming(8, 8), "absurd_size", "8x8 px"),
        (png_claiming(64, 64), "truncated", "ends early"),
        (encoded(photo(), "JPEG")[:-500], "truncated", "ends early; copy it again"),
        (encoded(photo(), "JPEG")[:8], "damaged", "header is damaged"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n(run) system", "not_an_image", "none of JPEG"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_reason(content: bytes, reason: str, said: str) -> None:
    import re

    error = refusal(content)
    assert error.reason == reason
    assert re.search(said, error.detail), error.detail


def test_pillows_own_limit_on_size_is_as_it_was_afterwards() -> None:
    before = Image.MAX_IMAGE_PIXELS
    decoded(encoded(photo(), "JPEG"), LIMITS)
    refusal(png_claiming(60000, 60000))
    assert before == Image.MAX_IMAGE_PIXELS


# Prints by how many bytes the largest memory grew while a file was decoded, after a small one had loaded the decoders.
DECODING = """
import resource, sys
from pathlib import Path
from zimage.photos.decode import Limits, decoded
small, large, megapixels = sys.argv[1:]
limits = Limits(max_megapixels=int(megapixels), max_side_px=1024)
decoded(Path(small).read_bytes(), limits)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
decoded(Path(large).read_bytes(), limits)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
LARGE = (6000, 4000)


def large_picture(kind: str) -> Image.Image:
    if kind == "grey16":
        return Image.new("I;16", LARGE, 40_000)
    if kind == "float":
        return Image.new("F", LARGE, 0.5)
    image = Image.new("RGBA", LARGE, (10, 200, 90, 100))
    return image.quantize(4) if kind == "palette" else image


@pytest.mark.parametrize(("kind", "form"), [("grey16", "PNG"), ("rgba", "PNG"), ("palette", "PNG"), ("float", "TIFF")])
def test_a_large_picture_is_decoded_in_six_bytes_for_each_pixel(kind: str, form: str, tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    image = large_picture(kind)
    large.write_bytes(encoded(image, form))
    small.write_bytes(encoded(image.crop((0, 0, 200, 200)), form))
    command = [sys.executable, "-c", DECODING, str(small), str(large), "24"]
    grown = int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert grown < BYTES_A_PIXEL * LARGE[0] * LARGE[1]


@pytest.mark.parametrize(
    ("form", "options", "most"),
    [
        ("JPEG", {"progressive": True, "subsampling": 0}, 5),
        ("WEBP", {}, 4),
        ("AVIF", {"speed": 10}, 5),
        ("HEIF", {}, 6),
    ],
)
def test_a_kind_of_picture_that_takes_more_memory_has_to_be_smaller(
    form: str, options: dict[str, object], most: int
) -> None:
    pillow_heif.register_heif_opener()
    error = refusal(encoded(photo(3200, 2200), form, **options), Limits(max_megapixels=10, max_side_px=2200))
    assert error.reason == "too_many_pixels"
    assert f"bytes of memory for each; export at most {most} MP, or a JPEG" in error.detail
    decoded(encoded(photo(1600, 1200), form, **options), Limits(max_megapixels=10, max_side_px=2200))


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
def test_a_jpeg_of_many_pixels_is_decoded_smaller(options: dict[str, object]) -> None:
    content = encoded(photo(4000, 3000), "JPEG", **options)
    picture = decoded(content, Limits(max_megapixels=7, max_side_px=800))
    assert picture.pixels_rgb.shape == (600, 800, 3)
    assert difference(picture.pixels_rgb, photo(800, 600)) < 3
    assert picture.notes == ["brought down to 800x600 px"]
    error = refusal(encoded(photo(4000, 3000), "JPEG"), Limits(max_megapixels=7, max_side_px=2500))
    assert "4000x3000 px (12 MP; ingest.max_megapixels is 7)" in error.detail


JPEG_KINDS: dict[str, dict[str, object]] = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 3},
    "grey": {},
}


@pytest.mark.parametrize("kind", list(JPEG_KINDS))
def test_a_jpeg_that_lacks_only_its_end_marker_is_whole_and_one_that_lacks_data_is_not(kind: str) -> None:
    image = photo(200, 136).convert("L") if kind == "grey" else photo(200, 136)
    whole = encoded(image, "JPEG", quality=90, **JPEG_KINDS[kind])
    for lost in (1, 2):
        picture = decoded(whole[:-lost], LIMITS)
        assert picture.notes == ["its end marker is missing"]
        assert np.array_equal(picture.pixels_rgb, decoded(whole, LIMITS).pixels_rgb)
    for lost in (12, 100, len(whole) // 4):
        assert refusal(whole[:-lost]).reason == "truncated"


def hdr(signal_of: Callable[[NDArray[np.float64]], NDArray[np.float64]], transfer: int) -> bytes:
    """Return a HEIC of the photo whose white is the diffuse white of HDR, 203 cd/m2, in BT.2020."""
    v = np.asarray(photo(200, 136), np.float64) / 255
    linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    # ITU-R BT.2087, the matrix from BT.709 to BT.2020.
    wide = linear @ np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]).T
    pixels = Image.fromarray((signal_of(np.clip(wide, 0, 1) * 203) * 255 + 0.5).astype(np.uint8))
    codes = {"color_primaries": 9, "transfer_characteristics": transfer, "matrix_coefficients": 9, "full_range_flag": 1}
    return encoded(pixels, "HEIF", quality=100, chroma=444, **codes)


def pq(nits: NDArray[np.float64]) -> NDArray[np.float64]:
    """ITU-R BT.2100, table 4."""
    power = (nits / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg(nits: NDArray[np.float64]) -> NDArray[np.float64]:
    """ITU-R BT.2100, table 5, on a display of 1000 cd/m2."""
    scene = (nits / 1000) ** (1 / 1.2)
    return np.where(
        scene <= 1 / 12, np.sqrt(3 * scene), 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    )


@pytest.mark.parametrize(("signal_of", "transfer", "name"), [(pq, 16, "PQ"), (hlg, 18, "HLG")])
def test_hdr_is_brought_to_sdr(
    signal_of: Callable[[NDArray[np.float64]], NDArray[np.float64]], transfer: int, name: str
) -> None:
    picture = decoded(hdr(signal_of, transfer), LIMITS)
    assert picture.notes == [f"converted from the colour profile 'BT.2020 {name}, brought from HDR to SDR'"]
    original = np.asarray(photo(200, 136), int)
    darker = original.max(2) < 220  # of what is near white, room for brighter light is taken
    assert np.abs(picture.pixels_rgb[darker].astype(int) - original[darker]).mean() < 4
    assert picture.pixels_rgb.max() > 220


def display_p3(image: Image.Image) -> Image.Image:
    """Return the picture's colours as numbers of Display P3, by the matrix between the two (W3C CSS Color 4)."""
    v = np.asarray(image, np.float64) / 255
    linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    wide = linear @ np.array([[0.8225, 0.1774, 0], [0.0332, 0.9669, 0], [0.0171, 0.0724, 0.9108]]).T
    signal = np.where(wide <= 0.0031308, wide * 12.92, 1.055 * np.clip(wide, 0, 1) ** (1 / 2.4) - 0.055)
    return Image.fromarray((np.clip(signal, 0, 1) * 255 + 0.5).astype(np.uint8))


def png_with_codes(image: Image.Image, primaries: int, transfer: int) -> bytes:
    content = encoded(image, "PNG")
    chunk = b"cICP" + bytes([primaries, transfer, 0, 1])
    return content[:33] + struct.pack(">I", 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[33:]


@pytest.mark.parametrize("form", ["HEIF", "AVIF", "PNG"])
def test_colours_that_a_file_names_by_codes_are_converted(form: str) -> None:
    lossless: dict[str, object] = {"quality": 100, "subsampling": "4:4:4"}
    wide = display_p3(photo(200, 136))
    if form == "PNG":
        content = png_with_codes(wide, 12, 13)
    elif form == "HEIF":
        content = encoded(wide, form, color_primaries=12, transfer_characteristics=13, full_range_flag=1, **lossless)
    else:
        content = encoded(wide, form, **lossless).replace(b"colrnclx\0\1", b"colrnclx\0\x0c")
    picture = decoded(content, LIMITS)
    assert picture.notes == ["converted from the colour profile 'Display P3'"]
    assert difference(picture.pixels_rgb, photo(200, 136)) < 3
    red = np.asarray(photo(200, 136), int)
    red_suit = red[:, :, 0] - red[:, :, 1] > 100
    assert np.abs(picture.pixels_rgb[red_suit].astype(int) - red[red_suit]).mean() < 4
    assert np.abs(np.asarray(wide)[red_suit].astype(int) - red[red_suit]).mean() > 8
