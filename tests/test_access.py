"""The documents about access, as documents: what they allow, and that they allow what the code asks for."""

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

ACCESS = Path(__file__).parents[1] / "infra" / "access"
ROLES = {path.stem: json.loads(path.read_text()) for path in (ACCESS / "roles").glob("*.json")}
OBJECTS = "arn:aws:s3:::BUCKET/PREFIX/"
ADA = "subjects/ada"
PLACES = {
    "photos": f"{ADA}/dvc/files/md5/00/11",
    "lost": f"{ADA}/dvc/lost.json",
    "state": f"{ADA}/state.json",
    "unfinished": f"{ADA}/unfinished/index.json",
    "lora": f"{ADA}/releases/1-0a1b2c3d/ada.safetensors",
    "index": f"{ADA}/releases/index.json",
    "channel": f"{ADA}/channels/production.json",
    "hub": f"{ADA}/hub.json",
    "tombstone": "tombstones/00.json",
}
MAY = {
    "cpu-agent": {
        "s3:GetObject": {"photos", "lost", "state", "lora", "index", "tombstone"},
        "s3:GetObjectVersion": {"photos", "lost"},
        "s3:PutObject": {"photos", "lost", "state"},
    },
    "gpu-agent": {
        "s3:GetObject": {"photos", "lost", "state", "unfinished", "lora", "index", "tombstone"},
        "s3:GetObjectVersion": {"photos", "lost"},
        "s3:PutObject": {"photos", "lost", "state", "unfinished"},
        "s3:DeleteObjectVersion": {"unfinished"},
    },
    "publisher": {
        "s3:GetObject": {"photos", "lost", "state", "lora", "index", "channel", "hub", "tombstone"},
        "s3:PutObject": {"lost", "lora", "index", "channel", "hub"},
    },
    "reader": {"s3:GetObject": {"lora", "index", "channel"}},
    "eraser": {
        "s3:GetObject": {"index", "channel", "hub", "tombstone"},
        "s3:PutObject": {"tombstone"},
        "s3:DeleteObjectVersion": {"photos", "lost", "state", "unfinished", "lora", "index", "channel", "hub"},
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
                    each.startswith("PREFIX/subjects/") for each in statement["Condition"]["StringLike"]["s3:prefix"]
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
