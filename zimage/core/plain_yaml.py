"""Load YAML from untrusted sources: plain values only, without aliases that expand."""

import re
from typing import Any

import yaml
from yaml.composer import Composer

MAX_DEPTH = 50


# A decimal number as JSON, YAML 1.2 and ruamel.yaml have it, with which DVC and `zimage.core.params` read and write.
# PyYAML follows YAML 1.1, where 1e-4 and 5e-05 are texts, because they have no point.
NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")

DECIMAL = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


def number_of(value: Any) -> Any:
    """Return the number that a text spells, such as '1e-4' in quotes or of a form; any other value as it is."""
    return float(value) if isinstance(value, str) and DECIMAL.fullmatch(value.strip()) else value


def load_trusted(text: str) -> Any:
    """Return what a YAML text of our own holds; a thousand locks are read in seconds, by libyaml where it is there."""
    return yaml.load(text, Loader=_Trusted)


def dump(content: Any) -> str:
    """Return YAML that `load_plain`, `load_trusted` and ruamel.yaml read back as it is, keys in their order."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def load_plain(text: str, *, as_text: bool = False) -> Any:
    """Return what a YAML text holds; with `as_text` all values are texts, as they stand there.

    Raises:
        yaml.YAMLError: it is none, names a class, uses an alias (a few of which are enough to fill the memory), has a
            key twice, or is nested deeper than `MAX_DEPTH`.
    """
    try:
        return (_Texts if as_text else _Values)(text).get_single_data()
    except ValueError as error:  # a number of more digits than Python reads, or a day that is none
        raise yaml.YAMLError(str(error)) from None


class _Bounded(Composer):
    """The part of a loader that puts together what was read, with bounds."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # type: ignore[attr-defined]
            raise yaml.YAMLError("aliases such as *name are not read; write the value out")
        if self._depth == MAX_DEPTH:
            raise yaml.YAMLError(f"nested deeper than {MAX_DEPTH} levels")
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.YAMLError(f"the key `{key.value}` stands there twice; keep one of them")
                seen.add((key.tag, key.value))
        return node


class _Values(_Bounded, yaml.SafeLoader):
    """Numbers, days and truths are read as such."""


class _Trusted(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Numbers, days and truths are read as such, and aliases too."""


class _Dumper(yaml.SafeDumper):
    """Puts texts in quotes that would be read as numbers."""


for _each in (_Values, _Trusted, _Dumper):
    _each.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+.0123456789"))


class _Texts(_Bounded, yaml.BaseLoader):
    """Nothing is read as anything but text."""
