"""Releases on the hub, over real HTTP by huggingface_hub itself; the server is a stand-in, hub_server.py."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants, snapshot_download
from prefect.blocks.system import Secret

from tasks.erasure.forget import erase
from tasks.release.hub.hub import TOKEN_BLOCK, Uploaded, delete, title_of
from tasks.release.hub.hub import publish_to_hub as publish_to_hub_task
from tasks.release.hub.index import HubRecord, found, lines, note
from tasks.release.publish import publish as publish_task
from tasks.settings import Settings
from tasks.store.protocol import StoreError
from tasks.store.releases import MANIFEST, release_key
from tasks.store.s3 import FolderStore
from tasks.workspace.tombstones import Counts, begin, finish
from tests.tasks.finished import finished
from tests.tasks.hub_server import TOKEN, Hub
from zimage.core.errors import InputError

NAME = "lab/ada"
# huggingface_hub sends files to httpx2 in a manner that httpx2 does not like any more.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@dataclass(frozen=True)
class Lab:
    """A store with a release of a subject, and a hub."""

    hub: Hub
    settings: Settings
    store: FolderStore
    folder: Path
    release: str

    def publish(self, release: str = "", name: str = NAME, subject: str = "ada") -> Uploaded:
        return publish_to_hub_task.fn(self.settings, self.store, subject, release or self.release, name)

    def next(self, subject: str = "ada") -> str:
        """Another release in the store."""
        return publish_to_store(self.folder, self.store, 1, subject)

    def forget_once(self) -> None:
        """Forget the person on another machine, which does not know yet of a repository, and answer as ever then."""
        self.hub.faults.clear()
        erase(self.store, self.folder / "workspace-of-another-machine", "ada", Counts())
        finish(self.store, "ada")

    def delete(self) -> None:
        delete(self.settings, self.store, "ada")

    def files(self, release: str = "") -> dict[str, bytes]:
        """All files of a release in the store."""
        folder = self.store.root / release_key("ada", release or self.release)
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def read(self, revision: str = "main") -> dict[str, bytes]:
        """What a reader gets, who downloads all of it with the hub's own client."""
        where = {"endpoint": self.hub.address, "cache_dir": self.folder / "cache"}
        got = Path(snapshot_download(NAME, revision=revision, token=TOKEN, **where))
        there = {path.relative_to(got).as_posix(): path.read_bytes() for path in got.rglob("*") if path.is_file()}
        return {name: content for name, content in there.items() if name != ".gitattributes"}

    def titles(self) -> list[str]:
        return [commit.title for commit in self.hub.repos[NAME].commits]

    def stamps(self) -> set[int]:
        return {path.stat().st_mtime_ns for path in self.store.root.rglob("*")}


def publish_to_store(folder: Path, store: FolderStore, seed: int, subject: str) -> str:
    name: str = publish_task.fn(finished(folder / subject, seed=seed), subject, store).name
    return name


@pytest.fixture
def lab(hub: Hub, tmp_path: Path) -> Lab:
    store = FolderStore(tmp_path / "store")
    release = publish_to_store(tmp_path, store, 0, "ada")
    return Lab(hub, Settings(tmp_path, tmp_path, str(tmp_path / "store"), hub=hub.address), store, tmp_path, release)


def test_a_reader_gets_exactly_the_release_by_its_tag_and_the_repository_is_private(lab: Lab) -> None:
    assert lab.publish() == Uploaded(NAME, lab.release, is_new=True)

    assert lab.hub.repos[NAME].private
    assert lab.titles() == ["initial commit", title_of(lab.release)]
    assert lab.read(lab.release) == lab.read() == lab.files()
    assert found(lab.store, "ada") == [HubRecord(name=NAME, endpoint=lab.hub.address, origin="made")]


def test_publishing_the_same_again_changes_nothing(lab: Lab) -> None:
    lab.publish()
    before = (lab.hub.repos[NAME].tags.copy(), lab.titles(), lab.stamps())
    lab.hub.asked.clear()

    assert lab.publish() == Uploaded(NAME, lab.release, is_new=False)

    assert before == (lab.hub.repos[NAME].tags, lab.titles(), lab.stamps())
    assert not {"create", "preupload", "batch", "put", "commit", "tag"} & set(lab.hub.asked)


def test_the_next_release_takes_its_place_and_the_one_before_keeps_its_tag(lab: Lab) -> None:
    lab.publish()
    head = lab.hub.repos[NAME].commits[-1]
    lab.hub.push(NAME, "somebody's words", {**head.files, "notes.txt": b"mine", ".gitignore": b"*.png"})
    second = lab.next()

    lab.publish(second)

    assert lab.read() == lab.files(second)  # what was added by hand is gone, and nothing was left out
    assert lab.read(lab.release) == lab.files()


@pytest.mark.parametrize(
    ("where", "how"),
    [("create", "reset"), ("preupload", 503), ("put", "reset"), ("complete", "reset"), ("verify", 503),
     ("commit", "reset"), ("commit", 503)],
)  # fmt: skip
def test_wherever_it_breaks_a_reader_has_the_release_before_whole_and_the_next_try_completes_it(
    lab: Lab, where: str, how: Any
) -> None:
    if where != "create":
        lab.publish()
    second = lab.next()
    lab.hub.faults[where] = how

    with pytest.raises(StoreError, match=r"^The hub (did not answer|failed \(503\)).*run again"):
        lab.publish(second)
    if where != "create":
        assert lab.read() == lab.files()
    lab.hub.faults.clear()
    lab.publish(second)

    assert lab.read() == lab.read(second) == lab.files(second)
    assert lab.titles().count(title_of(second)) == 1
    assert [each.origin for each in found(lab.store, "ada")] == ["made"]


@pytest.mark.parametrize("where", ["create", "commit", "tag"])
def test_what_was_done_although_its_answer_was_lost_is_not_done_twice(lab: Lab, where: str) -> None:
    lab.hub.faults[where] = "lost"
    with pytest.raises(StoreError, match="The hub did not answer"):
        lab.publish()
    lab.hub.faults.clear()

    lab.publish()

    assert lab.titles() == ["initial commit", title_of(lab.release)]
    assert lab.read(lab.release) == lab.files()
    assert [each.origin for each in found(lab.store, "ada")] == ["made"]


def test_a_change_of_somebody_else_in_between_is_noticed_and_nothing_of_it_lost(lab: Lab) -> None:
    lab.hub.faults["commit"] = lambda: lab.hub.push(NAME, "somebody's", {"README.md": b"mine"}) and None

    with pytest.raises(StoreError, match=r"lab/ada was changed by somebody else at the same time \(412\); run again"):
        lab.publish()
    assert lab.titles() == ["initial commit", "somebody's"]


@pytest.mark.parametrize(
    ("token", "name", "says"),
    [
        ("hf_unknown", NAME, r"does not know this token \(401\); set HF_TOKEN to one that may write lab/ada"),
        ("hf_reader", NAME, r"forbids this token to write lab/ada \(403\); give it the permission to write"),
        ("hf_stranger", NAME, r"forbids this token to write lab/ada \(403\)"),
        (TOKEN, "lab/--", "`lab/--` is no name of a repository on the hub"),
    ],
)
def test_who_may_not_is_told_in_one_sentence_without_the_token(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, token: str, name: str, says: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)

    with pytest.raises(InputError, match=says) as refused:
        lab.publish(name=name)

    assert token not in str(refused.value) and refused.value.__suppress_context__
    assert lab.hub.repos == {}
    assert found(lab.store, "ada") == []  # forgetting has nothing to look for there


def test_a_file_that_the_hub_does_not_take_is_told(lab: Lab) -> None:
    lab.hub.faults["verify"] = 413
    with pytest.raises(InputError, match=r"The hub does not take this for lab/ada \(413\)"):
        lab.publish()


def test_a_hub_that_is_away_is_told(lab: Lab) -> None:
    away = replace(lab, settings=replace(lab.settings, hub="http://127.0.0.1:9"))
    with pytest.raises(StoreError, match=r"The hub did not answer \(ConnectError\)"):
        away.publish()


def test_where_models_are_read_without_a_network_it_says_so(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set, so nothing goes to the hub; unset it where this runs"):
        lab.publish()


def test_the_token_may_lie_in_a_block_and_has_to_lie_somewhere(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, prefect_server: None
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(
        InputError, match=r"There is no token for the hub; set HF_TOKEN .* or make a Secret block `hf-t"
    ):
        lab.publish()
    Secret(value=TOKEN).save(TOKEN_BLOCK)

    assert lab.publish().is_new


def test_the_token_is_written_nowhere(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    lab.publish()

    written = [path.read_bytes() for path in lab.store.root.rglob("*") if path.is_file()]
    sent = [content for commit in lab.hub.repos[NAME].commits for content in commit.files.values()]
    assert not any(TOKEN.encode() in content for content in [*written, *sent, caplog.text.encode()])
    assert TOKEN not in repr(lab.settings)


def test_a_repository_with_something_else_in_it_is_left_alone(lab: Lab) -> None:
    lab.hub.push(NAME, "a model of mine", {"model.safetensors": b"mine"})
    with pytest.raises(InputError, match=r"lab/ada holds what is no release of this subject \(model.safetensors\)"):
        lab.publish()
    assert lab.titles() == ["a model of mine"]
    assert found(lab.store, "ada") == []


def test_a_repository_that_somebody_else_makes_at_the_same_time_is_theirs(lab: Lab) -> None:
    lab.hub.faults["create"] = lambda: lab.hub.push(NAME, "a model of mine", {"model.safetensors": b"mine"}) and None

    with pytest.raises(InputError, match="holds what is no release of this subject"):
        lab.publish()
    assert lab.titles() == ["a model of mine"]
    assert [each.origin for each in found(lab.store, "ada")] == ["found"]


def test_a_repository_of_another_subject_is_left_alone(lab: Lab) -> None:
    lab.publish()
    other = lab.next("grace")

    with pytest.raises(InputError, match="holds what is no release of this subject"):
        lab.publish(other, subject="grace")
    assert lab.titles()[-1] == title_of(lab.release)


def test_a_tag_that_was_moved_is_no_release(lab: Lab) -> None:
    lab.publish()
    lab.hub.repos[NAME].tags[lab.release] = lab.hub.push(NAME, "other words", {"README.md": b"mine"}).oid
    lab.hub.repos[NAME].commits[-1].files[MANIFEST] = lab.files()[MANIFEST]

    with pytest.raises(InputError, match=rf"{lab.release} in lab/ada is not what was published \(README.md, USAGE.txt"):
        lab.publish()


@pytest.mark.parametrize("consent", [{"expires": "2026-01-01"}, {"may_publish": False}])
def test_a_release_whose_consent_has_ended_does_not_go_to_the_hub(lab: Lab, consent: dict[str, Any]) -> None:
    path = lab.store.root / release_key("ada", lab.release) / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["consent"] |= consent
    path.write_text(json.dumps(manifest))

    with pytest.raises(InputError, match=f"{lab.release} does not go to the hub: its consent ended on"):
        lab.publish()
    assert lab.hub.asked == []


def test_nothing_goes_to_the_hub_while_the_person_is_being_forgotten(lab: Lab) -> None:
    begin(lab.store, "ada", Counts())
    with pytest.raises(InputError, match="This subject is being forgotten"):
        lab.publish()
    assert lab.hub.asked == []


@pytest.mark.parametrize("moment", ["create", "preupload", "commit", "tag"])
def test_a_release_of_a_person_who_is_forgotten_meanwhile_is_taken_off_the_hub_again(lab: Lab, moment: str) -> None:
    lab.hub.faults[moment] = lab.forget_once

    with pytest.raises(InputError, match="was forgotten after that was made"):
        lab.publish()

    assert lab.hub.repos == {}
    assert lab.store.keys("subjects/ada") == []


def test_a_hub_that_is_away_when_a_release_has_to_be_taken_off_leaves_it_to_the_next_forgetting(lab: Lab) -> None:
    def forget_and_fail() -> None:
        lab.forget_once()
        lab.hub.faults["delete"] = 503

    lab.hub.faults["tag"] = forget_and_fail
    with pytest.raises(
        InputError, match=r"It may still be on the hub \(The hub failed \(503\).*; run `forget` again\."
    ):
        lab.publish()

    lab.hub.faults.clear()
    lab.delete()
    assert lab.hub.repos == {}


def test_what_it_leaves_in_a_repository_that_was_there_is_told_and_known_to_the_next_forgetting(lab: Lab) -> None:
    lab.hub.push(NAME, "initial commit", {".gitattributes": b""})
    lab.hub.faults["tag"] = lab.forget_once

    with pytest.raises(InputError, match=r"history still has 1 of them\. Delete it, or rewrite its history"):
        lab.publish()

    assert lab.hub.repos[NAME].tags == {}
    assert set(lab.hub.repos[NAME].commits[-1].files) <= {".gitattributes"}
    with pytest.raises(InputError, match=r"history still has 1 of them"):
        lab.delete()


def test_a_repository_that_publishing_made_is_deleted_with_all_its_history(lab: Lab) -> None:
    lab.hub.push("lab/other", "somebody else's", {})
    lab.publish()
    assert lines(found(lab.store, "ada")) == ["hub        lab/ada, made by publishing: is deleted"]

    lab.delete()
    lab.delete()  # as after an interruption

    assert set(lab.hub.repos) == {"lab/other"}


def test_of_a_repository_that_was_there_the_releases_are_taken_out_and_what_remains_is_told(lab: Lab) -> None:
    lab.hub.push(NAME, "mine", {".gitattributes": b""})
    lab.hub.repos[NAME].private = True
    lab.publish()
    lab.publish(lab.next())
    lab.hub.push(NAME, "a note", {**lab.hub.repos[NAME].commits[-1].files, "notes.txt": b"mine"})
    assert lines(found(lab.store, "ada")) == ["hub        lab/ada, not made by us"]

    for _ in range(2):
        with pytest.raises(InputError, match=r"history still has 2 of them\. Delete it, or rewrite its history"):
            lab.delete()
    assert lab.read() == {"notes.txt": b"mine"}
    assert lab.hub.repos[NAME].tags == {}

    HfApi(endpoint=lab.hub.address, token=TOKEN).super_squash_history(NAME, commit_message="mine")
    lab.delete()
    assert NAME in lab.hub.repos


@pytest.mark.parametrize(("there", "left"), [(False, set()), (True, {NAME})])
def test_what_an_interrupted_making_left_is_deleted_only_if_nothing_is_in_it(
    lab: Lab, there: bool, left: set[str]
) -> None:
    note(lab.store, "ada", HubRecord(name=NAME, endpoint=lab.hub.address, origin="making"))
    lab.hub.push(NAME, "initial commit", {".gitattributes": b"", **({"mine.txt": b"mine"} if there else {})})

    lab.delete()

    assert set(lab.hub.repos) == left


def test_what_a_stranger_does_not_see_does_not_count_as_gone(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.publish()
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    with pytest.raises(InputError, match="shows no lab/ada to this token, whose owner is somebody else"):
        lab.delete()
    monkeypatch.setenv("HF_TOKEN", "hf_member")

    lab.delete()
    lab.delete()

    assert lab.hub.repos == {}


def test_a_repository_on_another_hub_is_told(lab: Lab) -> None:
    note(lab.store, "ada", HubRecord(name=NAME, endpoint="", origin="made"))
    with pytest.raises(
        InputError, match=r"lab/ada has releases of this subject on the hub at huggingface\.co; set HF_EN"
    ):
        lab.delete()


def test_who_was_never_on_the_hub_needs_no_token_to_be_forgotten(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    lab.delete()
    assert lab.hub.asked == []
    assert lines(found(lab.store, "ada")) == ["hub        none"]
