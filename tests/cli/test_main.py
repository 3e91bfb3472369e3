import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from zimage.core.folder import aside_of
from zimage.core.signatures import STAGES
from zimage.model.base import Base

PROJECT = Path(__file__).parents[2]
OTHERS = (
    "consent",
    "summary",
    "demo",
    "doctor",
    "pin",
    "fingerprints",
    "inspect",
    "convert",
    "merge",
    "resize",
    "score",
)
HEAVY = ("torch", "numpy", "pydantic", "yaml", "diffusers", "transformers", "prefect", "dvc")
# Mounts a disk of 64 KB for the program that follows, visible to it alone.
SMALL_DISK = ["unshare", "--map-root-user", "--mount", "sh", "-c"]


def zimage(*arguments: object, cwd: Path = PROJECT, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zimage", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=environment(), **options)


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONWARNINGS": "error", **more}


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    shutil.copyfile(PROJECT / "params.yaml", tmp_path / "params.yaml")
    return tmp_path


def change(workspace: Path, old: str, new: str) -> None:
    path = workspace / "params.yaml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_help_names_every_stage_and_every_command() -> None:
    said = zimage("--help").stdout

    for command in (*STAGES, *OTHERS):
        assert f"\n    {command} " in said or f"\n    {command}\n" in said


def test_help_imports_nothing_heavy() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "zimage", "--help"]
    imported = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stderr

    names = {line.rpartition("|")[2].strip().split(".")[0] for line in imported.splitlines()}
    assert "argparse" in names
    assert names.isdisjoint(HEAVY)


def test_a_stage_is_called_with_its_folders_in_order() -> None:
    said = zimage("train", "--help").stdout

    assert "usage: zimage train [-h] [--params FILE] encode out" in said


def test_help_loads_nothing_that_only_a_stage_or_a_command_needs() -> None:
    code = "import sys, zimage.cli.main as main; main.main(['--help'])"
    told = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); "
    done = subprocess.run([sys.executable, "-c", told + code], capture_output=True, text=True, check=False)

    assert done.stdout
    assert not {"torch", "numpy", "pydantic", "yaml", "psutil", "tempfile"} & set(done.stderr.split())


def test_checking_the_sections_of_all_later_stages_does_not_import_torch(workspace: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "zimage", "detect", "ingest", "overrides", "out"]
    done = subprocess.run(
        command, cwd=workspace, capture_output=True, text=True, check=False, env=environment(PYTHONWARNINGS="ignore")
    )

    names = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "zimage.evaluation.generate.gallery" in names
    assert not {"torch", "diffusers", "transformers"} & names


def test_an_unknown_command_ends_with_code_2() -> None:
    assert zimage("trian").returncode == 2


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence of a run that the user can mend."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("zimage: ")
    return last


def test_outside_a_workspace_it_says_so(tmp_path: Path) -> None:
    assert "There is no params.yaml; run in a workspace" in refusal(zimage("ingest", "a", "b", "c", cwd=tmp_path))


def test_a_slip_in_a_later_stage_s_section_is_told_before_the_first_stage_runs(workspace: Path) -> None:
    change(workspace, "\ntrain:\n", "\ntrain:\n  stepz: 3\n")

    said = refusal(zimage("ingest", "photos", "consent.yaml", "out", cwd=workspace))

    assert "params.yaml: train: unknown key `stepz`" in said
    assert not (workspace / "out").exists()


def test_an_unknown_section_is_told(workspace: Path) -> None:
    change(workspace, "\ningest:\n", "\nigest:\n")

    said = refusal(zimage("ingest", "photos", "consent.yaml", "out", cwd=workspace))

    assert "params.yaml: unknown section `igest:` (did you mean `ingest`?)" in said


def test_a_wrong_type_is_told(workspace: Path) -> None:
    change(workspace, "min_photos: ", "min_photos: many # ")

    said = refusal(zimage("ingest", "photos", "consent.yaml", "out", cwd=workspace))

    assert "params.yaml: ingest: `min_photos` is 'many': input should be a valid integer" in said


def test_sections_of_earlier_stages_may_be_absent(workspace: Path) -> None:
    params = yaml.safe_load((workspace / "params.yaml").read_text(encoding="utf-8"))
    kept = {name: params[name] for name in ("base", "machine", "train", "evaluate", "subject")}
    (workspace / "params.yaml").write_text(yaml.safe_dump(kept), encoding="utf-8")

    said = refusal(zimage("train", "encode", "out", cwd=workspace))

    assert "section" not in said


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("checkpointing", "ZIMAGE_MACHINE is `checkpointing`; set it to KEY=VALUE with a space between two, such as"),
        ("offloaded_blocks=all", "ZIMAGE_MACHINE: `offloaded_blocks` is 'all': input should be a valid integer"),
        ("offloaded=3", "ZIMAGE_MACHINE: unknown key `offloaded`"),
    ],
)
def test_values_of_this_machine_are_checked_before_the_first_stage(
    given: str, says: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZIMAGE_MACHINE", given)

    assert says in refusal(zimage("ingest", "photos", "consent.yaml", "out", cwd=workspace))


def test_params_of_0_1_are_refused_with_the_new_name_of_each_key(workspace: Path) -> None:
    change(workspace, "    base_quantization: none", "    offloaded_blocks: 0\n    frozen: plain")

    said = refusal(zimage("ingest", "photos", "consent.yaml", "out", cwd=workspace))

    assert (
        "params.yaml has names of version 0.1: `train.memory.offloaded_blocks` is `machine.offloaded_blocks`, " in said
    )
    assert "`train.memory.frozen` is `train.memory.base_quantization` now; rename them there." in said


@pytest.mark.parametrize(
    ("stage", "changes", "said"),
    [
        ("train", {"expires": datetime.date(2020, 1, 1)}, "expired on 2020-01-01; ask for a new one before going on"),
        ("train", {"scope": ["evaluation"]}, "covers evaluation but not training"),
        ("evaluate", {"scope": ["training"]}, "covers training but not evaluation"),
    ],
)
def test_a_stage_asks_the_consent_beside_its_output(
    workspace: Path, stage: str, changes: dict[str, object], said: str
) -> None:
    consent = yaml.safe_load((PROJECT / "data" / "consent.yaml").read_text(encoding="utf-8"))
    (workspace / "data").mkdir()
    (workspace / "data" / "consent.yaml").write_text(yaml.safe_dump(consent | changes), encoding="utf-8")
    inputs = {"train": ["data/encode"], "evaluate": ["data/detect", "data/caption", "data/train"]}[stage]

    assert said in refusal(zimage(stage, *inputs, f"data/{stage}", cwd=workspace))


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_replaces_a_folder_that_it_did_not_make(workspace: Path, stage: str) -> None:
    special = {"ingest": ["photos", "consent.yaml"], "train": ["encode"], "evaluate": ["one", "two", "other"]}
    inputs = special.get(stage, ["one", "other"])
    shutil.copyfile(PROJECT / "data" / "consent.yaml", workspace / "consent.yaml")
    for name in ("diary", inputs[0]):
        (workspace / name).mkdir()
        (workspace / name / "mine.txt").write_text("dear")

    unrelated = refusal(zimage(stage, *inputs, "diary", cwd=workspace))
    itself = refusal(zimage(stage, *inputs, inputs[0], cwd=workspace))

    assert "diary is not empty, and no earlier output either" in unrelated
    assert f"{inputs[0]} cannot be written while {inputs[0]} is read" in itself
    assert (workspace / "diary" / "mine.txt").read_text() == (workspace / inputs[0] / "mine.txt").read_text() == "dear"


def test_the_doctor_says_of_params_what_a_stage_says(workspace: Path) -> None:
    found = zimage("doctor", cwd=workspace).stdout
    assert "present  settings" in found and "present  store rights" in found
    change(workspace, "\ntrain:\n", "\ntrain:\n  stepz: 3\n")

    done = zimage("doctor", cwd=workspace)

    assert done.returncode == 2
    assert "params.yaml: train: unknown key `stepz`" in done.stdout.split("missing  settings")[1]


def test_the_demo_does_not_replace_a_persons_photos(tmp_path: Path) -> None:
    (tmp_path / "IMG_1001.jpg").write_text("dear")

    assert "it is left as it is" in refusal(zimage("demo", tmp_path, "--seed", 1))
    assert (tmp_path / "IMG_1001.jpg").read_text() == "dear"


@pytest.mark.parametrize("stage", ["ingest", "train"])
def test_a_place_that_cannot_be_written_is_one_sentence(workspace: Path, stage: str) -> None:
    inputs = {"ingest": ["photos", PROJECT / "data" / "consent.yaml"], "train": ["encode"]}[stage]
    (workspace / "file").touch()

    said = refusal(zimage(stage, *inputs, "file/below/out", cwd=workspace))

    assert "The folder file/below cannot be made (Not a directory); name another place" in said


def test_the_reader_of_a_followed_run_gets_the_sentence(tmp_path: Path) -> None:
    progress = tmp_path / "progress.jsonl"
    command = [sys.executable, "-m", "zimage", "summary", "nowhere"]
    followed = environment(ZIMAGE_PROGRESS=str(progress))

    subprocess.run(command, cwd=tmp_path, env=followed, capture_output=True, check=False)

    assert json.loads(progress.read_text())["error"].startswith("Nothing has been evaluated in nowhere yet")


def test_a_stage_that_dvc_runs_reports_that_it_runs(tmp_path: Path) -> None:
    progress = tmp_path / "progress.jsonl"
    command = [sys.executable, "-m", "zimage", "train", "nowhere", "out"]
    followed = environment(ZIMAGE_PROGRESS=str(progress), DVC_STAGE="train")

    subprocess.run(command, cwd=tmp_path, env=followed, capture_output=True, check=False)

    assert json.loads(progress.read_text().splitlines()[0]) == {"stage": "train"}


def test_our_own_faults_keep_their_traceback(tmp_path: Path) -> None:
    metrics = tmp_path / "data" / "evaluate" / "metrics.json"
    metrics.parent.mkdir(parents=True)
    metrics.write_text("{}")

    done = zimage("summary", tmp_path)

    assert done.returncode == 1
    assert "Traceback" in done.stderr


# And goes on only after all tests.
WRITES_ONE_PHOTO = """
import sys, time
import zimage.cli.main, zimage.demo

write = zimage.demo._write

def write_and_wait(path, content):
    write(path, content)
    time.sleep(600)

zimage.demo._write = write_and_wait
sys.exit(zimage.cli.main.main())
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_stopping_leaves_nothing_half_written(tmp_path: Path, how: signal.Signals) -> None:
    out = tmp_path / "photos"
    command = [sys.executable, "-c", WRITES_ONE_PHOTO, "demo", str(out), "--seed", "1"]
    with subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, text=True) as running:
        while not (aside_of(out).exists() and any(aside_of(out).iterdir())):
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(how)
        _, said = running.communicate()

    assert running.returncode == 2
    assert said.splitlines()[-1].startswith("zimage: Stopped; nothing half done was left")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_in_one_sentence() -> None:
    command = [sys.executable, "-m", "zimage", "doctor"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, cwd=PROJECT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)

    assert done.returncode == 2
    assert "zimage: The disk is full; free some space and run again" in done.stderr


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=64k none {tmp_path}"
    make = f"{sys.executable} -m zimage demo {tmp_path}/photos --seed 1"
    command = [*SMALL_DISK, f"{mount} && {make}; code=$?; ls -A {tmp_path}; exit $code"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"NOT CHECKED: no disk of 64 KB can be made here ({done.stderr.strip()})")

    assert "The disk is full" in refusal(done)
    assert done.stdout == ""


def test_a_read_only_place_is_told(tmp_path: Path) -> None:
    make = f"{sys.executable} -m zimage demo {tmp_path}/photos --seed 1"
    command = [*SMALL_DISK, f"mount -t tmpfs -o ro none {tmp_path} && {make}"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"NOT CHECKED: nothing can be mounted here ({done.stderr.strip()})")

    assert f"Nothing can be written in the folder {tmp_path}; name another place" in refusal(done)


def test_pinning_writes_the_model_and_its_identity_and_nothing_else(workspace: Path, tiny_base: Base) -> None:
    before = (workspace / "params.yaml").read_text(encoding="utf-8").splitlines()

    done = zimage("pin", tiny_base.model, cwd=workspace)

    after = (workspace / "params.yaml").read_text(encoding="utf-8").splitlines()
    changed = [new.split("#")[0].strip() for old, new in zip(before, after, strict=True) if old != new]
    assert done.returncode == 0
    assert changed == [f"model: {tiny_base.model}", f"identity: {tiny_base.identity}"]


def test_a_model_that_is_no_z_image_is_not_pinned(workspace: Path) -> None:
    before = (workspace / "params.yaml").read_bytes()
    (workspace / "sdxl").mkdir()
    (workspace / "sdxl" / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')

    assert "StableDiffusionXLPipeline" in refusal(zimage("pin", "sdxl/", cwd=workspace))
    assert (workspace / "params.yaml").read_bytes() == before


def test_a_consent_is_written_from_the_signed_document_and_never_over_another(tmp_path: Path) -> None:
    (tmp_path / "release.pdf").write_bytes(b"signed")
    asked = ["consent", "--subject", "ada", "--document", "release.pdf"]

    first = zimage(*asked, cwd=tmp_path)
    again = zimage(*asked, "--adult", cwd=tmp_path)
    forced = zimage(*asked, "--adult", "--may-publish", "--expires", "2999-01-31", "--force", cwd=tmp_path)

    assert first.returncode == 0, first.stderr
    assert "It does not say that the person is of age: set `adult: true` there" in first.stdout
    assert "consent-ada.yaml exists already; name another file with --out, or replace it with --force" in refusal(again)
    assert forced.stdout == (
        "consent-ada.yaml: ada agreed to training, evaluation and publication until 2999-01-31; "
        "check it against the document.\n"
    )
    assert "There is no document nowhere.pdf" in refusal(
        zimage("consent", "--subject", "eve", "--document", "nowhere.pdf", cwd=tmp_path)
    )
    assert "`pseudonym` is 'Ada'" in refusal(zimage(*asked, "--subject", "Ada", cwd=tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["consent-ada.yaml", "release.pdf"]
