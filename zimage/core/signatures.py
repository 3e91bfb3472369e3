"""Signatures of the stages, parsed from source, so that naming a stage's folders does not import torch."""

import ast
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STAGES = ("ingest", "detect", "caption", "encode", "train", "evaluate")  # in pipeline order
FOLDER = Path(__file__).parent.parent / "stages"


@dataclass(frozen=True)
class Signature:
    """What the command line has to know of a stage.

    Args:
        stage: Its name, which is the name of its module and of its function.
        summary: The first line of its docstring.
        folders: Names of the paths it takes, in order; it reads all but the last, which it writes.
        sections: For each keyword it takes, the section of params.yaml to read: `params` has the stage's own name.
    """

    stage: str
    summary: str
    folders: tuple[str, ...]
    sections: dict[str, str]


def signature(stage: str) -> Signature:
    """Return the signature of `stage` without importing it."""
    source = FOLDER / f"{stage}.py"
    function = _function(ast.parse(source.read_bytes()), stage)
    docstring = ast.get_docstring(function)
    assert docstring, f"{source}: {stage} needs a docstring; the command line shows its first line"
    folders = tuple(argument.arg for argument in function.args.posonlyargs + function.args.args)
    keywords = [argument.arg for argument in function.args.kwonlyargs]
    sections = {keyword: stage if keyword == "params" else keyword for keyword in keywords}
    return Signature(stage, docstring.splitlines()[0], folders, sections)


def imported(stage: Signature) -> tuple[Callable[..., None], dict[str, type[Any]]]:
    """Return the stage's function and the types of its arguments; it takes what the stage imports, torch with it."""
    function = getattr(importlib.import_module(f"zimage.stages.{stage.stage}"), stage.stage)
    return function, inspect.get_annotations(function, eval_str=True)


def _function(tree: ast.Module, name: str) -> ast.FunctionDef:
    return next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
