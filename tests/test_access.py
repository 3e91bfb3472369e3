"""Who may do what with the store: the documents, and each phase at work on a server that enforces them."""

import datetime
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
import yaml
from botocore.exceptions import ClientError
from prefect import flow

from tasks.erasure.forget import erase, forget
from tasks.prefect_api.artifacts import show_page
from tasks.release.channels import fetch_current, promote, rollback
from tasks.release.publish import publish as publish_task
from tasks.settings import Settings
from tasks.store.protocol import Store
from tasks.store.s3 import open_store
from tasks.transfer.checkpoint_mirror import CheckpointMirror, fetch_unfinished, forget_unfinished
from tasks.transfer.staleness import read_project, scan_all
from tasks.transfer.state import checkout, commit, state_key, track_inputs
from tasks.workspace.sources import Source
from tasks.workspace.subject import Choices
from tasks.workspace.tombstones import Counts
from tasks.workspace.workspace import bring_up_to_date, pull
from tests.tasks.finished import CONSENT, finished, lora, write
from tests.tasks.rights import Rights, enforcing, listed
from zimage.core.errors import InputError
from zimage.core.folder import aside_of
from zimage.training.checkpoint import TrainingState, write_state

PROJECT = Path(__file__).parents[1]
ACCESS = PROJECT / "infra" / "access"
ROLES = {path.stem: json.loads(path.read_text()) for path in (ACCESS / "roles").glob("*.json")}
OBJECTS = "arn:aws:s3:::BUCKET/PREFIX/"
ADA = "subjects/ada"
PLACES = {
    "photos": f"{ADA}/dvc/files/md5/00/11",
    "lost": f"{ADA}/dvc/lost.json",
    "state": "states/ada.json",
    "old state": f"{ADA}/state.json",
    "replaced": f"{ADA}/replaced.json",
    "scan": "scan/index.jsonl",
    "unfinished": f"{ADA}/unfinished/index.json",
    "page": f"{ADA}/pages/0123456789abcdef/report.html",
    "lora": f"{ADA}/releases/1-0a1b2c3d/ada.safetensors",
    "signed": f"{ADA}/releases/signed/1-0a1b2c3d/1.png",
    "index": f"{ADA}/releases/index.json",
    "channel": f"{ADA}/channels/production.json",
    "hub": f"{ADA}/hub.json",
    "tombstone": "tombstones/00.json",
}
MAY = {
    "cpu-agent": {
        "s3:GetObject": {
            *("photos", "lost", "state", "old state", "replaced", "scan", "page", "lora", "signed", "index"),
            "tombstone",
        },
        "s3:GetObjectVersion": {"photos", "lost"},
        "s3:PutObject": {"photos", "lost", "state", "replaced", "scan", "page"},
        "s3:DeleteObjectVersion": {"photos", "lost", "replaced", "scan", "unfinished", "page"},
    },
    "gpu-agent": {
        "s3:GetObject": {
            *("photos", "lost", "state", "old state", "unfinished", "page", "lora", "signed", "index", "tombstone"),
        },
        "s3:GetObjectVersion": {"photos", "lost"},
        "s3:PutObject": {"photos", "lost", "state", "unfinished", "page"},
        "s3:DeleteObjectVersion": {"unfinished"},
    },
    "publisher": {
        "s3:GetObject": {
            *("photos", "lost", "state", "old state", "page", "lora", "signed", "index", "channel", "hub", "tombstone"),
        },
        "s3:PutObject": {"lost", "page", "lora", "signed", "index", "channel", "hub"},
        "s3:DeleteObjectVersion": {"channel"},
    },
    "reader": {"s3:GetObject": {"lora", "signed", "index", "channel", "tombstone"}},
    "eraser": {
        "s3:GetObject": {"index", "channel", "hub", "tombstone"},
        "s3:PutObject": {"tombstone"},
        "s3:DeleteObjectVersion": set(PLACES) - {"tombstone"},
    },
}


def read(name: str) -> Any:
    return json.loads((ACCESS / name).read_text())


def allows(role: str, action: str, key: str) -> bool:
    return any(
        statement["Effect"] == "Allow"
        and action in listed(statement["Action"])
        and any(fnmatchcase(OBJECTS + key, resource) for resource in listed(statement["Resource"]))
        for statement in ROLES[role]["Statement"]
    )


@pytest.mark.parametrize("role", MAY)
@pytest.mark.parametrize("action", ["s3:GetObject", "s3:GetObjectVersion", "s3:PutObject", "s3:DeleteObjectVersion"])
def test_a_role_may_do_what_its_flows_need_and_nothing_else(role: str, action: str) -> None:
    assert {place for place, key in PLACES.items() if allows(role, action, key)} == MAY[role].get(action, set())


def test_the_places_are_all_that_the_code_names() -> None:
    known = {key.removeprefix(f"{ADA}/").partition("/")[0] for key in PLACES.values() if key.startswith(ADA)}
    code = "\n".join(path.read_text(encoding="utf-8") for path in (PROJECT / "tasks").rglob("*.py"))

    assert set(re.findall(r"subjects/\{[\w.]+\}/([\w.]+)", code)) == known


def test_every_place_but_the_one_of_tombstones_has_somebody_who_writes_it_and_can_be_forgotten() -> None:
    for place, key in PLACES.items():
        assert any(allows(role, "s3:PutObject", key) for role in ROLES) == (place != "old state")
        assert allows("eraser", "s3:DeleteObjectVersion", key) == (place != "tombstone")


@pytest.mark.parametrize("role", ["cpu-agent", "gpu-agent", "publisher"])
def test_who_writes_a_page_can_send_a_large_one_in_parts_and_sign_a_link_to_it(role: str) -> None:
    page = PLACES["page"]
    in_parts = ("s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts")

    assert all(allows(role, action, page) for action in ("s3:GetObject", *in_parts))
    assert "s3:ListBucketMultipartUploads" in listing(role)


@pytest.mark.parametrize("role", [role for role in MAY if "s3:DeleteObjectVersion" in MAY[role]])
def test_who_deletes_can_list_what_there_is_to_delete(role: str) -> None:
    assert {"s3:ListBucketVersions", "s3:ListBucketMultipartUploads"} <= listing(role)


@pytest.mark.parametrize("role", MAY)
def test_whoever_reads_may_list_too_or_s3_forbids_what_is_only_absent(role: str) -> None:
    """S3 answers 403 instead of 404 for a key that is not there, unless its prefix may be listed."""
    (prefixes,) = (
        listed(statement["Condition"]["StringLike"]["s3:prefix"])
        for statement in ROLES[role]["Statement"]
        if "s3:ListBucket" in listed(statement["Action"])
    )
    for place in MAY[role]["s3:GetObject"]:
        assert any(fnmatchcase(f"PREFIX/{PLACES[place]}", prefix) for prefix in prefixes), place


def listing(role: str) -> set[str]:
    return {
        action
        for statement in ROLES[role]["Statement"]
        for action in listed(statement["Action"])
        if statement["Resource"] == "arn:aws:s3:::BUCKET"
    }


def test_there_are_no_other_roles_and_none_has_a_wildcard_for_actions_or_buckets() -> None:
    assert set(ROLES) == set(MAY)
    for role in ROLES.values():
        for statement in role["Statement"]:
            assert not any("*" in action for action in listed(statement["Action"]))
            assert all(
                each.startswith("arn:aws:s3:::BUCKET") or each == "KEY" for each in listed(statement["Resource"])
            )


def test_listing_is_bound_to_the_prefix() -> None:
    for role in ROLES.values():
        for statement in role["Statement"]:
            if any(action.startswith("s3:List") and "Parts" not in action for action in listed(statement["Action"])):
                assert all(
                    each.startswith(tuple(f"PREFIX/{name}/" for name in ("subjects", "states", "scan", "tombstones")))
                    for each in statement["Condition"]["StringLike"]["s3:prefix"]
                )


def denied(condition: str, key: str) -> dict[str, Any]:
    found = [each for each in read("bucket-policy.json")["Statement"] if key in each["Condition"].get(condition, {})]
    assert len(found) == 1 and found[0]["Effect"] == "Deny" and found[0]["Principal"] == "*"
    return found[0]


def test_the_bucket_is_closed_to_the_public_and_to_plain_http() -> None:
    assert all(read("public-access-block.json").values())
    assert len(read("public-access-block.json")) == 4
    assert all(statement["Effect"] == "Deny" for statement in read("bucket-policy.json")["Statement"])
    assert denied("Bool", "aws:SecureTransport")["Condition"]["Bool"]["aws:SecureTransport"] == "false"
    assert denied("StringNotEquals", "aws:PrincipalAccount")["Action"] == "s3:*"


def test_manifests_can_only_be_written_where_there_is_none() -> None:
    statement = denied("Null", "s3:if-none-match")
    assert fnmatchcase(f"{OBJECTS}{ADA}/releases/1-0a1b2c3d/manifest.json", statement["Resource"])


def test_only_those_who_may_delete_versions_are_let_by_the_bucket() -> None:
    let = denied("ArnNotLike", "aws:PrincipalArn")["Condition"]["ArnNotLike"]["aws:PrincipalArn"]
    deleting = {role for role in ROLES if any(allows(role, "s3:DeleteObjectVersion", key) for key in PLACES.values())}
    assert {each.rpartition("/zimage-")[2] for each in let} == deleting


def test_everything_is_encrypted_versioned_and_tidied_up() -> None:
    (rule,) = read("encryption.json")["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"] == {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": "KEY"}
    key = "s3:x-amz-server-side-encryption-aws-kms-key-id"
    assert denied("ArnNotEqualsIfExists", key)["Condition"]["ArnNotEqualsIfExists"] == {key: "KEY"}
    for role in ROLES.values():
        using = [each for each in role["Statement"] if any("kms:" in action for action in listed(each["Action"]))]
        assert [each["Resource"] for each in using] == ["KEY"]
    assert read("versioning.json") == {"Status": "Enabled"}
    rules = {rule["ID"]: rule for rule in read("lifecycle.json")["Rules"]}
    assert rules["unfinished-uploads"]["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"] <= 7
    assert rules["old-versions"]["NoncurrentVersionExpiration"]["NoncurrentDays"] <= 30


BUCKET, PREFIX = "people", "project"
STAGES = {
    "one": {"cmd": "mkdir data/one && cat data/photos/* > data/one/x", "deps": ["data/photos"], "outs": ["data/one"]},
    "two": {"cmd": "mkdir data/two && cat data/one/x > data/two/x", "deps": ["data/one"], "outs": ["data/two"]},
}
CHOICES = Choices(preset="tiny", base=None, values={"subject.class_noun": "woman"})
LISTS = {"cpu-agent": {"subjects/", "states/", "scan/", "tombstones/"}, "reader": {"tombstones/"}}
ACTIONS: dict[str, Callable[[Any, str], Any]] = {
    "s3:GetObject": lambda client, key: client.get_object(Bucket=BUCKET, Key=key),
    "s3:GetObjectVersion": lambda client, key: client.get_object(Bucket=BUCKET, Key=key, VersionId="0"),
    "s3:PutObject": lambda client, key: client.put_object(Bucket=BUCKET, Key=key, Body=b"x"),
    "s3:DeleteObjectVersion": lambda client, key: client.delete_object(Bucket=BUCKET, Key=key, VersionId="0"),
}


@pytest.fixture(scope="module")
def rights() -> Iterator[Rights]:
    with enforcing(BUCKET, PREFIX) as found:
        yield found


@pytest.fixture
def act_as(rights: Rights, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """What makes this process, and those it starts, use the keys of a role."""

    def act(role: str) -> None:
        for name, value in rights.environment(role).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it remembers the keys it found first

    return act


def is_refused(ask: Callable[[], Any]) -> bool:
    try:
        ask()
    except ClientError as error:
        return error.response["Error"]["Code"] in {"AccessDenied", "403"}
    return False


@pytest.mark.parametrize("role", MAY)
def test_a_server_lets_a_role_do_what_its_flows_need_and_refuses_the_rest(
    role: str, act_as: Callable[[str], None]
) -> None:
    act_as(role)
    client = boto3.client("s3")
    done = {
        action: {place for place, key in PLACES.items() if not is_refused(lambda: ask(client, f"{PREFIX}/{key}"))}  # noqa: B023
        for action, ask in ACTIONS.items()
    }
    listings = {*LISTS["cpu-agent"], "", "other/"}

    assert done == {action: MAY[role].get(action, set()) for action in ACTIONS}
    assert is_refused(lambda: client.get_object(Bucket=BUCKET, Key=f"other/{PLACES['photos']}"))
    assert {
        each
        for each in listings
        if not is_refused(lambda: client.list_objects_v2(Bucket=BUCKET, Prefix=each and f"{PREFIX}/{each}"))  # noqa: B023
    } == LISTS.get(role, LISTS["cpu-agent"] - {"scan/"} if role != "eraser" else LISTS["cpu-agent"])


def test_keys_that_nobody_gave_out_open_nothing(rights: Rights) -> None:
    client = boto3.client(
        "s3", endpoint_url=rights.address, aws_access_key_id=rights.keys["owner"][0], aws_secret_access_key="guessed"
    )

    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        client.get_object(Bucket=BUCKET, Key=f"{PREFIX}/{PLACES['photos']}")


@dataclass(frozen=True)
class Machine:
    """A machine with code and settings; what each phase does on it, as flows do it."""

    settings: Settings

    @property
    def folder(self) -> Path:
        return self.settings.workspace("ada")

    def prepare(self) -> None:
        before = checkout(self.settings, "ada")
        write(self.folder / "data/photos/1.jpg", b"face")
        write(self.folder / "data/consent.yaml", yaml.safe_dump(CONSENT).encode())
        track_inputs(self.folder)
        bring_up_to_date(self.folder, "one", on_line=lambda _: None, shared=True)
        sources = {name: Source(address=f"/from/{name}", seen="") for name in ("photos", "consent")}
        commit(self.settings, "ada", before, stages=("one",), sources=sources, choices=CHOICES, run="prepare ada")
        write(self.folder / "data/detect/contact_sheet.html", b"<html>")
        show_page(self.settings, self.folder, "detect", shared=True)

    def scan(self) -> None:
        project = read_project(PROJECT)
        scan_all(self.settings, open_store(self.settings.store), project, datetime.date(2026, 11, 1))

    def learn(self) -> None:
        before = checkout(self.settings, "ada")
        keeper = CheckpointMirror(self.settings, "ada")
        aside = aside_of(self.folder / "data" / "train")
        write_state(aside / "resume", TrainingState(50, {"values": torch.zeros(4)}, devices=("a CPU",)), run="a run")
        keeper.sync()
        fetch_unfinished(self.settings, "ada")
        shutil.rmtree(aside)
        bring_up_to_date(self.folder, "two", on_line=lambda _: None, shared=True)
        commit(self.settings, "ada", before, stages=("two",), sources={}, choices=CHOICES, run="learn ada")
        forget_unfinished(self.settings, "ada")

    def publish(self) -> str:
        taken, store = checkout(self.settings, "ada", only_reads=True), open_store(self.settings.store)
        assert taken.state is not None and {"one", "two"} <= taken.state.stages
        pull(self.folder, ["two", "data/consent.yaml.dvc"], on_line=lambda _: None)
        finished(self.folder)
        release = publish_task.fn(self.folder, "ada", store)
        promote(store, "ada", "production", release.name)
        finished(self.folder, seed=1)
        promote(store, "ada", "production", publish_task.fn(self.folder, "ada", store).name)
        return rollback(store, "ada", "production").release


@flow
def working(phase: Callable[[], Any]) -> Any:
    return phase()


@pytest.fixture
def machine(tmp_path: Path) -> Callable[[str], Machine]:
    """What makes a machine of a name, with a project of two stages."""
    project = tmp_path / "project"
    write(project / "dvc.yaml", json.dumps({"stages": STAGES}).encode())
    write(project / "code.yaml", b"one: sha256:00\n")
    write(project / ".dvcignore", b"")
    shutil.copy(PROJECT / "params.yaml", project)
    return lambda name: Machine(
        Settings(
            project=project,
            workspaces=tmp_path / name,
            store=f"s3://{BUCKET}/{PREFIX}",
            endpoint=os.environ["AWS_ENDPOINT_URL_S3"],
        )
    )


def test_every_phase_does_its_work_with_the_keys_of_its_role(
    act_as: Callable[[str], None], machine: Callable[[str], Machine], prefect_server: None, tmp_path: Path
) -> None:
    def stored() -> set[str]:
        act_as("owner")
        return set(open_store(f"s3://{BUCKET}/{PREFIX}").keys(""))

    act_as("owner")
    open_store(f"s3://{BUCKET}/{PREFIX}").delete("")  # of other tests
    act_as("cpu-agent")
    working(machine("cpu").prepare)
    working(machine("cpu").scan)
    made = stored()
    assert {"states/ada.json", "scan/index.jsonl"} <= made
    assert any("/dvc/files/" in key for key in made) and any("/pages/" in key for key in made)

    act_as("gpu-agent")
    working(machine("gpu").learn)
    act_as("publisher")
    name = working(machine("publisher").publish)
    act_as("reader")
    release = fetch_current(open_store(f"s3://{BUCKET}/{PREFIX}"), "ada", "production", tmp_path / "got")
    assert release.manifest.release == name
    assert (tmp_path / "got/ada.safetensors").read_bytes() == lora(0)

    act_as("eraser")
    left = working(lambda: forget(machine("cpu").settings, "ada", shared=False))
    assert left.forgotten
    assert all(key.startswith("tombstones/") for key in stored())


@pytest.mark.parametrize(
    ("role", "beyond"),
    [
        ("cpu-agent", "publish"), ("cpu-agent", "promote"), ("cpu-agent", "erase"),
        ("gpu-agent", "publish"), ("gpu-agent", "promote"), ("gpu-agent", "erase"),
        ("publisher", "write a state"), ("publisher", "erase"), ("publisher", "delete"),
        ("reader", "write a state"), ("reader", "publish"), ("reader", "erase"),
        ("eraser", "write a state"), ("eraser", "publish"), ("eraser", "promote"),
    ],
)  # fmt: skip
def test_what_is_beyond_a_role_is_refused_with_one_sentence(
    role: str, beyond: str, act_as: Callable[[str], None], tmp_path: Path
) -> None:
    act_as("owner")
    store = open_store(f"s3://{BUCKET}/{PREFIX}")
    eve, key = f"eve-{role}-{beyond}".replace(" ", "-"), ""
    released = publish_task.fn(finished(tmp_path / "before" / eve), eve, store).name
    key = f"subjects/{eve}/releases/{released}/manifest.json"
    before = store.keys(f"subjects/{eve}")
    asks: dict[str, Callable[[Store], Any]] = {
        "publish": lambda store: publish_task.fn(finished(tmp_path / eve, seed=1), eve, store),
        "promote": lambda store: promote(store, eve, "production", released),
        "write a state": lambda store: store.compare_and_swap(state_key(eve), b"{}", None),
        "delete": lambda store: store.delete(f"subjects/{eve}/releases"),
        "erase": lambda store: erase(store, tmp_path / eve, eve, Counts()),
    }

    act_as(role)
    with pytest.raises(InputError, match=rf"s3://{BUCKET}/{PREFIX} forbids .* to these keys"):
        asks[beyond](open_store(f"s3://{BUCKET}/{PREFIX}"))

    act_as("owner")
    store = open_store(f"s3://{BUCKET}/{PREFIX}")
    assert store.keys(f"subjects/{eve}") == before and key in before
    assert store.read(state_key(eve)) is None
