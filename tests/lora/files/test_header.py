"""Reading safetensors headers that lie."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.lora.family_files import write_header
from tests.lora.fuzz import read_many
from zimage.lora.files.header import MAX_HEADER_BYTES, LoraFileError, read_header, read_scalars, shown
from zimage.lora.files.inspection import inspect_file

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write_raw(path: Path, header: Any, num_data_bytes: int = 8) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(num_data_bytes))
    return path


def test_names_dtypes_shapes_and_metadata_are_those_that_were_saved(tmp_path: Path) -> None:
    tensors = {"b": torch.zeros(2, 3, dtype=torch.bfloat16), "a": torch.ones(4), "s": torch.tensor(2.5)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"who": "Ada"})
    header = read_header(tmp_path / "x.safetensors")
    assert {name: (entry.dtype, entry.shape) for name, entry in header.entries.items()} == {
        "a": ("F32", (4,)),
        "b": ("BF16", (2, 3)),
        "s": ("F32", ()),
    }
    assert header.metadata == {"who": "Ada"}
    assert header.num_bytes == (tmp_path / "x.safetensors").stat().st_size


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.uint8]
)
def test_a_scalar_is_read_in_every_dtype_it_comes_in(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a.alpha": torch.tensor(12, dtype=dtype), "b": torch.zeros(2)}, path)
    header = read_header(path)
    assert read_scalars(path, header, ["a.alpha", "b"]) == {"a.alpha": 12.0, "b": None}


@pytest.mark.parametrize(
    ("header", "num_data_bytes", "message"),
    [
        ({"a": ONE}, 4, "is truncated: the header names 8 bytes of weights, the file has 4"),
        ({"a": ONE}, 12, "has bytes behind its tensors"),
        ({"a": ONE, "b": ONE}, 8, "'b' overlaps another tensor"),
        ({"a": ONE, "b": {**ONE, "data_offsets": [12, 20]}}, 20, "'b' leaves a hole before it"),
        ({"a": {**ONE, "shape": [3]}}, 8, "its offsets span 8 bytes"),
        ({"a": {**ONE, "data_offsets": [8, 0]}}, 8, "its offsets span -8 bytes"),
        ({"a": {**ONE, "shape": [-2]}}, 8, "describes 'a' wrongly"),
        ({"a": {**ONE, "shape": [2.0]}}, 8, "describes 'a' wrongly"),
        ({"a": {**ONE, "shape": [True]}}, 8, "describes 'a' wrongly"),
        ({"a": {**ONE, "shape": [2**40, 2**40, 2**40]}}, 8, "cannot be trusted"),
        ({"a": {**ONE, "shape": [1] * 9}}, 8, "describes 'a' wrongly"),
        ({"a": {**ONE, "dtype": "F33"}}, 8, "describes 'a' wrongly"),
        ({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}, 1, "cannot be trusted"),
        ({"a": 7}, 8, "describes 'a' wrongly"),
        ({"a": ONE, "__metadata__": {"n": 1}}, 8, "metadata that is not a table of strings"),
        ({"a": ONE, "__metadata__": []}, 8, "metadata that is not a table of strings"),
        ({}, 0, "holds no tensors"),
        ({"__metadata__": {}}, 0, "holds no tensors"),
        (b'{"a": {}, "a": {}}', 8, "names 'a' twice"),
        (b'{"a": {"dtype": "F32", "dtype": "F32"}}', 8, "names 'dtype' twice"),
        (b'{"a": ', 8, "a header that is not JSON"),
        (b"[1, 2]", 8, "its header is not a JSON object"),
        (b'{"a": "\xff\xfe"}', 8, "a header that is not JSON"),
        (b'{"a": ' + b"[" * 100_000 + b"}", 8, "nested without end"),
        (b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 8]}}', 8, "not JSON"),
        (b'{"\\ud800": {}}', 8, "names that are not Unicode"),
    ],
)
def test_a_header_that_lies_is_refused_in_a_sentence(
    tmp_path: Path, header: Any, num_data_bytes: int, message: str
) -> None:
    with pytest.raises(LoraFileError) as caught:
        read_header(write_raw(tmp_path / "x.safetensors", header, num_data_bytes))
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; download it again"),
        (b"{}", "is truncated or no safetensors file"),
        (struct.pack("<Q", 2**63) + b"{}", "promises a header of 9223372036854775808"),
        (struct.pack("<Q", 50) + b'{"a":', "is truncated or no safetensors file"),
        (b"PK\x03\x04" + bytes(60), "is a pickle under another name"),
        (b"\x80\x02}q\x00" + bytes(60), "is a pickle under another name"),
        (b"GGUF" + bytes(60), "is a GGUF file under another name"),
        (b"<!DOCTYPE html><html>404</html>", "is a web page and no LoRA file"),
    ],
)
def test_what_is_no_safetensors_file_is_refused_in_a_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(LoraFileError, match=message):
        read_header(path)


def test_a_header_of_gigabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**34) + b"{")
        file.truncate(2**35)
    with pytest.raises(LoraFileError, match=f"a LoRA's has less than {MAX_HEADER_BYTES}"):
        read_header(path)


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".CKPT", ".pth", ".pkl"])
def test_a_pickle_is_refused_without_being_opened(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    os.mkfifo(path)  # opening it would wait for ever
    with pytest.raises(LoraFileError, match=r"was not opened.*ask for the \.safetensors"):
        read_header(path)


def test_a_pipe_a_folder_and_nothing_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(LoraFileError, match="not an ordinary file"):
        read_header(tmp_path / "x.safetensors")
    with pytest.raises(LoraFileError, match=r"is a folder; name the \.safetensors file inside"):
        read_header(tmp_path)
    with pytest.raises(LoraFileError, match="No such file or directory"):
        read_header(tmp_path / "absent.safetensors")


def test_names_from_a_file_cannot_command_the_terminal_or_fill_it(tmp_path: Path) -> None:
    assert shown("\x1b[2Jgone\n") == "\N{REPLACEMENT CHARACTER}[2Jgone\N{REPLACEMENT CHARACTER}"
    assert len(shown("x" * 10_000)) == 97
    path = tmp_path / "x.safetensors"
    write_header(path, {"\x1b[31mlayers.lora_A.weight": (1, 2)}, metadata={"modelspec.title": "\x1b]0;owned\x07"})
    assert "\x1b" not in inspect_file(path).model_dump_json()


def test_an_index_of_thousands_of_digits_is_only_an_unknown_layer(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    name = f"transformer_blocks_{'1' * 4400}_attn_to_q"
    write_header(path, {f"{name}.lora_down.weight": (1, 8), f"{name}.lora_up.weight": (8, 1)})
    assert inspect_file(path).family == "unknown"


def test_two_thousand_files_made_by_chance_are_all_answered(tmp_path: Path) -> None:
    counts, _ = read_many(tmp_path, range(2000))
    assert min(counts["refused"], counts["inspected"]) > 500
    assert counts["read"] > 0
