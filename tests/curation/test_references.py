from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from zimage.core.errors import InputError
from zimage.curation.references import read_references
from zimage.demo import other_people
from zimage.faces.engine import Engine, EngineParams, open_engine

DLIB = EngineParams(name="dlib", pack=None, identity=None, min_score=0.0, max_distance=0.6)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return open_engine(DLIB)


def saved(folder: Path, name: str, pixels: object) -> Path:
    folder.mkdir(exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(folder / name)
    return folder


def test_no_folder_and_an_empty_one_say_nothing(tmp_path: Path, engine: Engine) -> None:
    assert read_references(tmp_path / "reference", DLIB, engine.info) is None
    (tmp_path / "reference").mkdir()
    assert read_references(tmp_path / "reference", DLIB, engine.info) is None


def test_each_photo_gives_the_face_it_shows(tmp_path: Path, engine: Engine) -> None:
    saved(tmp_path / "reference", "a.png", data.astronaut())
    folder = saved(tmp_path / "reference", "b.jpg", data.astronaut()[:300, 80:380])
    embeddings = read_references(folder, DLIB, engine.info)
    assert embeddings is not None and embeddings.shape == (2, 128)


def test_references_of_two_people_are_refused(tmp_path: Path, engine: Engine) -> None:
    saved(tmp_path / "reference", "a.png", data.astronaut())
    folder = saved(tmp_path / "reference", "b.png", other_people()[20:300, 800:1080])
    with pytest.raises(InputError, match=r"The photos in .* show different people; leave only") as caught:
        read_references(folder, DLIB, engine.info)
    assert caught.value.names == "They are a.png and b.png"
    assert ".png" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"), [(b"no picture", "cannot be used: The content is none of"), (None, "No face was found in")]
)
def test_a_reference_without_a_face_is_refused(
    tmp_path: Path, engine: Engine, content: bytes | None, said: str
) -> None:
    folder = saved(tmp_path / "reference", "a.png", data.coffee())
    if content is not None:
        (folder / "a.png").write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_references(folder, DLIB, engine.info)
