"""What a release promises to readers, held against a store that fails and writers that are killed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest

from tasks.erasure.forget import empty
from tasks.release.card import form_of
from tasks.release.channels import promote
from tasks.release.publish import publish
from tasks.settings import PROJECT
from tasks.store.releases import INDEX, MANIFEST, Index, Listed, Manifest, release_key, releases_key
from tasks.store.s3 import FolderStore, S3Store
from tests.tasks.finished import finished
from zimage.core.errors import InputError

OPERATIONS, SEED = 40, 7  # 1,000 and more: python -m tests.tasks.campaign; figures in infra/benchmarks.md


def test_whatever_fails_and_whoever_is_killed_no_release_is_half_visible_lost_or_left_after_forgetting() -> None:
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    command = [sys.executable, "-m", "tests.tasks.campaign", str(OPERATIONS), str(SEED)]

    done = subprocess.run(command, cwd=PROJECT, env={**os.environ, **keys}, capture_output=True, text=True, check=True)

    told = json.loads(done.stdout)
    assert told["broken promises"] == []
    assert told["outcomes"]["publish done"] > 0 and told["outcomes"]["forget done"] > 0
    assert sum(count for what, count in told["faults"].items() if what != "requests") > 10


@pytest.fixture
def bucket(s3: None) -> Iterator[S3Store]:
    client = boto3.client("s3")
    client.create_bucket(Bucket="releases")
    store = replace(S3Store.connect("releases", "project"), listing_lag_s=0.0)
    yield store
    store.delete("")
    client.delete_bucket(Bucket="releases")


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    folder = FolderStore(tmp_path / "store")
    key = publish.fn(finished(tmp_path / "ada"), "ada", folder).key
    return Manifest.model_validate_json((folder.root / key / MANIFEST).read_bytes())


def released(store: S3Store, manifest: Manifest, count: int) -> list[str]:
    """Put as many releases into the store as are asked for, and return their names."""
    names = [f"{number}-0a1b2c3d" for number in range(1, count + 1)]
    for name in names:
        content = manifest.model_copy(update={"release": name}).model_dump_json().encode()
        store.compare_and_swap(f"{release_key('ada', name)}/{MANIFEST}", content, None)
    index = Index(releases=[Listed(name=name, content=name) for name in names])
    store.compare_and_swap(f"{releases_key('ada')}/{INDEX}", index.model_dump_json().encode(), None)
    return names


def requests(store: S3Store, ask: Callable[[], object]) -> list[str]:
    """The requests that a call made."""
    made: list[str] = []
    store.client.meta.events.register("before-call.s3", lambda model, **_: made.append(model.name), unique_id="count")
    ask()
    store.client.meta.events.unregister("before-call.s3", unique_id="count")
    return sorted(made)


def test_promoting_and_forgetting_take_as_many_requests_for_many_releases_as_for_few(
    bucket: S3Store, manifest: Manifest
) -> None:
    promoted, forgotten = [], []
    for count in (2, 25):
        names = released(bucket, manifest, count)
        promoted.append(requests(bucket, lambda: promote(bucket, "ada", "staging")))
        assert promote(bucket, "ada", "staging").release == names[-1]
        forgotten.append(requests(bucket, lambda: empty(bucket, "ada")))
        assert bucket.inventory("").is_empty

    assert promoted[0] == promoted[1]
    assert forgotten[0] == forgotten[1] and forgotten[0].count("DeleteObjects") == 3  # channels, manifests, the rest


def test_a_refusal_names_the_newest_releases_only(bucket: S3Store, manifest: Manifest) -> None:
    names = released(bucket, manifest, 12)

    with pytest.raises(InputError, match=f"there are: {', '.join(names[2:])} and earlier ones"):
        promote(bucket, "ada", "staging", "99-0a1b2c3d")


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"rank": 16}, "rank 16"),
        ({"adapter": "lora", "rank": 16}, "rank 16"),
        (
            {"adapter": "lokr", "rank": 16, "lokr": {"factor": 8, "full_matrix": False, "alpha": 8.0}},
            "LoKr, factor 8, rank 16, alpha 8",
        ),
        (
            {"adapter": "lokr", "rank": 16, "lokr": {"factor": -1, "full_matrix": True, "alpha": 8.0}},
            "LoKr, factor -1, full matrix",
        ),
        ({"adapter": "dora", "rank": 16}, "DoRA, rank 16"),
    ],
)
def test_a_card_names_what_was_trained(train: dict[str, Any], said: str) -> None:
    assert form_of(train) == said
