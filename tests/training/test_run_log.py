"""What TensorBoard is told of a run."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX.proto.event_pb2 import Event, SessionLog

from tests.training.recipe import recipe
from zimage.training.divergence import StepMetrics
from zimage.training.tracking import TensorBoard, Trackers


def _events(folder: Path) -> Iterator[Any]:
    """Yield what is in all event files, oldest first: length, checksum, event, checksum, and so on."""
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        content, place = path.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack("<Q", content[place : place + 8])
            yield Event.FromString(content[place + 12 : place + 12 + length])
            place += length + 16


def _scalars(folder: Path, name: str) -> dict[int, float]:
    found = {}
    for event in _events(folder):
        for value in event.summary.value:
            if value.tag == name:
                found[event.step] = value.simple_value
    return found


def test_every_step_and_the_speed_are_told_under_their_names(tmp_path: Path) -> None:
    board = Trackers(tmp_path, 0, [], store=tmp_path / "store", run="run", settings=recipe())
    board.add(
        [StepMetrics(0, 0.5, 2.0), StepMetrics(1, 0.25, 1.0)], lambda step: 0.125 * (step + 1), {"steps_per_s": 4.0}
    )
    board.close()
    assert _scalars(tmp_path, "train/loss") == {1: 0.5, 2: 0.25}
    assert _scalars(tmp_path, "train/gradient_norm") == {1: 2.0, 2: 1.0}
    assert _scalars(tmp_path, "train/learning_rate") == {1: 0.125, 2: 0.25}
    assert _scalars(tmp_path, "train/steps_per_s") == {2: 4.0}


def test_a_resumed_run_takes_back_what_was_told_beyond_its_first_step(tmp_path: Path) -> None:
    """TensorBoard drops from earlier files what lies at or beyond the step of a session's start."""
    board = TensorBoard(tmp_path, begin=3)
    board.log(4, {"loss": 0.5})
    board.close()
    starts = [event.step for event in _events(tmp_path) if event.session_log.status == SessionLog.START]
    assert starts == [4]


def test_sample_pictures_are_shown_at_their_step(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path, begin=0)
    board.picture(200, 1, np.full((8, 6, 3), 7, np.uint8))
    board.close()
    (picture,) = [(event.step, value) for event in _events(tmp_path) for value in event.summary.value]
    assert picture[0] == 200 and picture[1].tag.startswith("samples/1")
    assert (picture[1].image.height, picture[1].image.width) == (8, 6)
