"""Photos that lie in a bucket, with a real server, a real scheduler and real stages."""

import json
import threading
import time
from pathlib import Path
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow

from flows.__main__ import main
from flows.prepare import prepare
from flows.spec import PrepareSpec
from tasks.phases.phase import bring
from tasks.phases.remote_runs import run_phase
from tasks.settings import from_environment
from tasks.transfer.state import Taken
from tasks.workspace import photos as photos_module
from tasks.workspace.subject import CLASS_NOUN
from tests.agreed import agreed
from tests.album import Album
from tests.tasks.faults import unwell
from zimage.core.errors import InputError
from zimage.core.jsonl import read_rows
from zimage.demo import make_demo_photos
from zimage.photos.rows import ManifestRow, PhotoRow

NUM_PHOTOS = 9
WOMAN = ["--class-noun", "woman"]
SMALL = {
    "ingest.min_photos": 6,
    "detect.split.min_train": 4,
    "detect.duplicates.same_shot": None,
    "detect.crops.side_px": 64,
}


@pytest.fixture(autouse=True)
def workspaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the workspaces of these tests are."""
    monkeypatch.setenv("ZIMAGE_WORKSPACES", str(tmp_path / "workspaces"))
    return tmp_path / "workspaces"


@pytest.fixture
def photos(tmp_path: Path) -> dict[str, bytes]:
    """Photos of the demo subject and one of somebody else, by name."""
    make_demo_photos(tmp_path / "made", seed=1)
    names = [
        *sorted(path.name for path in (tmp_path / "made").glob("IMG_1*.jpg"))[:NUM_PHOTOS],
        "IMG_2004_stranger.jpg",
    ]
    return {name: (tmp_path / "made" / name).read_bytes() for name in names}


def test_photos_and_a_consent_in_a_bucket_become_crops_and_what_is_added_there_comes_after(
    album: Album,
    photos: dict[str, bytes],
    prefect_server: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    *first, last = photos.items()
    for name, content in first:
        album.put(f"day 1/{name}", content)
    album.put("../../escaped.jpg", b"no photo")
    consent = agreed(tmp_path, "ada").read_bytes()
    album.client.put_object(Bucket="album", Key="agreed/ada.yaml", Body=consent)
    given = [f"--set={key}={json.dumps(value)}" for key, value in SMALL.items()]
    asked = ["prepare", "--subject", "ada", "--photos", "s3://album/ada"]

    assert main([*asked, "--consent", "s3://album/agreed/ada.yaml", *WOMAN, *given]) == 0
    data = tmp_path / "workspaces" / "ada" / "data"
    rows = {row.name: row for row in read_rows(data / "ingest" / "photos.jsonl", PhotoRow)}
    assert {name for name, row in rows.items() if row.status == "kept"} == {f"day 1/{name}" for name, _ in first}
    assert [row.reason for name, row in rows.items() if name.startswith("renamed/")] == ["not_an_image"]
    assert {row.decision for row in read_rows(data / "detect" / "manifest.jsonl", ManifestRow)} >= {"train", "holdout"}

    album.put(last[0], last[1])
    assert main(asked) == 0
    assert "ingest ran, detect ran" in capsys.readouterr().out
    decided = {row.name: row.reason for row in read_rows(data / "detect" / "manifest.jsonl", ManifestRow)}
    assert decided[last[0]] == "wrong_person"


def test_that_the_packaged_model_is_trained_is_said_before_any_work_is_done(
    photos: dict[str, bytes], prefect_server: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "few").mkdir()
    for number in range(12):  # they begin like photos; fewer would be refused before a run exists
        (tmp_path / "few" / f"{number}.jpg").write_bytes(next(iter(photos.values()))[:2000])
    given = ["--photos", str(tmp_path / "few"), "--consent", str(agreed(tmp_path, "ada")), *WOMAN]

    assert main(["prepare", "--subject", "ada", *given]) == 2  # no photo can be read

    said = [each.getMessage() for each in caplog.records]
    (warned,) = [number for number, each in enumerate(said) if each.startswith("The base is the packaged toy model")]
    assert any("ingest" in each for each in said[warned:]) and not any("stage" in each for each in said[:warned])


def test_a_bucket_that_is_away_for_a_while_is_waited_for(
    album: Album,
    prefect_server: None,
    photos: dict[str, bytes],
    workspaces: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    photo = next(iter(photos.values()))
    album.put("a.jpg", photo)
    given = {"photos": "s3://album/ada", "consent": str(agreed(workspaces.parent, "ada")), "overrides": ""}
    settings, task = from_environment(), bring.with_options(retry_delay_seconds=0)

    chosen = {"base": "", "preset": "", "engine": "", "values": {CLASS_NOUN: "woman"}}

    @flow
    def brought() -> None:
        task(settings, "ada", Taken(None, None), given, **chosen)

    with unwell("520 Unknown", "Unknown", times=2) as address:  # one that boto3 itself does not wait for
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
        brought()

    assert (workspaces / "ada" / "data" / "photos" / "a.jpg").read_bytes() == photo


def test_on_one_machine_a_bucket_that_is_away_is_told_at_once_in_one_sentence(
    album: Album,
    prefect_server: None,
    workspaces: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    consent = str(agreed(workspaces.parent, "eve"))

    with unwell("520 Unknown", "Unknown", times=99) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
        assert main(["prepare", "--subject", "eve", "--photos", "s3://album/eve", "--consent", consent, *WOMAN]) == 2

    (*_, said) = capsys.readouterr().err.splitlines()
    assert said.startswith("flows: s3://album/eve cannot be read (Unknown: Unknown)")


def test_a_bucket_that_cannot_be_read_ends_with_one_sentence_and_no_photos(
    album: Album,
    prefect_server: None,
    workspaces: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    consent = str(agreed(workspaces.parent, "eve"))

    assert main(["prepare", "--subject", "eve", "--photos", "s3://album/eve", "--consent", consent, *WOMAN]) == 2

    assert capsys.readouterr().err.splitlines()[-1] == (
        "flows: There are no photos at s3://album/eve; check the bucket and the prefix."
    )
    assert not (workspaces / "eve" / "data" / "photos").exists()


def test_an_album_too_large_is_refused_by_a_pool_without_a_name_and_the_one_who_asked_reads_the_name(
    album: Album, prefect_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZIMAGE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(photos_module, "MOST_BYTES", 10)
    album.put("grandmas-house.jpg", b"a large photo")
    given = {"photos": "s3://album/ada", "consent": str(agreed(tmp_path, "ada")), "class_noun": "woman"}
    spec = PrepareSpec(subject="ada", placement="pools", **given)

    @flow
    def asks() -> None:
        run_phase("prepare", spec)

    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(prepare), "prepare")
        worker = threading.Thread(target=do_next_run_of, args=(deployment,))
        worker.start()
        with pytest.raises(InputError, match=r"holds 0\.0 GB in 1 files, the largest") as refused:
            asks()
        worker.join()
        runs = [run for run in client.read_flow_runs() if run.deployment_id == deployment]
        states = [state for run in runs for state in client.read_flow_run_states(run.id)]
        client.delete_deployment(deployment)

    assert refused.value.names == "The largest is grandmas-house.jpg"
    assert any("the largest" in (state.message or "") for state in states)
    assert not any("grandma" in (state.message or "") for state in states)


def do_next_run_of(deployment: UUID) -> None:
    """Do what a worker of a pool does with the next run of a deployment."""
    until = time.monotonic() + 60
    with get_client(sync_client=True) as client:
        while time.monotonic() < until:
            for run in client.read_flow_runs():
                if run.deployment_id == deployment:
                    run_flow(prepare, flow_run=run, return_type="state")
                    return
            time.sleep(0.1)
