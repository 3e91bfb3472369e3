"""The documents about access, as documents: what they allow, and that they allow what the code asks for."""

import json
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

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
            *("photos", "lost", "state", "old state", "scan", "page", "lora", "signed", "index", "tombstone"),
        },
        "s3:GetObjectVersion": {"photos", "lost"},
        "s3:PutObject": {"photos", "lost", "state", "scan", "page"},
        "s3:DeleteObjectVersion": {"scan"},
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
    "reader": {"s3:GetObject": {"lora", "signed", "index", "channel"}},
    "eraser": {
        "s3:GetObject": {"index", "channel", "hub", "tombstone"},
        "s3:PutObject": {"tombstone"},
        "s3:DeleteObjectVersion": set(PLACES) - {"tombstone"},
    },
}


def read(name: str) -> Any:
    return json.loads((ACCESS / name).read_text())


def listed(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


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
    code = "\n".join(path.read_text(encoding="utf-8") for path in (PROJECT / "tasks").glob("*.py"))

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


@pytest.mark.parametrize("role", sorted(set(MAY) - {"reader"}))  # which is told what there is to read
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
    assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "aws:kms"
    assert read("versioning.json") == {"Status": "Enabled"}
    rules = {rule["ID"]: rule for rule in read("lifecycle.json")["Rules"]}
    assert rules["unfinished-uploads"]["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"] <= 7
    assert rules["old-versions"]["NoncurrentVersionExpiration"]["NoncurrentDays"] <= 30
