"""What one build does in a process of its own, for `tests.benchmarks.scale`; run by path, with PYTHONPATH at the build.

`one_build.py states COUNT FOLDER`, `scan COUNT`, `releases WHAT COUNT`, `photos ALBUM FOLDER` print one JSON object.
It knows where the modules of 9ff2ff5 lie too, so no other module of this project is imported at its top.
"""

import contextlib
import datetime
import importlib
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

BLOCK_BYTES = 512  # of st_blocks
PSS_EVERY = 5  # looks
SUBJECT = "ada"
SEED = 987654321  # stands for the number of a subject
VALUES = {"subject.class_noun": "woman", "ingest.min_photos": 1, "detect.split.min_train": 2}
NAMES = {  # what is measured: where it lies now, and where it lay in 9ff2ff5
    "scan_all": ("tasks.transfer.staleness", ""),
    "read_project": ("tasks.transfer.staleness", "tasks.scan"),
    "open_store": ("tasks.store.s3", "tasks.storage"),
    "S3Store": ("tasks.store.s3", "tasks.storage"),
    "State": ("tasks.transfer.state", "tasks.handover"),
    "state_key": ("tasks.transfer.state", "tasks.handover"),
    "source": ("tasks.workspace.sources", "tasks.sources"),
    "locked": ("tests.tasks.transfer.test_staleness", "tests.tasks.test_scan"),
    "CHOICES": ("tests.tasks.transfer.test_staleness", "tests.tasks.test_scan"),
    "CONSENT": ("tests.tasks.transfer.test_staleness", "tests.tasks.test_scan"),
    "overview": ("tasks.prefect_api.artifacts", ""),
    "releases": ("tasks.store.releases", "tasks.release"),
    "promote": ("tasks.release.channels", "tasks.channels"),
    "empty": ("tasks.erasure.forget", "tasks.forget"),
    "set_up": ("tasks.workspace.subject", "tasks.subject"),
    "track": ("tasks.workspace.workspace", "tasks.workspace"),
    "bring_up_to_date": ("tasks.workspace.workspace", "tasks.workspace"),
}


def of_build(name: str) -> Any:
    """Return a function or class of the build on the path, wherever its module lies."""
    for module in filter(None, NAMES[name]):
        with contextlib.suppress(ModuleNotFoundError, AttributeError):
            return getattr(importlib.import_module(module), name)
    raise SystemExit(f"this build has no {name}")


def measured(work: Any, requests: list[int]) -> dict[str, Any]:
    """Return seconds, those of this process on a CPU, its peak, by how much it grew, and the requests of some work."""
    before, begun, begun_cpu = psutil.Process().memory_info().rss, time.perf_counter(), time.process_time()
    work()
    taken_s, cpu_s = time.perf_counter() - begun, time.process_time() - begun_cpu
    (line,) = (each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmHWM"))
    peak = int(line.split()[1]) * 1024
    return {
        **{"s": round(taken_s, 2), "CPU s": round(cpu_s, 2)},
        **{"peak MB": round(peak / 1e6), "grown MB": round((peak - before) / 1e6, 1)},
        "requests": len(requests),
    }


def opened() -> tuple[Any, Any, list[int]]:
    """Return settings and store of the environment, and what grows by one with each request."""
    settings = importlib.import_module("tasks.settings").from_environment()
    store, requests = of_build("open_store")(settings.store), list[int]()
    if isinstance(store, of_build("S3Store")):
        store.client.meta.events.register("before-call.s3", lambda **_: requests.append(1))
    return settings, store, requests


def write_states(count: int, inbox: Path, target: Path) -> dict[str, Any]:
    """Write states of subjects for which everything was run, as files that lie as the objects of a store do."""
    import yaml

    project = of_build("read_project")(importlib.import_module("tasks.settings").PROJECT)
    agreed = of_build("CONSENT") | {"expires": datetime.date(2999, 12, 31)}
    choices = of_build("CHOICES")

    def chosen(seed: int) -> Any:
        return choices.model_copy(update={"values": {**choices.values, "train.seed": seed}})

    lock = yaml.safe_dump({"stages": of_build("locked")(project, chosen(SEED))})
    for number in range(count):
        subject = f"s-{number:05d}"
        photos, consent = inbox / subject / "photos", inbox / subject / "consent.yaml"
        state = of_build("State")(
            version=1,
            writer="benchmark",
            choices=chosen(number),
            sources={"photos": of_build("source")(str(photos)), "consent": of_build("source")(str(consent))},
            inputs={},
            lock=lock.replace(str(SEED), str(number)),
            consent=agreed,
        )
        path = target / of_build("state_key")(subject)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(state.model_dump_json())
    return {}


def scan(count: int) -> dict[str, Any]:
    """Look at all subjects as `retrain` does."""
    settings, store, requests = opened()
    project = of_build("read_project")(settings.project)
    today = datetime.date(2026, 11, 23)
    found: list[Any] = []

    def look() -> None:
        try:
            scan_all = of_build("scan_all")
        except SystemExit:
            before = importlib.import_module("tasks.scan")
            subjects = before.subjects(store)
            found.extend(before.scan(settings, store, project, subject, today) for subject in subjects)
        else:
            found.extend(scan_all(settings, store, project, today))

    told = measured(look, requests)
    with contextlib.suppress(SystemExit):
        overview = of_build("overview")
        before, begun = len(requests), time.perf_counter()
        overview(found, store)
        told["overview"] = {"s": round(time.perf_counter() - begun, 2), "requests": len(requests) - before}
    assert len(found) == count, len(found)
    assert {each.verdict for each in found} == {"unchanged"}, found[0]
    return told


def work_with_releases(what: str, count: int) -> dict[str, Any]:
    """List, promote or delete the releases of a subject."""
    _, store, requests = opened()
    releases, promote, empty = (of_build(name) for name in ("releases", "promote", "empty"))
    work = {
        "list": lambda: _expect(sum(1 for _ in releases(store, SUBJECT)), count),
        "promote": lambda: promote(store, SUBJECT, "staging"),
        "forget": lambda: empty(store, SUBJECT),
    }
    return measured(work[what], requests)


def _expect(found: int, count: int) -> None:
    assert found == count, found


def blocks(folder: Path) -> int:
    """Return the bytes on disk of a folder, each file once whatever its names."""
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        found[status.st_ino] = status.st_blocks * BLOCK_BYTES
    return sum(found.values())


class Peak(threading.Thread):
    """Looks every 50 ms how much memory a stage's process and its workers have."""

    def __init__(self, stage: str) -> None:
        super().__init__(daemon=True)
        self.stage, self.over = stage, threading.Event()
        self.own = self.worker = self.all = 0

    def run(self) -> None:
        """Look until `over`."""
        number = 0
        while not self.over.wait(0.05):
            number += 1
            with contextlib.suppress(psutil.Error):
                self._look(number)

    def _look(self, number: int) -> None:
        for process in self._found():
            workers = process.children(recursive=True)
            self.own = max(self.own, process.memory_info().rss)
            self.worker = max([self.worker, *(each.memory_info().rss for each in workers)])
            if number % PSS_EVERY == 0:
                self.all = max(self.all, sum(each.memory_full_info().pss for each in (process, *workers)))

    def _found(self) -> Iterator[psutil.Process]:
        """Yield the topmost process that runs the stage."""
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if "zimage" in words and self.stage in words and not words[0].endswith("sh"):
                    yield process
                    return


def _cpu_s_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def photos(album: Path, place: Path) -> dict[str, Any]:
    """Take over an album, and run ingest and detect on it."""
    settings = importlib.import_module("tasks.settings")
    where = settings.Settings(settings.PROJECT, place / "workspaces", str(place / "store"))
    agreed = importlib.import_module("tests.agreed").agreed(place, SUBJECT)
    values: dict[str, Any] = dict(VALUES)
    if "same_shot" in (settings.PROJECT / "params.yaml").read_text():
        values["detect.duplicates.same_shot"] = None  # views of one portrait
    workspace = of_build("set_up")(where, SUBJECT, photos=str(album), consent=str(agreed), values=values)
    of_build("track")(workspace, ["data/photos", "data/consent.yaml"])
    told: dict[str, Any] = {}
    for stage in ("ingest", "detect"):
        peak = Peak(stage)
        peak.start()
        begun, begun_cpu = time.monotonic(), _cpu_s_of_children()
        of_build("bring_up_to_date")(workspace, stage, on_line=lambda _: None)
        told[stage] = {"s": round(time.monotonic() - begun, 1), "CPU s": round(_cpu_s_of_children() - begun_cpu, 1)}
        peak.over.set()
        peak.join()
        megabytes = {"parent MB": peak.own, "worker MB": peak.worker, "all MB (PSS)": peak.all}
        told[stage] |= {name: round(each / 1e6) for name, each in megabytes.items()}
    told |= {"workspace MB": round(blocks(workspace) / 1e6, 1)}
    sheet = workspace / "data" / "detect" / "contact_sheet.html"
    return told | {"contact sheet MB": round(sheet.stat().st_size / 1e6, 2)}


def main() -> None:
    """Do what the words ask for and print what it cost."""
    os.environ.setdefault("DVC_NO_ANALYTICS", "1")
    what, *words = sys.argv[1:]
    match what:
        case "states":
            told = write_states(int(words[0]), Path(words[1]), Path(words[2]))
        case "scan":
            told = scan(int(words[0]))
        case "releases":
            told = work_with_releases(words[0], int(words[1]))
        case _:
            told = photos(Path(words[0]), Path(words[1]))
    print(json.dumps(told))


if __name__ == "__main__":
    main()
