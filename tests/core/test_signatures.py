import importlib
import inspect

import pytest

from zimage.core.signatures import STAGES, signature


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_read_from_the_source_is_what_python_sees(stage: str) -> None:
    function = getattr(importlib.import_module(f"zimage.stages.{stage}"), stage)
    seen = inspect.signature(function).parameters.values()
    read = signature(stage)

    assert read.folders == tuple(each.name for each in seen if each.kind is each.POSITIONAL_OR_KEYWORD)
    assert list(read.sections) == [each.name for each in seen if each.kind is each.KEYWORD_ONLY]
    assert read.summary == inspect.getdoc(function).splitlines()[0]  # type: ignore[union-attr]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reads_its_own_section_and_writes_the_folder_named_last(stage: str) -> None:
    read = signature(stage)

    assert read.sections["params"] == stage
    assert read.folders[-1] == "out"
