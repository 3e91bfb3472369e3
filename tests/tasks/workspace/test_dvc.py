import os
import signal
from pathlib import Path

import psutil
import pytest

from tasks.workspace.dvc import StageFailedError, preloaded, run
from tasks.workspace.workspace import make

TELLS = "import os; print('told', os.environ.get('TOLD'))"
WAITS = "import time; print('waiting'); time.sleep(600)"


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A workspace of two stages that always run: one prints the variable TOLD, the other waits."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "dvc.yaml").write_text(
        "stages:\n  tell: {cmd: python tell.py, always_changed: true}\n  wait: {cmd: python wait.py}\n"
    )
    (project / "code.yaml").write_text("b: sha256:00\n")
    (project / ".dvcignore").write_text(".*.part\n")
    folder = tmp_path / "ada"
    make(folder, project)
    (folder / "tell.py").write_text(TELLS)
    (folder / "wait.py").write_text(WAITS)
    return folder


def told(workspace: Path) -> str:
    lines: list[str] = []
    run(workspace, ["repro", "tell"], on_line=lines.append)
    return next(line for line in lines if line.startswith("told"))


def servers() -> set[int]:
    return {child.pid for child in psutil.Process().children() if "tasks.workspace.fork_server" in child.cmdline()}


def test_one_process_serves_all_commands_of_a_block_and_ends_with_it(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with preloaded():
        kept = servers()
        monkeypatch.setenv("TOLD", "one")
        first = told(workspace)
        monkeypatch.setenv("TOLD", "two")  # each command has the environment of its moment
        with preloaded():
            second = told(workspace)
        assert servers() == kept and len(kept) == 1

    assert (first, second) == ("told one", "told two")
    assert servers() == set()


def test_a_block_without_a_command_leaves_no_process() -> None:
    with preloaded():
        assert len(servers()) == 1
    assert servers() == set()


def test_a_command_that_fails_is_not_in_the_way_of_the_next(workspace: Path) -> None:
    with preloaded():
        with pytest.raises(StageFailedError, match="Stage 'nothing' not found"):
            run(workspace, ["repro", "nothing"], on_line=lambda _: None)
        assert told(workspace) == "told None"


@pytest.mark.parametrize("who", ["dvc", "server"])
def test_a_killed_process_is_a_failure_and_the_next_command_works(workspace: Path, who: str) -> None:
    stage: list[psutil.Process] = []

    def kill(line: str) -> None:
        if line == "waiting":
            (server,) = servers()
            (dvc,) = psutil.Process(server).children()
            stage.extend(dvc.children(recursive=True))
            os.kill(server if who == "server" else dvc.pid, signal.SIGKILL)

    with preloaded():
        with pytest.raises(StageFailedError, match="DVC printed no error"):
            run(workspace, ["repro", "wait"], on_line=kill)
        _, left = psutil.wait_procs(stage, timeout=30)
        assert stage and not left, "a stage runs on that nobody waits for"
        assert told(workspace) == "told None"


def test_a_command_needs_no_block(workspace: Path) -> None:
    assert told(workspace) == "told None"
    assert servers() == set()
