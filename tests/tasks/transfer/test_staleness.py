import datetime
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.settings import PROJECT, Settings
from tasks.store.s3 import FolderStore
from tasks.transfer.staleness import NOT_KNOWN, Finding, Project, params_now, read_project, scan, scan_all, why
from tasks.transfer.state import State, inputs_of, state_key, track_inputs
from tasks.workspace.dvc import preloaded
from tasks.workspace.sources import source
from tasks.workspace.subject import Choices, params_of
from tasks.workspace.workspace import bring_up_to_date, make
from tests.album import Album
from tests.tasks.faults import unwell
from zimage.consent import Consent
from zimage.core.errors import InputError
from zimage.core.signatures import STAGES

TODAY = datetime.date(2026, 11, 23)
CONSENT = {
    "pseudonym": "ada",
    "adult": True,
    "scope": ["training", "evaluation"],
    "may_publish": False,
    "expires": datetime.date(2027, 1, 1),
    "document": "a form",
    "document_sha256": "0" * 64,
}
CHOICES = Choices(preset="tiny", base=None, values={"train.steps": 4, "subject.class_noun": "woman"})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(project=PROJECT, workspaces=tmp_path / "workspaces", store=str(tmp_path / "store"))


@pytest.fixture
def project() -> Project:
    return read_project(PROJECT)


def locked(project: Project, choices: Choices) -> dict[str, Any]:
    """A lock as DVC writes it, of a subject for which everything was run with today's code and settings."""
    params = params_now(project.params, choices)

    def value(dotted: str) -> Any:
        found: Any = params
        for name in dotted.split("."):
            found = found[name]
        return found

    return {
        stage: {
            "params": {
                "code.yaml": {stage: project.code[stage]},
                "params.yaml": {key: value(key) for key in project.wanted[stage]},
            }
        }
        for stage in STAGES
    }


def finished(
    settings: Settings, project: Project, subject: str = "ada", expires: datetime.date = CONSENT["expires"]
) -> State:
    """Put a finished subject into the store, with photos and a consent in a folder."""
    inbox = settings.workspaces.parent / f"{subject}-inbox"
    (inbox / "photos").mkdir(parents=True)
    (inbox / "photos" / "1.jpg").write_bytes(b"one")
    (inbox / "consent.yaml").write_text(yaml.safe_dump(CONSENT | {"expires": expires}))
    state = State(
        version=1,
        writer="learn",
        choices=CHOICES,
        sources={"photos": source(str(inbox / "photos")), "consent": source(str(inbox / "consent.yaml"))},
        inputs={},
        lock=yaml.safe_dump({"stages": locked(project, CHOICES)}),
    )
    put(settings, subject, state)
    return state


def put(settings: Settings, subject: str, state: State) -> None:
    store = FolderStore(Path(settings.store))
    found = store.read(state_key(subject))
    store.compare_and_swap(state_key(subject), state.model_dump_json().encode(), found.tag if found else None)


def found(settings: Settings, project: Project, today: datetime.date = TODAY) -> Finding:
    finding = scan(settings, FolderStore(Path(settings.store)), project, "ada", today)
    assert finding is not None
    return finding


def test_a_subject_of_which_nothing_changed_is_unchanged(settings: Settings, project: Project) -> None:
    finished(settings, project)

    assert found(settings, project) == Finding("ada", "unchanged", "", CONSENT["expires"])


def test_the_values_compared_are_those_that_a_run_would_write() -> None:
    plain = yaml.safe_load((PROJECT / "params.yaml").read_text())

    assert params_now(plain, CHOICES) == yaml.safe_load(params_of(PROJECT, CHOICES))


GONE = [
    (Choices(preset="tiny", base=None, values={**CHOICES.values, "train.ranks": 4}), "has no key `train.ranks`"),
    (Choices(preset="tiny", base=None, values={**CHOICES.values, "train.samples.steps": 4}), "`train.samples.steps`"),
    (Choices(preset="best", base=None, values=CHOICES.values), "There is no preset `best`; choose one of tiny, "),
]


@pytest.mark.parametrize(("chosen", "sentence"), GONE)
def test_a_key_or_preset_that_is_gone_stops_a_subject_instead_of_starting_what_would_be_refused(
    settings: Settings, project: Project, chosen: Choices, sentence: str
) -> None:
    state = finished(settings, project)
    put(settings, "ada", state.model_copy(update={"choices": chosen}))

    stopped = found(settings, project)

    assert (stopped.verdict, sentence in stopped.reason) == ("stopped", True)
    with pytest.raises(InputError) as refused:
        params_of(PROJECT, chosen)
    assert str(refused.value) in stopped.reason


def test_a_new_photo_is_a_reason(settings: Settings, project: Project) -> None:
    state = finished(settings, project)
    photos = Path(state.sources["photos"].address)

    (photos / "2.jpg").write_bytes(b"two")

    assert found(settings, project).verdict == "changed"
    assert found(settings, project).reason == f"photos at {photos} changed"


def test_a_changed_value_is_told_with_both_values(settings: Settings, project: Project) -> None:
    state = finished(settings, project)

    changed = Choices(preset="tiny", base=None, values={**CHOICES.values, "train.steps": 8})
    put(settings, "ada", state.model_copy(update={"choices": changed}))

    assert found(settings, project).reason == "train.steps changed from 4 to 8"


def test_other_code_is_told_by_its_stage(settings: Settings, project: Project) -> None:
    finished(settings, project)

    newer = Project(project.params, {**project.code, "evaluate": "sha256:00"}, project.wanted)

    assert found(settings, newer).reason == "the code of evaluate changed"


def test_values_of_a_section_that_are_not_spelt_out_are_counted(settings: Settings, project: Project) -> None:
    finished(settings, project)

    limits = dict.fromkeys(project.params["evaluate"]["gate"], 0.5)
    other = {**project.params, "evaluate": {**project.params["evaluate"], "gate": limits}}
    finding = found(settings, Project(other, project.code, project.wanted))

    *spelt, last = finding.reason.split("; ")
    assert len(spelt) == 4 and all(" changed from " in each for each in spelt)
    was, now = (params_now(each, CHOICES)["evaluate"]["gate"] for each in (project.params, other))
    changed = sum(was[key] != now[key] for key in was)
    assert last == f"{changed - 4} other values of evaluate changed"
    assert finding.kinds == ("settings changed",)


def test_another_base_model_is_a_reason(settings: Settings, project: Project) -> None:
    finished(settings, project)

    other = {**project.params, "base": {**project.params["base"], "identity": "sha256:00"}}

    reason = found(settings, Project(other, project.code, project.wanted)).reason
    assert f"base.identity changed from {project.params['base']['identity']} to sha256:00" in reason


def test_a_stage_that_never_ended_is_a_reason(settings: Settings, project: Project) -> None:
    state = finished(settings, project)
    stages = locked(project, CHOICES)
    del stages["evaluate"]

    put(settings, "ada", state.model_copy(update={"lock": yaml.safe_dump({"stages": stages})}))

    assert found(settings, project).reason == "evaluate was not finished"


@pytest.fixture(scope="module")
def run_by_dvc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose stages copy what they read, which real DVC has run on two photos."""
    place = tmp_path_factory.mktemp("run_by_dvc")
    stages = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]
    for name, stage in stages.items():
        read = " ".join(stage["deps"])
        files = [out if out != f"data/{name}" else f"{out}/all" for out in stage["outs"]]
        stage["cmd"] = f"mkdir data/{name} && find {read} -type f | sort | xargs cat | tee {' '.join(files)}"
    (place / "project").mkdir()
    (place / "project" / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    for name in ("code.yaml", ".dvcignore"):
        (place / "project" / name).write_text((PROJECT / name).read_text())
    workspace = place / "workspaces" / "ada"
    make(workspace, place / "project")
    (workspace / "data" / "photos").mkdir()
    for photo in ("1.jpg", "2.jpg"):
        (workspace / "data" / "photos" / photo).write_text(photo)
    (workspace / "data" / "consent.yaml").write_text(yaml.safe_dump(CONSENT))
    (workspace / "params.yaml").write_text(params_of(PROJECT, CHOICES))
    with preloaded():
        track_inputs(workspace)
        bring_up_to_date(workspace, "evaluate", on_line=print)
    return workspace


def handed_over(settings: Settings, workspace: Path) -> State:
    """Put the state of a workspace into the store, as a phase that ends does."""
    lock = (workspace / "dvc.lock").read_text()
    state = State(version=1, writer="a phase", choices=CHOICES, sources={}, inputs=inputs_of(workspace), lock=lock,
                  consent=Consent(**CONSENT))  # fmt: skip
    put(settings, "ada", state)
    return state


def test_a_lora_of_photos_that_are_not_there_any_more_is_changed_and_every_stage_that_read_them_is_named(
    settings: Settings, project: Project, run_by_dvc: Path
) -> None:
    shutil.copytree(run_by_dvc.parents[1], settings.workspaces.parent, dirs_exist_ok=True)
    workspace = settings.workspace("ada")
    handed_over(settings, workspace)
    assert found(settings, project) == Finding("ada", "unchanged", "", CONSENT["expires"])

    (workspace / "data" / "photos" / "2.jpg").unlink()
    track_inputs(workspace)
    handed_over(settings, workspace)
    assert found(settings, project).reason == "ingest has not read the newest data/photos"

    bring_up_to_date(workspace, "detect", on_line=print)  # `prepare` ends, and `learn` is lost
    handed_over(settings, workspace)

    finding = found(settings, project)
    assert finding.verdict == "changed"
    assert finding.reason == "; ".join(
        f"{stage} has not read the newest data/detect, which detect made" for stage in ("caption", "encode", "evaluate")
    )
    assert why(workspace, "caption") == "caption has not read the newest data/detect, which detect made"


def test_a_stage_that_made_the_same_from_other_photos_leaves_those_after_it_unchanged(
    settings: Settings, project: Project, run_by_dvc: Path
) -> None:
    shutil.copytree(run_by_dvc.parents[1], settings.workspaces.parent, dirs_exist_ok=True)
    workspace = settings.workspace("ada")
    (workspace / "data" / "photos" / "2.jpg").rename(workspace / "data" / "photos" / "3.jpg")
    track_inputs(workspace)
    bring_up_to_date(workspace, "detect", on_line=print)
    handed_over(settings, workspace)

    assert found(settings, project).verdict == "unchanged"


def test_an_expired_consent_stops_a_subject_and_says_so(settings: Settings, project: Project) -> None:
    finished(settings, project)

    finding = found(settings, project, today=datetime.date(2027, 1, 2))

    assert finding.verdict == "stopped"
    assert "expired on 2027-01-01" in finding.reason


def test_a_consent_that_excludes_evaluation_stops_a_subject(settings: Settings, project: Project) -> None:
    state = finished(settings, project)

    Path(state.sources["consent"].address).write_text(yaml.safe_dump(CONSENT | {"scope": ["training"]}))

    finding = found(settings, project)
    assert finding.verdict == "stopped"
    assert "covers training but not evaluation" in finding.reason


def moved(state: State, consent: Consent | None, address: str = "/nowhere/consent.yaml") -> State:
    """The state as it is where the consent lies at another address, with what was handed over of it."""
    there = state.sources["consent"].model_copy(update={"address": address})
    return state.model_copy(update={"sources": {**state.sources, "consent": there}, "consent": consent})


def test_a_consent_that_was_handed_over_counts_where_its_file_cannot_be_seen(
    settings: Settings, project: Project
) -> None:
    state = finished(settings, project)
    put(settings, "ada", moved(state, Consent(**CONSENT)))

    assert found(settings, project) == Finding("ada", "unchanged", "", CONSENT["expires"])
    finding = found(settings, project, today=datetime.date(2027, 1, 2))
    assert (finding.verdict, finding.consent_until) == ("stopped", CONSENT["expires"])
    assert "expired on 2027-01-01" in finding.reason


def test_a_subject_of_whose_consent_nothing_is_known_is_unchanged_and_that_is_told(
    settings: Settings, project: Project
) -> None:
    state = finished(settings, project)
    put(settings, "ada", moved(state, None))

    assert found(settings, project) == Finding("ada", "unchanged", NOT_KNOWN, None)


def test_a_consent_that_was_renewed_at_its_source_counts_more_than_the_one_that_was_handed_over(
    settings: Settings, project: Project
) -> None:
    state = finished(settings, project)
    put(settings, "ada", state.model_copy(update={"consent": Consent(**CONSENT)}))
    renewed, until = Path(state.sources["consent"].address), datetime.date(2028, 1, 1)

    renewed.write_text(yaml.safe_dump(CONSENT | {"expires": until}) + "# renewed\n")

    finding = found(settings, project, today=datetime.date(2027, 1, 2))
    assert finding == Finding("ada", "changed", f"consent at {renewed} changed", until)


def test_a_consent_in_a_bucket_is_read_there(settings: Settings, project: Project, album: Album) -> None:
    state = finished(settings, project)
    address = "s3://album/ada/consent.yaml"
    album.put("consent.yaml", yaml.safe_dump(CONSENT).encode())
    there = {**state.sources, "consent": source(address)}
    put(settings, "ada", state.model_copy(update={"sources": there}))

    assert found(settings, project) == Finding("ada", "unchanged", "", CONSENT["expires"])
    album.put("consent.yaml", b"pseudonym: ada")
    finding = found(settings, project)
    assert finding.verdict == "stopped"
    assert finding.reason.startswith(f"{address}: `adult` is missing")


def test_a_bucket_that_is_away_stops_its_subject_and_no_other(
    settings: Settings, project: Project, album: Album, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = finished(settings, project)
    there = {**state.sources, "photos": source("s3://album/ada")}
    put(settings, "ada", state.model_copy(update={"sources": there}))

    with unwell("520 Unknown", "Unknown", times=1) as address:  # one that boto3 itself does not wait for
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
        finding = found(settings, project)

    assert finding.verdict == "stopped"
    assert finding.reason.startswith("s3://album/ada cannot be read (Unknown: Unknown)")


def test_photos_that_cannot_be_seen_from_here_are_as_they_were(settings: Settings, project: Project) -> None:
    state = finished(settings, project)
    photos = state.sources["photos"]

    elsewhere = {**state.sources, "photos": photos.model_copy(update={"address": "/nowhere/photos"})}
    put(settings, "ada", state.model_copy(update={"sources": elsewhere}))

    assert found(settings, project).verdict == "unchanged"


def test_subjects_without_a_state_are_left_out(settings: Settings, project: Project) -> None:
    finished(settings, project)
    store = FolderStore(Path(settings.store))
    store.compare_and_swap("subjects/eve/releases/1/manifest.json", b"{}", None)

    assert [finding.subject for finding in scan_all(settings, store, project, TODAY)] == ["ada"]
    assert scan(settings, store, project, "eve", TODAY) is None


def test_a_state_of_another_version_is_refused_with_the_remedy(settings: Settings, project: Project) -> None:
    state = json.loads(finished(settings, project).model_dump_json())
    del state["choices"]
    store = FolderStore(Path(settings.store))
    tag = store.read(state_key("ada"))
    store.compare_and_swap(state_key("ada"), json.dumps(state).encode(), tag.tag if tag else None)

    finding = found(settings, project)

    assert finding.verdict == "stopped"
    assert "was written by another version (choices); run `personalize` with all options again" in finding.reason


def test_a_subject_without_a_class_noun_is_stopped_with_the_remedy(settings: Settings, project: Project) -> None:
    """It was begun when everybody was trained as a woman."""
    state = finished(settings, project)
    put(settings, "ada", state.model_copy(update={"choices": Choices(preset="tiny", base=None, values={})}))

    stopped = found(settings, project)

    assert stopped.verdict == "stopped"
    assert stopped.reason.endswith("give --class-noun man, woman or person once.")
