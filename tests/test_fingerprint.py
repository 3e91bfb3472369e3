from pathlib import Path

import pytest
import yaml

from zimage.fingerprint import PACKAGE, as_yaml, fingerprint, fingerprints, reached
from zimage.signatures import STAGES

PROJECT = Path(__file__).parent.parent
ENTRY = "made.stages.train"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package whose stage imports one module outright, one in a function, and leaves one alone."""
    files = {
        "__init__.py": '"""Doc."""\n',
        "stages/__init__.py": "",
        "stages/train.py": '"""Doc."""\nfrom made.loop import run\ndef train():\n  import made.late.words\n  run()\n',
        "loop.py": 'def run():\n    """Doc."""\n    return 1\n',
        "late/__init__.py": "",
        "late/words.py": "WORDS = 'words.txt'\n",
        "late/words.txt": "hair\n",
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
        ("late/words.py", "'words.txt'", '"words.txt"'),
        ("apart.py", "x = 1", "x = 2"),
    ],
)
def test_what_changes_no_meaning_changes_no_fingerprint(package: Path, file: str, old: str, new: str) -> None:
    before = fingerprint(ENTRY, package)

    change(package / file, old, new)

    assert fingerprint(ENTRY, package) == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("stages/train.py", "run()\n", "run(), run()\n"),
        ("loop.py", "return 1", "return 2"),
        ("late/words.py", "words.txt", "others.txt"),
        ("late/words.txt", "hair", "skin"),
        ("late/__init__.py", "", "x = 1\n"),
        ("__init__.py", '"""Doc."""', "x = 1"),
    ],
)
def test_code_and_data_behind_a_stage_change_its_fingerprint(package: Path, file: str, old: str, new: str) -> None:
    before = fingerprint(ENTRY, package)

    change(package / file, old, new)

    assert fingerprint(ENTRY, package) != before


def test_a_new_data_file_beside_a_module_counts(package: Path) -> None:
    before = fingerprint(ENTRY, package)

    (package / "late" / "suites").mkdir()
    (package / "late" / "suites" / "demo.yaml").write_text("prompts: []\n")

    assert fingerprint(ENTRY, package) != before


def test_a_base_model_in_the_package_counts_by_its_identity_only(package: Path) -> None:
    before = fingerprint(ENTRY, package)

    (package / "late" / "model").mkdir()
    (package / "late" / "model" / "model_index.json").write_text("{}")

    assert fingerprint(ENTRY, package) == before


def test_an_import_for_the_type_checker_alone_does_not_count(package: Path) -> None:
    only_checked = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import made.apart\n\n\ndef run"
    change(package / "loop.py", "def run", only_checked)

    assert package / "apart.py" not in reached(ENTRY, package)


def test_a_module_named_in_a_string_counts(package: Path) -> None:
    change(package / "loop.py", "return 1", 'return import_module("made.apart")')

    assert package / "apart.py" in reached(ENTRY, package)


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


def test_a_change_in_the_report_does_not_retrain() -> None:
    behind_training = reached("zimage.stages.train")

    assert PACKAGE / "progress.py" in behind_training
    assert not any(path.is_relative_to(PACKAGE / "identity") for path in behind_training)
