"""The command `base`; importing this module imports no torch."""

import argparse
from pathlib import Path

RELEASED = "Tongyi-MAI/Z-Image"
SUMMARY = "Write a base model's folder from single files, such as those that ComfyUI has."


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command; it sets `run`, a function of the parsed arguments that returns the exit code."""
    parser = subparsers.add_parser("base", help=SUMMARY, description=SUMMARY)
    parser.add_argument("out", type=Path, help="the folder to write, in diffusers' layout")
    parser.add_argument("--comfyui", type=Path, metavar="FOLDER", help="ComfyUI's folder, where parts are looked for")
    parser.add_argument("--transformer", type=Path, metavar="FILE", help="such as z_image_bf16.safetensors")
    parser.add_argument("--text-encoder", type=Path, metavar="FILE", help="such as qwen_3_4b.safetensors")
    parser.add_argument("--vae", type=Path, metavar="FILE", help="such as ae.safetensors")
    parser.add_argument(
        "--configs",
        default=RELEASED,
        metavar="MODEL",
        help=f"configurations, tokenizer and scheduler: a folder or a hub id in the local cache; else {RELEASED}",
    )
    parser.set_defaults(run=_base)


def _base(parsed: argparse.Namespace) -> int:
    from zimage.core.errors import InputError
    from zimage.model.single_files import OPTIONS, found_in_comfyui, make_base

    files = {part: getattr(parsed, part) for part in OPTIONS}
    if parsed.comfyui is not None:
        files = found_in_comfyui(parsed.comfyui, files)
    elif absent := [OPTIONS[part] for part, file in files.items() if file is None]:
        raise InputError(f"There is no {absent[0]}; name the file, or ComfyUI's folder with --comfyui.")
    make_base(parsed.out, parsed.configs, files)
    print(f"{parsed.out} is written; `zimage pin {parsed.out}` makes it the base in params.yaml.")
    return 0
