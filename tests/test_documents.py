"""The README and the guide say what works: their commands are run, as they stand or in a cheap form."""

import argparse
import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.__main__ import _parser as flows_parser
from tasks.settings import PROJECT
from zimage.cli.main import _commands
from zimage.cli.main import _parser as zimage_parser
from zimage.lora.comfyui.workflow import MODELS, TEXT_ENCODER, VAE

DOCUMENTS = (PROJECT / "README.md", PROJECT / "infra" / "guide.md")
FENCE = re.compile(r"^ *```sh\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
PARSERS = {"zimage": lambda: zimage_parser(_commands()), "flows": flows_parser}
# Options of other programs that messages and documents name.
OTHERS = {"--include", "--no-deps", "--revision", "--logdir", "--nproc-per-node", "--cd", "--peak-rate", "--count"}
OTHERS |= {"--backend-store-uri", "--project"}  # of MLflow and Trackio
PAGES = ("*.jinja", "*.html", "*.css", "*.js")
LOADS = re.compile(
    r"""(?:<(?:script|img|link|iframe)[^>]*(?:src|href)=["']?|@import\s+|url\(["']?)https?:""", re.IGNORECASE
)


def fenced(document: Path) -> list[list[str]]:
    """The commands of a document's shell blocks, in their order."""
    blocks = FENCE.findall(document.read_text(encoding="utf-8"))
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line.strip()]


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    found = {option for action in parser._actions for option in action.option_strings}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= {option for each in action.choices.values() for option in options_of(each)}
    return found


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (action,) = (each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    return dict(action.choices)


def named(words: list[str]) -> tuple[str, list[str]] | None:
    """The program of ours that a command calls, with its arguments; None for another one's."""
    match words:
        case ["zimage", *rest] | ["python", "-m", "zimage", *rest]:
            return "zimage", rest
        case ["python", "-m", "flows", *rest]:
            return "flows", rest
    return None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_of_ours_in_a_shell_block_is_understood(document: Path) -> None:
    commands = [found for words in fenced(document) if (found := named(words))]

    assert len(commands) > 5
    for program, arguments in commands:
        PARSERS[program]().parse_args(arguments)  # else SystemExit


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_of_ours_in_a_sentence_exists_with_its_options(document: Path) -> None:
    for text in INLINE.findall(document.read_text(encoding="utf-8")):
        words = text.split()
        found = named(words)
        if found is None or not found[1]:
            continue
        program, (command, *_) = found
        known = commands_of(PARSERS[program]())
        assert command in known, text
        assert set(OPTION.findall(text)) <= options_of(known[command]), text


def test_the_guide_names_each_file_of_a_workflow_with_its_folder_and_where_it_is_from() -> None:
    guide = (PROJECT / "infra" / "guide.md").read_text(encoding="utf-8")
    rows = [line for line in guide.splitlines() if line.startswith("   | `")]

    for file in (*MODELS.values(), TEXT_ENCODER, VAE):
        (row,) = [row for row in rows if f"`{file.name}`" in row]
        repository = file.url.partition("huggingface.co/")[2].partition("/resolve/")[0]
        assert f"`models/{file.directory}`" in row
        assert f"`split_files/{file.directory}`" in row
        assert f"`{repository}`" in row or f"`{repository.removeprefix('Comfy-Org/')}`" in row
    assert any("`models/loras`" in row for row in rows)


def sentences() -> Iterator[tuple[Path, str]]:
    """All texts in the code that a person may read, and the documents."""
    for folder in ("flows", "tasks", "zimage"):
        for path in (PROJECT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
                    yield path, node.value
    for path in DOCUMENTS:
        yield path, path.read_text(encoding="utf-8")


def test_no_message_advises_an_option_that_does_not_exist() -> None:
    known = OTHERS | options_of(PARSERS["zimage"]()) | options_of(PARSERS["flows"]())
    docs = {"--single-item", "--dry"}  # of DVC, in docstrings
    docs |= {"--host", "--port"}  # of `python -m flows.server`

    unknown = {(path.name, option) for path, text in sentences() for option in OPTION.findall(text)}
    assert {pair for pair in unknown if pair[1] not in known | docs} == set()


def test_no_page_of_ours_loads_anything_from_another_server() -> None:
    pages = [path for folder in ("tasks", "zimage") for kind in PAGES for path in (PROJECT / folder).rglob(kind)]

    assert pages
    assert [path for path in pages if LOADS.search(path.read_text(encoding="utf-8"))] == []
