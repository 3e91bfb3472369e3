"""Change values of params.yaml and keep its comments and order."""

import difflib
import io
from collections.abc import Mapping
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter

from zimage.core.errors import InputError
from zimage.core.plain_yaml import load_plain, number_of
from zimage.core.renamed_keys import renamed

WIDTH = 1_000_000  # no line is ever folded


def with_values(text: str, values: Mapping[str, Any], where: str) -> str:
    """Return the text of a params.yaml in which `values` stand instead of the old ones.

    Args:
        text: The file as it is.
        values: New values by dotted key, for example `{"train.steps": 800}`; the keys must exist.
        where: Names the origin of `values` in the error.

    Raises:
        InputError: a key does not exist; the remedy names the nearest one that does.
    """
    ruamel = _ruamel()
    content = ruamel.load(text)
    set_values(content, values, where)
    out = io.StringIO()
    ruamel.dump(content, out)
    return out.getvalue()


def set_values(content: Any, values: Mapping[str, Any], where: str) -> None:
    """Set `values` in the content of a params.yaml, which is changed in place.

    Args:
        content: The file as it was loaded, a mapping of sections.
        values: New values by dotted key, for example `{"train.steps": 800}`; the keys must exist.
        where: Names the origin of `values` in the error.

    Raises:
        InputError: a key does not exist; the remedy names the nearest one that does.
    """
    for dotted, value in values.items():
        section, key = _place(content, dotted, where)
        section[key] = _spelled_numbers(section[key], value)


def _spelled_numbers(before: Any, value: Any) -> Any:
    """Return a value in which a text that spells a number is that number, where a float stood before.

    DVC compares what the file says: '1e-4' and 0.0001 would be different values to it.
    """
    if isinstance(before, Mapping) and isinstance(value, Mapping):
        return {key: _spelled_numbers(before.get(key), each) for key, each in value.items()}
    if isinstance(before, list) and isinstance(value, list):
        return [_spelled_numbers(before[0] if before else None, each) for each in value]
    return number_of(value) if isinstance(before, float) else value


def parsed(assignments: list[str]) -> dict[str, Any]:
    """Return `["train.steps=800"]` as `{"train.steps": 800}`; the right-hand sides are YAML.

    Keys may have the names of 0.1.

    Raises:
        InputError: an entry is no assignment, or its right-hand side is not YAML.
    """
    values = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.strip():
            raise InputError(f"`{assignment}` sets nothing; write SECTION.KEY=VALUE, such as train.steps=800.")
        try:
            values[key.strip()] = load_plain(value)
        except yaml.YAMLError:
            raise InputError(f"`{value}` in `{assignment}` is not a YAML value; put text in quotes.") from None
    return renamed(values)


def _place(content: Any, dotted: str, where: str) -> tuple[Any, str]:
    *sections, key = dotted.split(".")
    place = content
    for name in [*sections, key]:
        if not isinstance(place, Mapping) or name not in place:
            raise InputError(f"{where}: params.yaml has no key `{dotted}`{_nearest(dotted, content)}.")
        place, parent = place[name], place
    return parent, key


def _nearest(dotted: str, content: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(dotted, _dotted_keys(content), n=1)
    return f" (did you mean `{close[0]}`?)" if close else ""


def _dotted_keys(content: Any, prefix: str = "") -> list[str]:
    if not isinstance(content, Mapping):
        return []
    below = [key for name, value in content.items() for key in _dotted_keys(value, f"{prefix}{name}.")]
    return [f"{prefix}{name}" for name in content] + below


class _Representer(RoundTripRepresenter):
    """Writes `null` for nothing, where ruamel would leave the place empty."""

    def represent_none(self, _: None) -> ScalarNode:
        """Return the scalar `null`."""
        return self.represent_scalar("tag:yaml.org,2002:null", "null")


_Representer.add_representer(type(None), _Representer.represent_none)


def _ruamel() -> YAML:
    ruamel = YAML(typ="rt")
    ruamel.Representer = _Representer
    ruamel.width = WIDTH
    ruamel.preserve_quotes = True
    ruamel.indent(mapping=2, sequence=4, offset=2)
    return ruamel
