"""The command `training-adapter`; importing this module imports no torch."""

import argparse
from pathlib import Path


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command; it sets `run`, a function of the parsed arguments that returns the exit code."""
    summary = "Make a training adapter for a distilled base, such as Turbo, from pictures that it generates."
    parser = subparsers.add_parser("training-adapter", help=summary, description=summary)
    parser.add_argument("out", type=Path, help="a folder; run again to go on")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="a prompt in each line; else the packaged ones")
    parser.add_argument("--settings", type=Path, metavar="FILE", help="else zimage/assets/training_adapter.yaml")
    parser.add_argument("--params", dest="params_file", type=Path, default=Path("params.yaml"), help="else params.yaml")
    parser.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> int:
    from zimage.dedistillation.making import make_training_adapter

    lines = make_training_adapter(
        parsed.out, params_file=parsed.params_file, settings_file=parsed.settings, prompts_file=parsed.prompts
    )
    print(*lines, sep="\n")  # noqa: T201
    return 0
