"""Fixtures that several parts share; what they import they import late, so that tests without a model stay quick."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from zimage.model.base import Base


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> "Base":
    """A very small base of the real classes with random weights, made once a session (see tests/tiny_base.py)."""
    from tests.tiny_base import write_tiny_base

    return write_tiny_base(tmp_path_factory.mktemp("tiny_base") / "model")


@pytest.fixture(scope="session")
def tiny_encoded(tiny_base: "Base", tmp_path_factory: pytest.TempPathFactory) -> "Path":
    """What encode makes of two crops of noise, of different sizes, with captions of two padded lengths."""
    from tests.training.crops import SUBJECT, write_detect_and_caption
    from zimage.stages.encode import EncodeParams, encode

    folder = tmp_path_factory.mktemp("tiny_encoded")
    detect, caption = write_detect_and_caption(folder)
    params = EncodeParams(mirror=False, class_pictures=None, sample_prompts=["a photo of {subject}"])
    encode(detect, caption, folder / "encode", params=params, base=tiny_base, subject=SUBJECT)
    return folder / "encode"
