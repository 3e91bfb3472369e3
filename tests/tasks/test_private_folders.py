"""No other user of the machine reads what is of a person, whatever the umask."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.server.processes import started
from tasks.settings import PROJECT
from tasks.store.folder import FolderStore
from tasks.store.pages import served
from tasks.workspace.tombstones import admit
from tasks.workspace.workspace import locked_workspace, make


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_workspace_and_the_folder_of_workspaces_are_closed_to_others(tmp_path: Path) -> None:
    for number, begin in enumerate(
        (lambda folder: make(folder, PROJECT), lambda folder: locked_workspace(folder).__enter__())
    ):
        workspace = tmp_path / str(number) / "workspaces" / "ada"
        begin(workspace)
        assert (mode(workspace), mode(workspace.parent)) == (0o700, 0o700)
    workspace = tmp_path / "2" / "workspaces" / "ada"
    admit(FolderStore(tmp_path / "store"), "ada", workspace)
    assert (mode(workspace), mode(workspace.parent)) == (0o700, 0o700)


def test_a_workspace_of_before_is_closed_and_the_folder_around_it_stays_as_it_is(tmp_path: Path) -> None:
    workspace = tmp_path / "anybodys" / "ada"
    workspace.mkdir(parents=True, mode=0o755)
    make(workspace, PROJECT)
    assert (mode(workspace), mode(workspace.parent)) == (0o700, 0o777)


def test_a_store_is_closed_to_others_and_so_is_what_lies_in_a_folder_that_was_there(tmp_path: Path) -> None:
    ours, theirs = FolderStore(tmp_path / "new" / "store"), FolderStore(tmp_path / "theirs")
    theirs.root.mkdir()
    for store in (ours, theirs):
        store.compare_and_swap("subjects/ada/state.json", b"{}", None)
        assert (mode(store.root / "subjects"), mode(store.root / ".locks")) == (0o700, 0o700)
    assert (mode(ours.root), mode(theirs.root)) == (0o700, 0o777)


def test_the_folders_of_pages_and_logs_are_closed_to_others(tmp_path: Path) -> None:
    with served(tmp_path / "store", port=0):
        assert mode(tmp_path / "store") == 0o700
    with started(["version"], tmp_path / "workspaces" / ".logs" / "version.log") as child:
        child.wait()
    assert mode(tmp_path / "workspaces" / ".logs") == mode(tmp_path / "workspaces") == 0o700
