"""Hundreds of changed subjects at once: `retrain` on a whole stack, and how much memory all of it has meanwhile.

A real server on PostgreSQL, the watch, a worker for each pool. One subject is run from its photos; the others get a
copy of its results and a consent of their own, and their photos count as changed, so that `retrain` starts all of them
and each runs `ingest` again. Every `--whole`th has no result, and runs all stages. Every 10 s a line is written with
the memory of all processes of the stack (PSS, in MB), how many processes there are, and how many runs are in which
state.

python -m tests.campaigns.many_subjects SUBJECTS [--minutes M] [--whole 25] [--folder DIR]
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil

from flows.server.processes import started
from flows.server.stack import worker
from tasks.settings import PROJECT, personalize_at_once
from tasks.transfer.state import State, state_key
from tasks.workspace.sources import Source, source
from tests.campaigns.kills import SMALLEST, environment, tell
from tests.flows.stack_parts import Api, asked, consent, server, until
from tests.ports import free_port
from tests.tiny_base import write_tiny_base

LOOK_EVERY_S = 10.0
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}
NOTHING_RUN = "schema: '2.0'\nstages: {}\n"  # dvc.lock
PAGE = 200  # runs that one request gives at most


@dataclass
class Seen:
    """What was seen of a stack over its time.

    Args:
        folder: Where memory.txt is written.
        api: Of the server.
    """

    folder: Path
    api: Api
    peak_mb: float = 0.0
    most_runs: int = 0
    rows: list[tuple[float, float]] = field(default_factory=list)

    def look(self) -> Counter[str]:
        """Write a line of memory.txt, and return how many `personalize` are in which state."""
        processes = psutil.Process().children(recursive=True)
        memory_mb = sum(map(_pss_mb, processes))
        states = Counter(run["state"]["type"] for run in self.runs())
        self.peak_mb, self.most_runs = max(self.peak_mb, memory_mb), max(self.most_runs, states["RUNNING"])
        self.rows.append((time.monotonic(), memory_mb))
        with (self.folder / "memory.txt").open("a") as file:
            told = " ".join(f"{name} {count}" for name, count in sorted(states.items()))
            file.write(f"{time.strftime('%H:%M:%S')} {memory_mb:.0f} MB, {len(processes)} processes, {told}\n")
        return states

    def runs(self) -> list[dict[str, Any]]:
        """All runs of `personalize`, in the order in which they were made."""
        found: list[dict[str, Any]] = []
        while True:
            page = {"flows": {"name": {"any_": ["personalize"]}}, "sort": "ID_DESC", "offset": len(found)}
            some = self.api.post("/flow_runs/filter", page)
            found += some
            if len(some) < PAGE:
                return sorted(found, key=lambda run: str(run["created"]))


def _pss_mb(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.Error, OSError):
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) * 1024 / 1e6
    return 0.0


def copied(folder: Path, first: str, subjects: list[str], *, whole: int) -> None:
    """Give subjects the results of the first, photos that count as changed, and consents of their own."""
    store = folder / "store"
    state = State.model_validate_json((store / state_key(first)).read_text())
    for number, subject in enumerate(subjects):
        agreed = consent(folder, subject)
        changes: dict[str, Any] = {
            "sources": {
                "photos": Source(address=state.sources["photos"].address, seen="another look"),
                "consent": source(agreed),
            },
            "consent": state.consent.model_copy(update={"pseudonym": subject}) if state.consent else None,
        }
        if number % whole == 0:
            changes |= {"lock": NOTHING_RUN, "inputs": {}}
        else:
            below = store / "subjects"
            shutil.copytree(below / first / "dvc", below / subject / "dvc", copy_function=os.link)
        (store / state_key(subject)).write_text(state.model_copy(update=changes).model_dump_json())


def main() -> int:
    """Run until all have ended or the time is over; return 1 unless all are completed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", type=int)
    parser.add_argument("--minutes", type=float, default=24 * 60.0, help="until all is ended")
    parser.add_argument("--whole", type=int, default=25, help="every how many have no result yet")
    parser.add_argument("--folder", type=Path, default=None, help="what all is written into; else a new one")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing outlives it
    folder = (given.folder or Path(tempfile.mkdtemp(prefix="many-"))).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    api = Api(f"http://127.0.0.1:{port}/api")
    os.environ |= {
        **environment(folder, api),
        "PREFECT_WORKER_QUERY_SECONDS": "2",
    }
    spec = asked(folder, write_tiny_base(folder / "base"))
    spec |= {"values": [*spec["values"], *(f"{key}={json.dumps(value)}" for key, value in SMALLEST.items())]}
    ends_at = time.monotonic() + 60 * given.minutes
    tell(f"everything in {folder}; {personalize_at_once()} personalize at once")
    with ExitStack() as stack:
        stack.enter_context(server(folder / "prefect", port))
        until("the server", lambda: httpx.get(f"{api.address}/health").is_success, 600)
        subprocess.run([sys.executable, "-m", "flows", "deploy"], cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)
        parts = {"watch": ["watch"], "cpu": worker("cpu", name="cpu"), "gpu": worker("gpu", name="gpu", limit=1)}
        for name, each in parts.items():
            stack.enter_context(started(each, folder / f"{name}.log"))
        first = api.run("personalize", {"subject": "first", **spec, "consent": consent(folder, "first")})
        tell(f"the first: {api.ended(first, within_s=3600)}")
        subjects = [f"s{number:03d}" for number in range(given.subjects)]
        copied(folder, "first", subjects, whole=given.whole)
        seen, begun = Seen(folder, api), time.monotonic()
        seen.look()
        tell(f"retrain: {api.ended(api.run('retrain', {}), within_s=3600)}")
        states = seen.look()
        while sum(states[each] for each in ENDED) < given.subjects + 1 and time.monotonic() < ends_at:
            time.sleep(LOOK_EVERY_S)
            with contextlib.suppress(httpx.TransportError):
                states = seen.look()
        runs = seen.runs()
        tell(f"after {time.monotonic() - begun:.0f} s: {dict(states)}")
    return summarise(seen, runs, given.subjects)


def summarise(seen: Seen, runs: list[dict[str, Any]], wanted: int) -> int:
    """Print what was seen, and return 1 unless all runs are completed."""
    begun = [run for run in runs if run["start_time"]]
    starts = [str(run["start_time"]) for run in begun]
    later = sum(after < before for before, after in pairwise(starts))
    completed = sum(run["state"]["type"] == "COMPLETED" for run in runs) - 1
    print(f"{completed} of {wanted} completed; at most {seen.most_runs} personalize running at a time")
    print(f"{later} of {len(begun)} began before one that was made earlier")
    quarter = max(1, len(seen.rows) // 4)
    peaks = [max(mb for _, mb in seen.rows[at : at + quarter]) for at in range(0, len(seen.rows), quarter)]
    print(f"memory of all processes of the stack: peak {seen.peak_mb:.0f} MB; by quarters of the time", end=" ")
    print(", ".join(f"{each:.0f}" for each in peaks))
    return 0 if completed == wanted else 1


if __name__ == "__main__":
    sys.exit(main())
