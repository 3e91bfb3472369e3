"""What is refused before a run exists."""

import contextlib
import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows.__main__ import SPECS, _parser
from flows.preflight import refuse, warnings_of
from flows.prepare import chosen
from flows.prepare import given as inputs
from tasks.settings import PROJECT, Settings
from tasks.workspace.subject import check
from tests.agreed import agreed
from tests.faces.tiny_pack import write_pack
from tests.tasks.finished import finished
from zimage.core.errors import InputError

PICTURE = b"\xff\xd8\xff a"  # as a JPEG begins


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(project=PROJECT, workspaces=tmp_path / "workspaces", store=str(tmp_path / "store"))


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """Photos and a consent, which allows no publication."""
    (tmp_path / "photos").mkdir()
    for number in range(12):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(PICTURE)
    return ["--photos", str(tmp_path / "photos"), "--consent", str(agreed(tmp_path, "ada")), "--class-noun", "woman"]


def published(tmp_path: Path) -> list[str]:
    """A consent that allows publication."""
    scope = ["training", "evaluation", "publication"]
    return ["--consent", str(agreed(tmp_path / "all", "ada", scope=scope, may_publish=True)), "--accept-toy"]


def ask(settings: Settings, *arguments: str, served: bool = False) -> None:
    values = vars(_parser().parse_args([arguments[0], "--subject", "ada", *arguments[1:]]))
    refuse(SPECS[values.pop("flow")](**values), settings, served=served)


def refused(settings: Settings, *arguments: str, served: bool = False) -> str:
    with pytest.raises(InputError) as error:
        ask(settings, *arguments, served=served)
    return str(error.value)


def test_one_mistake_at_the_shell_is_one_line_and_no_run(tmp_path: Path, given: list[str]) -> None:
    home = tmp_path / "prefect"
    command = [sys.executable, "-m", "flows", "personalize", "--subject", "ada", *given, "--photos", "nowhere"]
    unset = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    environment = {**unset, "PREFECT_HOME": str(home), "ZIMAGE_WORKSPACES": str(tmp_path / "workspaces")}

    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)

    sentence = "There are no photos at nowhere; name a folder, a zip or tar archive, or s3://bucket/prefix."
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"flows: {sentence}\n")
    assert not (tmp_path / "workspaces").exists()
    if (home / "prefect.db").exists():  # the server may have been ended before it had made it
        with contextlib.closing(sqlite3.connect(home / "prefect.db")) as database:
            tables = database.execute("select name from sqlite_master where name = 'flow_run'").fetchall()
            assert not tables or database.execute("select count(*) from flow_run").fetchone() == (0,)


def test_what_can_be_done_passes(settings: Settings, given: list[str], tmp_path: Path) -> None:
    ask(settings, "personalize", *given)
    ask(settings, "personalize", *given, *published(tmp_path), "--publish", "provisional")
    ask(settings, "personalize", *given, "--photos", "/of/other/machines", "--placement", "pools", served=True)
    ask(settings, "publish", "--placement", "pools", "--approval", served=True)

    assert not settings.workspaces.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--photos", "nowhere"], "There are no photos at nowhere; name a folder"),
        (["--set", "train.stepz=3"], "params.yaml has no key `train.stepz` (did you mean `train.steps`?)"),
        (["--set", "train.steps=-3"], "train with train.steps=-3: `steps` is -3: input should be greater"),
        (["--trigger", "maria"], "`maria` is a given name"),
        (["--init-lora", "nowhere"], "There is no LoRA file nowhere; correct the path."),
        (["--engine", "nobody_l"], "There is no face pack 'nobody_l'"),
        (["--base", "nobody/none"], "run `hf download nobody/none` once"),
        (["--publish", "provisional", "--accept-toy"], "covers training, evaluation but not publication"),
        (["--publish", "ask"], "`--publish ask` waits for a person in Prefect's UI; set PREFECT_API_URL"),
        (["--placement", "pools"], "`--placement pools` sends the work to workers of a Prefect server; set PREFECT_"),
    ],
)
def test_a_mistake_is_told_before_a_run_exists(
    settings: Settings, given: list[str], arguments: list[str], said: str
) -> None:
    assert said in refused(settings, "personalize", *given, *arguments)
    assert not settings.workspaces.exists()


def test_a_lora_to_go_on_from_is_pinned_by_its_content(settings: Settings, given: list[str], tmp_path: Path) -> None:
    (tmp_path / "lora.safetensors").write_bytes(b"a LoRA")
    options = ["personalize", "--subject", "ada", *given, "--init-lora", str(tmp_path / "lora.safetensors")]
    values = vars(_parser().parse_args(options))

    plan = check(settings, "ada", **inputs(asked := SPECS[values.pop("flow")](**values)), **chosen(asked))

    assert plan is not None
    digest = hashlib.sha256(b"a LoRA").hexdigest()
    found = yaml.safe_load(plan.params)["train"]["init_lora"]
    assert found == {"file": str(tmp_path / "lora.safetensors"), "sha256": digest}


def test_a_class_noun_has_to_be_chosen(settings: Settings, given: list[str]) -> None:
    assert "give --class-noun man, woman or person once" in refused(settings, "personalize", *given[:-2])


def test_publishing_the_packaged_model_has_to_be_asked_for(
    settings: Settings, given: list[str], tmp_path: Path
) -> None:
    asked = [*given, *published(tmp_path)[:-1], "--publish", "provisional"]

    assert refused(settings, "personalize", *asked).endswith("`--accept-toy` publishes its release all the same.")


def test_publishing_says_what_the_engine_can_do(settings: Settings, given: list[str], tmp_path: Path) -> None:
    asked = ["personalize", *given, *published(tmp_path), "--publish"]

    said = refused(settings, *asked)
    assert "the embedded face engine gives `provisional` at best; use `--publish provisional`" in said
    assert "`--engine buffalo_l`" in said

    ask(settings, *asked, "--engine", str(write_pack(tmp_path / "pack")))


def test_phases_and_releases_are_looked_at_first(settings: Settings, tmp_path: Path) -> None:
    for name in ("learn", "publish"):
        assert "run `prepare` or `personalize` first" in refused(settings, name)
    assert "ada has no release yet" in refused(settings, "promote")
    workspace = finished(settings.workspaces / "ada", "fail")
    assert "Not published, the verdict is fail" in refused(settings, "publish")
    consent = yaml.safe_load((workspace / "data" / "consent.yaml").read_text())
    (workspace / "data" / "consent.yaml").write_text(yaml.safe_dump(consent | {"scope": ["training"]}))
    assert "covers training but not evaluation" in refused(settings, "learn")


def test_an_approval_at_the_shell_is_one_sentence(settings: Settings) -> None:
    said = refused(settings, "publish", "--approval")

    assert said.startswith("`--approval` waits for a person in Prefect's UI; set PREFECT_API_URL to a server")
    assert said.endswith("or leave it out and decide by this command.")


def test_turbo_without_a_training_adapter_is_warned_of_before_a_run_exists(
    settings: Settings, given: list[str], tmp_path: Path
) -> None:
    turbo = tmp_path / "Z-Image-Turbo"
    shutil.copytree(PROJECT / "zimage" / "tiny" / "model", turbo)

    def warnings(*arguments: str) -> list[str]:
        values = vars(_parser().parse_args(["personalize", "--subject", "ada", *given, *arguments]))
        return warnings_of(SPECS[values.pop("flow")](**values), settings)

    (warning,) = warnings("--base", str(turbo))
    assert warning.startswith(f"The base model {turbo} is Turbo by its name") and "train.training_adapter" in warning
    adapter = "train.training_adapter={file: adapter.safetensors, sha256: '00', strength: 1.0}"
    assert warnings("--base", str(turbo), "--set", adapter) == warnings() == []
    assert warnings("--base", str(turbo), "--placement", "pools") == []
    assert not settings.workspaces.exists()
