"""A photo that was taken out of an album goes from cache, workspace and store: real stages, a real S3 server."""

import datetime
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from flows.__main__ import main
from tasks.release.publish import publish as publish_task
from tasks.store.s3 import open_store
from tests.agreed import agreed
from tests.tasks.finished import finished
from zimage.core.jsonl import read_rows
from zimage.demo import make_demo_photos
from zimage.photos.rows import PhotoRow

NUM_PHOTOS = 9
SMALL = {
    "ingest.min_photos": 6,
    "detect.split.min_train": 4,
    "detect.duplicates.same_shot": None,
    "detect.crops.side_px": 64,
}
Contents = Callable[[], Iterator[tuple[str, bytes]]]


class Ada:
    """A subject whose album is prepared where work is shared.

    Args:
        place: A folder of the test.
        stored: Yields the name and content of every version of every object of the store.
    """

    def __init__(self, place: Path, stored: Contents) -> None:
        self.place, self.stored = place, stored
        self.workspace, self.album = place / "workspaces" / "ada", place / "album"
        make_demo_photos(place / "made", seed=1)
        self.album.mkdir()
        for path in sorted((place / "made").glob("IMG_1*.jpg"))[:NUM_PHOTOS]:
            shutil.copy(path, self.album)

    def prepare(self) -> None:
        values = [f"--set={key}={json.dumps(value)}" for key, value in SMALL.items()]
        given = ["--photos", str(self.album), "--consent", str(agreed(self.place, "ada")), "--class-noun", "woman"]
        assert main(["prepare", "--subject", "ada", "--placement", "pools", *given, *values]) == 0

    def row(self, name: str) -> PhotoRow:
        return next(
            row for row in read_rows(self.workspace / "data" / "ingest" / "photos.jsonl", PhotoRow) if row.name == name
        )

    def contents(self) -> Iterator[tuple[str, bytes]]:
        """Yield the name and content of every file of workspace and store; names of objects are joined to hashes."""
        here = [path for path in self.workspace.rglob("*") if path.is_file()]
        for name, content in [*((str(path), path.read_bytes()) for path in here), *self.stored()]:
            yield re.sub(r"/([0-9a-f]{2})/([0-9a-f]{30})", r"/\1\2", name), content

    def traces(self, name: str) -> "Traces":
        """Return by what anything that was made of a photo of the album is found."""
        row, data = self.row(name), self.workspace / "data"
        made = [path for path in data.rglob(f"{row.photo}*.*") if path.is_file()]
        assert {path.parent.name for path in made} >= {"photos", "masks", "aligned"}
        contents = [(self.album / name).read_bytes(), *(path.read_bytes() for path in made)]
        md5s = [hashlib.md5(content).hexdigest() for content in contents]
        return Traces(self, [row.photo, *md5s], {hashlib.sha256(content).hexdigest() for content in contents})


class Traces:
    """What tells of a photo: texts, and contents by their SHA-256."""

    def __init__(self, ada: Ada, texts: list[str], contents: set[str]) -> None:
        self.ada, self.texts, self.sha256s = ada, texts, contents

    def found(self) -> set[str]:
        """Return the files and objects that hold any of it."""
        return {
            name
            for name, content in self.ada.contents()
            if any(text in name or text.encode() in content for text in self.texts)
            or hashlib.sha256(content).hexdigest() in self.sha256s
        }


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_server: None) -> Ada:
    monkeypatch.setenv("ZIMAGE_WORKSPACES", str(tmp_path / "workspaces"))
    monkeypatch.setenv("ZIMAGE_STORE", str(tmp_path / "store"))
    return Ada(tmp_path, lambda: ((str(path), path.read_bytes()) for path in files_below(tmp_path / "store")))


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture
def in_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_server: None, s3: None) -> Ada:
    """A bucket that keeps versions."""
    client: Any = boto3.client("s3")
    client.create_bucket(Bucket="versions")
    client.put_bucket_versioning(Bucket="versions", VersioningConfiguration={"Status": "Enabled"})
    monkeypatch.setenv("ZIMAGE_WORKSPACES", str(tmp_path / "workspaces"))
    monkeypatch.setenv("ZIMAGE_STORE", "s3://versions/zimage")

    def stored() -> Iterator[tuple[str, bytes]]:
        for page in client.get_paginator("list_object_versions").paginate(Bucket="versions"):
            for each in page.get("Versions", []):
                wanted = {"Bucket": "versions", "Key": each["Key"], "VersionId": each["VersionId"]}
                yield each["Key"], client.get_object(**wanted)["Body"].read()
            yield from ((each["Key"], b"") for each in page.get("DeleteMarkers", []))

    return Ada(tmp_path, stored)


def test_a_photo_that_was_taken_out_of_an_album_goes_when_its_days_are_over(in_folder: Ada) -> None:
    ada = in_folder
    ada.prepare()
    gone, stays = "IMG_1003.jpg", "IMG_1004.jpg"
    traces, others = ada.traces(gone), ada.traces(stays)
    (ada.album / gone).unlink()

    ada.prepare()

    assert any(".dvc/cache" in each for each in traces.found()) and any("/store/" in each for each in traces.found())
    notes = [ada.workspace / ".dvc" / "replaced.json", ada.place / "store" / "subjects" / "ada" / "replaced.json"]
    for note in notes:  # as if it were 31 days later
        since = json.loads(note.read_text())["since"]
        earlier = {
            path: str(datetime.datetime.fromisoformat(at) - datetime.timedelta(31)) for path, at in since.items()
        }
        note.write_text(json.dumps({"since": earlier}))
    ada.prepare()

    assert traces.found() == set()
    kept = others.found()
    assert any(".dvc/cache" in each for each in kept) and any("/store/" in each for each in kept)


def test_forgetting_a_photo_leaves_nothing_of_it_and_names_what_was_learned_with_it(
    in_bucket: Ada, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ada = in_bucket
    ada.prepare()
    name = "IMG_1003.jpg"
    traces = ada.traces(name)
    learned = finished(tmp_path / "learned" / "ada")
    lock = yaml.safe_load((ada.workspace / "dvc.lock").read_text())
    (learned / "dvc.lock").write_text(yaml.safe_dump(lock))
    release = publish_task.fn(learned, "ada", open_store("s3://versions/zimage"))
    capsys.readouterr()

    assert main(["forget", "--subject", "ada", "--photo", name]) == 0
    listed = capsys.readouterr().out
    assert f"album      {name}\nresults    the present ones were made of an album with it\n" in listed
    assert f"releases   {release.name} were learned with this photo and stay as they were published" in listed
    assert any("/dvc/files/md5/" in each for each in traces.found())

    assert main(["forget", "--subject", "ada", "--photo", name, "--delete"]) == 0

    said = capsys.readouterr().out
    assert said.startswith("Deleted, and a second look found nothing of the photo:\n")
    assert f"{ada.album}: take the photo out there too" in said
    assert traces.found() == set()
    assert (ada.workspace / "data" / "photos" / "IMG_1004.jpg").is_file()
    (ada.album / name).unlink()
    ada.prepare()
    assert len(list(read_rows(ada.workspace / "data" / "ingest" / "photos.jsonl", PhotoRow))) == 8
    assert traces.found() == set()


def test_a_photo_that_nobody_knows_is_refused(in_folder: Ada, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["forget", "--subject", "ada", "--photo", "IMG_9.jpg"]) == 2
    assert "flows: No photo IMG_9.jpg of ada is known here; name a file that holds it" in capsys.readouterr().err
