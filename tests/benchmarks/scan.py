"""How long `retrain` looks at subjects that did not change: `python -m tests.benchmarks.scan 250 500 1000`."""

import datetime
import sys
import tempfile
import time
from pathlib import Path

import yaml

from tasks.handover import State, state_key
from tasks.scan import read_project, scan, subjects
from tasks.settings import PROJECT, Settings
from tasks.sources import source
from tasks.storage import FolderStore
from tests.tasks.test_scan import CHOICES, CONSENT, locked

PHOTOS = 30
TODAY = datetime.date(2026, 11, 23)


def measured(count: int, folder: Path) -> float:
    """Return the seconds for `count` finished subjects, each with photos, a consent and values of its own."""
    settings = Settings(project=PROJECT, workspaces=folder / "workspaces", store=str(folder / "store"))
    store, project = FolderStore(folder / "store"), read_project(PROJECT)
    for number in range(count):
        subject = f"s-{number:05d}"
        chosen = CHOICES.model_copy(update={"values": {"train.seed": number}})
        photos = folder / "inbox" / subject / "photos"
        photos.mkdir(parents=True)
        for photo in range(PHOTOS):
            (photos / f"{photo}.jpg").write_bytes(bytes(1000))
        consent = photos.parent / "consent.yaml"
        consent.write_text(yaml.safe_dump(CONSENT))
        state = State(
            version=1,
            writer="benchmark",
            choices=chosen,
            sources={"photos": source(str(photos)), "consent": source(str(consent))},
            inputs={},
            lock=yaml.safe_dump({"stages": locked(project, chosen)}),
        )
        store.swap(state_key(subject), state.model_dump_json().encode(), None)
    begun = time.perf_counter()
    project = read_project(PROJECT)
    found = [scan(settings, store, project, subject, TODAY) for subject in subjects(store)]
    taken = time.perf_counter() - begun
    assert len(found) == count and {each.verdict for each in found if each} == {"unchanged"}
    return taken


def main() -> None:
    for count in map(int, sys.argv[1:]):
        with tempfile.TemporaryDirectory() as folder:
            print(f"{count} unchanged subjects: {measured(count, Path(folder)):.1f} s")


if __name__ == "__main__":
    main()
