import gc
from collections.abc import Iterator

import pytest

from zimage.garbage import collect_rarely


@pytest.fixture
def as_it_was() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


def test_garbage_is_looked_for_less_often_and_still_found(as_it_was: None) -> None:
    before = gc.get_threshold()
    collect_rarely()

    assert gc.isenabled()
    assert all(now > was for now, was in zip(gc.get_threshold(), before, strict=True))
