"""What `zimage doctor` says of stores: folders, and servers that speak S3 and have all it needs, or lack some of it."""

import random
import re
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from tasks.doctor import examine, examine_environment
from tasks.settings import PROJECT, Settings
from tests.tasks.faults import lacking, unwell
from zimage.cli.doctor import Finding

KEY = "arn:aws:kms:us-east-1:123456789012:key/faces"
ENCRYPTION = {"Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": KEY}}]}


@pytest.fixture
def bucket(s3: None) -> Iterator[str]:
    """A bucket that no process has seen to honour conditions, without versions and keys."""
    client = boto3.client("s3")
    name = f"doctor-{random.randbytes(8).hex()}"
    client.create_bucket(Bucket=name)
    yield name
    assert not client.list_objects_v2(Bucket=name).get("Contents")
    left = client.list_object_versions(Bucket=name)
    assert not left.get("Versions") and not left.get("DeleteMarkers")
    client.delete_bucket(Bucket=name)


def found(store: str, address: str = "") -> dict[str, Finding]:
    findings = examine(Settings(PROJECT, PROJECT / "workspaces", store, address))
    assert all(each.remedy for each in findings if each.state != "present")
    return {each.subject: each for each in findings}


def test_a_bucket_that_lacks_nothing_is_present_in_every_line(bucket: str, s3_server: str) -> None:
    client = boto3.client("s3")
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    client.put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration=ENCRYPTION)

    findings = found(f"s3://{bucket}/project", s3_server)

    assert [(each.subject, each.state, each.found) for each in findings.values()] == [
        ("store", "present", f"s3://{bucket}/project at {s3_server}"),
        ("store rights", "present", "these keys may list, read and delete"),
        ("store conditions", "present", "If-Match and If-None-Match are honoured"),
        ("store versions", "present", "kept, and `forget` can list and delete them"),
        ("store encryption", "present", f"aws:kms {KEY}"),
    ]


def test_a_bucket_without_versions_and_keys_can_be_used_and_the_remedies_are_told(bucket: str) -> None:
    findings = found(f"s3://{bucket}/project")

    assert findings["store conditions"].state == "present"
    assert findings["store versions"].state == findings["store encryption"].state == "without"
    assert "infra/access/versioning.json" in findings["store versions"].remedy
    assert "infra/access/encryption.json" in findings["store encryption"].remedy


def test_what_a_server_ignores_or_does_not_know_is_missing(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with lacking(ignored=["If-Match"], refused=["uploads", "encryption"]) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
        findings = found(f"s3://{bucket}/project")

    assert findings["store conditions"].state == "missing"
    assert "ignores the condition If-Match of a write" in findings["store conditions"].remedy
    assert findings["store versions"].state == "missing"
    assert "does not implement `list_multipart_uploads` (NotImplemented)" in findings["store versions"].remedy
    assert findings["store encryption"].state == "without"


def test_keys_that_may_not_delete_write_no_probe(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with unwell("403 Forbidden", "AccessDenied", times=9, method="POST") as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
        findings = found(f"s3://{bucket}/project")

    assert findings["store rights"].state == "missing"
    assert "forbids `delete_objects` to these keys (AccessDenied)" in findings["store rights"].remedy
    assert findings["store conditions"] == Finding(
        "store conditions", "without", "not tried, as a probe could not be deleted", findings["store conditions"].remedy
    )


@pytest.mark.parametrize(
    ("store", "endpoint", "remedy"),
    [("s3://nobodys/x", "", "There is no bucket nobodys; make it as infra/access says"),
     ("s3://faces/x", "http://127.0.0.1:9", "Could not connect .*; start its server, or correct ZIMAGE_STORE"),
     ("gs://faces/x", "", "gs://faces/x is no store; give a folder or s3://bucket/prefix")],
)  # fmt: skip
def test_a_store_that_cannot_be_reached_is_missing_with_the_remedy(
    s3: None, monkeypatch: pytest.MonkeyPatch, store: str, endpoint: str, remedy: str
) -> None:
    if endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")

    (finding,) = found(store).values()

    assert (finding.subject, finding.state, finding.found) == ("store", "missing", f"{store} cannot be read")
    assert re.search(remedy, finding.remedy)


def test_a_folder_is_tried_where_it_is_or_would_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZIMAGE_STORE", str(tmp_path / "not" / "yet"))

    findings = {each.subject: each for each in examine_environment()}

    assert findings["store rights"].state == findings["store conditions"].state == "present"
    assert findings["store versions"].state == findings["store encryption"].state == "without"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_missing_with_the_remedy() -> None:
    findings = found("/proc/store")

    assert findings["store rights"].state == "missing"
    assert findings["store rights"].remedy == "let this user write in /proc, or name another folder in ZIMAGE_STORE"
