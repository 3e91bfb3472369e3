import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tasks.erasure.replaced import object_path
from tasks.phases.phase import working_on
from tasks.settings import PROJECT, Settings
from tasks.workspace.dvc import StageFailedError
from tasks.workspace.workspace import (
    Outcome,
    bring_up_to_date,
    connect,
    is_up_to_date,
    locked_workspace,
    make,
    pull,
    push,
    track,
    write_changed,
)
from tests.processes import runs
from zimage.core.errors import InputError

REPORT = """
import json, os, pathlib
with open(os.environ["ZIMAGE_PROGRESS"], "a") as progress:
    print(json.dumps({"stage": os.environ["DVC_STAGE"]}), file=progress)
"""
COPY = REPORT + "import shutil; pathlib.Path('data/b').mkdir(); shutil.copy('data/a', 'data/b/a'); print('copied')"
SHARING = f"""{REPORT}
from pathlib import Path
from zimage.core.folder import made_aside, share
kept = Path(".b.cache")
kept.unlink(missing_ok=True)
kept.write_bytes(Path("data/a").read_bytes() * 100_000)
with made_aside(Path("data/b")) as aside:
    share(kept, aside / "a")
"""
WAITING = """
import os, pathlib, time
from zimage.core.process import die_with_parent
die_with_parent()
pathlib.Path('pid').write_text(str(os.getpid()))
print('waiting')
time.sleep(600)
"""
TELLING = """
import json, os, pathlib
event = {"name": "b", "done": 3, "total": 4}
pathlib.Path(os.environ["ZIMAGE_PROGRESS"]).write_text(json.dumps(event) + chr(10))
"""
KILLED = """
import sys
from pathlib import Path
from tasks.workspace.workspace import bring_up_to_date
bring_up_to_date(Path(sys.argv[1]), "b", on_line=print)
"""
HOLDING = """
import sys
from pathlib import Path
from tasks.workspace.workspace import locked_workspace
with locked_workspace(Path(sys.argv[1])):
    print("in")
"""
DIES_WITHIN_S = 20


def project_with(folder: Path, command: str) -> Path:
    """A project whose only stage `b` runs `command` on data/a."""
    folder.mkdir()
    stage = {"cmd": command, "deps": ["data/a"], "params": ["b"], "outs": ["data/b"]}
    (folder / "dvc.yaml").write_text(json.dumps({"stages": {"b": stage}}))
    (folder / "code.yaml").write_text("b: sha256:00\n")
    (folder / ".dvcignore").write_text(".*.part\n")
    return folder


def workspace_with(tmp_path: Path, code: str = "", command: str = "python stage.py") -> Path:
    """A workspace whose stage `b` runs `code`."""
    workspace = tmp_path / "ada"
    make(workspace, project_with(tmp_path / "project", command))
    (workspace / "stage.py").write_text(code)
    (workspace / "params.yaml").write_text("b: 1\n")
    (workspace / "data" / "a").write_text("one")
    return workspace


def run(workspace: Path) -> Outcome:
    return bring_up_to_date(workspace, "b", on_line=lambda _: None)


def test_a_stage_runs_once_and_is_unchanged_after_that(tmp_path: Path) -> None:
    workspace = workspace_with(tmp_path, COPY)

    assert not is_up_to_date(workspace, "b")
    assert run(workspace) is Outcome.RAN
    assert (workspace / "data" / "b" / "a").read_text() == "one"
    assert run(workspace) is Outcome.UNCHANGED
    assert is_up_to_date(workspace, "b")


def test_going_back_to_earlier_values_restores_instead_of_running(tmp_path: Path) -> None:
    workspace = workspace_with(tmp_path, COPY)
    run(workspace)
    (workspace / "params.yaml").write_text("b: 2\n")
    assert not is_up_to_date(workspace, "b")
    assert run(workspace) is Outcome.RAN

    (workspace / "params.yaml").write_text("b: 1\n")

    assert not is_up_to_date(workspace, "b")
    assert run(workspace) is Outcome.RESTORED


def test_a_result_takes_room_once_and_making_it_anew_leaves_the_cache_as_it_was(tmp_path: Path) -> None:
    workspace = workspace_with(tmp_path, SHARING)
    track(workspace, ["data/a"])
    before = shutil.disk_usage(tmp_path).used
    run(workspace)
    names = [workspace / ".b.cache", workspace / "data" / "b" / "a"]

    if "hardlink" in (workspace / ".dvc" / "config").read_text():
        cached = workspace / ".dvc" / "cache" / object_path(hashlib.md5(names[0].read_bytes()).hexdigest())
        assert len({path.stat().st_ino for path in (*names, cached)}) == 1
    else:  # clones have an inode each, and share their blocks
        assert shutil.disk_usage(tmp_path).used - before < 600_000
    (workspace / "data" / "a").unlink()
    (workspace / "data" / "a").write_text("two")
    assert run(workspace) is Outcome.RAN

    objects = [path for path in (workspace / ".dvc" / "cache" / "files" / "md5").glob("*/*") if path.is_file()]
    assert len(objects) >= 4
    for path in objects:
        assert hashlib.md5(path.read_bytes()).hexdigest() == f"{path.parent.name}{path.name}".removesuffix(".dir")
    assert names[1].read_text() == "two" * 100_000


def test_a_result_that_is_damaged_or_not_recorded_is_restored(tmp_path: Path) -> None:
    workspace = workspace_with(tmp_path, COPY)
    run(workspace)

    (workspace / "data" / "b" / "a").unlink()
    assert run(workspace) is Outcome.RESTORED
    (workspace / "dvc.lock").unlink()
    assert run(workspace) is Outcome.RESTORED


def test_a_stage_that_runs_again_with_the_same_result_ran(tmp_path: Path) -> None:
    workspace = workspace_with(tmp_path, COPY)
    run(workspace)
    lock = (workspace / "dvc.lock").read_bytes()
    shutil.rmtree(workspace / "data" / "b")
    shutil.rmtree(workspace / ".dvc" / "cache")

    assert run(workspace) is Outcome.RAN
    assert (workspace / "dvc.lock").read_bytes() == lock


def test_an_outcome_is_that_of_the_stage_whatever_is_printed_meanwhile(tmp_path: Path) -> None:
    """The stage above prints the sentence that DVC prints when a stage runs."""
    workspace = workspace_with(tmp_path, COPY + "\nprint(\"Running stage 'c':\")\n")
    stages = json.loads((workspace / "dvc.yaml").read_text())["stages"]
    (workspace / "c.py").write_text(f"{REPORT}pathlib.Path('data/c').write_text('c')\n")
    after = {"cmd": "python c.py", "deps": ["data/constant"], "outs": ["data/c"]}
    first = {**stages["b"], "cmd": "python stage.py && echo 1 >data/constant", "outs": ["data/b", "data/constant"]}
    (workspace / "dvc.yaml").write_text(json.dumps({"stages": {"b": first, "c": after}}))

    assert bring_up_to_date(workspace, "c", on_line=lambda _: None) is Outcome.RAN
    (workspace / "data" / "a").write_text("two")
    lines: list[str] = []
    assert bring_up_to_date(workspace, "c", on_line=lines.append) is Outcome.UNCHANGED
    assert {"copied", "Running stage 'c':"} <= set(lines)


def test_lines_come_while_the_stage_still_runs(tmp_path: Path) -> None:
    answering = "import pathlib, time\nprint('ready')\nwhile not pathlib.Path('go').exists(): time.sleep(0.05)\n" + COPY
    workspace = workspace_with(tmp_path, answering)

    def answer(line: str) -> None:
        if line == "ready":
            (workspace / "go").touch()

    assert bring_up_to_date(workspace, "b", on_line=answer) is Outcome.RAN


def test_progress_reaches_the_follower(tmp_path: Path) -> None:
    workspace = workspace_with(tmp_path, TELLING + COPY)
    events: list[dict[str, object]] = []

    bring_up_to_date(workspace, "b", on_line=lambda _: None, on_progress=events.append)

    assert events == [{"name": "b", "done": 3, "total": 4}]


PRINTING = """
import json, os, pathlib, time
path = pathlib.Path(os.environ["ZIMAGE_PROGRESS"])
path.write_text(json.dumps({"name": "b", "done": 1, "total": 2}) + chr(10))
for number in range(600):
    if pathlib.Path("seen").exists():
        break
    print("line", number)
    time.sleep(0.05)
else:
    raise SystemExit("its progress was not followed while it printed")
"""


def test_progress_reaches_the_follower_while_a_stage_prints_without_pause(tmp_path: Path) -> None:
    workspace = workspace_with(tmp_path, PRINTING + COPY)

    def see(_event: dict[str, object]) -> None:
        (workspace / "seen").touch()

    assert bring_up_to_date(workspace, "b", on_line=lambda _: None, on_progress=see) is Outcome.RAN


def test_a_refusal_is_raised_as_the_stage_s_own_sentence(tmp_path: Path) -> None:
    workspace = workspace_with(tmp_path, command="python -m zimage summary nowhere")

    with pytest.raises(InputError, match=r"^Nothing has been evaluated in nowhere yet; run `dvc repro` there first\.$"):
        run(workspace)
    assert not (workspace / "data" / "b").exists()


def test_a_crash_is_not_blamed_on_the_user(tmp_path: Path) -> None:
    workspace = workspace_with(tmp_path, "1 / 0")
    lines: list[str] = []

    with pytest.raises(StageFailedError, match="failed to reproduce 'b'"):
        bring_up_to_date(workspace, "b", on_line=lines.append)
    assert "ZeroDivisionError: division by zero" in lines


def test_an_interrupt_ends_dvc_and_the_stage(tmp_path: Path) -> None:
    workspace = workspace_with(tmp_path, WAITING)
    before = psutil.Process().children()  # a Prefect server, where flows were tested first

    def interrupt(line: str) -> None:
        if line == "waiting":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bring_up_to_date(workspace, "b", on_line=interrupt)

    assert not runs(int((workspace / "pid").read_text()))
    assert set(psutil.Process().children()) <= set(before)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parents")
def test_no_process_outlives_a_killed_run(tmp_path: Path) -> None:
    workspace = workspace_with(tmp_path, WAITING)
    command = [sys.executable, "-uc", KILLED, str(workspace)]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        next(line for line in parent.stdout if line == "waiting\n")
        below = [process.pid for process in psutil.Process(parent.pid).children(recursive=True)]
        parent.send_signal(signal.SIGKILL)

    assert int((workspace / "pid").read_text()) in below
    deadline = time.monotonic() + DIES_WITHIN_S
    while any(map(runs, below)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(runs, below))
    assert run_after(workspace) is Outcome.RAN


def run_after(workspace: Path) -> Outcome:
    """The next run goes on where the killed one stopped."""
    (workspace / "stage.py").write_text(COPY)
    return run(workspace)


@pytest.mark.parametrize(("written", "kept"), [("", False), ('{"/data', False), ("[]", False), ("{}", True)])
def test_a_record_of_locks_that_a_killed_dvc_left_half_written_is_forgotten(
    tmp_path: Path, written: str, kept: bool
) -> None:
    record = tmp_path / ".dvc" / "tmp" / "rwlock"
    record.parent.mkdir(parents=True)
    record.write_text(written)
    with locked_workspace(tmp_path):
        assert record.exists() == kept


def test_a_lock_of_a_killed_dvc_whose_number_another_process_has_now_blocks_nothing(tmp_path: Path) -> None:
    workspace = workspace_with(tmp_path, COPY)
    blocked_by(workspace, os.getpid())  # this process is no DVC

    with pytest.raises(InputError) as refused:
        run(workspace)
    with locked_workspace(workspace):
        assert run(workspace) is Outcome.RAN

    assert str(refused.value) == (
        f"{workspace} is being worked on by process {os.getpid()} (`dvc repro b`); wait for it to end, or stop it."
    )


def test_a_lock_of_a_dvc_that_runs_is_respected(tmp_path: Path) -> None:
    workspace = workspace_with(tmp_path, WAITING)
    command = [Path(sys.executable).with_name("dvc"), "repro", "--quiet"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(PROJECT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with subprocess.Popen(command, cwd=workspace, env=environment) as dvc:
        while not (workspace / "pid").exists():
            assert dvc.poll() is None
            time.sleep(0.05)
        with (
            locked_workspace(workspace),
            pytest.raises(InputError, match=rf"is being worked on by process {dvc.pid} \(`.*repro"),
        ):
            run(workspace)
        dvc.terminate()
        os.kill(int((workspace / "pid").read_text()), signal.SIGTERM)


def blocked_by(workspace: Path, pid: int) -> None:
    """Leave the entry of a DVC that was killed while it ran stage `b`."""
    entry = {"pid": pid, "cmd": "dvc repro b"}
    record = {"write": {str(workspace / "data" / "b"): entry}, "read": {str(workspace / "data" / "a"): [entry]}}
    (workspace / ".dvc" / "tmp" / "rwlock").write_text(json.dumps(record))


DAMAGED = (b"", b"stages: [", b"schema: '2.0'\nstages:\n  b: null\n", b"schema: '2.0'\nstages:\n", b"\xff\xfe", b"[]")


def test_a_damaged_dvc_lock_is_one_sentence_with_the_remedy_before_anything_runs(tmp_path: Path) -> None:
    workspace = workspace_with(tmp_path, COPY)
    assert run(workspace) is Outcome.RAN
    lock, said = workspace / "dvc.lock", set()

    for content in DAMAGED:
        lock.write_bytes(content)
        with pytest.raises(InputError) as refused, working_on(machine(tmp_path), workspace, shared=False):
            pass
        said.add(str(refused.value))
    lock.unlink()

    assert said == {
        f"{lock} is damaged; delete it and run again: results that are in the cache are restored, others made again."
    }
    with working_on(machine(tmp_path), workspace, shared=False):
        assert run(workspace) is Outcome.RESTORED


def test_a_workspace_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    workspace = workspace_with(tmp_path, COPY)
    script = (
        "from pathlib import Path; from tasks.workspace.workspace import locked_workspace\n"
        f"with locked_workspace(Path({str(workspace)!r})): print('in')"
    )
    command = [sys.executable, "-c", script]

    with locked_workspace(workspace):
        refused = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    free = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)

    holder = f"process {os.getpid()} on {platform.node()}"
    assert f"{workspace} is being worked on by {holder}; wait for it to end" in refused.stderr
    assert free.stdout == "in\n"


def machine(folder: Path) -> Settings:
    return Settings(project=PROJECT, workspaces=folder, store=str(folder / "store"))


def test_workspaces_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with (
        pytest.raises(
            InputError, match=r"file/ada cannot be made \(Not a directory\); set ZIMAGE_WORKSPACES to another"
        ),
        working_on(machine(tmp_path), tmp_path / "file" / "ada", shared=False, makes=True),
    ):
        pass


def test_working_on_nobody_leaves_no_folder(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"nobody has no workspace .*; run `prepare` or `personalize` first"),
        working_on(machine(tmp_path), tmp_path / "nobody", shared=False),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_making_a_workspace_again_touches_nothing_that_is_right(tmp_path: Path) -> None:
    project = project_with(tmp_path / "project", "true")
    workspace = tmp_path / "ada"
    make(workspace, project)
    before = {path: path.stat().st_mtime_ns for path in workspace.rglob("*.yaml")}

    make(workspace, project)

    assert {path: path.stat().st_mtime_ns for path in workspace.rglob("*.yaml")} == before


def test_what_dvc_remembers_of_a_workspace_goes_with_it(tmp_path: Path) -> None:
    workspace = workspace_with(tmp_path, COPY)

    run(workspace)

    site = workspace / ".dvc" / "tmp" / "site"
    told = f"{workspace}/data/b/a".encode()
    assert [path for path in site.rglob("cache.db") if told in path.read_bytes()]
    assert [path for path in Path("/var/tmp/dvc").rglob("cache.db") if told in path.read_bytes()] == []
    assert not any(path.stat().st_mode & 0o002 for path in [site, *site.rglob("*")])  # nobody else may write there


def test_a_workspace_follows_the_project_s_code(tmp_path: Path) -> None:
    project = project_with(tmp_path / "project", "true")
    workspace = tmp_path / "ada"
    make(workspace, project)

    (project / "code.yaml").write_text("b: sha256:11\n")
    make(workspace, project)

    assert (workspace / "code.yaml").read_text() == "b: sha256:11\n"


def test_a_file_that_is_right_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_changed(path, "one")
    os.utime(path, (0, 0))

    write_changed(path, "one")
    assert path.stat().st_mtime == 0

    write_changed(path, "two")
    assert path.read_text() == "two"


def test_what_was_damaged_in_the_remote_is_refused_on_arrival(tmp_path: Path) -> None:
    workspace = workspace_with(tmp_path)
    connect(workspace, str(tmp_path / "remote"), "")
    track(workspace, ["data/a"])
    push(workspace, ["data/a.dvc"], on_line=lambda _: None)
    (stored,) = (path for path in (tmp_path / "remote").rglob("*") if path.is_file())
    stored.chmod(0o644)
    stored.write_text("damaged")
    (workspace / "data" / "a").unlink()
    shutil.rmtree(workspace / ".dvc" / "cache")

    with pytest.raises(StageFailedError):
        pull(workspace, ["data/a.dvc"], on_line=lambda _: None)

    assert not (workspace / "data" / "a").exists()
