"""Make the demo subject's photos from pictures that ship in ordinary packages.

One portrait in the public domain (skimage.data.astronaut) becomes a set of views such as a few cameras would have taken
on several days, beside files that must be refused. All views come from one photograph, so what is learnt from them
proves that learning works, not that it generalises.
"""

import datetime
import importlib.util
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFilter

from zimage.core.errors import InputError

logger = logging.getLogger(__name__)

Picture = NDArray[np.uint8]

FACE_XY, FACE_PX = (223.0, 127.0), 88.0  # centre and side of the face in skimage's 512 px portrait, by dlib
FOCAL_PX = 1200.0  # of the camera that looks at the portrait from an angle: a short telephoto
FIRST_DAY = datetime.datetime(2024, 5, 4, 10, 30, 0)
NUM_CLOSE, NUM_SHOULDERS, NUM_HALF = 12, 9, 3
# Width of the view in px of the portrait: the face fills 9/20 to 2/5 of it, down to 1/3, and 1/5 in half-body views.
CLOSE_PX, SHOULDERS_PX, HALF_PX = (194, 216), (218, 262), (360, 420)
# Px of the portrait that every view keeps around the face's centre: room for a head crop with the face at its place.
BESIDE_PX, ABOVE_PX, BELOW_PX, EDGE_PX = 92.0, 104.0, 80.0, 8.0
BURST_OF = {5: 4, 12: 11, 17: 16}  # views taken seconds after another one, as people do
LAST = "IMG_2007_truncated.jpg"  # written last: a folder with it was made here


@dataclass(frozen=True)
class View:
    """How one photo of the portrait is taken.

    Args:
        width_px, aspect: Width of the view in px of the portrait, and its height over its width.
        face_xy: Where the face's centre lies in the view, 0 to 1.
        roll_deg, yaw_deg, pitch_deg: How the camera is held.
        zoom: Px of the photo for one px of the portrait.
        exposure_ev, warmth, contrast: Light; warmth is the gain of red over blue.
        noise, jpeg_quality: What the camera adds, in levels of 255, and how much its file keeps.
        taken: Capture time.
    """

    width_px: float
    aspect: float
    face_xy: tuple[float, float]
    roll_deg: float
    yaw_deg: float
    pitch_deg: float
    zoom: float
    exposure_ev: float
    warmth: float
    contrast: float
    noise: float
    jpeg_quality: int
    taken: datetime.datetime


def make_demo_photos(folder: Path, *, seed: int) -> None:
    """Write the demo subject's photos into `folder`: 24 views to keep, and files that ingest or detect must refuse.

    Args:
        folder: Is made; files of the same names are replaced.
        seed: Of all that varies between the views.

    Raises:
        InputError: a package whose pictures are used is not installed.
    """
    from skimage import data

    rng = np.random.default_rng(seed)
    portrait = np.asarray(data.astronaut(), np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    views = planned_views(rng)
    photos = [taken(portrait, view, rng) for view in views]
    for number, (view, photo) in enumerate(zip(views, photos, strict=True)):
        sideways = number == 2
        _write(folder / f"IMG_{1001 + number}.jpg", jpeg(photo, view.jpeg_quality, view.taken, sideways=sideways))
    for name, content in refused(photos, views):
        _write(folder / name, content)
    logger.info("made %d photos of the demo subject in %s", len(photos), folder)


def planned_views(rng: np.random.Generator) -> list[View]:
    """Return the views, most of them close-ups: framings are spread evenly, all else is drawn."""
    widths = [
        *np.linspace(*CLOSE_PX, NUM_CLOSE),
        *np.linspace(*SHOULDERS_PX, NUM_SHOULDERS),
        *np.linspace(*HALF_PX, NUM_HALF),
    ]
    views: list[View] = []
    for number, place in enumerate(rng.permutation(len(widths))):
        near = views[BURST_OF[number]].taken + datetime.timedelta(seconds=3) if number in BURST_OF else None
        views.append(_planned(float(widths[place]), near or FIRST_DAY + datetime.timedelta(hours=19 * number), rng))
    return views


def _planned(width_px: float, when: datetime.datetime, rng: np.random.Generator) -> View:
    aspect = float(rng.choice([1.0, 1.0, 1.25]))
    height_px = width_px * aspect
    lowest_px = min(FACE_XY[1] - EDGE_PX, height_px - BELOW_PX)  # the portrait ends above the hair
    return View(
        width_px=width_px,
        aspect=aspect,
        face_xy=(
            float(rng.uniform(max(0.42, BESIDE_PX / width_px), min(0.58, 1 - BESIDE_PX / width_px))),
            float(rng.uniform(min(ABOVE_PX, lowest_px), lowest_px) / height_px),
        ),
        roll_deg=float(rng.uniform(-3, 3)),
        yaw_deg=float(rng.uniform(-8, 8)),
        pitch_deg=float(rng.uniform(-4, 4)),
        zoom=float(rng.uniform(1.5, 2.0) if width_px < HALF_PX[0] else 1.25),
        exposure_ev=float(rng.uniform(-0.35, 0.35)),
        warmth=float(rng.uniform(0.9, 1.1)),
        contrast=float(rng.uniform(0.9, 1.1)),
        noise=float(rng.uniform(0.5, 3.0)),
        jpeg_quality=int(rng.integers(80, 96)),
        taken=when,
    )


def taken(portrait: Picture, view: View, rng: np.random.Generator) -> Picture:
    """Return the photo of `portrait` (H, W, 3) that `view` describes."""
    width, height = round(view.width_px * view.zoom), round(view.width_px * view.aspect * view.zoom)
    seen = cv2.warpPerspective(
        portrait, _camera(view), (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
    )
    return _exposed(np.asarray(seen, np.float32) / np.float32(255), view, rng)


def _camera(view: View) -> NDArray[np.float64]:
    """Return the homography from px of the portrait to px of the photo: a pinhole camera aimed at the face."""
    roll, yaw, pitch = np.radians([view.roll_deg, view.yaw_deg, view.pitch_deg])
    about_z = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    about_y = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    turn = about_z @ about_x @ about_y
    plane = np.column_stack([turn[:, 0], turn[:, 1], [0, 0, FOCAL_PX]])  # points (x, y) of the plane z = 0, pushed away
    centre = np.array([[1, 0, -FACE_XY[0]], [0, 1, -FACE_XY[1]], [0, 0, 1]])
    x, y = view.face_xy[0] * view.width_px * view.zoom, view.face_xy[1] * view.width_px * view.aspect * view.zoom
    lens = np.array([[FOCAL_PX * view.zoom, 0, x], [0, FOCAL_PX * view.zoom, y], [0, 0, 1]])
    return np.asarray(lens @ plane @ centre, np.float64)


def _exposed(scene: NDArray[np.float32], view: View, rng: np.random.Generator) -> Picture:
    """Return `scene` (H, W, 3; 0 to 1) under the view's light, with its noise, as 8-bit levels."""
    balance = np.array([view.warmth**0.5, 1, view.warmth**-0.5], np.float32)
    light = scene * balance * np.float32(2**view.exposure_ev)
    contrasted = (light - 0.45) * np.float32(view.contrast) + 0.45
    noise = rng.normal(0, view.noise / 255, scene.shape).astype(np.float32)
    return np.asarray(np.clip((contrasted + noise) * 255 + 0.5, 0, 255), np.uint8)


def refused(photos: list[Picture], views: list[View]) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of files that must not be trained on, one for each reason."""
    from skimage import data

    when = FIRST_DAY + datetime.timedelta(days=40)
    yield "IMG_2001_cat.jpg", jpeg(np.asarray(data.chelsea(), np.uint8), 92, when)
    yield "IMG_2002_coffee.jpg", jpeg(np.asarray(data.coffee(), np.uint8), 92, when + datetime.timedelta(hours=1))
    group = other_people()
    yield "IMG_2003_group.jpg", jpeg(group, 92, when + datetime.timedelta(hours=2))
    stranger = np.ascontiguousarray(group[20:300, 800:1080])
    yield "IMG_2004_stranger.jpg", jpeg(stranger, 92, when + datetime.timedelta(hours=3))
    yield "IMG_2005_again.jpg", jpeg(photos[0], 70, views[0].taken + datetime.timedelta(seconds=1))
    blurred = Image.fromarray(photos[7]).filter(ImageFilter.GaussianBlur(photos[7].shape[1] / 110))
    yield "IMG_2006_blurred.jpg", jpeg(np.asarray(blurred), 90, when + datetime.timedelta(hours=4))
    whole = jpeg(photos[9], 90, when + datetime.timedelta(hours=5))
    yield LAST, whole[: len(whole) * 2 // 5]


def other_people() -> Picture:
    """Return a group photo of six other people (886 px high), which ships in insightface's wheel.

    Raises:
        InputError: insightface is not installed.
    """
    spec = importlib.util.find_spec("insightface")
    path = Path(spec.origin).with_name("data") / "images" / "t1.jpg" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise InputError("The demo's group photo ships with insightface; run `pip install --no-deps insightface`.")
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def jpeg(photo: Picture, quality: int, when: datetime.datetime, *, sideways: bool = False) -> bytes:
    """Return a JPEG as phones write it, with capture time and place; `sideways`: lying, with the flag that turns it."""
    image, exif = Image.fromarray(photo), Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = "Demo", "One portrait, many views"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = when.strftime("%Y:%m:%d %H:%M:%S")
    place = exif.get_ifd(ExifTags.IFD.GPSInfo)
    place[ExifTags.GPS.GPSLatitudeRef], place[ExifTags.GPS.GPSLatitude] = "N", (29.0, 33.0, 36.0)
    if sideways:
        image = image.transpose(Image.Transpose.ROTATE_90)
        exif[ExifTags.Base.Orientation] = 6
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, exif=exif, subsampling=0 if quality > 90 else 2)
    return file.getvalue()


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
