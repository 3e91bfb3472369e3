"""Fixtures that several parts share, and how processes share the tests.

What fixtures import they import late, so that tests without a model stay quick. `make test` runs the tests in three
processes on two processors. Two begin with what waits much of its time, for servers and other processes, the whole
stacks first; the third one computes, and gives way to what waits. Whoever is ready takes the next file.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.ports import free_port

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

    from tests.album import Album
    from tests.tasks.hub_server import Hub
    from zimage.model.base import Base


WAITING = ("flows", "tasks")  # folders of tests that wait
LONG = (  # minutes: these files come first, so that no process is left alone with one at the end
    "tests/flows/server/test_stack.py",
    "tests/flows/test_serve.py",
    "tests/flows/test_personalize.py",
    "tests/test_documents_run.py",
    "tests/stages/test_train.py",
)
GIVES_WAY = 10  # of 19: a tenth of what the others get, where all want it


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> "LoadScopeScheduling":
    """Return what gives each process a file after the other: the last one what computes, the others what waits."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid.partition("::")[0]

        def _assign_work_unit(self, node: Any) -> None:
            done = self.assigned_work[node]
            waits = all(map(_waits, done)) and (node is not self.nodes[-1] or len(self.nodes) == 1)
            file = min(self.workqueue, key=lambda file: (_waits(file) != waits, file not in LONG))
            self.workqueue.move_to_end(file, last=False)
            super()._assign_work_unit(node)

    return ByFile(config, log)


def pytest_configure() -> None:
    """Let what tests start hear Ctrl-C and a hangup also where these tests run in the background, with both ignored."""
    for each, heard in {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}.items():
        if signal.getsignal(each) == signal.SIG_IGN:
            signal.signal(each, heard)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let a process that computes give way to those that wait."""
    if "PYTEST_XDIST_WORKER" in os.environ and not _waits(item.nodeid):
        _give_way()


def _waits(nodeid: str) -> bool:
    return nodeid.split("/")[1] in WAITING


@cache
def _give_way() -> None:
    """Take what is left of the processors, and one of them, from now on."""
    import torch

    from zimage.photos import worker_pool

    os.nice(GIVES_WAY)
    if os.getpid() != os.getpgid(0):
        os.setsid()  # where sessions share the processors, a process gives way within its own only
    autogroup = Path("/proc/self/autogroup")
    if autogroup.exists():
        autogroup.write_text(str(GIVES_WAY), encoding="ascii")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    worker_pool.cores = lambda: 1  # each process that opens photos loads the face engines again


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> "Base":
    """A very small base of the real classes with random weights, made once a session (see tests/tiny_base.py)."""
    from tests.tiny_base import write_tiny_base

    return write_tiny_base(tmp_path_factory.mktemp("tiny_base") / "model")


@pytest.fixture(scope="session")
def tiny_encoded(tiny_base: "Base", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What encode makes of two crops of noise, of different sizes, with captions of two padded lengths."""
    from tests.training.crops import SUBJECT, write_detect_and_caption
    from zimage.stages.encode import EncodeParams, encode

    folder = tmp_path_factory.mktemp("tiny_encoded")
    detect, caption = write_detect_and_caption(folder)
    params = EncodeParams(mirror=False, class_pictures=None, sample_prompts=["a photo of {subject}"])
    encode(detect, caption, folder / "encode", params=params, base=tiny_base, subject=SUBJECT)
    return folder / "encode"


@pytest.fixture
def bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process, and those it starts, import bitsandbytes from where `make install` puts it for them alone."""
    folder = Path(sys.prefix) / "8bit"
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])))


@pytest.fixture
def share() -> "Iterator[Callable[[int], None]]":
    """What sets how many processes share a stage's work on a CPU, for one test."""
    from zimage.core.process_group import use_processes

    yield use_processes
    use_processes(1)


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A real Prefect server with a database of its own, started once a session."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    no_heartbeat = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}  # joining its thread takes a second per flow
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        patch.setenv("DO_NOT_TRACK", "1")
        patch.setattr("prefect.testing.utilities._find_available_port", free_port)
        with prefect_test_harness(server_startup_timeout=300), temporary_settings(no_heartbeat):
            yield


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of a real HTTP server that speaks S3."""
    from tests.tasks.faults import serving_s3

    with serving_s3() as address:
        yield address


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment whose S3 is `s3_server`."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture
def album(s3: None) -> "Iterator[Album]":
    """An empty bucket but for what belongs to somebody else."""
    import boto3

    from tests.album import Album

    client = boto3.client("s3")
    client.create_bucket(Bucket="album")
    client.put_object(Bucket="album", Key="adam/not-hers.jpg", Body=b"adam")
    yield Album(client)
    for found in client.list_objects_v2(Bucket="album").get("Contents", []):
        client.delete_object(Bucket="album", Key=found["Key"])
    client.delete_bucket(Bucket="album")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> "Iterator[Hub]":
    """A stand-in for the Hugging Face Hub, with the token of somebody who may write there in the environment."""
    import threading

    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    from tests.tasks.hub_server import TOKEN, Hub

    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(_http.time, "sleep", lambda _: None)  # huggingface_hub tries five times, and waits
        yield server
        server.shutdown()
        thread.join()
        _http.close_session()
