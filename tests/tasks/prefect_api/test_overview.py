"""The overview of all subjects: what it asks of a store, and that many subjects do not wait for each other."""

import threading
from collections.abc import Iterator
from dataclasses import replace

import boto3
import pytest

from tasks.prefect_api.artifacts import overview
from tasks.store.s3 import S3Store
from tasks.transfer.staleness import Finding

SUBJECTS = ["ada", "bob", "eve", "joe"]
FOUND = [Finding(subject, "unchanged", "", None) for subject in SUBJECTS]
MEETS_WITHIN_S = 60.0


@pytest.fixture
def bucket(s3: None) -> Iterator[S3Store]:
    client = boto3.client("s3")
    client.create_bucket(Bucket="shown")
    yield replace(S3Store.connect("shown", "project"), listing_lag_s=0.0)
    client.delete_bucket(Bucket="shown")


def test_subjects_without_a_release_are_looked_at_side_by_side_with_one_request_each(bucket: S3Store) -> None:
    made: list[str] = []
    two_at_once = threading.Barrier(2)

    def count(model: object, **_: object) -> None:
        made.append(str(model))
        two_at_once.wait(MEETS_WITHIN_S)  # no request goes out before another one is about to

    bucket.client.meta.events.register("before-call.s3", count)
    rows = overview(FOUND, bucket)

    assert [row["subject"] for row in rows] == SUBJECTS
    assert {(row["newest release"], row["staging"], row["production"]) for row in rows} == {("none", "", "")}
    assert len(made) == len(SUBJECTS)
