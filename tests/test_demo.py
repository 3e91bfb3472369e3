from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import ExifTags, Image, ImageOps
from skimage import data

from zimage.consent import read_consent
from zimage.demo import FACE_PX, make_demo_photos, planned_views
from zimage.faces.engine import Engine, open_engine
from zimage.faces.engine_defaults import YUNET_SFACE_PARAMS


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "photos"
    make_demo_photos(folder, seed=1)
    return folder


@pytest.fixture(scope="module")
def engine() -> Engine:
    return open_engine(YUNET_SFACE_PARAMS)


def views(folder: Path) -> list[Path]:
    return sorted(folder.glob("IMG_1*.jpg"))


def test_every_view_is_her_even_at_128_px(photos: Path, engine: Engine) -> None:
    reference = engine.find(data.astronaut())[0]
    for path in views(photos)[::3]:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
        small = ImageOps.fit(upright, (128, 128), Image.Resampling.LANCZOS)
        for picture, limit in ((upright, 0.25), (small, 0.36)):
            # The detector sometimes sees another face in the suit; she has to be among those found.
            found = engine.find(np.asarray(picture))
            assert min(engine.distance(reference, face) for face in found) <= limit, path.name


def test_there_are_enough_views_and_most_are_close() -> None:
    planned = planned_views(np.random.default_rng(1))
    shares = [FACE_PX / view.width_px for view in planned]
    assert len(shares) == 24
    assert sum(share > 0.4 for share in shares) >= 12
    assert min(shares) < 0.25


def test_views_carry_a_time_and_a_place_that_must_be_stripped_later(photos: Path) -> None:
    times = []
    for path in views(photos):
        with Image.open(path) as image:
            exif = image.getexif()
        times.append(exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal])
        assert exif.get_ifd(ExifTags.IFD.GPSInfo)
    assert len(set(times)) == len(times)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(photos: Path, tmp_path: Path) -> None:
    make_demo_photos(tmp_path / "same", seed=1)
    make_demo_photos(tmp_path / "other", seed=2)
    names = sorted(path.name for path in photos.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "same").iterdir())
    assert all((photos / name).read_bytes() == (tmp_path / "same" / name).read_bytes() for name in names)
    assert any((photos / name).read_bytes() != (tmp_path / "other" / name).read_bytes() for name in names)


def test_the_demo_consent_allows_training_and_no_publication() -> None:
    path = Path(__file__).parents[1] / "data" / "consent.yaml"
    consent = read_consent(path)
    assert consent.scope == ["training", "evaluation"]
    assert not consent.may_publish
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["document_sha256"] == consent.document_sha256
