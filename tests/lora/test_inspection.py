"""What `zimage inspect` says of files of every family, at their true shapes."""

import time
from pathlib import Path

import pytest

from tests.lora.family_files import AB, FILES, kohya, only, shapes_of_pairs, widths_of, write_header
from zimage.lora.inspection import inspect_file


@pytest.mark.parametrize("name", FILES)
def test_every_family_is_recognised_at_its_true_shapes(tmp_path: Path, name: str) -> None:
    family, shapes = FILES[name]
    path = tmp_path / "some.safetensors"
    write_header(path, shapes())
    found = inspect_file(path)
    assert found.family == family
    assert found.verdict == ("unusable" if family != "Z-Image" else found.verdict)
    print(found.model_dump_json(indent=1, exclude={"targets"}))
