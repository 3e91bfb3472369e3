"""What each tracker shows of a training, what none of them is told, and what their failures cost."""

import csv
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.training.crops import SUBJECT
from tests.training.recipe import MACHINE, recipe
from zimage.core.folder import aside_of
from zimage.model.base import Base
from zimage.stages.train import train
from zimage.training.params import AdapterParams, TrainParams
from zimage.training.tracking import shown_settings

ROOT = Path(__file__).parents[2]
NAMES = ("wandb", "mlflow", "trackio")
PERSON = "ada-lovelace"  # the workspace's folder, as a name that no tracker may see
# Reads each store, MLflow's and Trackio's with their own readers, and prints the losses of each tool's runs.
READ = '''
import json, sys
from pathlib import Path
store, found = Path(sys.argv[1]), {}
from mlflow import MlflowClient
client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
runs = client.search_runs([client.get_experiment_by_name("zimage").experiment_id])
found["mlflow"] = {run.info.run_name: [(each.step, each.value) for each in
    client.get_metric_history(run.info.run_id, "train/loss")] for run in runs}
found["params"] = [run.data.params for run in runs]
from trackio.sqlite_storage import SQLiteStorage
found["trackio"] = {run: [(row["step"], row["train/loss"]) for row in SQLiteStorage.get_logs("zimage", run)
    if "train/loss" in row] for run in SQLiteStorage.get_runs("zimage")}
from wandb.proto.wandb_internal_pb2 import Record

def records(path):
    """Yield the records of a log of LevelDB: blocks of 32 KiB with chunks of checksum, length and kind."""
    content, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        if left < 7 or kind == 0:
            place += left
            continue
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last chunk
            yield Record.FromString(record)
            record = b""

found["wandb"] = {}
for path in sorted(store.glob("wandb/offline-run-*/*.wandb")):
    for record in records(path):
        items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        if "train/loss" in items:
            found["wandb"].setdefault(path.stem.removeprefix("run-"), []).append((items["_step"], items["train/loss"]))
print(json.dumps(found))
'''


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Let processes started here import the tools from where `make install` puts them; return the store's folder."""
    folder = Path(sys.prefix) / "trackers"
    if not folder.is_dir():
        pytest.skip(f"no {folder}; `make install` makes it")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store" / "trackio"))
    return tmp_path / "store"


@contextmanager
def proxied() -> Iterator[tuple[dict[str, str], list[bytes]]]:
    """An environment that names a proxy, which all tools and their processes use, and what is sent to it."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    heard.append(connection.recv(200))

        threading.Thread(target=listen, daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        names = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
        yield dict.fromkeys(names, address), heard
        server.shutdown(socket.SHUT_RDWR)


def command(encoded: Path, out: Path, base: Base, params: TrainParams) -> list[str]:
    """The stage as a command, with its params written beside its output."""
    out.parent.mkdir(parents=True, exist_ok=True)
    sections = {"train": params, "base": base, "subject": SUBJECT, "machine": MACHINE}
    file = out.parent / "params.yaml"
    file.write_text(yaml.safe_dump({name: each.model_dump() for name, each in sections.items()}))
    return [sys.executable, "-m", "zimage", "train", str(encoded), str(out), "--params", str(file)]


def trained(started: list[str], machine: str, cwd: Path, **further: str) -> str:
    """Run the command to its end and return what it logged."""
    done = subprocess.run(
        started, cwd=cwd, env=environment(machine, **further), capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def environment(machine: str, **further: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "ZIMAGE_MACHINE": machine, **further}


def losses(out: Path) -> list[tuple[int, float]]:
    with (out / "loss.csv").open(encoding="utf-8") as file:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]


def everything(folder: Path) -> bytes:
    return b"\0".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_every_tracker_shows_a_training_that_was_stopped_and_none_is_told_who_it_is(
    tools: Path, tiny_base: Base, tiny_encoded: Path, tmp_path: Path
) -> None:
    out = tmp_path / PERSON / "data" / "train"
    samples = {"steps": 1, "guidance_scale": 0.0, "seed": 0}
    started = command(tiny_encoded, out, tiny_base, recipe(steps=12, checkpoint_every=4, samples=samples))
    machine = f"trackers=[{','.join(NAMES)}] tracking_folder={tools}"
    with proxied() as (proxies, heard):
        with subprocess.Popen(started, cwd=out.parent, env=environment(machine, **proxies)) as process:
            while not list((aside_of(out) / "resume").glob("step-*.safetensors")):
                assert process.poll() is None
                time.sleep(0.001)
            process.terminate()
        assert process.returncode == 2 and not out.exists()
        said = trained(started, machine, out.parent, **proxies)
    assert heard == []
    assert "tracker" not in said

    assert json.loads((out / "metrics.json").read_text())["resumed_after"] > 0
    read = subprocess.run([sys.executable, "-c", READ, str(tools)], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(read.stdout.splitlines()[-1])
    written = {step: pytest.approx(loss, rel=1e-4) for step, loss in losses(out)}
    for name in NAMES:
        ((run, shown),) = found[name].items()
        assert dict(shown) == written, name
        assert len(run) == 16 and int(run, 16)
    assert found["params"][0]["rank"] == "4" and found["params"][0]["optimiser.name"] == "adamw"
    board = EventAccumulator(str(out / "tensorboard"))
    board.Reload()
    assert {event.step: event.value for event in board.Scalars("train/loss")} == written
    assert [event.step for event in board.Images("samples/0")] == [4, 8, 12]

    identifying = [PERSON, str(tmp_path / PERSON), SUBJECT.trigger, "a photo of", "train/aa", str(tiny_encoded)]
    for folder in (tools, out / "tensorboard"):
        content = everything(folder)
        assert content and not [each for each in identifying if each.encode() in content]


@pytest.mark.parametrize(
    ("names", "folder", "said"),
    [
        (["mlflow"], "file/store", r"the tracker mlflow failed and is not used any more \(NotADirectoryError: .*"),
        (
            ["wandb", "trackio"],
            "store",
            r"the tracker (wandb|trackio) is not used: the package \1 is not installed; .*",
        ),
    ],
)
def test_a_tracker_that_cannot_be_opened_costs_a_warning_and_no_training(  # noqa: PLR0917
    names: list[str],
    folder: str,
    said: str,
    tiny_base: Base,
    tiny_encoded: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").touch()
    machine = MACHINE.model_copy(update={"trackers": names, "tracking_folder": str(tmp_path / folder)})
    for name, each in (("with", machine), ("without", MACHINE)):
        train(tiny_encoded, tmp_path / name, params=recipe(steps=2), base=tiny_base, subject=SUBJECT, machine=each)
    warnings = [message for message in caplog.messages if "the tracker" in message]
    assert len(warnings) == len(names) and all(re.fullmatch(said, warning) for warning in warnings)
    assert (tmp_path / "with" / "lora.safetensors").read_bytes() == (
        tmp_path / "without" / "lora.safetensors"
    ).read_bytes()


def test_a_tracker_that_fails_later_is_dropped_with_one_warning(tools: Path, tmp_path: Path) -> None:
    script = """
import logging, sqlite3, sys
from contextlib import closing
from pathlib import Path
from tests.training.recipe import recipe
from zimage.training.divergence import StepMetrics
from zimage.training.tracking import Trackers
logging.basicConfig(level=logging.WARNING, format="%(message)s")
store, board = map(Path, sys.argv[1:])
trackers = Trackers(board, 0, ["mlflow"], store=store, run="0123456789abcdef" * 4, settings=recipe())
for step in range(3):
    trackers.add([StepMetrics(step, 0.5, 1.0)], lambda _: 1.0, {})
    with closing(sqlite3.connect(store / "mlflow.db")) as database:
        database.execute("drop table if exists latest_metrics")
trackers.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tools), str(tmp_path / "board")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.count("the tracker mlflow failed and is not used any more (") == 1
    board = EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")] == [1, 2, 3]


def test_settings_are_shown_without_free_texts() -> None:
    params = recipe(training_adapter=AdapterParams(file="/home/ada/turbo.safetensors", sha256="00", strength=0.8))
    shown = shown_settings(params)
    assert shown["training_adapter.strength"] == 0.8
    assert shown["targets"] == "attention feed_forward" and shown["optimiser.betas"] == "0.9 0.99"
    assert not [key for key in shown if key.endswith(("file", "sha256"))]
