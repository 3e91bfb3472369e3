"""A release in pools, on a real server."""

from pathlib import Path

import pytest

from flows.publish import publish
from flows.spec import PublishSpec
from tasks.settings import from_environment
from tests.tasks.finished import finished
from zimage.core.errors import InputError


def test_a_result_that_only_the_machine_that_made_it_has_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_server: None
) -> None:
    monkeypatch.setenv("ZIMAGE_WORKSPACES", str(tmp_path / "workspaces"))
    monkeypatch.setenv("ZIMAGE_STORE", str(tmp_path / "store"))
    finished(from_environment().workspace("ada-here"))

    with pytest.raises(
        InputError, match="no finished result of ada-here: run `personalize` with placement `pools`, or"
    ):
        publish(PublishSpec(subject="ada-here", placement="pools", accept_provisional=True))

    assert (from_environment().workspace("ada-here") / "data" / "train").is_dir()
