import gc
from collections.abc import Iterator

import pytest

from zimage.garbage import collect_rarely, without_collections

PYTHON_S = (700, 10, 10)


@pytest.fixture
def as_python_has_it() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(*PYTHON_S)
    yield
    gc.set_threshold(*before)


def test_garbage_is_looked_for_less_often_and_still_found(as_python_has_it: None) -> None:
    collect_rarely()

    assert gc.isenabled()
    assert all(now > was for now, was in zip(gc.get_threshold(), PYTHON_S, strict=True))


def test_nothing_is_looked_for_within_a_block_and_afterwards_as_before() -> None:
    with pytest.raises(ValueError, match="within"), without_collections():
        assert not gc.isenabled()
        raise ValueError("within")
    assert gc.isenabled()

    gc.disable()
    try:
        with without_collections():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
