"""Create and lock a subject's workspace, and ask DVC about its stages."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil
import yaml

from tasks.workspace.dvc import StageFailedError, run
from tasks.workspace.fork_server import is_dvc
from tasks.workspace.scratch import remove_leftovers
from zimage.core.errors import InputError
from zimage.core.folder import clones, make_private, make_writable, write_whole
from zimage.core.lock import locked

# What DVC remembers of files, by their names, lies in the workspace; else it is in /var/tmp, for all to read, and stays
# there. A relative path would count from where `dvc` is called.
# A result lies once on a disk: cache and workspace share it (infra/decisions/16-one-copy-of-a-file.md).
CONFIG = """[core]
    no_scm = true
    analytics = false
    check_update = false
    site_cache_dir = "{site}"
[cache]
    type = "{links}"
"""
CLONES, LINKS = "reflink,copy", "hardlink,copy"
SHARED = ["--pull", "--allow-missing"]
CLOCKS_DIFFER_S = 2.0  # the kernel's, which files have, and that of processes' starts
UP_TO_DATE = "Data and pipelines are up to date."


class Outcome(StrEnum):
    """How DVC brought a stage up to date."""

    RAN = "ran"
    RESTORED = "restored"
    UNCHANGED = "unchanged"


def make(folder: Path, project: Path) -> None:
    """Make `folder` a workspace, or bring one up to date: a DVC repository of its own with the project's stages."""
    make_private(folder)
    (folder / "data" / "overrides").mkdir(parents=True, exist_ok=True)
    site = folder.absolute() / ".dvc" / "tmp" / "site"
    (site / "repo").mkdir(parents=True, exist_ok=True)  # DVC would let everybody write there
    links = CLONES if clones(folder / ".dvc" / "tmp") else LINKS
    write_changed(folder / ".dvc" / "config", CONFIG.format(site=site, links=links))
    shutil.copyfile(project / ".dvcignore", folder / ".dvcignore")
    for name in ("dvc.yaml", "code.yaml"):
        write_changed(folder / name, (project / name).read_text(encoding="utf-8"))


def write_changed(path: Path, text: str) -> None:
    """Write a file, whole, unless it holds `text` already."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_whole(path, text.encode())


@contextmanager
def locked_workspace(folder: Path) -> Iterator[None]:
    """Exclusive lock (flock) on the workspace; released even if the process is killed.

    Raises:
        InputError: another process holds it, or nothing can be written there.
    """
    if not folder.exists():
        with suppress(OSError):  # `make_writable` says what is wrong
            make_private(folder)
    make_writable(folder, "set ZIMAGE_WORKSPACES to another place")
    path = lock_path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path, f"{folder} is being worked on"):
        _release_stale_locks(folder)
        remove_leftovers(folder)
        yield


def lock_path(folder: Path) -> Path:
    """Return the file that names the process which works in a workspace (see `zimage.core.lock.holder_of`)."""
    return folder / ".dvc" / "tmp" / "held"


def _release_stale_locks(folder: Path) -> None:
    """Remove DVC's record of its locks (rwlock) where it is damaged, and entries in it of processes that are no DVC.

    A killed DVC can leave the file half written, and no other DVC would begin. It leaves its entries in any case: DVC
    ignores them once no process has their number, but numbers are given again.
    """
    path = folder / ".dvc" / "tmp" / "rwlock"
    try:
        record = json.loads(path.read_bytes())
        written = path.stat().st_mtime
        writers = record.get("write", {})
        readers = record.get("read", {})
        left = {
            "write": {of: info for of, info in writers.items() if _may_be_dvc(info["pid"], written)},
            "read": {
                of: [info for info in infos if _may_be_dvc(info["pid"], written)] for of, infos in readers.items()
            },
        }
    except FileNotFoundError:
        return
    except (ValueError, AttributeError, KeyError, TypeError):
        path.unlink(missing_ok=True)
        return
    left["read"] = {of: infos for of, infos in left["read"].items() if infos}
    if left != {"write": writers, "read": readers}:
        write_whole(path, json.dumps(left).encode())


def _may_be_dvc(pid: int, written: float) -> bool:
    """Return whether a process may be the DVC that an entry names, which was written at that time at the latest."""
    try:
        process = psutil.Process(pid)
        return is_dvc(process.cmdline()) and bool(process.create_time() <= written + CLOCKS_DIFFER_S)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # another user's
        return True


def locked_stages(folder: Path) -> dict[str, Any]:
    """Return the entries of a workspace's dvc.lock by stage; none where it has no dvc.lock.

    Raises:
        InputError: it is damaged, with what to do.
    """
    path = folder / "dvc.lock"
    if not path.is_file():
        return {}
    try:
        lock = yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        stages = lock.get("stages", {})
        if "schema" in lock and all(isinstance(entry, dict) and "cmd" in entry for entry in stages.values()):
            return dict(stages)
    except (yaml.YAMLError, TypeError, KeyError, AttributeError, UnicodeDecodeError):
        pass
    raise InputError(
        f"{path} is damaged; delete it and run again: results that are in the cache are restored, others made again."
    )


def is_up_to_date(folder: Path, stage: str, *, shared: bool = False) -> bool:
    """Return whether DVC would leave `stage` and all it builds on alone; only looks.

    With `shared`, what is absent here counts as what the lock says of it. `dvc repro --dry` has no answer but its
    sentences: if DVC changes them the answer is no, and each stage is asked, which takes longer and ends the same.
    """
    lines: list[str] = []
    try:
        run(folder, ["repro", "--dry", *(["--allow-missing"] if shared else []), stage], on_line=lines.append)
    except StageFailedError:  # what is missing now may come from a stage above; the run itself will tell
        return False
    return all(line.endswith("didn't change, skipping") or line == UP_TO_DATE for line in lines)


def bring_up_to_date(
    folder: Path,
    stage: str,
    *,
    on_line: Callable[[str], None],
    on_progress: Callable[[dict[str, Any]], None] = lambda _: None,
    shared: bool = False,
) -> Outcome:
    """Run `stage`, and what it builds on, as far as DVC finds it stale; return what became of `stage` itself.

    It ran if it reported so, and was restored if its entry in dvc.lock or the files of its results are others than
    before. What DVC prints decides nothing.

    Args:
        folder: The workspace.
        stage: A stage of its dvc.yaml.
        on_line: Gets each line that DVC and the stage print, as it comes.
        on_progress: Gets the stage's latest progress, at most twice a second: name, done, total and numbers.
        shared: Other machines share the work: fetch what the stage reads, and leave out what nobody needs here. Never
            with `--single-item`: DVC would compare with nothing upstream, and restored an old result without a word.

    Raises:
        InputError: the stage refused its input, or the disk is full; the stage's own sentence.
        StageFailedError: anything else, with DVC's last error line.
    """
    before = _result(folder, stage)
    ran = run(folder, ["repro", *(SHARED if shared else []), stage], on_line=on_line, on_progress=on_progress)
    if stage in ran:
        return Outcome.RAN
    return Outcome.UNCHANGED if _result(folder, stage) == before else Outcome.RESTORED


def _result(folder: Path, stage: str) -> tuple[dict[str, Any], list[tuple[Path, int, int]]]:
    """Return a stage's entry in dvc.lock, and inode and time of each file of its results that is there."""
    entry = locked_stages(folder).get(stage, {})
    outs = [folder / out["path"] for out in entry.get("outs", [])]
    files = sorted(path for out in outs for path in (out, *out.rglob("*")) if path.is_file())
    return entry, [(path, stat.st_ino, stat.st_mtime_ns) for path in files for stat in [path.stat()]]


def connect(folder: Path, remote: str, endpoint: str) -> None:
    """Let DVC share the workspace through `remote`, a folder or `s3://bucket/prefix`; it hashes all that arrives."""
    url = f"    url = {remote}\n    verify = true\n" + (
        f"    endpointurl = {endpoint}\n" if endpoint and "://" in remote else ""
    )
    write_changed(folder / ".dvc" / "config.local", f"[core]\n    remote = store\n['remote \"store\"']\n{url}")


def track(folder: Path, inputs: list[str]) -> None:
    """Write what `inputs` (paths in the workspace) hold into `<input>.dvc` and the cache; untouched where it is so."""
    run(folder, ["add", *inputs], on_line=lambda _: None)


def is_tracked(path: Path) -> bool:
    """Return whether DVC can fetch an input that may be absent here."""
    return path.with_name(f"{path.name}.dvc").is_file()


def push(folder: Path, targets: list[str], *, on_line: Callable[[str], None]) -> None:
    """Push the results of stages, tracked inputs and the run cache to the remote."""
    run(folder, ["push", "--run-cache", *targets], on_line=on_line)


def pull(folder: Path, targets: list[str], *, on_line: Callable[[str], None]) -> None:
    """Fetch the results of stages, and tracked inputs, as the lock and the `.dvc` files name them."""
    run(folder, ["pull", *targets], on_line=on_line)
