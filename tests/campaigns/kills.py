"""SIGKILL for any part of a whole stack, again and again: nothing may be lost, stuck, or released twice.

A real server on SQLite, the watch, a worker for each pool, and a `personalize` that publishes for each subject at once.
Rounds differ in the seed of training, so that each has to make one new release of each subject. The seed chooses
what is killed; one kill in ten waits until a run is PENDING. No flow of a subject is hit so often that a limit of
`tasks/policy.py` may end its run, so that every run has to be completed.

python -m tests.campaigns.kills KILLS SEED [--minutes M] [--subjects N] [--folder DIR]
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from flows.__main__ import LASTING, QUIET
from flows.server import postgres
from flows.server.processes import MARK, started
from tasks.settings import PROJECT
from tasks.transfer.state import state_key
from tests.flows.stack_parts import Api, asked, consent, until
from tests.ports import free_port
from tests.tiny_base import write_tiny_base

SMALLEST = {
    "train.steps": 4,
    "train.checkpoint_every": 2,
    "train.samples": None,
    "evaluate.second_engine": None,
    "evaluate.gate.second_engine_rate_min": None,
}
HITS = {"personalize": 3, "prepare": 2, "learn": 3, "publish": 2}  # in a round; more would end a run (tasks/policy.py)
SEEDS_FROM = 1000  # of training, one more in each round
PENDING_SHARE = 0.1
STUCK_AFTER_S = 900.0  # since the last kill
SETTLES_WITHIN_S = 300.0
KINDS = {  # what is killed, and how often among those that do not wait for a PENDING run
    "run": 45,  # the process of one run, with all below it; its worker lives
    "worker": 10,  # a worker alone; its runs notice that and end a little later (Prefect 3.9.1)
    "worker and runs": 12,  # a machine
    "server": 20,
    "watch": 8,
    "everything": 5,  # a power cut
}
HARMLESS = {"server", "watch"}
POOLS = ["cpu", "gpu"]
UNDISTURBED_S = 60.0  # between two ends of server or watch: whoever looks again gives each run its whole time again


@dataclass
class Part:
    """A process of the stack with all it has started."""

    command: list[str]
    pid: int = 0
    mark: str = ""  # of this process and all below it; "" while there is none
    stack: ExitStack = field(default_factory=ExitStack)


@dataclass
class Stack:
    """All parts, each of which can be killed and started again."""

    folder: Path
    api: Api
    parts: dict[str, Part]
    marks: set[str] = field(default_factory=set)

    def start(self, *names: str) -> None:
        for name in names:
            part = self.parts[name]
            process = part.stack.enter_context(started(part.command, self.folder / f"{name}.log"))
            part.pid = process.pid
            part.mark = until("its environment", lambda: _mark(psutil.Process(process.pid)))  # noqa: B023
            self.marks.add(part.mark)
            if name == "server":
                until("the server", lambda: httpx.get(f"{self.api.address}/health").is_success, 120)

    def kill(self, names: list[str], *, with_runs: bool) -> None:
        """Kill parts at once, first those that would notice the end of others."""
        tops = [psutil.Process(self.parts[name].pid) for name in names]
        marks = {self.parts[name].mark for name in names}
        below = [each for each in psutil.process_iter() if with_runs and _mark(each) in marks]
        _kill([*tops, *below])
        for name in names:
            part = self.parts[name]
            os.waitid(os.P_PID, part.pid, os.WEXITED | os.WNOWAIT)
            part.stack.close()  # finds nothing to end: orphans are found by the mark of a living process
            part.mark = ""

    def runs(self) -> dict[str, psutil.Process]:
        """The processes of flow runs, by the id of the run."""
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                run = process.environ().get("PREFECT__FLOW_RUN_ID")
                parent = process.parent()
                if run and not (parent and parent.environ().get("PREFECT__FLOW_RUN_ID")):
                    found[run] = process
        return found


def _about(run: dict[str, Any]) -> tuple[str, str]:
    """The subject and the flow of a run; `personalize` has a random name until its flow begins."""
    flow = str(run["name"]).split()[0]
    return str(run["parameters"].get("spec", {}).get("subject", "")), flow if flow in HITS else "personalize"


def _mark(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return str(process.environ().get(MARK, ""))
    return ""


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)


@dataclass
class Campaign:
    """What was done and seen."""

    stack: Stack
    chance: random.Random
    wanted: int
    ends_at: float
    subjects: list[str]
    kills: Counter[str] = field(default_factory=Counter)
    hit: Counter[str] = field(default_factory=Counter)
    took_s: list[float] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    rounds: int = 0
    undisturbed_until: float = 0.0

    @property
    def is_over(self) -> bool:
        return bool(self.broken) or sum(self.kills.values()) >= self.wanted or time.monotonic() > self.ends_at

    def play(self, spec: dict[str, Any]) -> None:
        """One round: a run for each subject, kills while they work, and a look at what came of it."""
        begun = time.monotonic()
        first = self.rounds == 0  # as it comes from the photos; all others train, evaluate and publish
        values = [*spec["values"], f"train.seed={SEEDS_FROM + self.rounds}"]
        asked_first = {**spec, "values": values}
        asked_later = {"placement": "pools", "values": values, "publish": "provisional"}
        runs = {}
        for subject in self.subjects:
            more = {"consent": consent(self.stack.folder, subject)} if first else {}
            runs[subject] = self.stack.api.run(
                "personalize", {"subject": subject, **(asked_first if first else asked_later), **more}
            )
        hits: Counter[tuple[str, str]] = Counter()  # by subject and flow
        next_kill = time.monotonic() + self.chance.uniform(1, 10)
        last_kill = begun
        while open_runs := [subject for subject, run in runs.items() if not self._ended(run)]:
            if time.monotonic() - last_kill > STUCK_AFTER_S:
                self.broken.append(f"round {self.rounds}: stuck: {self._states(runs)}")
                return
            if time.monotonic() > next_kill and not self.is_over:
                before = sum(self.kills.values())
                self._hurt(hits, open_runs)
                if sum(self.kills.values()) > before:
                    last_kill = time.monotonic()
                next_kill = time.monotonic() + self.chance.uniform(2, 10)
            time.sleep(0.3)
        self._look(runs)
        self.took_s.append(time.monotonic() - begun)
        self.rounds += 1
        kills = sum(self.kills.values())
        tell(f"round {self.rounds}: {self._states(runs)} in {self.took_s[-1]:.0f} s, {kills} kills so far")

    def _hurt(self, hits: Counter[tuple[str, str]], open_runs: list[str]) -> None:
        kind = (
            "pending" if self.chance.random() < PENDING_SHARE else self.chance.choices([*KINDS], [*KINDS.values()])[0]
        )
        spared = {
            (subject, flow) for subject in self.subjects for flow, most in HITS.items() if hits[subject, flow] >= most
        }
        pool = self.chance.choice(["cpu", "gpu", "gpu"])  # most runs are below the first: its end hits all at once
        hit = self._below([pool] if kind.startswith("worker") else POOLS, open_runs)
        if kind not in HARMLESS | {"run", "pending"} and spared & hit:
            kind = "run"
        if kind in {"server", "watch", "everything"}:
            if time.monotonic() < self.undisturbed_until:
                return
            self.undisturbed_until = time.monotonic() + UNDISTURBED_S
        match kind:
            case "run":
                found = self._working(open_runs, spared)
                if not found:
                    return
                run, about = self.chance.choice(sorted(found.items()))
                process = self.stack.runs().get(run)
                if process is None:
                    return
                _kill(_tree(process))
                struck = {about}
            case "pending":
                pool = self._pool_with_pending()
                struck = self._below([pool], open_runs) if pool else set()
                if not pool or spared & struck:
                    return
                self.stack.kill([pool], with_runs=True)
                self.stack.start(pool)
            case "worker" | "worker and runs":
                self.stack.kill([pool], with_runs=kind == "worker and runs")
                struck = hit
                self.stack.start(pool)
            case "everything":
                names = list(self.stack.parts)
                self.stack.kill(names, with_runs=True)
                struck = hit
                self.stack.start(*names)
            case _:
                self.stack.kill([kind], with_runs=True)
                struck = set()
                self.stack.start(kind)
        hits.update(struck)
        self.kills[kind] += 1
        self.hit[kind] += len(struck)
        names = [f"{flow} {subject}" for subject, flow in sorted(struck)]
        tell(f"  kill {sum(self.kills.values())}: {kind} ({', '.join(names) or 'no run'})")

    def _working(self, open_runs: list[str], spared: set[tuple[str, str]]) -> dict[str, tuple[str, str]]:
        """The runs under way that may be hit, and whom and what each is about."""
        running = self._filtered({"state": {"type": {"any_": ["RUNNING"]}}})
        found = {str(run["id"]): _about(run) for run in running}
        return {run: about for run, about in found.items() if about[0] in open_runs and about not in spared}

    def _below(self, pools: list[str], open_runs: list[str]) -> set[tuple[str, str]]:
        """What the workers of some pools have under way, or are about to: the subject and the flow."""
        at_work = self._filtered({"state": {"type": {"any_": ["RUNNING", "PENDING"]}}})
        found = {_about(run) for run in at_work if run["work_pool_name"] in pools}
        return {about for about in found if about[0] in open_runs}

    def _pool_with_pending(self) -> str:
        """The pool of a run that is PENDING, as soon as there is one; "" if there is none for long."""
        until_s = time.monotonic() + 30
        while time.monotonic() < until_s:
            if found := self._filtered({"state": {"type": {"any_": ["PENDING"]}}}):
                return str(found[0]["work_pool_name"])
            time.sleep(0.05)
        return ""

    def _filtered(self, of: dict[str, Any]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        with contextlib.suppress(httpx.TransportError):
            found = self.stack.api.post("/flow_runs/filter", {"flow_runs": of})
        return found

    def _ended(self, run: str) -> bool:
        with contextlib.suppress(httpx.TransportError):
            state = self.stack.api.state(run)
            return state["type"] in {"COMPLETED", "FAILED", "CANCELLED"}
        return False

    def _states(self, runs: dict[str, str]) -> str:
        return ", ".join(f"{subject} {self.stack.api.state(run)['name']}" for subject, run in runs.items())

    def _look(self, runs: dict[str, str]) -> None:
        """Look for what was lost or is stuck: every run is completed, nothing is under way, one release more each."""
        for subject, run in runs.items():
            state = self.stack.api.state(run)
            if state["name"] != "Completed":
                self.broken.append(f"round {self.rounds}: {subject} is {state['name']}: {state['message']}")
        under_way = ["RUNNING", "PENDING", "CANCELLING", "SCHEDULED", "PAUSED"]
        try:
            until(
                "the end of all", lambda: not self._filtered({"state": {"type": {"any_": under_way}}}), SETTLES_WITHIN_S
            )
        except AssertionError:
            left = self._filtered({"state": {"type": {"any_": under_way}}})
            stuck = [f"{run['name']} {run['state']['name']}" for run in left]
            self.broken.append(f"round {self.rounds}: still under way: {stuck}")
        for subject in self.subjects:
            self.broken += [f"round {self.rounds}: {subject}: {each}" for each in self._wrong_releases(subject)]

    def _wrong_releases(self, subject: str) -> Iterator[str]:
        """What is wrong with the releases of a subject, of which each round has to have made one."""
        store = self.stack.folder / "store"
        folder, state = store / "subjects" / subject, store / state_key(subject)
        manifests = sorted(folder.glob("releases/*/manifest.json"))
        if len(manifests) != self.rounds + 1:
            yield f"{len(manifests)} releases after {self.rounds + 1} rounds"
        for manifest in manifests:
            for file in json.loads(manifest.read_text())["files"]:
                path = manifest.parent / file["name"]
                if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != file["sha256"]:
                    yield f"{path} is not what its manifest says"
        if not state.is_file():
            yield "there is no state"
        elif f"seed: {SEEDS_FROM + self.rounds}\n" not in json.loads(state.read_text())["lock"]:
            yield "the state is not that of the last round"


def _tree(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return []


def tell(line: str) -> None:
    """Print with the time."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def environment(folder: Path, api: Api) -> dict[str, str]:
    """Return the variables of a campaign's stack, which writes everything into `folder`."""
    return {
        **QUIET,
        **LASTING,
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": api.address,
        "PYTHONPATH": str(PROJECT),
        "ZIMAGE_STORE": str(folder / "store"),
        "ZIMAGE_WORKSPACES": str(folder / "workspaces"),
        "OMP_NUM_THREADS": "1",
        "ZIMAGE_PROCESSES": "1",  # what is tried is what happens around the stages
    }


def main() -> int:
    """Play rounds until there were enough kills; return 1 if anything was lost, stuck or released twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", type=int)
    parser.add_argument("seed", type=int)
    parser.add_argument("--minutes", type=float, default=24 * 60.0, help="no kill after that; the round is ended")
    parser.add_argument("--subjects", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="what all is written into; else a new one")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing outlives it
    folder = (given.folder or Path(tempfile.mkdtemp(prefix="kills-"))).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    api = Api(f"http://127.0.0.1:{port}/api")
    os.environ |= {
        **environment(folder, api),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "ZIMAGE_LOST_AFTER_S": "75",  # every 30 s; one sent as the server dies comes with the next
        "ZIMAGE_PENDING_S": "60",
        "ZIMAGE_AT_ONCE": str(given.subjects),
    }
    tell(f"seed {given.seed}, everything in {folder}")
    base = write_tiny_base(folder / "base")
    spec = asked(folder, base)
    smallest = [f"{key}={json.dumps(value)}" for key, value in SMALLEST.items()]
    spec |= {"values": [*spec["values"], *smallest], "publish": "provisional"}
    stack = Stack(
        folder,
        api,
        {
            "server": Part(["server", "--host", "127.0.0.1", "--port", str(port)]),
            "watch": Part(["watch"]),
            "cpu": Part(["worker", "start", "--pool", "cpu", "--type", "process", "--name", "cpu"]),
            "gpu": Part(["worker", "start", "--pool", "gpu", "--type", "process", "--name", "gpu", "--limit", "2"]),
        },
    )
    campaign = Campaign(
        stack,
        random.Random(given.seed),
        given.kills,
        time.monotonic() + 60 * given.minutes,
        [f"s{number}" for number in range(given.subjects)],
    )
    database = ExitStack()
    running = postgres.running(folder / "postgres", folder / "postgres.log", template=postgres.migrated())
    os.environ["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = database.enter_context(running).address
    try:
        stack.start("server")
        subprocess.run([sys.executable, "-m", "flows", "deploy"], cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)
        stack.start("watch", "cpu", "gpu")
        while not campaign.is_over:
            campaign.play(spec)
    finally:
        stack.kill([name for name, part in stack.parts.items() if part.mark], with_runs=True)
        _kill([each for each in psutil.process_iter() if _mark(each) in stack.marks])  # orphans
        database.close()
    summarise(campaign)
    return 1 if campaign.broken else 0


def summarise(campaign: Campaign) -> None:
    """Print what was killed how often, and what did not hold."""
    print(f"\n{'killed':<18}{'times':>6}{'runs hit':>10}")
    for kind, times in sorted(campaign.kills.items()):
        print(f"{kind:<18}{times:>6}{campaign.hit[kind]:>10}")
    print(f"{'all':<18}{sum(campaign.kills.values()):>6}{sum(campaign.hit.values()):>10}")
    runs = campaign.rounds * len(campaign.subjects)
    print(f"\n{campaign.rounds} rounds, {runs} runs of personalize")
    if campaign.took_s:
        print(f"a round took {min(campaign.took_s):.0f} to {max(campaign.took_s):.0f} s")
    print("\n".join(campaign.broken) or "nothing was lost, nothing is stuck, one release of each subject in each round")


if __name__ == "__main__":
    sys.exit(main())
