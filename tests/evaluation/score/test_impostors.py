from pathlib import Path

import pytest

from tests.evaluation.photos import DLIB
from tests.faces.tiny_pack import write_pack
from zimage.core.errors import InputError
from zimage.evaluation.score import impostors as module
from zimage.evaluation.score.impostors import Impostors, impostors, packaged_photos
from zimage.evaluation.score.picture import PictureScorer, Search
from zimage.evaluation.score.reals import Reals
from zimage.faces.engine import EngineParams


@pytest.fixture(scope="session")
def strangers(judge: PictureScorer) -> Impostors:
    with Search([DLIB]) as search:
        return impostors(search, [judge.targets], side_px=128)


def test_every_person_in_the_packaged_photos_is_found_at_the_pictures_size(strangers: Impostors) -> None:
    photos = [one.photo for one in strangers.found]
    assert photos.count("insightface/t1.jpg") == 6
    assert photos.count("insightface/Tom_Hanks_54745.png") == photos.count("matplotlib/grace_hopper.jpg") == 1
    assert all(max(one.picture.shape[:2]) <= 128 for one in strangers.faces)


def test_no_stranger_passes_and_all_are_farther_than_any_real_photo_of_the_person(
    strangers: Impostors, judge: PictureScorer
) -> None:
    assert not any(one.same for one in strangers.faces)
    assert min(one.distance for one in strangers.found) > 1.5 * max(judge.targets.ceiling())  # type: ignore[type-var]


def test_the_person_among_the_strangers_would_pass(judge: PictureScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    portrait = "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5"
    monkeypatch.setattr(module, "PACKAGED", (("skimage", "data/astronaut.png", portrait),))
    with Search([DLIB]) as search:
        found = impostors(search, [judge.targets], side_px=128)
    assert [(one.photo, one.same) for one in found.faces] == [("skimage/astronaut.png", True)]


@pytest.mark.parametrize(
    ("package", "sha256", "sentence"),
    [("no_such_package", "00", "is not here; install the version"), ("skimage", "00", "is another one here; install")],
)
def test_figures_never_depend_on_which_packages_happen_to_be_installed(
    monkeypatch: pytest.MonkeyPatch, package: str, sha256: str, sentence: str
) -> None:
    monkeypatch.setattr(module, "PACKAGED", ((package, "data/astronaut.png", sha256),))
    with pytest.raises(InputError, match=sentence):
        packaged_photos()


def test_a_second_engine_scores_them_too(reals: Reals, tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "central", central=True)
    second = EngineParams(name="insightface", pack=str(pack), identity=None, min_score=0.5, max_distance=0.6)
    with Search([DLIB, second]) as search:
        found = impostors(search, reals.targets(search, 128), side_px=128)
    assert len(found.faces) == 8
    assert all(one.second_distance not in {None, one.distance} for one in found.faces)
