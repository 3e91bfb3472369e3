"""The command `sweep`; importing this module imports no torch."""

import argparse
from pathlib import Path


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command; it sets `run`, a function of the parsed arguments that returns the exit code."""
    summary = "Train one dataset with several settings and seeds, and compare the LoRAs by paired intervals."
    parser = subparsers.add_parser("sweep", help=summary, description=summary)
    parser.add_argument("file", type=Path, help="a YAML file with `runs` or a `grid` of train.* values, and `seeds`")
    parser.add_argument("out", type=Path, help="a folder; run again to go on")
    parser.add_argument("--data", type=Path, default=Path("data"), help="with detect, caption and encode; else data")
    parser.add_argument("--params", dest="params_file", type=Path, default=Path("params.yaml"), help="else params.yaml")
    parser.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> int:
    from zimage.sweep.sweep import sweep

    lines = sweep(parsed.file, parsed.out, data=parsed.data, params_file=parsed.params_file)
    print(*lines, f"table: {parsed.out / 'sweep.md'}", sep="\n")  # noqa: T201
    return 0
