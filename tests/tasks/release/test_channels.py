import datetime
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from flows.__main__ import main
from tasks.release.channels import Move, channel, fetch_current, promote, rollback, standing
from tasks.release.publish import publish as publish_task
from tasks.store.s3 import FolderStore
from tasks.transfer.state import State, state_key
from tasks.workspace.sources import Source, source
from tasks.workspace.subject import Choices
from tasks.workspace.tombstones import Counts, begin, finish
from tests.tasks.finished import CONSENT, finished, lora
from zimage.consent import Consent
from zimage.core.errors import InputError

publish = publish_task.fn


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.fixture
def names(tmp_path: Path, store: FolderStore) -> list[str]:
    """Three releases of ada."""
    return [publish(finished(tmp_path / "ada", seed=seed), "ada", store).name for seed in (1, 2, 3)]


def at(store: FolderStore) -> str | None:
    found = channel(store, "ada", "production")
    return found.release if found else None


def test_nothing_is_in_a_channel_before_it_is_promoted(store: FolderStore, names: list[str]) -> None:
    assert at(store) is None


def test_the_newest_release_is_promoted_unless_one_is_named(store: FolderStore, names: list[str]) -> None:
    assert promote(store, "ada", "production").release == names[2]
    assert promote(store, "ada", "production", names[0]).release == names[0]
    assert at(store) == names[0]
    assert channel(store, "ada", "staging") is None


def test_promoting_what_is_there_changes_nothing(store: FolderStore, names: list[str]) -> None:
    first = promote(store, "ada", "production", names[0])

    assert promote(store, "ada", "production", names[0]) == first
    found = channel(store, "ada", "production")
    assert found is not None and len(found.history) == 1


def test_rolling_back_goes_to_the_release_before_and_again_to_the_one_before_that(
    store: FolderStore, names: list[str]
) -> None:
    for name in names:
        promote(store, "ada", "production", name)

    assert rollback(store, "ada", "production").release == names[1]
    assert rollback(store, "ada", "production").release == names[0]
    with pytest.raises(InputError, match="ada has no release before this one in production"):
        rollback(store, "ada", "production")
    assert at(store) == names[0]


def test_a_promotion_after_a_rollback_can_be_rolled_back_to_where_that_led(
    store: FolderStore, names: list[str]
) -> None:
    promote(store, "ada", "production", names[0])
    promote(store, "ada", "production", names[1])
    rollback(store, "ada", "production")
    promote(store, "ada", "production", names[2])

    assert rollback(store, "ada", "production").release == names[0]


def test_history_keeps_every_move(store: FolderStore, names: list[str]) -> None:
    promote(store, "ada", "production", names[0])
    promote(store, "ada", "production", names[1])
    rollback(store, "ada", "production")

    found = channel(store, "ada", "production")
    assert found is not None
    assert [(move.kind, move.release) for move in found.history] == [
        ("promote", names[0]),
        ("promote", names[1]),
        ("rollback", names[0]),
    ]
    assert standing(found.history) == [names[0]]


def test_of_many_promotions_at_once_none_is_lost(store: FolderStore, names: list[str]) -> None:
    def move(number: int) -> Move:
        return promote(store, "ada", "production", names[number % 3])

    with ThreadPoolExecutor(4) as pool:
        moves = list(pool.map(move, range(9)))

    found = channel(store, "ada", "production")
    assert found is not None
    assert {each.id for each in moves} <= {each.id for each in found.history}
    assert len({each.id for each in found.history}) == len(found.history)


def test_what_is_no_release_cannot_be_promoted(store: FolderStore, names: list[str]) -> None:
    (store.root / "subjects/ada/releases" / names[1] / "manifest.json").unlink()

    with pytest.raises(InputError, match=rf"no release {names[1]} with a manifest\.json; there are: {names[0]}, "):
        promote(store, "ada", "production", names[1])
    assert at(store) is None


def test_without_releases_there_is_nothing_to_promote(store: FolderStore) -> None:
    with pytest.raises(InputError, match="ada has no release yet; run the flow `publish` first"):
        promote(store, "ada", "staging")


def test_what_is_provisional_goes_into_production_only_if_asked(tmp_path: Path, store: FolderStore) -> None:
    publish(finished(tmp_path / "ada", "provisional"), "ada", store, accept_provisional=True)

    with pytest.raises(InputError, match=r"is provisional: only 12 % are the person\. It may be in staging"):
        promote(store, "ada", "production")
    assert promote(store, "ada", "staging").release == promote(
        store, "ada", "production", accept_provisional=True
    ).release  # fmt: skip


def test_a_release_whose_consent_has_ended_is_promoted_nowhere(
    tmp_path: Path, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    today = datetime.datetime.now(datetime.UTC).date()
    release = publish(finished(tmp_path / "ada", expires=today), "ada", store)
    key = store.root / release.key / "manifest.json"
    key.write_text(key.read_text().replace(str(today), str(today - datetime.timedelta(days=1))))

    with pytest.raises(InputError, match=rf"The consent behind {release.name} expired on "):
        promote(store, "ada", "staging")


WITHDRAWN = [
    ({"expires": datetime.date(2020, 1, 1)}, "The consent of 'ada' expired on 2020-01-01"),
    ({"may_publish": False}, "says may_publish: false"),
    ({"scope": ["training", "evaluation"]}, "covers training, evaluation but not publication"),
]


def put_state(store: FolderStore, consent: Consent, source: Source) -> None:
    state = State(
        version=1,
        writer="prepare",
        choices=Choices(preset="tiny", base=None, values={}),
        sources={"consent": source},
        inputs={},
        lock="",
        consent=consent,
    )
    store.compare_and_swap(state_key("ada"), state.model_dump_json().encode(), None)


@pytest.mark.parametrize(("changes", "said"), WITHDRAWN)
def test_after_a_consent_was_changed_in_the_workspace_nothing_is_promoted(
    tmp_path: Path, store: FolderStore, names: list[str], changes: dict[str, object], said: str
) -> None:
    workspace = tmp_path / "ada"
    for name in names:
        promote(store, "ada", "production", name, workspace=workspace)
    (workspace / "data" / "consent.yaml").write_text(yaml.safe_dump(CONSENT | changes))

    with pytest.raises(InputError, match=said):
        promote(store, "ada", "staging", workspace=workspace)
    with pytest.raises(InputError, match=said):
        rollback(store, "ada", "production", workspace=workspace)
    assert channel(store, "ada", "staging") is None and at(store) == names[2]


@pytest.mark.parametrize(("changes", "said"), WITHDRAWN)
def test_after_a_consent_was_changed_in_the_state_nothing_is_promoted(
    store: FolderStore, names: list[str], changes: dict[str, object], said: str
) -> None:
    put_state(store, Consent.model_validate(CONSENT | changes), Source(address="/nowhere/consent.yaml", seen=""))

    with pytest.raises(InputError, match=said):
        promote(store, "ada", "production")
    assert at(store) is None


@pytest.mark.parametrize(("changes", "said"), WITHDRAWN)
def test_after_a_consent_was_changed_where_it_comes_from_nothing_is_promoted(
    tmp_path: Path, store: FolderStore, names: list[str], changes: dict[str, object], said: str
) -> None:
    file = tmp_path / "agreed.yaml"
    file.write_text(yaml.safe_dump(CONSENT))
    put_state(store, Consent.model_validate(CONSENT), source(str(file)))
    promote(store, "ada", "staging")
    file.write_text(yaml.safe_dump(CONSENT | changes) + "# withdrawn\n")

    with pytest.raises(InputError, match=said):
        promote(store, "ada", "production")
    assert at(store) is None


def test_a_release_is_promoted_when_its_consent_was_renewed(tmp_path: Path, store: FolderStore) -> None:
    today = datetime.datetime.now(datetime.UTC).date()
    release = publish(finished(tmp_path / "ada", expires=today), "ada", store)
    key = store.root / release.key / "manifest.json"
    key.write_text(key.read_text().replace(str(today), str(today - datetime.timedelta(days=1))))
    put_state(store, Consent.model_validate(CONSENT), Source(address="/nowhere/consent.yaml", seen=""))

    assert promote(store, "ada", "staging").release == release.name


def test_nothing_is_published_or_promoted_while_a_subject_is_being_forgotten(
    tmp_path: Path, store: FolderStore, names: list[str]
) -> None:
    begin(store, "ada", Counts())
    for refused in (
        lambda: promote(store, "ada", "staging"),
        lambda: rollback(store, "ada", "staging"),
        lambda: publish(finished(tmp_path / "ada", seed=4), "ada", store),
    ):
        with pytest.raises(InputError, match="This subject is being forgotten, or that was interrupted"):
            refused()

    finish(store, "ada")
    assert promote(store, "ada", "staging").release == names[2]


class ForgottenJustBefore(FolderStore):
    """A store in which all of a subject is forgotten between the last look of who promotes and the move."""

    def compare_and_swap(self, key: str, content: bytes, tag: str | None) -> str:
        self.delete("subjects/ada")
        return super().compare_and_swap(key, content, tag)


def test_a_pointer_that_comes_after_the_forgetting_is_taken_back(store: FolderStore, names: list[str]) -> None:
    with pytest.raises(InputError, match="This subject was forgotten meanwhile; publish again first"):
        promote(ForgottenJustBefore(store.root), "ada", "production")

    assert store.keys("subjects/ada") == []


def test_the_release_of_a_channel_is_fetched_from_the_shell_with_what_is_needed_to_use_it(
    store: FolderStore,
    names: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ZIMAGE_STORE", str(store.root))
    monkeypatch.setenv("ZIMAGE_WORKSPACES", str(tmp_path / "workspaces"))
    monkeypatch.chdir(tmp_path)
    fetch = ["fetch", "--subject", "ada", "--channel", "production"]
    assert main(fetch) == 2
    assert "ada has no release in production; `python -m flows promote --subject ada" in capsys.readouterr().err
    promote(store, "ada", "production", names[1])

    assert main(fetch) == 0

    folder = tmp_path / "ada-production"
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"release  {names[1]} of production, pass, in {folder}"
    assert said[1].startswith(f"LoRA     {folder / 'ada.safetensors'} at strength 0.8")
    assert said[2] == "prompt   write 'ohzw woman' where the person stands"
    assert (folder / "ada.safetensors").read_bytes() == lora(2)
    assert said[3] == "signed   no: nobody knows whether it is what was published"
    assert "ComfyUI: version" in (folder / "USAGE.txt").read_text()


def test_no_release_is_fetched_once_the_consent_has_ended(
    store: FolderStore, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(store, "ada", "production", names[1])
    ended = {**CONSENT, "expires": datetime.date(2020, 1, 1)}
    (tmp_path / "ada" / "data" / "consent.yaml").write_text(yaml.safe_dump(ended))

    with pytest.raises(InputError, match="expired on 2020-01-01"):
        fetch_current(store, "ada", "production", tmp_path / "got", workspace=tmp_path / "ada")
    assert not (tmp_path / "got").exists()
