import fcntl
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from zimage.core.errors import InputError
from zimage.core.lock import Holder, holder_of, locked

PROJECT = Path(__file__).parents[2]
HOLDING = """
import os, sys, time
from pathlib import Path
from zimage.core.lock import locked
with locked(Path(sys.argv[1]), "data/train is being written"):
    print(os.getpid(), flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_refused_with_the_first_ones_pid_and_host_until_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / ".train.lock"
    with subprocess.Popen([sys.executable, "-c", HOLDING, str(path)], stdout=subprocess.PIPE, cwd=PROJECT) as holder:
        assert holder.stdout is not None
        pid = int(holder.stdout.readline())
        with (
            pytest.raises(InputError) as refused,
            locked(path, "data/train is being written"),
        ):
            pass
        holder.kill()
        holder.wait()

        assert str(refused.value) == (
            f"data/train is being written by process {pid} on {platform.node()}; wait for it to end, or stop it."
        )
    with locked(path, "data/train is being written"):
        assert holder_of(path) == Holder(os.getpid(), platform.node())
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_that_was_removed_and_made_again_is_locked_anew(tmp_path: Path) -> None:
    path = tmp_path / ".train.lock"
    with path.open("w") as removed:
        fcntl.flock(removed, fcntl.LOCK_EX)
        path.unlink()

        with (
            locked(path, "data/train is being written"),
            pytest.raises(InputError),
            locked(path, "it is being written"),
        ):
            pass


def test_nobody_holds_a_lock_that_is_absent_or_empty(tmp_path: Path) -> None:
    assert holder_of(tmp_path / "absent") is None
    (tmp_path / "empty").touch()
    assert holder_of(tmp_path / "empty") is None
