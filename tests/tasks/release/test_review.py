"""A person's review in a release: taken into the workspace, judged by the gate, published with its answers."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.release.publish import publish as publish_task
from tasks.release.review import take_review
from tasks.store.s3 import FolderStore
from tests.evaluation.test_review import metrics_with
from tests.tasks.finished import INSIGHTFACE, finished
from zimage.core.errors import InputError
from zimage.core.jsonl import write_rows
from zimage.evaluation.review import FORMAT, ITEMS, Item, identity_of

ITEMS_ASKED = [
    *(Item(id=f"picture{n}", kind="picture", name=f"pictures/{n}.png", prompt=f"p{n}", engine_same=True) for n in "01"),
    Item(id="real0", kind="real", name="aa", prompt=None, engine_same=True),
    Item(id="other0", kind="impostor", name="group/0.jpg", prompt=None, engine_same=False),
]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A workspace whose evaluation passes but for the review, which the gate asks for."""
    workspace = finished(tmp_path / "ada", engine=INSIGHTFACE)
    path = workspace / "data/evaluate/metrics.json"
    path.write_text(json.dumps(with_rule(json.loads(path.read_text()))))
    write_rows(workspace / "data/evaluate" / ITEMS, ITEMS_ASKED)
    return workspace


def with_rule(metrics: dict[str, Any]) -> dict[str, Any]:
    found = metrics_with(0.7)
    return metrics | {key: found[key] for key in ("verdict", "why", "gate")}


def saved(folder: Path, **changes: str) -> Path:
    said = {"picture0": "yes", "picture1": "yes", "real0": "yes", "other0": "no"} | changes
    path = folder / "download.json"
    path.write_text(json.dumps({"format": FORMAT, "review": identity_of(ITEMS_ASKED), "answers": said}))
    return path


def published(workspace: Path, store: FolderStore) -> Path:
    return store.root / publish_task.fn(workspace, "ada", store).key


def test_a_rule_on_the_review_holds_a_release_back_until_somebody_has_answered(workspace: Path, tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    with pytest.raises(InputError, match="the verdict is provisional") as refused:
        published(workspace, store)
    assert "Could not be measured: same person to a reviewer, of all pictures." in refused.value.names

    answers = saved(tmp_path)
    take_review(workspace, str(answers))
    folder = published(workspace, store)

    assert (folder / "review.json").read_bytes() == answers.read_bytes()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["verdict"], metrics["review"]["same"]["value"], metrics["review"]["kappa"]) == ("pass", 1, 1)
    assert "of all pictures are the same person to a reviewer |" in (folder / "README.md").read_text()


def test_a_reviewer_who_does_not_see_the_person_fails_the_verdict(workspace: Path, tmp_path: Path) -> None:
    take_review(workspace, str(saved(tmp_path, picture0="no", picture1="unsure")))

    with pytest.raises(InputError, match="the verdict is fail") as refused:
        published(workspace, FolderStore(tmp_path / "store"))
    assert "Outside its limit: same person to a reviewer, of all pictures." in refused.value.names


def test_a_review_that_does_not_count_is_refused_and_replaces_none(workspace: Path, tmp_path: Path) -> None:
    take_review(workspace, str(saved(tmp_path)))
    before = (workspace / "data/review.json").read_bytes()

    with pytest.raises(InputError, match="1 of 1 photos of other people were not recognised"):
        take_review(workspace, str(saved(tmp_path, other0="yes")))
    with pytest.raises(InputError, match=r"There is no review .*nowhere\.json; name a file that review\.html saved"):
        take_review(workspace, str(tmp_path / "nowhere.json"))

    assert (workspace / "data/review.json").read_bytes() == before
