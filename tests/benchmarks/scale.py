"""How the cost of photos, subjects and releases grows, for another checkout of this project and this one, in turn.

python -m tests.benchmarks.scale OTHER subjects 50 500 5000      the scan of `retrain`: all unchanged, folder and S3
python -m tests.benchmarks.scale OTHER releases 50 500 5000      reading all, promoting the newest, forgetting
python -m tests.benchmarks.scale OTHER photos 125 500 2000 --side 400    ingest and detect, as DVC runs them

OTHER may be a checkout of 9ff2ff5 (tests/benchmarks/one_build.py knows where its modules lie). Both builds are run by
this interpreter, each measurement in a process of its own, on equal copies of the same files. S3 is moto, in another
process. What takes longer than `--limit` seconds is ended, and the table says so.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tasks.settings import PROJECT
from tasks.store.releases import Agreed, Index, Listed, Manifest, PublishedFile
from tests.benchmarks.disk import write_album
from tests.benchmarks.one_build import SUBJECT
from tests.benchmarks.scan import AGREED, KEYS, served

PROGRAM = Path(__file__).with_name("one_build.py")
PHOTOS = 30  # of a subject that is only looked at
FILES = ("ada.safetensors", "metrics.json", "report.html")  # of a release, besides its manifest


def run(tree: Path, limit_s: float, environment: dict[str, str], *words: object) -> dict[str, Any] | str:
    """Return what a build has measured of itself, or that it did not end."""
    command = [sys.executable, "-P", str(PROGRAM), *map(str, words)]
    told = {**os.environ, **KEYS, **environment, "PYTHONPATH": str(tree)}
    told["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{told['PATH']}"
    try:
        done = subprocess.run(command, cwd=tree, env=told, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return f"not done in {limit_s:.0f} s"
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} in {tree} failed:\n{done.stdout}{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def tell(*words: object) -> None:
    """Print at once, with the load."""
    print(*words, f"(load {os.getloadavg()[0]:.1f})", flush=True)


@contextlib.contextmanager
def stores(kinds: list[str], folders: dict[str, Path]) -> Iterator[dict[tuple[str, str], dict[str, str]]]:
    """Yield the environment for each kind of store and each build; a bucket is filled from the build's folder."""
    with contextlib.ExitStack() as stack:
        found = {}
        for name, folder in folders.items():
            common = {"ZIMAGE_WORKSPACES": str(folder / "workspaces")}
            if "s3" in kinds:
                address = stack.enter_context(served(folder / "store"))
                s3 = {"AWS_ENDPOINT_URL_S3": address, "ZIMAGE_STORE": "s3://benchmark/project"}
                found["s3", name] = {**common, **s3}
            if "folder" in kinds:
                found["folder", name] = {**common, "ZIMAGE_STORE": str(folder / "store")}
        yield found


def subjects(trees: dict[str, Path], count: int, asked: argparse.Namespace) -> None:
    """Scan unchanged subjects."""
    with tempfile.TemporaryDirectory() as name:
        inbox, folders = Path(name) / "inbox", {each: Path(name) / each for each in trees}
        for number in range(count):
            photos = inbox / f"s-{number:05d}" / "photos"
            photos.mkdir(parents=True)
            for photo in range(PHOTOS):
                (photos / f"{photo}.jpg").write_bytes(bytes(100))
            (photos.parent / "consent.yaml").write_text(yaml.safe_dump(AGREED))
        for each, tree in trees.items():
            run(tree, 3600, {}, "states", count, inbox, folders[each] / "store")
        with stores(asked.stores, folders) as environments:
            for kind in asked.stores:
                for which, tree in (("other", trees["other"]), ("here", trees["here"]), ("here", trees["here"])):
                    found = run(tree, asked.limit, environments[kind, which], "scan", count)
                    tell(f"{count} subjects, {kind}, {which}:", found)
        for each, folder in folders.items():
            tell(f"{count} subjects, {each}: {_bytes(folder / 'store') / 1e6:.1f} MB in the store")


def releases(trees: dict[str, Path], count: int, asked: argparse.Namespace) -> None:
    """Read all releases of a subject, promote the newest, and forget all."""
    with tempfile.TemporaryDirectory() as name:
        folders = {each: Path(name) / each for each in trees}
        for folder in folders.values():
            _write_releases(folder / "store", count)
        size = _bytes(folders["here"] / "store")
        tell(f"{count} releases: {size / 1e6:.1f} MB in the store")
        with stores(asked.stores, folders) as environments:
            for kind in asked.stores:
                for what in ("list", "promote", "forget"):
                    for which, tree in trees.items():
                        found = run(tree, asked.limit, environments[kind, which], "releases", what, count)
                        tell(f"{count} releases, {kind}, {what}, {which}:", found)


def _write_releases(store: Path, count: int) -> None:
    """Write finished releases of a subject, whose manifests are as large as real ones."""
    params = yaml.safe_load((PROJECT / "params.yaml").read_text())
    lock = yaml.safe_load((PROJECT / "dvc.lock").read_text())
    listed = []
    for number in range(1, count + 1):
        content = hashlib.sha256(str(number).encode()).hexdigest()
        release = f"{number}-{content[:8]}"
        manifest = Manifest.model_validate(
            {
                **{"subject": SUBJECT, "release": release, "published_at": "2026-11-23T00:00:00Z", "verdict": "pass"},
                **{"why": "", "use": "commercial", "lora": FILES[0], "strength": 1.0, "trigger": "ohzw"},
                "consent": Agreed(scope=[], may_publish=True, expires=AGREED["expires"], document_sha256=64 * "0"),
                **{"engines": [], "licences": {}, "code": {}, "code_commit": None, "packages": {}},
                "files": [PublishedFile(name=each, sha256=content, bytes=100) for each in FILES],
                **{"params": params, "dvc_lock": lock},
            }
        )
        folder = store / "subjects" / SUBJECT / "releases" / release
        folder.mkdir(parents=True)
        for each in FILES:
            (folder / each).write_bytes(bytes(100))
        (folder / "manifest.json").write_text(manifest.model_dump_json(indent=2))
        listed.append(Listed(name=release, content=content))
    (store / "subjects" / SUBJECT / "releases" / "index.json").write_text(Index(releases=listed).model_dump_json())


def photos(trees: dict[str, Path], count: int, asked: argparse.Namespace) -> None:
    """Take over an album and run ingest and detect."""
    with tempfile.TemporaryDirectory() as name:
        album = Path(name) / "album"
        write_album(album, count, asked.side**2 / 1e6, "jpg")
        size = _bytes(album)
        tell(f"{count} photos of {asked.side**2 / 1e6:.2f} MP, {size / 1e6:.1f} MB")
        for which, tree in trees.items():
            place = Path(name) / which
            place.mkdir()
            tell(f"{count} photos, {which}:", run(tree, asked.limit, {}, "photos", album, place))
            shutil.rmtree(place, ignore_errors=True)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Print a line for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the other checkout")
    parser.add_argument("what", choices=["subjects", "releases", "photos"])
    parser.add_argument("counts", type=int, nargs="+")
    parser.add_argument("--stores", nargs="+", default=["folder", "s3"], choices=["folder", "s3"])
    parser.add_argument("--side", type=int, default=400, help="px; a photo has as many pixels as a square of this side")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds for one measurement")
    asked = parser.parse_args()
    trees = {"other": asked.other.resolve(), "here": PROJECT}
    work = {"subjects": subjects, "releases": releases, "photos": photos}[asked.what]
    for count in asked.counts:
        work(trees, count, asked)


if __name__ == "__main__":
    main()
