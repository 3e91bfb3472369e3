import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import yaml

from tests.training.crops import SUBJECT
from tests.training.recipe import MACHINE, recipe
from zimage.core.fingerprint import ENTRIES, PACKAGE, UNCOUNTED, as_yaml, fingerprint, fingerprints, reach
from zimage.core.signatures import STAGES
from zimage.model.base import Base

PROJECT = Path(__file__).parents[2]
ENTRY = "made.stages.train"
OTHER_PYTHONS = ("python3.12", "python3.13", "python3.14")

STAGE = """\
\"""Doc.\"""
from made.loop import run
from made import tools as t
def train():
  import made.late.words
  run(), t.sharpen(), made.late.words.words()
"""
TOOLS = """\
FACTOR = 2
SENTENCE = "It is not sharp."
def sharpen():
    return FACTOR
def explain():
    return SENTENCE
"""
WORDS = """\
LISTS = {"words": "words.txt", "suites": "suites", "table": "table.json"}
def words():
    return LISTS
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package whose stage imports one module outright, one in a function, a part of one, and leaves one alone."""
    files = {
        "__init__.py": '"""Doc."""\n',
        "stages/__init__.py": "",
        "stages/train.py": STAGE,
        "loop.py": 'def run():\n    """Doc."""\n    return 1\n',
        "tools.py": TOOLS,
        "late/__init__.py": "",
        "late/words.py": WORDS,
        "assets/words.txt": "hair\n",
        "assets/suites/demo.yaml": "prompts: [a, b]\nseed: 1\n",
        "assets/table.json": '{"a": 1, "b": [2]}',
        "assets/beside.yaml": "a: 1\n",
        "assets/page.html.jinja": "<p>\n",
        "apart.py": "x = 1\n",
    }
    for name, text in files.items():
        path = tmp_path / "made" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "made"


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_code_yaml_is_true() -> None:
    written = (PROJECT / "code.yaml").read_text(encoding="utf-8")

    assert written == as_yaml(fingerprints()), "run `make fingerprints`"


def test_every_stage_and_the_demo_photos_have_one() -> None:
    assert list(yaml.safe_load(as_yaml(fingerprints()))) == [*STAGES, "photos"]


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("stages/train.py", '"""Doc."""', '"""Another."""'),
        ("loop.py", '"""Doc."""', '"""Another\n\n    one."""'),
        ("loop.py", "return 1", "return 1  # why"),
        ("loop.py", "return 1", "return (\n        1\n    )"),
        ("late/words.py", '"words.txt"', "'words.txt'"),
        ("apart.py", "x = 1", "x = 2"),
        ("tools.py", "It is not sharp.", "Use another."),
        ("tools.py", "def explain", "def added():\n    return 3\ndef explain"),
        ("assets/words.txt", "hair\n", "hair\n\n"),
        ("assets/suites/demo.yaml", "prompts: [a, b]\nseed: 1", "# two\nseed: 1\nprompts:\n- a\n- b"),
        ("assets/table.json", '{"a": 1, "b": [2]}', '{"b": [ 2 ],\n "a": 1}'),
        ("assets/beside.yaml", "a: 1", "a: 2"),
        ("assets/page.html.jinja", "<p>", "<div>"),
    ],
)
def test_what_changes_no_meaning_changes_no_fingerprint(package: Path, file: str, old: str, new: str) -> None:
    before = fingerprint(ENTRY, package)

    change(package / file, old, new)

    assert fingerprint(ENTRY, package) == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("stages/train.py", "run(), ", "run(), run(), "),
        ("loop.py", "return 1", "return 2"),
        ("tools.py", "FACTOR = 2", "FACTOR = 3"),
        ("tools.py", "def explain", "print(SENTENCE)\ndef explain"),
        ("tools.py", "def explain", "@registered\ndef explain"),
        ("late/words.py", '"words.txt"', '"others.txt"'),
        ("assets/words.txt", "hair", "skin"),
        ("assets/suites/demo.yaml", "seed: 1", "seed: 2"),
        ("assets/table.json", "[2]", "[3]"),
        ("late/__init__.py", "", "print(1)\n"),
        ("__init__.py", '"""Doc."""', "print(1)"),
    ],
)
def test_code_and_data_behind_a_stage_change_its_fingerprint(package: Path, file: str, old: str, new: str) -> None:
    before = fingerprint(ENTRY, package)

    change(package / file, old, new)

    assert fingerprint(ENTRY, package) != before


def test_a_new_file_in_a_folder_of_data_that_code_names_counts(package: Path) -> None:
    before = fingerprint(ENTRY, package)

    (package / "assets" / "suites" / "full.yaml").write_text("prompts: []\n")

    assert fingerprint(ENTRY, package) != before


def test_a_base_model_in_the_package_counts_by_its_identity_only(package: Path) -> None:
    change(package / "late/words.py", '"suites": "suites"', '"suites": "model"')
    before = fingerprint(ENTRY, package)

    (package / "assets" / "model").mkdir()
    (package / "assets" / "model" / "model_index.json").write_text("{}")

    assert fingerprint(ENTRY, package) == before


def test_an_import_for_the_type_checker_alone_does_not_count(package: Path) -> None:
    only_checked = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import made.apart\n\n\ndef run"
    change(package / "loop.py", "def run", only_checked)

    assert not reach(ENTRY, package).names_of("made.apart")


def test_a_module_named_in_a_string_counts(package: Path) -> None:
    change(package / "loop.py", "return 1", 'return import_module("made.apart")')

    assert reach(ENTRY, package).names_of("made.apart") == {"x"}


def test_a_text_too_long_for_a_name_of_a_file_is_no_file(package: Path) -> None:
    before = fingerprint(ENTRY, package)
    change(package / "tools.py", "FACTOR = 2", f'FACTOR = len("{"王" * 100}") - 98')
    assert fingerprint(ENTRY, package) != before


def test_a_relative_import_is_refused(package: Path) -> None:
    change(package / "loop.py", "return 1", "from . import apart")

    with pytest.raises(SyntaxError, match=r"loop\.py:3: relative import"):
        fingerprint(ENTRY, package)


def test_it_does_not_depend_on_where_the_package_lies(package: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "made"
    moved.parent.mkdir()
    before = fingerprint(ENTRY, package)
    package.rename(moved)

    assert fingerprint(ENTRY, moved) == before


def test_pages_and_texts_of_other_commands_make_no_stage_stale(tmp_path: Path) -> None:
    package = tmp_path / "zimage"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    changes = [
        ("assets/migrate.yaml", "# How an old model", "# How a model"),
        ("assets/training_page.html.jinja", "<style>", "<style>\n  body { color: black }"),
        ("assets/comfyui_nodes.json", '": "', '": "another '),
        ("assets/loaders.json", "{", '{"another": 1, '),
        ("lora/files/verdict.py", 'CONVERT = "', 'CONVERT = "Sadly: '),
        ("demo.py", "def ", "CAMERA = 2\ndef "),
        ("evaluation/report/coaching.py", "add photos of other days", "come on another day"),
        ("assets/report.css", "{", " { color: red; "),
        ("assets/report.html.jinja", "<body", "<body class='wide'"),
    ]
    for file, old, new in changes:
        text = (package / file).read_text()
        assert old in text
        (package / file).write_text(text.replace(old, new, 1))

    before, after = fingerprints(), fingerprints(package)

    assert {stage: after[stage] for stage in STAGES} == {stage: before[stage] for stage in STAGES}


@pytest.mark.parametrize("python", OTHER_PYTHONS)
def test_every_version_of_python_computes_the_same(python: str) -> None:
    program = _interpreter(python)
    if program is None:
        pytest.skip(f"no {python} on this machine")
    packages = Path(yaml.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": f"{PROJECT}{os.pathsep}{packages}"}
    print_them = "from zimage.core.fingerprint import *; print(as_yaml(fingerprints()), end='')"
    answer = subprocess.run(
        [program, "-c", print_them], env=environment, capture_output=True, text=True, check=False, cwd=PROJECT
    )

    assert answer.stdout == as_yaml(fingerprints()), answer.stderr


def _interpreter(name: str) -> str | None:
    """Return a Python of that version, from the path or from pyenv's folder; None if there is none that starts."""
    found = [*Path.home().glob(f".pyenv/versions/{name.removeprefix('python')}.*/bin/{name}"), shutil.which(name)]
    starts = (subprocess.run([each, "-c", ""], capture_output=True, check=False) for each in found if each)
    return next((str(done.args[0]) for done in starts if done.returncode == 0), None)


def test_whatever_training_executes_counts(tiny_base: Base, tiny_encoded: Path, tmp_path: Path) -> None:
    """The other way round: what really runs is looked for among what was found by reading."""
    from zimage.stages.train import train

    executed: set[tuple[str, str]] = set()

    def see(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        is_function = code.co_flags & inspect.CO_OPTIMIZED  # not the body of a class or module
        if event == "call" and is_function and code.co_filename.startswith(f"{PACKAGE}{os.sep}"):
            module = frame.f_globals["__name__"]
            executed.add((module, code.co_qualname.split(".")[0]))

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        train(tiny_encoded, tmp_path / "train", params=recipe(), base=tiny_base, subject=SUBJECT, machine=MACHINE)
    finally:
        sys.setprofile(before)

    found = reach(ENTRIES["train"])
    missing = {
        f"{module}:{name}"
        for module, name in executed
        if not name.startswith("<") and module not in UNCOUNTED and name not in found.names_of(module)
    }
    assert len(executed) > 100
    assert missing == set()


def test_a_change_in_the_report_does_not_retrain() -> None:
    behind_training = {key.partition(":")[0] for key in reach(ENTRIES["train"]).code}

    assert "zimage.core.progress" in behind_training
    assert not any(module.startswith("zimage.evaluation") for module in behind_training)
