"""Fixtures that several parts share; what they import they import late, so that tests without a model stay quick."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from zimage.model.base import Base


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> "Base":
    """A very small base of the real classes with random weights, made once a session (see tests/tiny_base.py)."""
    from tests.tiny_base import write_tiny_base

    return write_tiny_base(tmp_path_factory.mktemp("tiny_base") / "model")
