"""Two machines, one store: what one hands over is what the other works with."""

import json
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from prefect import flow

from tasks.erasure.forget import empty, erase
from tasks.settings import PROJECT, Settings, from_environment
from tasks.store.s3 import open_store
from tasks.transfer.state import State, Taken, checkout, commit, old_state_key, read_state, state_key, track_inputs
from tasks.workspace.sources import Source
from tasks.workspace.subject import Choices
from tasks.workspace.tombstones import Counts, begin, finish
from tasks.workspace.workspace import Outcome, bring_up_to_date, is_up_to_date, push
from zimage.consent import read_consent
from zimage.core.errors import InputError

CHOICES = Choices(preset="tiny", base=None, values={})
CONSENT = PROJECT / "data" / "consent.yaml"
BEGINS = """echo '{"stage": "'$DVC_STAGE'"}' >>"$ZIMAGE_PROGRESS" && """  # as every command of `zimage` reports
ONE, TWO = "mkdir data/one && cat data/photos/* > data/one/x", "mkdir data/two && cat data/one/x > data/two/x"
STAGES = {
    "one": {"cmd": f"{BEGINS}{ONE}", "deps": ["data/photos"], "outs": ["data/one"]},
    "two": {"cmd": f"{BEGINS}{TWO}", "deps": ["data/one"], "outs": ["data/two"]},
}


@pytest.fixture
def first(tmp_path: Path) -> Settings:
    """A machine, with a project of two stages."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "dvc.yaml").write_text(json.dumps({"stages": STAGES}))
    (project / "code.yaml").write_text("one: sha256:00\n")
    (project / ".dvcignore").write_text("")
    shutil.copy(PROJECT / "params.yaml", project)
    return Settings(project=project, workspaces=tmp_path / "first", store=str(tmp_path / "store"))


def elsewhere(settings: Settings) -> Settings:
    """Another machine, with nothing but code, settings and store."""
    return replace(settings, workspaces=settings.workspaces.parent / "second")


@flow
def taken(settings: Settings) -> Taken:
    return checkout(settings, "ada")


@flow
def handed(settings: Settings, before: Taken, stage: str) -> State:
    return commit(settings, "ada", before, stages=(stage,), sources={}, choices=CHOICES, run="phase ada")


def worked(settings: Settings, stage: str) -> Outcome:
    return bring_up_to_date(settings.workspace("ada"), stage, on_line=lambda _: None, shared=True)


@flow
def prepared(settings: Settings, photo: str) -> State:
    """What the first phase does: take photos over, make the first stage, hand over."""
    before = checkout(settings, "ada")
    photos = settings.workspace("ada") / "data" / "photos"
    photos.mkdir(exist_ok=True)
    (photos / "1.jpg").write_text(photo)
    shutil.copy(CONSENT, settings.workspace("ada") / "data")
    track_inputs(settings.workspace("ada"))
    worked(settings, "one")
    push(settings.workspace("ada"), ["data/photos.dvc", "data/consent.yaml.dvc"], on_line=lambda _: None)
    return commit(settings, "ada", before, stages=("one",), sources={}, choices=CHOICES, run="prepare ada")


def test_another_machine_makes_the_next_stage_of_what_it_fetches_and_nothing_more(
    first: Settings, prefect_server: None
) -> None:
    second = elsewhere(first)
    prepared(first, "face")

    before = taken(second)
    folder = second.workspace("ada")
    assert is_up_to_date(folder, "one", shared=True)
    assert worked(second, "two") is Outcome.RAN
    state = handed(second, before, "two")

    assert (folder / "data" / "two" / "x").read_text() == "face"
    assert not (folder / "data" / "photos").exists()
    assert state.version == 2
    assert taken(first).state == state


def test_a_relative_address_leads_state_and_data_into_one_folder(
    first: Settings, prefect_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZIMAGE_STORE", "./store")

    prepared(replace(first, store=from_environment().store), "face")

    assert [path for path in tmp_path.rglob("files") if path.parent.name == "dvc"] == [
        tmp_path / "store/subjects/ada/dvc/files"
    ]
    assert list(tmp_path.rglob("ada.json")) == [tmp_path / "store/states/ada.json"]


def test_a_state_from_where_states_were_before_is_taken_and_written_where_they_are(
    first: Settings, prefect_server: None
) -> None:
    state, store = prepared(first, "face"), open_store(first.store)
    stored = store.read(state_key("ada"))
    assert stored is not None
    store.compare_and_swap(old_state_key("ada"), stored.content, None)
    store.delete(state_key("ada"))

    assert taken(first).state == state
    newer = prepared(first, "another")

    assert newer.version == state.version + 1
    assert read_state(store, "ada").state == newer
    empty(store, "ada")
    assert store.keys("") == []


def test_what_an_older_state_left_here_is_not_taken_for_a_change(first: Settings, prefect_server: None) -> None:
    """With the old photos and results in place DVC would go back to them, and call it up to date."""
    second = elsewhere(first)
    prepared(first, "old")
    one, kept = first.workspace("ada") / "data" / "one", first.workspaces / "kept"
    one.rename(kept)  # a person has put it elsewhere, for its size, and linked it
    one.symlink_to(kept)
    prepared(second, "new")

    taken(first)

    assert (kept / "x").read_text() == "old"
    assert worked(first, "two") is Outcome.RAN
    assert (first.workspace("ada") / "data" / "two" / "x").read_text() == "new"


def test_of_two_that_began_with_the_same_state_the_second_is_refused(first: Settings, prefect_server: None) -> None:
    second = elsewhere(first)
    prepared(first, "face")
    before = taken(second)
    prepared(first, "another")
    worked(second, "two")

    with pytest.raises(InputError, match="The state of ada was changed by somebody else while this ran; run again"):
        handed(second, before, "two")


def test_handing_over_what_did_not_change_writes_nothing(first: Settings, prefect_server: None) -> None:
    state = prepared(first, "face")

    assert handed(first, taken(first), "one") == state


def test_the_consent_is_handed_over_and_stays_where_a_machine_has_no_file_of_it(
    first: Settings, prefect_server: None
) -> None:
    second = elsewhere(first)
    assert prepared(first, "face").consent == read_consent(CONSENT)

    before = taken(second)
    assert worked(second, "two") is Outcome.RAN
    state = handed(second, before, "two")

    assert not (second.workspace("ada") / "data" / "consent.yaml").exists()
    assert state.consent == read_consent(CONSENT)
    assert read_state(open_store(first.store), "ada").state == state


def test_a_state_from_before_consents_were_handed_over_is_read_and_gets_one(
    first: Settings, prefect_server: None
) -> None:
    prepared(first, "face")
    store = open_store(first.store)
    stored = store.read(state_key("ada"))
    assert stored is not None
    older = json.loads(stored.content)
    del older["consent"]
    store.compare_and_swap(state_key("ada"), json.dumps(older).encode(), stored.tag)

    before = taken(first)
    assert before.state is not None and before.state.consent is None

    assert handed(first, before, "one").consent == read_consent(CONSENT)


def test_the_demo_stays_where_it_is(first: Settings, prefect_server: None) -> None:
    @flow
    def demo() -> None:
        checkout(first, "demo")

    with pytest.raises(InputError, match="The demo is no subject of the store"):
        demo()


def test_a_subject_that_is_being_forgotten_is_neither_taken_nor_handed_over(
    first: Settings, prefect_server: None
) -> None:
    store = open_store(first.store)
    nothing = Counts()
    prepared(first, "face")
    before = taken(first)
    worked(first, "two")
    begin(store, "ada", nothing)

    with pytest.raises(InputError, match="is being forgotten"):
        taken(first)
    with pytest.raises(InputError, match="is being forgotten"):
        handed(first, before, "two")

    finish(store, "ada")
    with pytest.raises(InputError, match="was forgotten after that was made"):
        handed(first, before, "two")


def forgotten(settings: Settings) -> None:
    """What `flows.forget` does on the machine of these settings, from its beginning to its end."""
    store = open_store(settings.store)
    erase(store, settings.workspace("ada"), "ada", Counts())
    finish(store, "ada")


def test_what_another_machine_still_has_of_a_forgotten_person_is_not_stored_again(
    first: Settings, prefect_server: None
) -> None:
    second, store = elsewhere(first), open_store(first.store)
    prepared(first, "face")
    before = taken(second)
    worked(second, "two")
    forgotten(first)

    folder = second.workspace("ada")
    refused = (
        f"The subject of {folder} was forgotten after that was made, .*: remove that folder, and begin with photos"
    )
    with pytest.raises(InputError, match=refused):
        handed(second, before, "two")
    with pytest.raises(InputError, match=refused):
        prepared(second, "face")
    (folder / ".dvc" / "forgettings").unlink()  # as workspaces were before they had one
    with pytest.raises(InputError, match=refused):
        taken(second)
    assert store.keys("subjects/ada") == []

    shutil.rmtree(folder)
    assert prepared(second, "another face").version == 1  # who has agreed anew
    assert prepared(first, "one more face").version == 2


def test_a_workspace_from_before_they_remembered_forgettings_is_worked_with_if_it_is_younger_than_the_last(
    first: Settings, prefect_server: None
) -> None:
    forgotten(first)
    prepared(first, "face")
    (first.workspace("ada") / ".dvc" / "forgettings").unlink()

    before = taken(first)
    worked(first, "two")
    assert handed(first, before, "two").version == 2
    assert (first.workspace("ada") / ".dvc" / "forgettings").read_text() == "1\n"


def test_what_was_being_sent_while_the_person_was_forgotten_is_taken_back(
    first: Settings, prefect_server: None
) -> None:
    before, folder, store = taken(first), first.workspace("ada"), open_store(first.store)
    (folder / "data" / "photos").mkdir()
    for number in range(50):
        (folder / "data" / "photos" / f"{number}.jpg").write_text(f"face {number}")
    shutil.copy(CONSENT, folder / "data")
    track_inputs(folder)
    worked(first, "one")

    def forget_when_something_is_there() -> None:
        while not store.keys("subjects/ada"):
            time.sleep(0.001)
        erase(store, folder.with_name("of another machine"), "ada", Counts())
        finish(store, "ada")

    meanwhile = threading.Thread(target=forget_when_something_is_there)
    meanwhile.start()
    with pytest.raises(InputError, match=r"was forgotten after that was made|is being forgotten"):
        hand_over_inputs(first, before)
    meanwhile.join()

    assert store.keys("subjects/ada") == []


@flow
def hand_over_inputs(settings: Settings, before: Taken) -> State:
    sources = {"photos": Source(address="/photos", seen="")}
    return commit(settings, "ada", before, stages=("one",), sources=sources, choices=CHOICES, run="prepare ada")
