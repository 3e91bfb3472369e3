"""How long `retrain` looks at subjects that did not change: `python -m tests.benchmarks.scan 250 500 1000`.

The scan by itself, then the whole flow that only looks, on a Prefect server of its own that is up already; about a
second of the flow is the end of its heartbeats, however many subjects there are.
"""

import datetime
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from prefect.testing.utilities import prefect_test_harness

from flows.__main__ import QUIET
from flows.retrain import retrain
from flows.spec import RetrainSpec
from tasks.handover import State, state_key
from tasks.scan import read_project, scan, subjects
from tasks.settings import PROJECT, Settings, from_environment
from tasks.sources import source
from tasks.storage import FolderStore
from tests.tasks.test_scan import CHOICES, CONSENT, locked
from zimage.faces.consent import Consent

PHOTOS = 30
TODAY = datetime.date(2026, 11, 23)
AGREED = CONSENT | {"expires": datetime.date(2999, 12, 31)}  # the flow asks the clock


def finished(count: int, folder: Path, settings: Settings) -> None:
    """Put `count` finished subjects into the store, each with photos, a consent and values of its own."""
    store, project = FolderStore(Path(settings.store)), read_project(PROJECT)
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
        store.swap(state_key(subject), state.model_dump_json().encode(), None)


def scanned(count: int, settings: Settings) -> float:
    """Return the seconds of looking at all subjects, by the functions that the flow calls."""
    begun = time.perf_counter()
    store, project = FolderStore(Path(settings.store)), read_project(PROJECT)
    found = [scan(settings, store, project, subject, TODAY) for subject in subjects(store)]
    taken = time.perf_counter() - begun
    assert len(found) == count and {each.verdict for each in found if each} == {"unchanged"}
    return taken


def retrained(count: int) -> float:
    """Return the seconds of the flow."""
    begun = time.perf_counter()
    found = retrain(RetrainSpec(only_look=True))
    taken = time.perf_counter() - begun
    assert found == {"unchanged": count}
    return taken


def main() -> None:
    """Print the seconds of both for each number of subjects."""
    with pytest.MonkeyPatch.context() as environment, ExitStack() as stack:
        for name, value in QUIET.items():
            environment.setenv(name, value)
        stack.enter_context(prefect_test_harness(server_startup_timeout=300))
        for count in map(int, sys.argv[1:]):
            with tempfile.TemporaryDirectory() as folder:
                environment.setenv("ZIMAGE_WORKSPACES", f"{folder}/workspaces")
                environment.setenv("ZIMAGE_STORE", f"{folder}/store")
                settings = from_environment()
                finished(count, Path(folder), settings)
                by_itself, whole = scanned(count, settings), retrained(count)
            print(f"{count} unchanged subjects: scan {by_itself:.1f} s, retrain {whole:.1f} s")


if __name__ == "__main__":
    main()
