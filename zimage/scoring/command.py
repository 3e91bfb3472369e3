"""The command `score`; importing this module imports no torch."""

import argparse
import json
from pathlib import Path

EXIT_CODES = {"pass": 0, "provisional": 0, "fail": 3}  # 2 is an error that the user can correct, as everywhere


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command; it sets `run`, a function of the parsed arguments that returns the exit code."""
    summary = "Score and compare LoRA files, or finished pictures, against real photos of the person."
    parser = subparsers.add_parser("score", help=summary, description=summary)
    parser.add_argument("photos", type=Path, help="real photos of the person: a folder or an archive")
    parser.add_argument("out", type=Path, help="the folder that appears, whole, or is replaced")
    parser.add_argument("--consent", type=Path, required=True, help="the person's consent.yaml")
    parser.add_argument(
        "--lora", action="append", default=[], metavar="FILE[:STRENGTH]", help="a Z-Image LoRA of any tool; repeat it"
    )
    parser.add_argument("--strength", type=float, default=1.0, help="of each LoRA that says none; else 1")
    parser.add_argument(
        "--pictures",
        action="append",
        default=[],
        type=Path,
        metavar="FOLDER",
        help="finished pictures, in a folder or an archive; repeat it",
    )
    parser.add_argument(
        "--base",
        dest="bases",
        action="append",
        default=[],
        metavar="MODEL",
        help="a folder or a hub id; repeat it to score on several; alone, the base model is scored",
    )
    parser.add_argument(
        "--as",
        dest="used_as",
        action="append",
        default=[],
        metavar="USE",
        help="also score everything as it is used: merged (as ComfyUI applies a LoRA), bfloat16, fp8, int8, dpmpp_2m, "
        "unipc, side_px=N, steps=N, guidance_scale=N, several with commas between them; repeat it",
    )
    parser.add_argument(
        "--review", type=Path, metavar="FILE", help="what you saved in review.html of an earlier run of these pictures"
    )
    parser.add_argument("--blind", action="store_true", help="also write blind.html, without names, and blind_key.json")
    parser.add_argument(
        "--class-noun", choices=["person", "man", "woman"], required=True, help="what the base model calls the person"
    )
    parser.add_argument("--trigger", default="", help="the word that calls the person; else what each file says")
    parser.add_argument("--seeds", type=int, default=0, help="pictures of each prompt; else evaluate.seeds.test")
    parser.add_argument(
        "--precision",
        type=float,
        default=0.0,
        metavar="HALF_WIDTH",
        help="choose the seeds for an interval of ±HALF_WIDTH of the share of the same person, such as 0.05",
    )
    parser.add_argument("--params", dest="params_file", type=Path, default=Path("params.yaml"), help="else params.yaml")
    parser.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> int:
    from zimage.scoring.score import Request, score

    names = (
        *("photos", "consent", "class_noun", "trigger", "seeds", "params_file", "pictures"),
        *("bases", "used_as", "strength", "blind", "precision", "review"),
    )
    lines = score(Request(loras=parsed.lora, **{name: getattr(parsed, name) for name in names}), parsed.out)
    print(*lines, f"report: {parsed.out / 'score.html'}", sep="\n")  # noqa: T201
    found = json.loads((parsed.out / "metrics.json").read_text(encoding="utf-8"))["results"]
    return max(EXIT_CODES.get(one["verdict"], 0) for one in found.values())
