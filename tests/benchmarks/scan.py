"""What the nightly look at subjects costs: `python -m tests.benchmarks.scan folder 5000`, or `s3`, or `flow`.

`folder` and `s3` print seconds, memory (the peak, and by how much it is more than after the imports) and requests of a
scan that opens every state and of the next, which finds all unchanged; each is a process of its own. S3 is moto, in
another process. `flow` is the whole flow that only looks, on a Prefect server that is up.
"""

import datetime
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
import yaml

from tasks.settings import PROJECT, Settings, from_environment
from tasks.store.s3 import FolderStore, S3Store, open_store
from tasks.transfer.staleness import read_project, scan_all
from tasks.transfer.state import State, state_key
from tasks.workspace.sources import source
from tests.tasks.transfer.test_staleness import CHOICES, CONSENT, locked
from zimage.consent import Consent
from zimage.core.process import die_with_parent

PHOTOS = 30
TODAY = datetime.date(2026, 11, 23)
AGREED = CONSENT | {"expires": datetime.date(2999, 12, 31)}  # the flow asks the clock
BUCKET = "s3://benchmark/project"
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


def finished(count: int, folder: Path, store: FolderStore) -> None:
    """Put `count` finished subjects into the store, each with photos, a consent and values of its own."""
    project = read_project(PROJECT)
    for number in range(count):
        subject = f"s-{number:05d}"
        chosen = CHOICES.model_copy(update={"values": {"train.seed": number}})
        photos = folder / "inbox" / subject / "photos"
        photos.mkdir(parents=True)
        for photo in range(PHOTOS):
            (photos / f"{photo}.jpg").write_bytes(bytes(1000))
        consent = photos.parent / "consent.yaml"
        consent.write_text(yaml.safe_dump(AGREED))
        state = State(
            version=1,
            writer="benchmark",
            choices=chosen,
            sources={"photos": source(str(photos)), "consent": source(str(consent))},
            inputs={},
            lock=yaml.safe_dump({"stages": locked(project, chosen)}),
            consent=Consent(**AGREED),
        )
        path = store.root / state_key(subject)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(state.model_dump_json())


def scanned(count: int) -> None:
    """Print what one scan costs in this process."""
    settings = from_environment()
    store, project, calls = open_store(settings.store), read_project(PROJECT), []
    if isinstance(store, S3Store):
        store.client.meta.events.register("before-call.s3", lambda **_: calls.append(1))
    before, begun = psutil.Process().memory_info().rss, time.perf_counter()
    found = scan_all(settings, store, project, TODAY)
    taken_s = time.perf_counter() - begun
    assert len(found) == count and {each.verdict for each in found} == {"unchanged"}
    (peak,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    grown = int(peak.split()[1]) * 1024 - before
    peak_mb, grown_mb = int(peak.split()[1]) / 1e3, grown / 1e6
    print(
        json.dumps(
            {"s": round(taken_s, 2), "peak MB": round(peak_mb), "grown MB": round(grown_mb, 1), "requests": len(calls)}
        )
    )


def serve(folder: Path) -> None:
    """Serve a folder's files as a bucket until killed."""
    import boto3
    from moto.s3.models import s3_backends
    from werkzeug.serving import make_server

    from tests.tasks.faults import moto

    die_with_parent()
    server = make_server("127.0.0.1", 0, moto(), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    boto3.client("s3", endpoint_url=address).create_bucket(Bucket="benchmark")
    (backend,) = [each["global"] for each in s3_backends.values() if "benchmark" in each["global"].buckets]
    for path in filter(Path.is_file, folder.rglob("*")):
        backend.put_object("benchmark", f"project/{path.relative_to(folder).as_posix()}", path.read_bytes())
    print(address, flush=True)
    threading.Event().wait()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a bucket with a folder's files, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.scan", "serve", str(folder)]
    errors = {"stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **KEYS}, **errors) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.kill()


def retrained(count: int, settings: Settings) -> None:
    """Print the seconds of the flow."""
    from prefect.testing.utilities import prefect_test_harness

    from flows.__main__ import QUIET
    from flows.retrain import retrain
    from flows.spec import RetrainSpec

    with pytest.MonkeyPatch.context() as environment, prefect_test_harness(server_startup_timeout=300):
        for name, value in {**QUIET, "ZIMAGE_STORE": settings.store}.items():
            environment.setenv(name, value)
        for which in ("first", "next"):
            begun = time.perf_counter()
            assert retrain(RetrainSpec(only_look=True)) == {"unchanged": count}
            print(f"flow, {count} unchanged subjects, {which}: {time.perf_counter() - begun:.1f} s")


def main() -> None:
    """Print what a kind of scan costs for each number of subjects."""
    kind, *counts = sys.argv[1:]
    if kind == "serve":
        return serve(Path(counts[0]))
    if kind == "scan":
        return scanned(int(counts[0]))
    for count in map(int, counts):
        with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
            folder = Path(name)
            finished(count, folder, FolderStore(folder / "store"))
            environment = {**os.environ, **KEYS, "ZIMAGE_WORKSPACES": f"{name}/workspaces"}
            if kind == "flow":
                return retrained(count, Settings(PROJECT, folder / "workspaces", f"{name}/store"))
            if kind == "s3":
                environment["AWS_ENDPOINT_URL_S3"] = stack.enter_context(served(folder / "store"))
            environment["ZIMAGE_STORE"] = BUCKET if kind == "s3" else f"{name}/store"
            for which in ("first", "next"):
                command = [sys.executable, "-m", "tests.benchmarks.scan", "scan", str(count)]
                told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
                print(f"{kind}, {count} unchanged subjects, {which}: {told.strip()}", flush=True)
    return None


if __name__ == "__main__":
    main()
