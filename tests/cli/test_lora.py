"""The LoRA commands as the command line calls them."""

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.lora.dialect_files import factors_for_every_linear, tiny_transformer, write_dialect
from tests.lora.family_files import FILES, write_header
from zimage.cli.lora import register
from zimage.core.errors import InputError


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers(required=True))
    parsed = parser.parse_args([str(argument) for argument in arguments])
    code = parsed.run(parsed)
    assert isinstance(code, int)
    return code


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    path = tmp_path / "musubi.safetensors"
    write_dialect(path, "kohya-split", factors_for_every_linear(tiny_transformer(), keep="layers.0"), 0.5)
    return path


def test_importing_the_commands_imports_nothing_heavy() -> None:
    code = "import sys, zimage.cli.lora; print({'torch', 'diffusers', 'pydantic', 'safetensors'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("name", "code", "verdict"),
    [
        ("Z-Image, ai-toolkit", 0, "usable"),
        ("Z-Image, musubi-tuner", 1, "convertible"),
        ("Flux.1, kohya", 2, "unusable"),
    ],
)
def test_the_exit_code_is_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, code: int, verdict: str
) -> None:
    write_header(tmp_path / "x.safetensors", FILES[name][1]())
    assert run("inspect", tmp_path / "x.safetensors", "--json") == code
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == verdict
    assert found.keys() >= {"family", "dialect", "kind", "rank", "alpha", "targets", "verdict", "reason", "remedy"}
    assert run("inspect", tmp_path / "x.safetensors") == code
    assert capsys.readouterr().out.splitlines()[0] == f"{tmp_path / 'x.safetensors'}: {verdict}"


def test_what_is_no_lora_file_ends_with_3_and_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.safetensors").write_text("<html>")
    assert run("inspect", tmp_path / "x.safetensors") == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("zimage: ")


def test_a_convertible_file_is_usable_after_conversion(
    tmp_path: Path, lora: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"
    assert run("inspect", lora) == 1
    assert run("convert", lora, "--out", out, "--to", "portable") == 0
    told = capsys.readouterr().out
    assert "portable, 8 layers, rank 3, float32" in told
    assert "change against the source: none" in told
    assert "diffusers applies every layer" in told
    assert "ComfyUI applies every layer" in told
    assert run("inspect", out) == 0


def test_a_target_that_a_loader_cannot_read_is_said(
    tmp_path: Path, lora: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("convert", lora, "--out", tmp_path / "out.safetensors", "--to", "comfyui")
    assert "diffusers does not read these names" in capsys.readouterr().out


def test_merging_takes_strengths_and_resizing_tells_what_it_costs(
    tmp_path: Path, lora: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both, small = tmp_path / "both.safetensors", tmp_path / "small.safetensors"
    assert run("merge", f"{lora}:0.8", lora, "--out", both) == 0
    assert "rank 6" in capsys.readouterr().out
    assert run("resize", both, "--out", small, "--rank", 1, "--dtype", "bf16") == 0
    told = capsys.readouterr().out
    assert "rank 1, bfloat16" in told
    assert "% of it in all" in told
    with pytest.raises(InputError, match=r"The strength in .*:much is not a number; write FILE:STRENGTH"):
        run("merge", f"{lora}:much", lora, "--out", both, "--force")


def test_a_file_with_a_colon_in_its_name_is_a_file(tmp_path: Path) -> None:
    stem = "diffusion_model.layers.0.attention.to_q"
    path = tmp_path / "a:2"
    save_file({f"{stem}.lora_A.weight": torch.ones(1, 8), f"{stem}.lora_B.weight": torch.ones(8, 1)}, path)
    assert run("merge", path, path, "--out", tmp_path / "out.safetensors") == 0


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path, lora: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(InputError, match=r"file/below cannot be made .*; name another place"):
        run("convert", lora, "--out", tmp_path / "file" / "below" / "out.safetensors", "--to", "portable")


@pytest.mark.parametrize("strength", ["nan", "inf", "-inf"])
def test_a_strength_that_is_no_finite_number_is_refused(tmp_path: Path, lora: Path, strength: str) -> None:
    with pytest.raises(InputError, match=rf"The strength of .*musubi\.safetensors is {strength}; give a finite number"):
        run("merge", f"{lora}:{strength}", f"{lora}:0.5", "--out", tmp_path / "out.safetensors")


@pytest.mark.parametrize("command", [["convert"], ["merge"], ["resize", "--rank", "1"]])
def test_nothing_is_overwritten_unless_that_is_asked_for(tmp_path: Path, lora: Path, command: list[str]) -> None:
    """The order of the arguments was another one in `merge`, so that it overwrote a LoRA."""
    name, *options = command
    other = tmp_path / "other.safetensors"
    other.write_bytes(lora.read_bytes())
    files = [lora, other] if name == "merge" else [lora]
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"mine")

    with pytest.raises(InputError, match=r"out\.safetensors exists already; name another file .* or replace it with"):
        run(name, *files, "--out", out, *options)
    assert out.read_bytes() == b"mine"
    for file in files:
        with pytest.raises(InputError, match="is the file that is read; name another one to write"):
            run(name, *files, "--out", file, "--force", *options)
        assert file.read_bytes() == lora.read_bytes()
    assert run(name, *files, "--out", out, "--force", *options) == 0
    assert run("inspect", out) == 0


def test_a_lora_for_another_width_is_not_said_to_need_nothing(
    tmp_path: Path, lora: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("convert", lora, "--out", tmp_path / "small.safetensors")
    capsys.readouterr()

    run("inspect", tmp_path / "small.safetensors")

    said = capsys.readouterr().out
    assert "Load it on the model of width 32 that it was trained on; the released Z-Image cannot apply it." in said
    assert "None needed" not in said


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        *itertools.product(("float32", "bfloat16", "float16", "float8_e5m2"), (float("nan"), float("inf"))),
        ("float8_e4m3fn", float("nan")),  # it has no infinity
    ],
)
def test_a_lora_that_diverged_is_unusable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str, value: float
) -> None:
    kind = getattr(torch, dtype)
    stem, path = "diffusion_model.layers.0.attention.to_q", tmp_path / "x.safetensors"
    down = torch.linspace(-3, 3, 3840).reshape(1, 3840)
    tensors = {f"{stem}.lora_A.weight": down.to(kind), f"{stem}.lora_B.weight": torch.ones(3840, 1).to(kind)}
    save_file(tensors, path)
    assert run("inspect", path) in {0, 1}  # diffusers refuses 8 bits
    down[0, 7] = value
    save_file({**tensors, f"{stem}.lora_A.weight": down.to(kind)}, path)
    capsys.readouterr()

    assert run("inspect", path) == 2

    said = capsys.readouterr().out
    assert f"1 of its 2 tensors hold NaN or infinite values, for example '{stem}.lora_A.weight'" in said
    assert "Use an earlier checkpoint, or train again with a lower learning rate." in said
    with pytest.raises(InputError, match="holds NaN or infinity; use an earlier checkpoint of it"):
        run("convert", path, "--out", tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\r\n<!DOCTYPE html><html><title>Log in</title>", "is a web page and no LoRA file"),
        (b"<html>", "is a web page and no LoRA file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "fetch that with `git lfs pull`"),
    ],
)
def test_what_was_saved_instead_of_a_lora_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, said: str
) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)

    assert run("inspect", tmp_path / "x.safetensors") == 3
    assert said in capsys.readouterr().err


def test_inspecting_ends_quietly_when_nobody_reads_on(tmp_path: Path) -> None:
    """As with `| head -1`: the reader is gone before anything is written."""
    write_header(tmp_path / "x.safetensors", FILES["SDXL, kohya"][1]())
    command = [sys.executable, "-m", "zimage", "inspect", str(tmp_path / "x.safetensors")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None and running.stderr is not None
        running.stdout.close()
        said = running.stderr.read()

    assert said == ""
    assert running.returncode == 141
