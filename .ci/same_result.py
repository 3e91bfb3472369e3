"""Compare what another commit and the working tree make of the demo: every output file, and the loss of every step.

Run with: make same-result BASE=<commit>
Both trees are copied into a temporary folder and run there, one after the other, with this interpreter and the seeds
of their own params.yaml: the commands of data/dvc.yaml and dvc.yaml in their order, without DVC, so nothing is cached.
A refactoring may change no bit of any output. The exit code is 0 if none changed, 1 if one did, and 2 if a tree could
not be run. These facts of a run are left out of the comparison, and nothing else:

- `data/train/tensorboard/`: event files hold wall-clock times; loss.csv holds the same numbers without them;
- `steps_per_s` and `peak_memory_gb` of `data/train/metrics.json`;
- the fingerprint of the code, which each LoRA names as `zimage.code`, and the SHA-256 of each LoRA, which the
  evaluation names: a LoRA counts as equal if its tensors and the rest of its metadata are.
"""

import argparse
import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

TRAIN = "data/train"
EVENTS = f"{TRAIN}/tensorboard/"
LOSSES = f"{TRAIN}/loss.csv"
TIMES = {f"{TRAIN}/metrics.json": ("steps_per_s", "peak_memory_gb")}
CODE = "zimage.code"  # a key of a LoRA's metadata
CHANGED, NOT_RUN = 1, 2  # exit codes
LOG_LINES = 15  # of a failed command


class NotRunError(Exception):
    """A tree could not be run; the message says why."""


def unpack(commit: str, folder: Path) -> None:
    """Write the files of a commit of this repository into a new folder.

    Raises:
        NotRunError: there is no such commit.
    """
    archive = folder.with_suffix(".tar")
    done = subprocess.run(
        ["git", "archive", "--output", str(archive), commit], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise NotRunError(f"There is no commit `{commit}` here ({done.stderr.strip()}); give one with BASE=<commit>.")
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    archive.unlink()


def copy_working_tree(folder: Path) -> None:
    """Copy the files of the working tree that git tracks or would track, as they are now, into a new folder."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if Path(name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(name, folder / name)


def run(tree: Path, name: str) -> list[str]:
    """Run the stages of a tree in it, and return their outputs as paths in the tree.

    Raises:
        NotRunError: a stage failed, or the tree's own code would not be the code that runs.
    """
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    imported = _run([sys.executable, "-c", "import zimage; print(*zimage.__path__)"], tree, environment).strip()
    if Path(imported).resolve() != (tree / "zimage").resolve():
        raise NotRunError(f"{name}: `import zimage` finds {imported} instead of the tree's own code; unset PYTHONPATH.")
    outputs: list[str] = []
    for pipeline in ("data/dvc.yaml", "dvc.yaml"):
        for stage, each in yaml.safe_load((tree / pipeline).read_text(encoding="utf-8"))["stages"].items():
            began = time.monotonic()
            program, *arguments = each["cmd"].split()
            assert program == "python", each["cmd"]
            _run([sys.executable, *arguments], tree, environment)
            outputs += [out if isinstance(out, str) else next(iter(out)) for out in each["outs"]]
            print(f"{name}: {stage} took {time.monotonic() - began:.0f} s", flush=True)
    return outputs


def _run(command: list[str], tree: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        log = "\n".join(done.stderr.splitlines()[-LOG_LINES:])
        raise NotRunError(f"`{' '.join(command[1:])}` failed in {tree} with exit code {done.returncode}:\n{log}")
    return done.stdout


def comparable(tree: Path, outputs: list[str]) -> dict[str, bytes]:
    """Return the content of each output file by its path in the tree, without what is left out (see above)."""
    paths = {path.relative_to(tree).as_posix(): path for path in _files(tree, outputs)}
    contents = {name: path.read_bytes() for name, path in sorted(paths.items()) if not name.startswith(EVENTS)}
    neutral: dict[bytes, bytes] = {}  # names that a LoRA's code fingerprint and hash get in all files
    for name, content in contents.items():
        if name.startswith(TRAIN) and name.endswith(".safetensors"):
            contents[name] = _without_code(content)
            same = hashlib.sha256(contents[name]).hexdigest()
            neutral[hashlib.sha256(content).hexdigest().encode()] = f"lora:{same}".encode()
    return {name: _neutral(name, content, neutral) for name, content in contents.items()}


def _files(tree: Path, outputs: list[str]) -> Iterator[Path]:
    for output in outputs:
        path = tree / output
        yield from (each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]


def _without_code(lora: bytes) -> bytes:
    """Return a safetensors file whose metadata does not name the code (format: 8 bytes of length, JSON, tensors)."""
    length = int.from_bytes(lora[:8], "little")
    header: dict[str, Any] = json.loads(lora[8 : 8 + length])
    header.get("__metadata__", {}).pop(CODE, None)
    return json.dumps(header, sort_keys=True).encode() + lora[8 + length :]


def _neutral(name: str, content: bytes, neutral: dict[bytes, bytes]) -> bytes:
    for found, instead in neutral.items():
        content = content.replace(found, instead)
    return _without_times(content, TIMES[name]) if name in TIMES else content


def _without_times(metrics: bytes, keys: tuple[str, ...]) -> bytes:
    found: dict[str, Any] = json.loads(metrics)
    return json.dumps(
        {key: value for key, value in found.items() if key not in keys}, indent=2, sort_keys=True
    ).encode()


def differences(base: dict[str, bytes], here: dict[str, bytes]) -> list[tuple[str, str]]:
    """Return each path whose content differs, and how."""
    found = []
    for name in sorted({*base, *here}):
        if name not in here:
            found.append((name, "only in the base"))
        elif name not in base:
            found.append((name, "only in the working tree"))
        elif base[name] != here[name]:
            found.append((name, _how(name, base[name], here[name])))
    return found


def _how(name: str, one: bytes, other: bytes) -> str:
    if name.endswith(".json"):
        before, after = json.loads(one), json.loads(other)
        keys = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
        return f"values of {', '.join(keys)}"
    if name.endswith((".csv", ".jsonl", ".html", ".yaml", ".txt")):
        lines, others = one.splitlines(), other.splitlines()
        first = next((n for n, pair in enumerate(zip(lines, others, strict=False)) if pair[0] != pair[1]), None)
        return f"{len(lines)} lines became {len(others)}" if first is None else f"from line {first + 1} on"
    return f"{hashlib.sha256(one).hexdigest()[:12]} became {hashlib.sha256(other).hexdigest()[:12]}"


def losses(contents: dict[str, bytes]) -> list[str]:
    """Return the loss of every step, as it was written."""
    rows = csv.DictReader(contents[LOSSES].decode().splitlines()) if LOSSES in contents else []
    return [row["loss"] for row in rows]


def report_losses(base: list[str], here: list[str]) -> bool:
    """Print how the losses compare, and return whether they are the same."""
    pairs = list(zip(base, here, strict=False))
    apart = [number for number, (one, other) in enumerate(pairs) if one != other]
    if apart:
        most = max(abs(float(one) - float(other)) for one, other in pairs)
        one, other = pairs[apart[0]]
        print(f"loss: differs in {len(apart)} of {len(pairs)} steps, first in step {apart[0] + 1} "
              f"({one} became {other}), by {most:.3g} at most")  # fmt: skip
    elif len(base) != len(here):
        print(f"loss: {len(base)} steps became {len(here)}")
    else:
        print(f"loss: the same in all {len(base)} steps")
    return base == here


def main() -> int:
    """Run both trees, print a table of what differs, and return the exit code."""
    parser = argparse.ArgumentParser(prog="make same-result", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", metavar="BASE", help="the commit to compare with")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="a new folder for both trees with their outputs")
    parsed = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="same-result-") as temporary:
            work = parsed.keep or Path(temporary)
            trees = {"base": work / "base", "working tree": work / "here"}
            work.mkdir(parents=True, exist_ok=True)
            unpack(parsed.base, trees["base"])
            copy_working_tree(trees["working tree"])
            base, here = (comparable(tree, run(tree, name)) for name, tree in trees.items())
    except NotRunError as error:
        print(f"NOT COMPARED: {error}", file=sys.stderr)
        return NOT_RUN
    same = report_losses(losses(base), losses(here))
    found = differences(base, here)
    width = max((len(name) for name, _ in found), default=0)
    for name, how in found:
        print(f"{name:<{width}}  {how}")
    print(f"{len(found)} of {len({*base, *here})} output files differ." if found else
          f"All {len(base)} output files are the same.")  # fmt: skip
    return CHANGED if found or not same else 0


if __name__ == "__main__":
    sys.exit(main())
