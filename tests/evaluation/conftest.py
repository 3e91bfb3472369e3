from pathlib import Path

import pytest

from tests.evaluation.photos import DLIB, views, write_detect
from zimage.core.jsonl import read_rows
from zimage.evaluation.score.picture import PictureScorer, Search
from zimage.evaluation.score.reals import Reals, reals_of
from zimage.faces.engine import Engine, open_engine
from zimage.photos.rows import CropRow


@pytest.fixture(scope="session")
def engine() -> Engine:
    return open_engine(DLIB)


@pytest.fixture(scope="session")
def detect(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The person's photos after detect: eight views to train on, four held out."""
    folder = tmp_path_factory.mktemp("person") / "detect"
    return write_detect(folder, engine, training=views(8, seed=1), holdout=views(4, seed=2))


@pytest.fixture(scope="session")
def reals(detect: Path) -> Reals:
    return reals_of(detect, read_rows(detect / "crops.jsonl", CropRow))


@pytest.fixture(scope="session")
def judge(reals: Reals) -> PictureScorer:
    """Everything real, at the size at which the demo generates."""
    with Search([DLIB]) as search:
        (targets,) = reals.targets(search, side_px=128)
    return PictureScorer(targets, None, reals.originals(), None)
