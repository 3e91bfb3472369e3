import datetime
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.publish import LORA, MANIFEST, METRICS, REPORT, Manifest, gate
from tasks.publish import publish as publish_task
from tasks.storage import ConflictError, FolderStore
from zimage.errors import InputError

publish = publish_task.fn
CONSENT = {
    "pseudonym": "ada",
    "adult": True,
    "scope": ["training", "evaluation", "publication"],
    "may_publish": True,
    "expires": datetime.date(2999, 12, 31),
    "document": "signed release",
    "document_sha256": "0" * 64,
}


def finished(tmp_path: Path, verdict: str = "pass", **consent: Any) -> Path:
    """A workspace in which everything was run: the LoRA that was chosen is a checkpoint."""
    workspace = tmp_path / "ada"
    files = {
        "data/train/lora.safetensors": "final",
        "data/train/checkpoints/step-000400.safetensors": "weights",
        "data/evaluate/report.html": "<html>",
        "params.yaml": "train:\n  steps: 800\n",
        "code.yaml": "train: sha256:00\n",
        "dvc.lock": "schema: '2.0'\n",
        "data/consent.yaml": yaml.safe_dump(CONSENT | consent),
    }
    for name, content in files.items():
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
        (workspace / name).write_text(content)
    chosen = {"file": "step-000400.safetensors", "sha256": hashlib.sha256(b"weights").hexdigest(), "strength": 0.8}
    metrics = {"verdict": verdict, "why": "only 12 % are the person", "chosen": chosen}
    (workspace / "data/evaluate/metrics.json").write_text(json.dumps(metrics))
    return workspace


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def test_a_release_holds_the_chosen_lora_the_numbers_the_report_and_a_manifest(
    tmp_path: Path, store: FolderStore
) -> None:
    release = publish(finished(tmp_path), "ada", store)

    folder = store.root / release.key
    assert release.is_new
    assert release.name.startswith("1-")
    assert sorted(path.name for path in folder.iterdir()) == sorted([LORA, METRICS, REPORT, MANIFEST])
    assert (folder / LORA).read_text() == "weights"


def test_the_manifest_ties_weights_code_params_and_data_together(tmp_path: Path, store: FolderStore) -> None:
    release = publish(finished(tmp_path), "ada", store)

    folder = store.root / release.key
    manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    for file in manifest.files:
        content = (folder / file.name).read_bytes()
        assert (file.sha256, file.bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    assert (manifest.subject, manifest.release, manifest.verdict) == ("ada", release.name, "pass")
    assert manifest.params == {"train": {"steps": 800}}
    assert manifest.code == {"train": "sha256:00"}
    assert manifest.packages["torch"].startswith("2.")
    assert manifest.code_commit is not None
    assert len(manifest.code_commit.removesuffix("-dirty")) == 40


def test_the_same_content_is_published_once(tmp_path: Path, store: FolderStore) -> None:
    workspace = finished(tmp_path)
    first = publish(workspace, "ada", store)
    before = {key: (store.root / key).stat().st_mtime_ns for key in store.keys("")}

    again = publish(workspace, "ada", store)

    assert (again.name, again.is_new) == (first.name, False)
    assert {key: (store.root / key).stat().st_mtime_ns for key in store.keys("")} == before


def test_other_content_is_the_next_release(tmp_path: Path, store: FolderStore) -> None:
    workspace = finished(tmp_path)
    first = publish(workspace, "ada", store)
    (workspace / "data/evaluate/report.html").write_text("<html>another")

    second = publish(workspace, "ada", store)

    assert second.name.startswith("2-")
    assert (store.root / first.key / REPORT).read_text() == "<html>"


def test_an_interrupted_publication_is_completed_by_the_next(tmp_path: Path, store: FolderStore) -> None:
    workspace = finished(tmp_path)
    whole = publish(workspace, "ada", store)
    (store.root / whole.key / MANIFEST).unlink()
    (store.root / whole.key / REPORT).unlink()

    completed = publish(workspace, "ada", store)

    assert (completed.name, completed.is_new) == (whole.name, True)
    assert (store.root / whole.key / REPORT).read_text() == "<html>"


def test_a_release_cannot_be_changed(tmp_path: Path, store: FolderStore) -> None:
    workspace = finished(tmp_path)
    release = publish(workspace, "ada", store)

    assert not store.put_if_absent(f"{release.key}/{LORA}", workspace / "params.yaml")
    with pytest.raises(ConflictError):
        store.swap(f"{release.key}/{MANIFEST}", b"{}", None)


def refusal(workspace: Path, store: FolderStore, **asked: bool) -> str:
    with pytest.raises(InputError) as refused:
        publish(workspace, "ada", store, **asked)
    assert store.keys("") == []
    return str(refused.value)


def test_a_failed_verdict_is_refused_with_its_reason_whatever_is_asked(tmp_path: Path, store: FolderStore) -> None:
    said = refusal(finished(tmp_path, "fail"), store, accept_provisional=True)

    assert said.startswith("Not published, the verdict is fail: only 12 % are the person.")


def test_a_provisional_verdict_has_to_be_asked_for(tmp_path: Path, store: FolderStore) -> None:
    workspace = finished(tmp_path, "provisional")

    assert "`--publish provisional` accepts that" in refusal(workspace, store)
    assert publish(workspace, "ada", store, accept_provisional=True).is_new


@pytest.mark.parametrize(
    ("consent", "reason"),
    [
        ({"may_publish": False}, "may_publish: false"),
        ({"scope": ["training"]}, "not publication"),
        ({"expires": datetime.date(2026, 1, 1)}, "expired on 2026-01-01"),
    ],
)
def test_consent_decides_about_publishing(
    tmp_path: Path, store: FolderStore, consent: dict[str, Any], reason: str
) -> None:
    assert reason in refusal(finished(tmp_path, **consent), store)


def test_weights_that_were_not_the_evaluated_ones_are_refused(tmp_path: Path, store: FolderStore) -> None:
    workspace = finished(tmp_path)
    (workspace / "data/train/checkpoints/step-000400.safetensors").write_text("others")

    assert "is not the LoRA that was evaluated" in refusal(workspace, store)


def test_what_was_not_evaluated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has not been evaluated; run the flow `learn` first"):
        gate(tmp_path, accept_provisional=True)
