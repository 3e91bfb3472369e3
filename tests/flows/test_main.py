import argparse
import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows.__main__ import ALLOWED, SPECS, _parser, main
from flows.spec import PersonalizeSpec
from tasks.policy import HEARTBEAT_S
from tests.agreed import agreed
from zimage.core.folder import aside_of
from zimage.demo import make_demo_photos

PROJECT = Path(__file__).parent.parent.parent


def given(*arguments: str) -> PersonalizeSpec:
    values = vars(_parser().parse_args(["personalize", *arguments]))
    del values["flow"]
    return PersonalizeSpec(**values)


def test_every_field_of_a_spec_is_an_option() -> None:
    actions = next(action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))

    for name, kind in SPECS.items():
        assert {action.dest for action in actions.choices[name]._actions} - {"help"} == set(kind.model_fields)


def test_options_become_the_spec() -> None:
    spec = given("--subject", "ada", "--photos", "dir", "--consent", "c.yaml", "--base", "b", "--preset", "24gb")

    assert spec == PersonalizeSpec(subject="ada", photos="dir", consent="c.yaml", base="b", preset="24gb")


def test_own_values_are_collected() -> None:
    assert given("--subject", "ada", "--set", "train.steps=3", "--set", "train.rank=4").values == [
        "train.steps=3",
        "train.rank=4",
    ]


@pytest.mark.parametrize(
    ("arguments", "publish"), [([], "never"), (["--publish"], "pass"), (["--publish", "provisional"], "provisional")]
)
def test_publishing_alone_means_what_passed(arguments: list[str], publish: str) -> None:
    assert given("--subject", "ada", *arguments).publish == publish


def test_a_bad_pseudonym_ends_with_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["personalize", "--subject", "../ada"]) == 2

    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("flows: --subject '../ada': allowed are 2 to 41 small letters a-z, digits, - and _")


def test_a_bad_release_is_told_with_what_one_looks_like(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["promote", "--subject", "ada", "--release", "newest"]) == 2

    assert "--release 'newest': allowed are a number, - and 8 of" in capsys.readouterr().err


def test_every_pattern_is_told_in_words() -> None:
    patterns = {
        name
        for kind in SPECS.values()
        for name, field in kind.model_fields.items()
        if any(getattr(each, "pattern", None) for each in field.metadata)
    }

    assert patterns == set(ALLOWED)


def test_a_worker_needs_nothing_but_the_servers_address(tmp_path: Path) -> None:
    """Else its runs tell of themselves too seldom, and are given up while they work (tasks/policy.py)."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "PYTHON"))}
        environment = {
            **kept,
            "PREFECT_HOME": str(tmp_path),
            "PREFECT_API_URL": f"http://127.0.0.1:{nobody.getsockname()[1]}/api",
        }
        command = [sys.executable, "-m", "flows", "work", "gpu", "--limit", "1"]
        with subprocess.Popen(command, cwd=PROJECT, env=environment) as worker:
            process, until = psutil.Process(worker.pid), time.monotonic() + 30
            while "prefect" not in process.cmdline() and time.monotonic() < until:
                time.sleep(0.05)
            words, known = process.cmdline(), process.environ()
            worker.kill()

    assert words[2:] == ["prefect", "worker", "start", "--pool", "gpu", "--type", "process", "--limit", "1"]
    assert int(known["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]) == HEARTBEAT_S
    assert known["PYTHONPATH"] == str(PROJECT)  # deployments name `flows…`, which no installed package has


def test_a_worker_without_a_server_is_told_what_to_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)

    assert main(["work", "cpu"]) == 2
    assert "set PREFECT_API_URL" in capsys.readouterr().err


def test_help_starts_no_server_and_imports_no_scheduler() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "flows", "personalize", "--help"]
    imported = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stderr

    names = {line.rpartition("|")[2].strip().split(".")[0] for line in imported.splitlines()}
    assert "argparse" in names
    assert names.isdisjoint({"prefect", "dvc", "torch"})


def test_ctrl_c_ends_everything_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    """As a terminal does it: the whole process group gets the signal, server and stage too."""
    make_demo_photos(tmp_path / "photos", seed=1)
    command = [sys.executable, "-m", "flows", "prepare", "--subject", "ada", "--photos", str(tmp_path / "photos")]
    environment = {**os.environ, "ZIMAGE_WORKSPACES": str(tmp_path), "PREFECT_HOME": str(tmp_path / "prefect")}
    running = subprocess.Popen(
        [*command, "--consent", str(agreed(tmp_path, "ada")), "--class-noun", "woman"],
        cwd=PROJECT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with running:
        assert running.stderr is not None
        assert any("Running stage 'ingest'" in line for line in running.stderr)
        os.killpg(running.pid, signal.SIGINT)
        said = running.stderr.read()

    assert running.returncode == 2, said
    assert said.splitlines()[-1].startswith("flows: Stopped; what was finished is kept")
    assert [each.pid for each in psutil.process_iter() if _group(each.pid) == running.pid] == []
    assert not (tmp_path / "ada" / "data" / "ingest").exists()
    assert not aside_of(tmp_path / "ada" / "data" / "ingest").exists()
    with contextlib.closing(sqlite3.connect(tmp_path / "prefect" / "prefect.db")) as database:
        assert database.execute("select name from flow_run").fetchall() == [("prepare ada (asked)",)]
        assert database.execute("select count(*) from events").fetchone() == (0,)  # they could not be deleted


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None
