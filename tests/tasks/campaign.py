"""Publishes, promotions, rollbacks and forgettings, many at once, on a store that fails, with SIGKILL in between.

Each operation is a process of its own that does what the flows do; a reader looks on through a port without faults.
python -m tests.tasks.campaign OPERATIONS SEED [SECONDS]     prints what was done and broken, and promises not kept
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from tasks.erasure.forget import erase
from tasks.release.channels import channel, promote, rollback
from tasks.release.publish import publish as publish_task
from tasks.settings import PROJECT
from tasks.store.protocol import StoreError
from tasks.store.releases import described, fetch, manifest_of, release_key
from tasks.store.s3 import S3Store
from tasks.workspace.tombstones import Counts, Tombstone, admit, finish
from tasks.workspace.workspace import locked_workspace
from tests.tasks.finished import finished
from zimage.core.errors import InputError
from zimage.core.process import die_with_parent

BUCKET, PREFIX = "faces", "project"
SUBJECTS = [f"s-{number}" for number in range(8)]
KINDS = {"publish": 36, "promote": 44, "rollback": 12, "forget": 8}
HOLDING = {"publish", "forget"}
AT_ONCE = 6
KILLED_SHARE = 0.25
KILLED_WITHIN_S = 2.0
CROWDED_SHARE = 0.1  # of operations that need a workspace which may be held
FAULT_SHARE = 0.06
TRIES = 40
LOOKS_EVERY_S = 0.1
OK, REFUSED, FAILED = 0, 3, 4


@dataclass
class Operation:
    """One process at work."""

    kind: str
    subject: str
    pid: int
    answer: int
    kill_at: float | None
    sure: bool = True
    """No forgetting of the subject was under way while it worked."""


@dataclass
class Course:
    """What was done, and what was found; after `until` nothing more is begun."""

    until: float
    outcomes: Counter[str] = field(default_factory=Counter)
    broken_promises: list[str] = field(default_factory=list)
    published: dict[str, set[str]] = field(default_factory=lambda: {subject: set() for subject in SUBJECTS})


def store_at(port: int) -> S3Store:
    """The store as a process of its own sees it; the LoRA, of 17 kB, goes in parts."""
    os.environ["AWS_ENDPOINT_URL_S3"] = f"http://127.0.0.1:{port}"
    return replace(S3Store.connect(BUCKET, PREFIX), part_bytes=12_000, listing_lag_s=0.5)


def run(operations: int, seed: int, folder: Path, *, most_s: float = 1e9) -> dict[str, Any]:
    """Return what a campaign came to; after `most_s` it begins no more operations."""
    environment = {**os.environ, "S3_UPLOAD_PART_MIN_SIZE": "256", "MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": "1000000"}
    command = [sys.executable, "-m", "tests.tasks.faults", str(FAULT_SHARE), str(seed)]
    server = subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, text=True)
    with server:
        assert server.stdout is not None
        ports = json.loads(server.stdout.readline())
        clean = store_at(ports["clean"])
        clean.client.create_bucket(Bucket=BUCKET)
        clean.client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
        started = time.monotonic()
        course = Course(until=started + most_s)
        reader, seen = begin_reader(ports["clean"])
        work(course, operations, random.Random(seed), folder, ports["faulty"])
        os.kill(reader, signal.SIGTERM)
        os.waitpid(reader, 0)
        looks = Counter[str](json.loads(line)["saw"] for line in Path(seen).read_text().splitlines() if line)
        course.broken_promises += [what for what in looks if what.startswith("broken: ")]
        check_published(course, clean)
        forget_all(course, folder, ports["faulty"], clean)
        with urlopen(f"http://127.0.0.1:{ports['clean']}/faults") as answer:
            faults = json.loads(answer.read())
        server.kill()
    return {
        "operations": sum(count for what, count in course.outcomes.items() if " at the end" not in what),
        "seconds": round(time.monotonic() - started),
        "outcomes": dict(sorted(course.outcomes.items())),
        "faults": faults,
        "looks of the reader": {what: count for what, count in looks.items() if not what.startswith("broken: ")},
        "broken promises": course.broken_promises,
    }


def work(course: Course, operations: int, chance: random.Random, folder: Path, port: int) -> None:
    """Do operations, several at once, and kill some of them."""
    going: list[Operation] = []
    left = operations
    while left or going:
        left = left if time.monotonic() < course.until else 0
        while left and len(going) < AT_ONCE:
            kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
            subject = chosen(kind, going, chance)
            others = [each for each in going if each.subject == subject]
            operation = begin(kind, subject, chance.randrange(10**6), folder, port)
            if chance.random() < KILLED_SHARE:
                operation.kill_at = time.monotonic() + chance.uniform(0, KILLED_WITHIN_S)
            if kind == "forget":
                course.published[subject].clear()
                for other in others:
                    other.sure = False
            operation.sure = all(other.kind != "forget" for other in others)
            going.append(operation)
            left -= 1
        going = [operation for operation in going if not ended(operation, course)]
        time.sleep(0.005)


def chosen(kind: str, going: list[Operation], chance: random.Random) -> str:
    """Return whose turn it is; mostly somebody whose workspace is free, where it is needed."""
    busy = {each.subject for each in going if each.kind in HOLDING}
    crowded = kind not in HOLDING or chance.random() < CROWDED_SHARE
    return chance.choice(SUBJECTS if crowded else [each for each in SUBJECTS if each not in busy])


def begin(kind: str, subject: str, seed: int, folder: Path, port: int) -> Operation:
    """Start an operation as a process of its own."""
    answer, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(answer)
        code = FAILED
        try:
            die_with_parent()
            code, said = attempt(kind, subject, seed, folder, port)
            os.write(tell, said[:2000].encode())
        except BaseException as error:  # noqa: BLE001 - told, and judged by the parent
            os.write(tell, f"{type(error).__name__}: {error}"[:2000].encode())
            code = 5
        finally:
            os._exit(code)
    os.close(tell)
    return Operation(kind, subject, pid, answer, None)


def attempt(kind: str, subject: str, seed: int, folder: Path, port: int) -> tuple[int, str]:
    """Do one operation as its flow does."""
    store = store_at(port)
    try:
        match kind:
            case "publish":
                workspace = folder / subject
                with held_or_refused(workspace):
                    admit(store, subject, workspace)
                    finished(workspace, seed=seed % 4)
                    return OK, publish_task.fn(workspace, subject, store).name
            case "promote":
                return OK, promote(store, subject, "staging" if seed % 2 else "production").release
            case "rollback":
                return OK, rollback(store, subject, "staging" if seed % 2 else "production").release
            case _:
                with held_or_refused(folder / subject):
                    erase(store, folder / subject, subject, Counts())
                if not store.inventory(f"subjects/{subject}").is_empty:
                    return FAILED, "something is left"
                return OK, str(len(finish(store, subject).forgotten))
    except InputError as error:
        return REFUSED, str(error)
    except (StoreError, OSError) as error:
        return FAILED, str(error)


@contextlib.contextmanager
def held_or_refused(workspace: Path) -> Any:
    """Hold a workspace as the flows do; where a forgetting takes it away in between, the flow fails."""
    with locked_workspace(workspace):
        yield


def ended(operation: Operation, course: Course) -> bool:
    """Return whether an operation has ended, and note how."""
    if operation.kill_at is not None and time.monotonic() >= operation.kill_at:
        with contextlib.suppress(ProcessLookupError):
            os.kill(operation.pid, signal.SIGKILL)
        operation.kill_at = None
    pid, status = os.waitpid(operation.pid, os.WNOHANG)
    if pid == 0:
        return False
    with os.fdopen(operation.answer) as answer:
        said = answer.read()
    code = os.waitstatus_to_exitcode(status)
    how = {OK: "done", REFUSED: "refused", FAILED: "failed", -signal.SIGKILL: "killed"}.get(code, "crashed")
    course.outcomes[f"{operation.kind} {how}"] += 1
    if how == "crashed":
        course.broken_promises.append(f"{operation.kind} of {operation.subject} crashed: {said}")
    if how == "done" and operation.kind == "publish" and operation.sure:
        course.published[operation.subject].add(said)
    return True


def begin_reader(port: int) -> tuple[int, str]:
    """Start a process that reads what the channels point to, all the time."""
    path = tempfile.mkstemp()[1]
    pid = os.fork()
    if pid == 0:
        try:
            read_all_the_time(port, Path(path))
        except BaseException as error:  # noqa: BLE001 - told, and judged by the parent
            with Path(path).open("a") as file:
                file.write(json.dumps({"saw": f"broken: the reader crashed: {error!r}"}) + "\n")
        finally:
            os._exit(1)
    return pid, path


def read_all_the_time(port: int, path: Path) -> None:
    """Follow pointers and write down what was found, until told to end."""
    die_with_parent()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    store, chance = store_at(port), random.Random(0)
    with path.open("a", buffering=1) as file:
        while True:
            saw = look(store, chance.choice(SUBJECTS), chance.choice(("staging", "production")))
            file.write(json.dumps({"saw": saw}) + "\n")
            time.sleep(LOOKS_EVERY_S)


def look(store: S3Store, subject: str, name: Any) -> str:
    """Follow a pointer as a reader does, and return what was found."""
    pointer = channel(store, subject, name)
    if pointer is None:
        return "no pointer"
    fault = fault_of(store, subject, pointer.release)
    if fault is None:
        return "a whole release"
    if channel(store, subject, name) != pointer:
        return "moved or forgotten meanwhile"
    return f"broken: {name} of {subject} points to {pointer.release}: {fault}"


def fault_of(store: S3Store, subject: str, release: str) -> str | None:
    """Return what is wrong with a release that is pointed to, by name, size and hash of every file."""
    manifest = manifest_of(store, subject, release)
    if manifest is None:
        return "it has no manifest"
    with tempfile.TemporaryDirectory() as temporary:
        for file in manifest.files:
            target = Path(temporary) / "file"
            try:
                store.get(f"{release_key(subject, release)}/{file.name}", target)
            except InputError:
                return f"{file.name} is missing"
            if described(file.name, target) != file:
                return f"{file.name} is damaged"
    return None


def check_published(course: Course, clean: S3Store) -> None:
    """Note each release that was told to be published, was not forgotten since, and is not there whole."""
    with tempfile.TemporaryDirectory() as temporary:
        for subject, names in course.published.items():
            for name in names:
                course.outcomes["releases checked at the end"] += 1
                try:
                    fetch(clean, subject, name, Path(temporary) / subject / name)
                except InputError as error:
                    course.broken_promises.append(f"lost: {error}")


def forget_all(course: Course, folder: Path, port: int, clean: S3Store) -> None:
    """Forget everybody, each until a forgetting says that it is done, and note what is left."""
    for subject in SUBJECTS:
        done = course.outcomes["forget done"]
        for _ in range(TRIES):
            operation = begin("forget", subject, 0, folder, port)
            while not ended(operation, course):
                time.sleep(0.005)
            if course.outcomes["forget done"] > done:
                break
        found = clean.read(f"tombstones/{_hash(subject)}.json")
        if not (found and Tombstone.model_validate_json(found.content).forgotten[-1].finished_at):
            course.broken_promises.append(f"the tombstone of {subject} is not finished")
    if not clean.inventory("subjects").is_empty:
        course.broken_promises.append(f"not forgotten: {clean.inventory('subjects')}, {clean.keys('subjects')[:5]}")
    if len(clean.keys("tombstones")) != len(SUBJECTS):
        course.broken_promises.append(f"tombstones: {clean.keys('tombstones')}")
    if any((folder / subject).exists() for subject in SUBJECTS):
        course.broken_promises.append("a workspace is left")


def _hash(subject: str) -> str:
    import hashlib

    return hashlib.sha256(subject.encode()).hexdigest()


if __name__ == "__main__":
    os.environ.update(AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret", AWS_DEFAULT_REGION="us-east-1")
    with tempfile.TemporaryDirectory() as place:
        limit = float(sys.argv[3]) if len(sys.argv) > 3 else 1e9
        print(json.dumps(run(int(sys.argv[1]), int(sys.argv[2]), Path(place), most_s=limit), indent=2))
