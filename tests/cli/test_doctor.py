import re
import shutil
from pathlib import Path

import pytest
import torch

from tests.training.recipe import MACHINE
from zimage.cli import doctor
from zimage.cli.doctor import Finding, as_lines, examine
from zimage.core.params import with_values
from zimage.model import device
from zimage.model.base import Base

PROJECT = Path(__file__).parents[2]
CLOSED = "http://127.0.0.1:9/api"  # discard; nothing listens there


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    shutil.copyfile(PROJECT / "params.yaml", tmp_path / "params.yaml")
    return tmp_path


def finding(workspace: Path, subject: str, prefect_api_url: str | None = None) -> Finding:
    findings = examine(workspace / "params.yaml", prefect_api_url=prefect_api_url, machine=lambda: MACHINE)
    return next(found for found in findings if found.subject == subject)


def test_what_the_demo_needs_is_present(workspace: Path) -> None:
    findings = examine(workspace / "params.yaml", prefect_api_url=None, machine=lambda: MACHINE)

    assert [found for found in findings if found.state == "missing"] == []
    assert {found.subject for found in findings} >= {"packages", "GPU", "base model", "face engine", "DVC remote"}


def test_whatever_is_absent_comes_with_its_remedy(workspace: Path) -> None:
    findings = examine(workspace / "params.yaml", prefect_api_url=CLOSED, machine=lambda: MACHINE)

    assert all(found.remedy for found in findings if found.state != "present")


def test_a_base_model_that_is_not_there_is_told(workspace: Path) -> None:
    path = workspace / "params.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("model: tiny", "model: /nowhere/base"), encoding="utf-8")

    found = finding(workspace, "base model")

    assert found.state == "missing"
    assert "There is no folder /nowhere/base" in found.remedy


@pytest.mark.parametrize(
    ("makers", "torch_has", "found", "remedy"),
    [
        (["NVIDIA"], {}, "an NVIDIA GPU, but torch is built without CUDA", "the build of torch for CUDA"),
        (["NVIDIA"], {"cuda": "12.8"}, "an NVIDIA GPU that torch cannot use", "a driver for CUDA 12.8"),
        (["AMD"], {}, "an AMD GPU, but torch is built without ROCm", "the build of torch for ROCm"),
        (["AMD"], {"hip": "6.4"}, "an AMD GPU that torch cannot use", "the groups render and video"),
        ([], {}, "torch sees none", "needs none"),
    ],
)
def test_a_gpu_that_is_there_and_not_used_is_named_with_what_is_missing(  # noqa: PLR0917
    makers: list[str],
    torch_has: dict[str, str],
    found: str,
    remedy: str,
    workspace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = {maker: tmp_path / maker for maker in ("NVIDIA", "AMD")}
    for maker in makers:
        there[maker].touch()
    monkeypatch.setattr(device, "NVIDIA", (there["NVIDIA"],))
    monkeypatch.setattr(device, "AMD", there["AMD"])
    for name in ("cuda", "hip"):
        monkeypatch.setattr(torch.version, name, torch_has.get(name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    gpu = finding(workspace, "GPU")

    assert (gpu.state, gpu.found) == ("without", found) and remedy in gpu.remedy


def test_what_stages_need_of_a_gpu_is_told_where_there_is_none_too(workspace: Path) -> None:
    found = finding(workspace, "GPU memory")

    assert re.fullmatch(r"about [\d.]+ GB to encode, [\d.]+ GB to train, [\d.]+ GB to evaluate", found.found)
    path = workspace / "params.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("crops:", "crop:"), encoding="utf-8")
    assert "lacks detect.crops" in finding(workspace, "GPU memory").remedy


def test_params_that_training_would_refuse_and_turbo_as_it_is_are_told_with_the_remedy(
    workspace: Path, tiny_base: Base
) -> None:
    assert finding(workspace, "training").state == "present"
    path = workspace / "params.yaml"
    text = path.read_text(encoding="utf-8")

    path.write_text(text.replace("  rank: 32 ", "  rank: 500 "), encoding="utf-8")
    found = finding(workspace, "training")
    assert found.state == "missing" and found.remedy.endswith("set train.rank to 192 or less.")

    of_tests = with_values(text, {"base.model": tiny_base.model, "base.identity": tiny_base.identity}, "here")
    path.write_text(of_tests, encoding="utf-8")  # its noise schedule is Turbo's
    found = finding(workspace, "training")
    assert found.state == "without" and "undoes its distillation" in found.remedy


@pytest.mark.parametrize(("gpu_gb", "state"), [(8.0, "present"), (1.0, "missing")])
def test_whether_a_gpu_has_what_stages_need_is_told(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, gpu_gb: float, state: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device, "available_gb", lambda _: gpu_gb)

    found = doctor._gpu_memory(workspace / "params.yaml", lambda: MACHINE)

    assert found.state == state and found.found.endswith(f"of {gpu_gb} GB")
    assert found.remedy == "" or found.remedy.startswith("too much to train: choose a preset for a smaller card")


def test_a_face_pack_that_is_not_there_is_told(workspace: Path) -> None:
    path = workspace / "params.yaml"
    text = path.read_text(encoding="utf-8").replace("name: yunet-sface", "name: insightface", 1)
    path.write_text(text.replace("pack: null", "pack: /nowhere/buffalo_l", 1), encoding="utf-8")

    found = finding(workspace, "face engine")

    assert found.state == "missing"
    assert "buffalo_l" in found.remedy


def test_a_server_that_does_not_answer_is_told(workspace: Path) -> None:
    found = finding(workspace, "Prefect API", prefect_api_url=CLOSED)

    assert found.state == "missing"
    assert CLOSED in found.found


def test_a_remote_is_shown_with_its_address(workspace: Path) -> None:
    (workspace / ".dvc").mkdir()
    (workspace / ".dvc" / "config").write_text(
        "[core]\n    remote = lab\n['remote \"lab\"']\n    url = s3://faces/ada\n"
    )

    found = finding(workspace, "DVC remote")
    assert (found.state, found.found) == ("without", "lab: s3://faces/ada, which does not verify what arrives")
    assert found.remedy.startswith("`dvc remote modify lab verify true`")

    with (workspace / ".dvc" / "config").open("a") as config:
        config.write("    verify = true\n")
    assert finding(workspace, "DVC remote") == Finding("DVC remote", "present", "lab: s3://faces/ada")


def test_a_remedy_stands_below_what_it_mends() -> None:
    lines = list(
        as_lines([Finding("GPU", "without", "none", "use another"), Finding("git", "present", "/usr/bin/git")])
    )

    assert lines == ["without  GPU  none", "              -> use another", "present  git  /usr/bin/git"]
