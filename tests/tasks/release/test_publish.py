import csv
import datetime
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from tasks.erasure.forget import erase
from tasks.release.publish import gate
from tasks.release.publish import publish as publish_task
from tasks.settings import PROJECT
from tasks.store.releases import INDEX, MANIFEST, Manifest, fetch, manifest_of, releases
from tasks.store.s3 import ConflictError, FolderStore
from tasks.workspace.tombstones import Counts, admit, finish
from tasks.workspace.workspace import locked_workspace
from tests.tasks.finished import INSIGHTFACE, PLANTED, STRENGTH, finished, lora
from tests.tasks.workflows import check_against_signatures
from zimage.core.errors import InputError

publish = publish_task.fn
LORA = "ada.safetensors"
WORKFLOWS = ["comfyui-base-api.json", "comfyui-base.json", "comfyui-turbo-api.json", "comfyui-turbo.json"]
SAMPLES = [f"samples/{number}.png" for number in range(1, 5)]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return finished(tmp_path / "ada")


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def published(workspace: Path, store: FolderStore, **asked: Any) -> tuple[Path, Manifest]:
    release = publish(workspace, "ada", store, **asked)
    manifest = manifest_of(store, "ada", release.name)
    assert manifest is not None
    return store.root / release.key, manifest


def test_a_release_holds_what_a_user_needs_and_nothing_of_the_photos(workspace: Path, store: FolderStore) -> None:
    folder, _ = published(workspace, store)

    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert files == sorted(
        [LORA, "README.md", "USAGE.txt", *WORKFLOWS, "metrics.json", "report.html", *SAMPLES, MANIFEST]
    )
    assert folder.name.startswith("1-")
    assert (folder / LORA).read_bytes() == lora(0)
    assert (folder / "report.html").read_bytes() == b"<html>without, 0"
    assert not any(b"real photo" in path.read_bytes() for path in folder.rglob("*.html"))


@pytest.mark.parametrize("name", WORKFLOWS)
def test_comfyui_accepts_the_workflows_and_they_load_the_lora_of_the_release(
    workspace: Path, store: FolderStore, name: str
) -> None:
    folder, manifest = published(workspace, store)
    shown = json.loads((folder / name).read_text())

    loaders = [inputs for kind, inputs in check_against_signatures(shown) if kind == "LoraLoaderModelOnly"]

    assert [(each["lora_name"], each["strength_model"]) for each in loaders] == [(LORA, STRENGTH)]
    assert loaders[0]["lora_name"] in [file.name for file in manifest.files]


def test_how_to_use_it_names_the_file_the_strength_and_the_trigger(workspace: Path, store: FolderStore) -> None:
    folder, manifest = published(workspace, store)

    lines = (folder / "USAGE.txt").read_text().splitlines()
    assert len(lines) == 3
    assert all(LORA in line and f"{STRENGTH:g}" in line for line in lines[:2])
    assert manifest.trigger == "ohzw woman" and manifest.trigger in lines[2]
    assert all((folder / name).is_file() for name in ("comfyui-base.json", "comfyui-turbo.json") if name in lines[0])


def test_the_manifest_ties_weights_code_params_and_data_together(workspace: Path, store: FolderStore) -> None:
    folder, manifest = published(workspace, store)

    for file in manifest.files:
        content = (folder / file.name).read_bytes()
        assert (file.sha256, file.bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    assert (manifest.subject, manifest.release, manifest.verdict) == ("ada", folder.name, "pass")
    assert manifest.params["train"] == yaml.safe_load((workspace / "params.yaml").read_text())["train"]
    assert manifest.code["train"].startswith("sha256:")
    assert manifest.packages["torch"].startswith("2.")
    assert manifest.engines == ["dlib-resnet-v1/55533b28"]
    assert manifest.consent.expires == datetime.date(2999, 12, 31)
    assert manifest.code_commit is not None
    assert len(manifest.code_commit.removesuffix("-dirty")) == 40


def test_where_there_is_no_git_a_release_tells_the_commit_that_its_image_was_made_of(
    workspace: Path, store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("ZIMAGE_COMMIT", "0a" * 20)

    assert published(workspace, store)[1].code_commit == "0a" * 20


def test_the_card_tells_base_licences_consent_and_scores_with_intervals(workspace: Path, store: FolderStore) -> None:
    folder, _ = published(workspace, store)

    _, front, text = (folder / "README.md").read_text().split("---\n", maxsplit=2)
    meta = yaml.safe_load(front)
    assert meta["library_name"] == "diffusers" and "lora" in meta["tags"]
    assert meta["base_model"] == "Tongyi-MAI/Z-Image"
    assert "| base model Tongyi-MAI/Z-Image | Apache-2.0 |" in text
    assert "| face engine dlib-resnet-v1/55533b28 | CC0-1.0 (weights), BSL-1.0 (dlib) |" in text
    assert "to: training, evaluation, publication, until 2999-12-31" in text
    same = "| 97.9 % | of all pictures are the same person as the held-out photos | 87.2 % to 99.7 % | 48 |  |"
    assert same in text
    assert "suite\n`mine.yaml`, by version 7 of the project's protocol." in text
    assert "by CLIP" not in text  # which was not measured
    assert "PROVISIONAL" not in text


def test_the_card_tells_copies_leaks_and_following_and_which_of_them_is_no_rule(
    workspace: Path, store: FolderStore
) -> None:
    text = (published(workspace, store)[0] / "README.md").read_text()

    assert (
        "| 47.9 % | of the pictures are copies of a training photo | 34.5 % to 61.7 % | 48 | not a rule here |" in text
    )
    assert "| 3 of 3 | pictures asked for the class noun alone show the person | 43.8 % to 100 % | 3 | limit at" in text
    assert "| 47.3 % | of what a prompt asks for is found again in its picture | 40 % to 55 % | 48 |  |" in text


@pytest.mark.parametrize("trigger", ["ohzw", "ohzw: #1 'of' \"all\""])
def test_the_hub_can_read_the_card_whatever_the_words_are(workspace: Path, store: FolderStore, trigger: str) -> None:
    params = yaml.safe_load((workspace / "params.yaml").read_text())
    params["base"] = {"model": "Tongyi-MAI/Z-Image", "identity": "hub:0123"}
    params["subject"]["trigger"] = trigger
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))

    folder, _ = published(workspace, store)

    data = ModelCard((folder / "README.md").read_text(), ignore_metadata_errors=False).data
    assert (data.license, data.base_model, data.pipeline_tag) == ("other", "Tongyi-MAI/Z-Image", "text-to-image")
    assert data["instance_prompt"] == f"a photo of {trigger} woman"
    assert data["base_model_relation"] == "adapter"


def test_pictures_say_that_they_were_generated_and_nothing_else(workspace: Path, store: FolderStore) -> None:
    folder, _ = published(workspace, store)

    for name in SAMPLES:
        assert PLANTED.encode() not in (folder / name).read_bytes()
        with Image.open(folder / name) as image:
            assert set(image.info) - {"xmp"} == {"Software", "XML:com.adobe.xmp"}  # Pillow shows the packet twice
            assert "digitalsourcetype/trainedAlgorithmicMedia" in image.info["XML:com.adobe.xmp"]


def test_no_picture_of_a_release_chose_is_a_copy_or_shows_nobody(workspace: Path, store: FolderStore) -> None:
    folder, _ = published(workspace, store)

    reds = {Image.open(folder / name).getpixel((0, 0)) for name in SAMPLES}
    assert reds == {(8 * number, 0, 0) for number in (4, 5, 6, 7)}


def test_a_release_tells_no_place_of_the_machine_it_was_made_on(workspace: Path, store: FolderStore) -> None:
    params = yaml.safe_load((workspace / "params.yaml").read_text())
    params["base"]["model"] = "/home/somebody/models/my-base"
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))
    lock: dict[str, Any] = {"schema": "2.0", "stages": {}}
    lock["stages"]["train"] = {"cmd": "zimage", "params": {"params.yaml": {"base": params["base"], "packs": ["~/a/b"]}}}
    (workspace / "dvc.lock").write_text(yaml.safe_dump(lock))

    folder, manifest = published(workspace, store)

    assert manifest.params["base"]["model"] == "my-base"
    used = manifest.dvc_lock["stages"]["train"]["params"]["params.yaml"]
    assert (used["base"]["model"], used["packs"]) == ("my-base", ["b"])
    for path in folder.rglob("*"):
        assert path.is_dir() or not any(each in path.read_bytes() for each in (b"/home/", str(workspace).encode()))


PUBLISHING = """
import sys
from pathlib import Path
from tasks.store.folder import FolderStore
from tasks.release.publish import publish
from tasks.workspace.workspace import locked_workspace
workspace, store = map(Path, sys.argv[1:])
with locked_workspace(workspace):
    publish.fn(workspace, "ada", FolderStore(store))
"""


def test_what_a_killed_publication_leaves_lies_in_the_workspace_and_goes_when_that_is_next_held(
    workspace: Path, store: FolderStore, tmp_path: Path
) -> None:
    chosen = [row["file"] for row in csv.DictReader((workspace / "data/evaluate/scores.csv").read_text().splitlines())]
    for name in chosen:  # whoever reads such a picture waits for ever
        (workspace / "data/evaluate" / name).unlink(missing_ok=True)
        os.mkfifo(workspace / "data/evaluate" / name)
    temporary, aside = tmp_path / "temporary", workspace / ".dvc/tmp/scratch/release"
    temporary.mkdir()
    command = [sys.executable, "-c", PUBLISHING, str(workspace), str(store.root)]
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(command, env=environment) as publishing:
        while not (aside / "samples").is_dir():
            assert publishing.poll() is None
            time.sleep(0.05)
        publishing.kill()

    assert (aside / "README.md").is_file()
    assert list(temporary.rglob("*")) == []
    with locked_workspace(workspace):
        assert not aside.exists()


def test_the_same_content_is_published_once(workspace: Path, store: FolderStore) -> None:
    first = publish(workspace, "ada", store)
    before = {key: (store.root / key).stat().st_mtime_ns for key in store.keys("")}

    again = publish(workspace, "ada", store)

    assert (again.name, again.is_new) == (first.name, False)
    assert {key: (store.root / key).stat().st_mtime_ns for key in store.keys("")} == before


def test_other_content_is_the_next_release(workspace: Path, store: FolderStore) -> None:
    first = publish(workspace, "ada", store)
    finished(workspace, seed=1)

    second = publish(workspace, "ada", store)

    assert second.name.startswith("2-")
    assert (store.root / first.key / LORA).read_bytes() == lora(0)
    assert [manifest.release for manifest in releases(store, "ada")] == [second.name, first.name]


def test_an_interrupted_publication_is_no_release_and_is_completed_by_the_next(
    workspace: Path, store: FolderStore
) -> None:
    whole = publish(workspace, "ada", store)
    (store.root / whole.key / MANIFEST).unlink()
    (store.root / whole.key / "report.html").unlink()
    assert list(releases(store, "ada")) == []

    completed = publish(workspace, "ada", store)

    assert (completed.name, completed.is_new) == (whole.name, True)
    assert (store.root / whole.key / "report.html").read_bytes() == b"<html>without, 0"


def test_a_release_cannot_be_changed(workspace: Path, store: FolderStore) -> None:
    release = publish(workspace, "ada", store)

    assert not store.put_if_absent(f"{release.key}/{LORA}", workspace / "params.yaml")
    with pytest.raises(ConflictError):
        store.compare_and_swap(f"{release.key}/{MANIFEST}", b"{}", None)


def test_a_file_that_was_damaged_in_the_store_is_named_and_mended(
    workspace: Path, store: FolderStore, tmp_path: Path
) -> None:
    release = publish(workspace, "ada", store)
    (store.root / release.key / LORA).write_bytes(lora(5))
    with pytest.raises(InputError, match=rf"{release.key}/{LORA} in the store is not what was published"):
        fetch(store, "ada", release.name, tmp_path / "got")
    assert not (tmp_path / "got" / LORA).exists()

    again = publish(workspace, "ada", store)

    assert again.notice == f"Damaged in the store, and mended: {LORA}."
    fetch(store, "ada", release.name, tmp_path / "got")
    assert (tmp_path / "got" / LORA).read_bytes() == lora(0)


def test_fetching_goes_on_where_it_stopped(workspace: Path, store: FolderStore, tmp_path: Path) -> None:
    release = publish(workspace, "ada", store)
    manifest = fetch(store, "ada", release.name, tmp_path / "got")
    (tmp_path / "got" / LORA).write_bytes(b"half")
    for file in manifest.files:
        os.utime(tmp_path / "got" / file.name, (0, 0))

    fetch(store, "ada", release.name, tmp_path / "got")

    assert [file.name for file in manifest.files if (tmp_path / "got" / file.name).stat().st_mtime] == [LORA]


def test_a_release_that_is_not_there_is_told(store: FolderStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ada has no release 7-00000000; the index of its releases says"):
        fetch(store, "ada", "7-00000000", tmp_path)


class ForgottenMeanwhile(FolderStore):
    """A store in which all of a subject is forgotten, from its beginning to its end, when a certain file comes."""

    name = ""

    def put_if_absent(self, key: str, source: Path) -> bool:
        self._forget(key)
        return super().put_if_absent(key, source)

    def compare_and_swap(self, key: str, content: bytes, tag: str | None) -> str:
        self._forget(key)
        return super().compare_and_swap(key, content, tag)

    def _forget(self, key: str) -> None:
        plain = FolderStore(self.root)
        if key.endswith(f"/{self.name}") and not plain.keys("tombstones"):
            erase(plain, self.root / "workspace-of-another-machine", "ada", Counts())
            finish(plain, "ada")


class ForgottenWithItsPictures(ForgottenMeanwhile):
    name = SAMPLES[1]


class ForgottenAtTheLastMoment(ForgottenMeanwhile):
    name = MANIFEST


@pytest.mark.parametrize("kind", [ForgottenWithItsPictures, ForgottenAtTheLastMoment])
def test_what_was_being_published_while_the_person_was_forgotten_is_taken_back(
    workspace: Path, store: FolderStore, kind: type[FolderStore]
) -> None:
    publish(workspace, "ada", store)
    finished(workspace, seed=1)

    with pytest.raises(InputError, match=rf"The subject of {workspace} was forgotten after that was made, so nothing"):
        publish(workspace, "ada", kind(store.root))

    assert store.keys("subjects/ada") == []
    with pytest.raises(InputError, match="was forgotten after that was made"):
        publish(workspace, "ada", store)
    assert store.keys("subjects/ada") == []


class Undeletable(ForgottenAtTheLastMoment):
    """With the keys of a role that may not delete."""

    def delete(self, below: str) -> int:
        raise InputError(f"these keys may not delete {below}")


def test_what_cannot_be_taken_back_is_told_with_the_remedy(workspace: Path, store: FolderStore) -> None:
    told = r"What was sent meanwhile could not be taken back \(these keys may not .*\); run `forget` again\."
    with pytest.raises(InputError, match=told):
        publish(workspace, "ada", Undeletable(store.root))


def test_who_comes_back_is_published_again(workspace: Path, store: FolderStore) -> None:
    publish(workspace, "ada", store)
    erase(store, workspace, "ada", Counts())
    finish(store, "ada")
    admit(store, "ada", workspace)
    finished(workspace, seed=1)

    assert publish(workspace, "ada", store).name.startswith("1-")


def refusal(workspace: Path, store: FolderStore, **asked: Any) -> str:
    with pytest.raises(InputError) as refused:
        publish(workspace, "ada", store, **asked)
    assert store.keys("") == []
    return f"{refused.value} {refused.value.names}".strip()


def test_a_failed_verdict_is_refused_with_its_reason_whatever_is_asked(tmp_path: Path, store: FolderStore) -> None:
    said = refusal(finished(tmp_path / "ada", "fail"), store, accept_provisional=True)

    assert said.startswith("Not published, the verdict is fail; the report says why. only 12 % are the person.")


def test_a_reason_that_ends_with_a_full_stop_is_followed_by_no_second_one(tmp_path: Path, store: FolderStore) -> None:
    workspace = finished(tmp_path / "ada", "fail")
    path = workspace / "data/evaluate/metrics.json"
    said = {"why": "Outside its limit: same_of_all.", "advice": ["Only 150 steps were trained; train more."]}
    path.write_text(json.dumps(json.loads(path.read_text()) | said))

    told = refusal(workspace, store)
    assert told.endswith("why. Outside its limit: same_of_all. Only 150 steps were trained; train more.")


def test_a_provisional_verdict_has_to_be_asked_for_and_is_marked(tmp_path: Path, store: FolderStore) -> None:
    workspace = finished(tmp_path / "ada", "provisional")

    said = refusal(workspace, store)
    assert said.startswith("Not published, the verdict is provisional; ")
    assert f"`python -m flows publish --subject {workspace.name} --accept-provisional` publishes it" in said
    folder, manifest = published(workspace, store, accept_provisional=True)
    assert manifest.verdict == "provisional"
    assert "> **PROVISIONAL.** only 12 % are the person." in (folder / "README.md").read_text()


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
    assert reason in refusal(finished(tmp_path / "ada", **consent), store)


def test_consent_that_ends_soon_is_told_before_it_happens(tmp_path: Path, store: FolderStore) -> None:
    soon = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=9)

    release = publish(finished(tmp_path / "ada", expires=soon), "ada", store)

    assert release.notice == f"The consent of ada ends in 9 days ({soon}); renew it, or forget them."


def test_non_commercial_models_are_refused_for_commercial_use_only(tmp_path: Path, store: FolderStore) -> None:
    workspace = finished(tmp_path / "ada", engine=INSIGHTFACE)

    said = refusal(workspace, store, use="commercial")
    assert "the face engine insightface-buffalo_l/0badf00d is licensed as `released insightface packs: non-comm" in said
    assert publish(workspace, "ada", store).is_new


def test_commercial_use_needs_a_known_licence_of_the_base(workspace: Path, store: FolderStore, tmp_path: Path) -> None:
    params = yaml.safe_load((workspace / "params.yaml").read_text())
    base = tmp_path / "base"
    base.mkdir()
    params["base"]["model"] = str(base)
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))

    assert "the licence of the base model base is not known here" in refusal(workspace, store, use="commercial")
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    _, manifest = published(workspace, store, use="commercial")
    assert manifest.licences["base model base"] == "apache-2.0"


def test_weights_that_were_not_the_evaluated_ones_are_refused(workspace: Path, store: FolderStore) -> None:
    (workspace / "data/train/checkpoints/step-000400.safetensors").write_bytes(lora(7))

    assert "is not the LoRA that was evaluated" in refusal(workspace, store)


def test_weights_that_are_gone_are_named_where_they_should_be(workspace: Path, store: FolderStore) -> None:
    path = workspace / "data/evaluate/metrics.json"
    found = json.loads(path.read_text())
    found["chosen"]["file"] = "lora.safetensors"
    path.write_text(json.dumps(found))
    (workspace / "data/train/lora.safetensors").unlink()

    assert "data/train/lora.safetensors, the LoRA that was evaluated, is not there; run" in refusal(workspace, store)


def of_toy(workspace: Path) -> Path:
    """Make a finished workspace one whose LoRA was trained on the packaged model."""
    params = yaml.safe_load((workspace / "params.yaml").read_text())
    params["base"] = {"model": "tiny", "identity": "sha256:00"}
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))
    path = workspace / "data/evaluate/metrics.json"
    found = json.loads(path.read_text())
    found["sampled"] |= {"packaged": True, "side_px": 128, "steps": 16, "guidance_scale": 0.0, "shift": 2.0}
    path.write_text(json.dumps(found))
    return workspace


def test_a_lora_of_the_packaged_model_is_published_only_if_that_is_asked_for(
    workspace: Path, store: FolderStore
) -> None:
    said = refusal(of_toy(workspace), store, accept_provisional=True)

    assert said.startswith("Not published. The base is the packaged toy model")
    assert said.endswith("`--accept-toy` publishes this one all the same.")
    assert publish(workspace, "ada", store, accept_toy=True).is_new


def test_a_release_of_the_packaged_model_has_no_workflow_and_no_usage_for_the_real_one(
    workspace: Path, store: FolderStore
) -> None:
    folder, _ = published(of_toy(workspace), store, accept_toy=True)

    assert not list(folder.glob("comfyui*"))
    card, usage = ((folder / name).read_text() for name in ("README.md", "USAGE.txt"))
    assert "> **TOY MODEL.** The base is the packaged toy model" in card
    assert "base_model" not in yaml.safe_load(card.split("---\n")[1])  # it is no model of the hub
    for text in (card, usage):
        assert "models/loras" not in text and 'from_pretrained("Tongyi-MAI' not in text and "comfyui-" not in text
    assert "with the real Z-Image it does nothing" in usage
    assert "height=128, width=128, num_inference_steps=16, guidance_scale=0)" in usage


def test_a_release_is_used_with_the_base_and_the_settings_of_the_evaluation(
    workspace: Path, store: FolderStore
) -> None:
    params = yaml.safe_load((workspace / "params.yaml").read_text())
    params["base"] = {"model": "Tongyi-MAI/Z-Image-Turbo", "identity": "hub:0123"}
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))
    path = workspace / "data/evaluate/metrics.json"
    found = json.loads(path.read_text())
    found["sampled"] |= {"side_px": 768, "steps": 9, "guidance_scale": 0.0, "shift": 3.0}
    path.write_text(json.dumps(found))

    folder, _ = published(workspace, store)

    comfyui, diffusers, _prompt = (folder / "USAGE.txt").read_text().splitlines()
    assert "comfyui-turbo.json (as evaluated: 9 steps, cfg 1, euler, simple, shift 3, 768 px)" in comfyui
    assert "comfyui-base.json (not measured: 30 steps, cfg 4" in comfyui
    assert 'from_pretrained("Tongyi-MAI/Z-Image-Turbo"' in diffusers and "guidance_scale=0)" in diffusers
    assert diffusers.endswith("(as evaluated, in bfloat16).")
    assert "| measured | on that base, in bfloat16 |" in (folder / "README.md").read_text()


def test_what_an_older_version_evaluated_is_refused_with_the_remedy(workspace: Path, store: FolderStore) -> None:
    path = workspace / "data/evaluate/metrics.json"
    found = json.loads(path.read_text())
    del found["sampled"]
    path.write_text(json.dumps(found))

    assert "was evaluated by an older version; run the flow `learn` again" in refusal(workspace, store)


def test_what_was_not_evaluated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has not been evaluated; run the flow `learn` first"):
        gate(tmp_path, accept_provisional=True, use="non-commercial")


def test_the_index_gives_each_content_one_number(workspace: Path, store: FolderStore) -> None:
    publish(workspace, "ada", store)
    publish(workspace, "ada", store)

    index = json.loads((store.root / "subjects/ada/releases" / INDEX).read_text())
    assert [each["name"].split("-")[0] for each in index["releases"]] == ["1"]
