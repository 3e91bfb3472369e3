from pathlib import Path

import pytest
import yaml

from zimage.captions.leaks import Leaks
from zimage.captions.subject import Subject

PARAMS = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture
def subject() -> Subject:
    return Subject(trigger="ohzw", class_noun="woman")


@pytest.fixture(scope="session")
def leaks() -> Leaks:
    return Leaks.model_validate(yaml.safe_load(PARAMS.read_text(encoding="utf-8"))["caption"]["leaks"])
