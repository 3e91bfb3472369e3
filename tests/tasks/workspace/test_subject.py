import datetime
import importlib
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from dvc.utils.serialize import dumps_yaml, parse_yaml

from tasks.settings import PROJECT, Settings
from tasks.workspace.subject import Choices, check, params_of, presets, set_up
from tests.album import Album
from tests.faces.tiny_pack import write_pack
from tests.tasks.finished import CONSENT
from zimage.core.errors import InputError
from zimage.core.params import parsed
from zimage.core.plain_yaml import dump, load_plain, load_trusted
from zimage.core.section import checked, read_params
from zimage.core.signatures import STAGES, signature
from zimage.faces.insightface_engine import identify_pack
from zimage.model.base import Base, identify_folder

PICTURE = b"\xff\xd8\xff a"  # as a JPEG begins


def agreed(**changes: object) -> bytes:
    return yaml.safe_dump(CONSENT | changes).encode()


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(project=PROJECT, workspaces=tmp_path / "workspaces", store=str(tmp_path / "store"))


@pytest.fixture
def given(tmp_path: Path) -> dict[str, str]:
    """Photos and consent as a person hands them over."""
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "a.jpg").write_bytes(PICTURE)
    (tmp_path / "agreed.yaml").write_bytes(agreed())
    return {"photos": str(tmp_path / "holiday"), "consent": str(tmp_path / "agreed.yaml")}


WOMAN = {"subject.class_noun": "woman"}


def params(workspace: Path) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = yaml.safe_load((workspace / "params.yaml").read_text(encoding="utf-8"))
    return found


def test_a_subject_gets_a_workspace_with_everything_in_it(settings: Settings, given: dict[str, str]) -> None:
    workspace = set_up(settings, "ada", **given, values=WOMAN)

    assert workspace == settings.workspaces / "ada"
    assert (workspace / "data" / "photos" / "a.jpg").read_bytes() == PICTURE
    assert (workspace / "data" / "consent.yaml").read_bytes() == agreed()
    assert (workspace / "data" / "overrides").is_dir()
    assert (workspace / "dvc.yaml").read_bytes() == (PROJECT / "dvc.yaml").read_bytes()
    assert (workspace / "code.yaml").read_bytes() == (PROJECT / "code.yaml").read_bytes()
    assert not (workspace / "data" / "dvc.yaml").exists()


def test_a_second_run_needs_nothing_and_changes_nothing(settings: Settings, given: dict[str, str]) -> None:
    workspace = set_up(settings, "ada", **given, values=WOMAN)
    before = {path: path.stat().st_mtime_ns for path in workspace.rglob("*") if path.is_file()}

    set_up(settings, "ada")

    after = {path: path.stat().st_mtime_ns for path in workspace.rglob("*") if path.is_file()}
    assert {path.name for path in after if after[path] != before.get(path)} <= {".dvcignore"}


def test_what_was_chosen_stays_chosen(settings: Settings, given: dict[str, str]) -> None:
    set_up(settings, "ada", **given, values={**WOMAN, "train.steps": 40})

    workspace = set_up(settings, "ada", values={"subject.class_noun": "man"})

    assert params(workspace)["train"]["steps"] == 40
    assert params(workspace)["subject"]["class_noun"] == "man"


def test_values_of_0_1_are_rewritten_under_their_names_of_today_and_logged_once(
    settings: Settings, given: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    workspace = set_up(settings, "ada", **given, values=WOMAN)
    chosen = yaml.safe_load((workspace / "subject.yaml").read_text(encoding="utf-8"))
    chosen["values"] |= {
        "train.memory.offloaded_blocks": 1,
        "train.memory": {"frozen": "int8", "checkpointing": "full", "compile": False},
    }
    (workspace / "subject.yaml").write_text(yaml.safe_dump(chosen), encoding="utf-8")

    set_up(settings, "ada")
    set_up(settings, "ada")

    machine = params(workspace)["machine"]
    assert (machine["checkpointing"], machine["offloaded_blocks"], machine["cuda_graphs"]) == ("full", 1, False)
    assert params(workspace)["train"]["memory"] == {"base_quantization": "int8", "compile": False}
    logged = [line.partition(" has ")[2] for line in caplog.messages if "names of 0.1" in line]
    assert logged == [
        "names of 0.1 and is rewritten: train.memory.checkpointing is machine.checkpointing, "
        "train.memory.frozen is train.memory.base_quantization, "
        "train.memory.offloaded_blocks is machine.offloaded_blocks now"
    ]


def test_a_base_model_is_pinned_when_it_is_chosen(settings: Settings, given: dict[str, str], tiny_base: Base) -> None:
    workspace = set_up(settings, "ada", **given, base=tiny_base.model, values=WOMAN)

    assert params(workspace)["base"] == {"model": tiny_base.model, "identity": tiny_base.identity}
    assert params(set_up(settings, "ada"))["base"] == {"model": tiny_base.model, "identity": tiny_base.identity}


def test_comments_of_the_project_s_params_stay(settings: Settings, given: dict[str, str]) -> None:
    workspace = set_up(settings, "ada", **given, values={**WOMAN, "train.steps": 40})

    lines = (workspace / "params.yaml").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith("  steps:")]
    assert line.startswith("  steps: 40 ")
    assert line.endswith("# optimiser steps")


def test_one_subject_is_not_in_another_s_workspace(settings: Settings, given: dict[str, str]) -> None:
    ada = set_up(settings, "ada", **given, values={**WOMAN, "train.steps": 40})
    Path(given["consent"]).write_bytes(agreed(pseudonym="eve"))
    eve = set_up(settings, "eve", **given, values=WOMAN)

    assert ada != eve
    assert params(eve)["train"]["steps"] != 40


@pytest.mark.parametrize(("missing", "said"), [("photos", "has no photos yet"), ("consent", "has no consent yet")])
def test_photos_and_consent_have_to_be_given_once(
    settings: Settings, given: dict[str, str], missing: str, said: str
) -> None:
    del given[missing]

    with pytest.raises(InputError, match=f"ada {said}; give .* with --{missing}"):
        set_up(settings, "ada", **given, values=WOMAN)


def test_a_consent_may_lie_in_a_bucket_and_a_changed_one_is_taken_over(
    settings: Settings, given: dict[str, str], album: Album
) -> None:
    album.put("agreed.yaml", agreed())
    given["consent"] = "s3://album/ada/agreed.yaml"
    consent = set_up(settings, "ada", **given, values=WOMAN) / "data" / "consent.yaml"
    assert consent.read_bytes() == agreed()

    album.put("agreed.yaml", agreed(may_publish=False))
    set_up(settings, "ada", **given, values=WOMAN)

    assert consent.read_bytes() == agreed(may_publish=False)


def test_another_person_s_consent_is_refused(settings: Settings, given: dict[str, str]) -> None:
    with pytest.raises(InputError) as refused:
        set_up(settings, "grace", **given, values=WOMAN)

    assert str(refused.value) == (
        f"{given['consent']} is the consent of 'ada' and not of 'grace'; give the file whose `pseudonym` is grace, "
        "or name the other subject."
    )
    assert not settings.workspace("grace").exists()


@pytest.mark.parametrize("consent", ["s3://album/ada/none.yaml", "nowhere/none.yaml"])
def test_a_consent_that_is_not_there_is_one_sentence(
    settings: Settings, given: dict[str, str], album: Album, consent: str
) -> None:
    with pytest.raises(InputError) as refused:
        set_up(settings, "ada", photos=given["photos"], consent=consent, values=WOMAN)

    said, *form = str(refused.value).splitlines()
    assert said == (
        f"There is no consent file {consent}; name a file, or s3://bucket/key, that this machine can read. "
        "`zimage consent --subject ada --document FILE` writes one from the signed document:"
    )
    assert form[0] == "pseudonym: ada"


def test_the_demo_takes_nothing_of_one_s_own(settings: Settings) -> None:
    assert set_up(settings, "demo") == PROJECT
    with pytest.raises(InputError, match="`demo` has photos and settings of its own; choose another name"):
        set_up(settings, "demo", photos="holiday")


def test_an_unknown_preset_is_told_with_the_known_ones(settings: Settings, given: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"There is no preset `best`; choose one of tiny, "):
        set_up(settings, "ada", **given, preset="best", values=WOMAN)
    assert not settings.workspace("ada").exists()


def test_an_unknown_value_is_told_before_anything_is_made(settings: Settings, given: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"subject\.yaml: params\.yaml has no key `train\.stepz`"):
        set_up(settings, "ada", **given, values={**WOMAN, "train.stepz": 20})
    assert not settings.workspace("ada").exists()


@pytest.fixture
def bad_inputs(tmp_path: Path, album: Album) -> Path:
    """A folder with what is no photos, no decisions and no consent, some in a bucket too; and good photos."""
    folder = tmp_path
    (folder / "notes.txt").write_text("no photo")
    (folder / "empty").mkdir()
    (folder / "texts").mkdir()
    shutil.copy(folder / "notes.txt", folder / "texts")
    with zipfile.ZipFile(folder / "texts.zip", "w") as archive:
        archive.write(folder / "notes.txt", "notes.txt")
    (folder / "other").mkdir()
    (folder / "other" / "b.jpg").write_bytes(PICTURE)
    album.client.put_object(Bucket="album", Key="texts/notes.txt", Body=b"no photo")
    consents: dict[str, dict[str, object]] = {
        "eve": {"pseudonym": "eve"},
        "child": {"adult": False},
        "expired": {"expires": datetime.date(2020, 1, 1)},
        "narrow": {"scope": ["publication"]},
        "unknown": {"unknown": 1},
        "odd": {"may_publish": "perhaps"},
    }
    for name, changes in consents.items():
        (folder / f"{name}.yaml").write_bytes(agreed(**changes))
        album.client.put_object(Bucket="album", Key=f"{name}.yaml", Body=agreed(**changes))
    (folder / "twice.yaml").write_bytes(agreed() + b"may_publish: false\n")
    (folder / "none.yaml").write_bytes(b"[")
    (folder / "bytes.yaml").write_bytes(b"\xff\xfe")
    return folder


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"photos": "nope"}, r"There are no photos at .*/nope; name a folder"),
        ({"photos": "notes.txt"}, r"There are no photos at .*/notes\.txt \(JPEG, PNG"),
        ({"photos": "empty"}, r"There are no photos at .*/empty \(JPEG, PNG"),
        ({"photos": "texts"}, r"There are no photos at .*/texts \(JPEG, PNG"),
        ({"photos": "texts.zip"}, r"There are no photos at .*/texts\.zip \(JPEG, PNG"),
        ({"photos": "s3://album/texts"}, r"There are no photos at s3://album/texts \(JPEG, PNG"),
        ({"photos": "s3://album/nope"}, r"There are no photos at s3://album/nope; check"),
        ({"photos": "other", "overrides": "nope"}, r"There is no folder .*/nope with decisions"),
        ({"photos": "other", "overrides": "notes.txt"}, r"There is no folder .*/notes\.txt with decisions"),
        ({"photos": "other", "overrides": "s3://album/nope"}, r"no photos at s3://album/nope"),
        ({"consent": "eve.yaml"}, r"/eve\.yaml is the consent of 'eve' and not of 'ada'"),
        ({"consent": "child.yaml"}, r"does not affirm an adult"),
        ({"consent": "expired.yaml"}, "expired on 2020-01-01; ask for a new one"),
        ({"consent": "narrow.yaml"}, r"covers publication but not training"),
        ({"consent": "unknown.yaml"}, r"/unknown\.yaml: unknown key `unknown`"),
        ({"consent": "odd.yaml"}, r"/odd\.yaml: `may_publish` is 'perhaps'"),
        ({"consent": "twice.yaml"}, r"/twice\.yaml is not valid YAML \(the key `may_publish` stands there twice"),
        ({"consent": "none.yaml"}, r"/none\.yaml is not valid YAML"),
        ({"consent": "bytes.yaml"}, r"/bytes\.yaml is not valid YAML"),
        ({"consent": "s3://album/odd.yaml"}, r"s3://album/odd\.yaml: `may_publish` is 'perhaps'"),
        ({"base": "nobody/none"}, "nobody/none"),
    ],
)
def test_what_is_refused_changes_nothing(
    settings: Settings, given: dict[str, str], bad_inputs: Path, bad: dict[str, str], said: str
) -> None:
    before = contents(set_up(settings, "ada", **given, values={**WOMAN, "train.steps": 40}))
    good = {"photos": "other", "consent": "agreed.yaml"}
    names = {
        name: each if each.startswith("s3://") or name == "base" else str(bad_inputs / each)
        for name, each in (good | bad).items()
    }

    with pytest.raises(InputError, match=said):
        set_up(settings, "ada", **names, values={"train.steps": 70})  # type: ignore[arg-type]

    assert contents(settings.workspace("ada")) == before


def test_a_value_that_no_stage_takes_is_not_kept(settings: Settings, given: dict[str, str]) -> None:
    before = contents(set_up(settings, "ada", **given, values={**WOMAN, "train.rank": 4}))

    with pytest.raises(InputError, match=r"^train with train\.steps=-5: `steps` is -5: input should be greater"):
        set_up(settings, "ada", values={"train.steps": -5})

    assert contents(settings.workspace("ada")) == before


def test_a_value_that_was_kept_and_is_not_taken_any_more_is_told_with_its_file(
    settings: Settings, given: dict[str, str]
) -> None:
    file = set_up(settings, "ada", **given, values={**WOMAN, "train.steps": 40}) / "subject.yaml"
    file.write_text(file.read_text().replace("40", "-5"))

    with pytest.raises(InputError, match=rf"^train with train\.steps=-5 of {file}: `steps` is -5"):
        set_up(settings, "ada", values={"ingest.min_photos": 7})


@pytest.mark.parametrize("preset", presets())
def test_every_preset_makes_params_that_all_stages_accept(preset: str) -> None:
    text = params_of(PROJECT, Choices(preset=preset, base=None, values={}))

    found = yaml.safe_load(text)
    for stage in STAGES:
        function = getattr(importlib.import_module(f"zimage.stages.{stage}"), stage)
        for keyword, section in signature(stage).sections.items():
            checked(found[section], function.__annotations__[keyword], f"{preset}: {section}")


@pytest.mark.parametrize("preset", presets())
def test_no_person_s_report_says_that_it_is_the_demo(preset: str) -> None:
    found = yaml.safe_load(params_of(PROJECT, Choices(preset=preset, base=None, values={})))

    assert "demo" not in found["evaluate"]["report"]["note"]


def test_nobody_is_trained_before_the_class_noun_was_chosen(settings: Settings, given: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"ada has no class noun yet, .*; give --class-noun man, woman or person once"):
        set_up(settings, "ada", **given)
    assert not settings.workspace("ada").exists()

    workspace = set_up(settings, "ada", **given, values=WOMAN)

    assert set_up(settings, "ada") == workspace  # chosen once
    assert params(workspace)["subject"] == {"trigger": "ohzw", "class_noun": "woman"}


@pytest.mark.parametrize(
    ("trigger", "said"),
    [
        ("Ohzw", "one word of small letters and digits is wanted"),
        ("house", "`house` is an English word"),
        ("maria", "`maria` is a given name"),
        ("x", "takes 1 token"),
        ("q7zk4wv9xj2", "shorten it"),
    ],
)
def test_a_trigger_that_cannot_stand_for_a_person_is_refused_before_anything_runs(
    settings: Settings, given: dict[str, str], trigger: str, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        set_up(settings, "ada", **given, values={**WOMAN, "subject.trigger": trigger})
    assert not settings.workspace("ada").exists()


def test_a_learning_rate_is_a_number_however_it_is_written(settings: Settings, given: dict[str, str]) -> None:
    """DVC and this project's own readers have to agree: else a subject is found changed in each scan."""
    rate = parsed(["train.optimiser.learning_rate=5e-5"])

    workspace = set_up(settings, "ada", **given, values={**WOMAN, **rate})
    set_up(settings, "ada")  # reads subject.yaml again

    assert read_params(workspace / "params.yaml")["train"]["optimiser"]["learning_rate"] == 5e-5
    by_dvc = parse_yaml((workspace / "params.yaml").read_text(), "params.yaml")
    assert by_dvc["train"]["optimiser"]["learning_rate"] == 5e-5
    lock = dumps_yaml({"train": by_dvc["train"], "md5": "12e34"})
    assert load_trusted(lock) == load_plain(lock) == {"train": by_dvc["train"], "md5": "12e34"}
    assert parse_yaml(dump(load_trusted(lock)), "dvc.lock") == load_trusted(lock)


def test_an_engine_is_set_with_its_own_limits_wherever_faces_are_compared(
    settings: Settings, given: dict[str, str], tmp_path: Path
) -> None:
    pack = write_pack(tmp_path / "pack")
    before = set_up(settings, "ada", **given, values={**WOMAN, "detect.engine.max_distance": 0.5})
    assert params(before)["detect"]["engine"]["max_distance"] == 0.5

    found = params(set_up(settings, "ada", engine=str(pack)))

    expected = {
        "name": "insightface",
        "pack": str(pack),
        "identity": identify_pack(pack),
        "min_score": 0.5,
        "max_distance": 0.6,
    }
    assert found["detect"]["engine"] == found["evaluate"]["engine"] == expected
    back = params(set_up(settings, "ada", engine="yunet-sface"))
    plain = yaml.safe_load((PROJECT / "params.yaml").read_text(encoding="utf-8"))
    assert back["detect"]["engine"] == back["evaluate"]["engine"] == plain["detect"]["engine"]
    assert plain["evaluate"]["engine"] == plain["detect"]["engine"]
    turned = params(set_up(settings, "ada", engine="dlib"))["evaluate"]
    assert turned["engine"] == plain["evaluate"]["second_engine"]
    assert turned["second_engine"] == plain["evaluate"]["engine"]  # never the first one again


def test_models_that_are_named_are_pinned_by_their_files_and_anew_when_others_are_named(
    settings: Settings, given: dict[str, str], tmp_path: Path
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(folder.name.encode())
    clip = {"model": str(one), "languages": ["en"]}
    pack = write_pack(tmp_path / "pack")
    second = {"name": "insightface", "pack": str(pack), "identity": None, "min_score": 0.5, "max_distance": 0.6}
    named = {**WOMAN, "evaluate.clip": clip, "evaluate.second_engine": second}

    made = params(set_up(settings, "ada", **given, values=named))["evaluate"]

    assert made["clip"] == {**clip, "identity": identify_folder(one)}
    assert made["second_engine"] == {**second, "identity": identify_pack(pack)}
    again = params(set_up(settings, "ada", values={"evaluate.clip.model": str(other)}))["evaluate"]
    assert again["clip"]["identity"] == identify_folder(other)
    (other / "model.safetensors").write_bytes(b"exchanged")
    assert params(set_up(settings, "ada"))["evaluate"]["clip"] == again["clip"]  # the stage refuses it


def test_a_pack_that_is_not_there_is_told_before_anything_is_made(settings: Settings, given: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"There is no face pack 'nobody_l' in .*; unpack it there, or use the emb"):
        set_up(settings, "ada", **given, values=WOMAN, engine="nobody_l")
    assert not settings.workspace("ada").exists()


def test_a_new_value_replaces_earlier_ones_below_it(settings: Settings, given: dict[str, str]) -> None:
    set_up(settings, "ada", **given, values={**WOMAN, "train.optimiser.clip_norm": 2.0})
    whole = yaml.safe_load((PROJECT / "params.yaml").read_text(encoding="utf-8"))["train"]["optimiser"]

    workspace = set_up(settings, "ada", values={"train.optimiser": whole | {"clip_norm": 3.0}})
    assert params(workspace)["train"]["optimiser"]["clip_norm"] == 3.0
    workspace = set_up(settings, "ada", values={"train.optimiser.clip_norm": 4.0})
    assert params(workspace)["train"]["optimiser"]["clip_norm"] == 4.0


def test_a_check_refuses_what_a_set_up_refuses_and_writes_nothing(
    settings: Settings, given: dict[str, str], bad_inputs: Path, tiny_base: Base
) -> None:
    before = contents(bad_inputs)
    with pytest.raises(InputError, match=r"There are only 1 photos at .*, and ingest\.min_photos asks for 12; add"):
        check(settings, "ada", **given, values=WOMAN)
    plan = check(settings, "ada", **given, base=tiny_base.model, values={**WOMAN, "ingest.min_photos": 1})

    assert plan is not None and plan.consent is not None and plan.consent.pseudonym == "ada"
    assert not settings.workspaces.exists()
    bad = [
        {"photos": str(bad_inputs / "texts")},
        {"photos": str(bad_inputs / "nope")},
        {"photos": "s3://album/nope"},
        {"consent": str(bad_inputs / "child.yaml")},
        {"overrides": str(bad_inputs / "nope")},
        {"base": "nobody/none"},
        {"preset": "best"},
    ]
    values = {**WOMAN, "ingest.min_photos": 1}

    def said(function: Callable[..., object], changes: dict[str, str]) -> str:
        with pytest.raises(InputError) as refused:
            function(settings, "ada", **(given | changes), values=values)
        return str(refused.value)

    by_check = [said(check, changes) for changes in bad]
    with pytest.raises(InputError, match="ada has no photos yet"):
        check(settings, "ada", consent=given["consent"], values=WOMAN)
    assert contents(bad_inputs) == before
    assert not settings.workspaces.exists()
    assert [said(set_up, changes) for changes in bad] == by_check
