import hashlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tasks.settings import personalize_at_once
from zimage.core.errors import InputError
from zimage.evaluation.protocol import PROTOCOL_VERSION

PROJECT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pages", PROJECT / ".ci" / "pages.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def dotted(values: Any, prefix: str = "") -> list[str]:
    if not isinstance(values, dict):
        return [prefix.rstrip(".")]
    return [key for name, value in values.items() for key in dotted(value, f"{prefix}{name}.")]


@pytest.mark.parametrize("name", ["settings.md", "errors.md", "protocol.md"])
def test_a_page_says_what_the_code_says(generator: ModuleType, name: str) -> None:
    assert (PROJECT / "infra" / name).read_text(encoding="utf-8") == generator.pages()[name], "run `make pages`"


def test_the_seeds_on_the_page_of_the_protocol_are_what_its_text_says() -> None:
    page = (PROJECT / "infra" / "protocol.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+) \| (?:likeness|leak_\w+) \| [^|]* \| \w+ \| (\d+) \|", page, re.MULTILINE)
    assert len(rows) > 40
    for prompt, seed in rows:
        assert int(seed) == int.from_bytes(hashlib.sha256(f"{prompt} 0".encode()).digest()[:6], "big")
    assert f"**Version {PROTOCOL_VERSION}**" in page


def test_every_environment_variable_of_the_code_is_explained(generator: ModuleType) -> None:
    assert generator.used_variables() == generator.listed_variables()


def test_every_key_of_params_is_explained(generator: ModuleType) -> None:
    page = generator.settings().split("## params.yaml")[1]
    sections = dict(re.findall(r"^### (\w+).*?\n(.*?)(?=^### |\Z)", page, re.MULTILINE | re.DOTALL))
    for name, values in yaml.safe_load((PROJECT / "params.yaml").read_text(encoding="utf-8")).items():
        rows = {row.split("`")[1]: row.split(" | ") for row in sections[name].splitlines() if row.startswith("| `")}
        for key in dotted(values):
            assert len(rows[key][-1]) > 5, f"{name}.{key} has no meaning"
            assert rows[key][1], f"{name}.{key} has no type"


def test_what_a_user_reads_stands_on_the_page_of_errors(generator: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZIMAGE_AT_ONCE", "many")
    with pytest.raises(InputError) as raised:
        personalize_at_once()
    (row,) = [row for row in generator.errors().splitlines() if row.startswith("| ZIMAGE_AT_ONCE is")]
    message, remedy = row.strip("| ").split(" | ")
    assert re.fullmatch(re.sub("‹.*?›", ".+", f"{message}; {remedy}"), str(raised.value))
