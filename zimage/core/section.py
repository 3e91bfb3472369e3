"""Base class of params sections, and reading them from params.yaml."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, ValidationError

from zimage.core.errors import InputError
from zimage.core.plain_yaml import load_plain, number_of

MAX_PARAMS_BYTES = 1_000_000


class Section(BaseModel):
    """One section of params.yaml: frozen, every key required, unknown keys are errors, types are not bent.

    One exception: a text that spells a number, such as '1e-4', is that number where a key takes a float and no text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Let fields that are floats take spelled numbers; a validator on others would lose the dates of JSON."""
        numbers = [each for each in cls.model_fields.values() if _is_number(each.annotation)]
        if numbers:
            for field in numbers:
                field.metadata.append(BeforeValidator(_spelled_number))
            cls.model_rebuild(force=True, raise_errors=False)


PLAIN = "(plain)"  # the tag of a value that is no section; a tag is no part of a message


def told_by_keys(*kinds: type[Section]) -> Discriminator:
    """Return what chooses among a plain value and sections, so that a fault is named for the chosen one alone.

    A field that takes either is `Annotated[Annotated[float, Tag(PLAIN)] | Annotated[A, Tag("(A)")], told_by_keys(A)]`.

    Args:
        kinds: The sections; one is meant by the keys that it alone has, the first one where none are.
    """

    def tag(value: Any) -> str:
        if isinstance(value, Section):
            return f"({type(value).__name__})"
        if not isinstance(value, Mapping):
            return PLAIN
        best = max(kinds, key=lambda kind: len(kind.model_fields.keys() & value.keys()))
        return f"({best.__name__})"

    return Discriminator(tag)


def _spelled_number(value: Any) -> Any:
    return [number_of(each) for each in value] if isinstance(value, list) else number_of(value)


def _is_number(annotation: Any) -> bool:
    kinds = _types_in(annotation)
    return float in kinds and str not in kinds


def _types_in(annotation: Any) -> set[Any]:
    """Return the types that an annotation is made of: float and NoneType of `list[float] | None`."""
    parts = get_args(annotation)
    return {each for part in parts for each in _types_in(part)} if parts else {annotation}


S = TypeVar("S", bound=Section)


def read_params(path: Path) -> dict[str, Any]:
    """Return all sections of params.yaml as plain data.

    Raises:
        InputError: the file is absent, too large, not YAML, or not a mapping of sections.
    """
    if not path.is_file():
        raise InputError(
            f"There is no {path}; run in a workspace (a folder with params.yaml) or name it with --params."
        )
    if path.stat().st_size > MAX_PARAMS_BYTES:
        raise InputError(
            f"{path} is larger than {MAX_PARAMS_BYTES} bytes; it should hold a few hundred lines of settings."
        )
    try:
        content = load_plain(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} is not valid YAML ({' '.join(str(error).split())}); correct it and run again."
        ) from None
    if not isinstance(content, dict):
        raise InputError(
            f"{path} must be a mapping of sections such as `ingest:` and `train:`, not {type(content).__name__}."
        )
    return content


def read_section(path: Path, name: str, kind: type[S]) -> S:
    """Return the section `name` of params.yaml, checked.

    Raises:
        InputError: the section is absent, or a key is unknown, missing or of a wrong type; all faults at once.
    """
    return section_of(read_params(path), name, kind, path)


def section_of(params: Mapping[str, Any], name: str, kind: type[S], path: Path) -> S:
    """Return the section `name` of what `read_params` read from `path`, checked; see `read_section`."""
    if name not in params:
        meant = _did_you_mean(name, list(params))
        raise InputError(f"{path} has no section `{name}:`{meant}; add it (see the project's own params.yaml).")
    return checked(params[name], kind, f"{path}: {name}")


def refuse_unknown(present: Iterable[str], known: Iterable[str], where: str) -> None:
    """Pass if all sections that are `present` are `known`.

    Raises:
        InputError: one is not; the nearest known one is named.
    """
    for name in sorted(set(present) - set(known)):
        raise InputError(
            f"{where}: unknown section `{name}:`{_did_you_mean(name, sorted(known))}; correct or remove it."
        )


def checked(values: Any, kind: type[S], where: str) -> S:
    """Return `values` as a section of `kind`; `where` names their place in the error."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(_fault(fault, kind) for fault in error.errors(include_url=False))
        raise InputError(f"{where}: {faults}.") from None


def _fault(fault: Mapping[str, Any], kind: type[Section]) -> str:
    location = ".".join(part for part in map(str, fault["loc"]) if not part.startswith("(")) or "the section"
    match fault["type"]:
        case "extra_forbidden":
            return f"unknown key `{location}`{_did_you_mean(str(fault['loc'][-1]), _keys_at(kind, fault['loc'][:-1]))}"
        case "missing":
            return f"`{location}` is missing"
        case _:
            return f"`{location}` is {fault['input']!r}: {fault['msg'][0].lower()}{fault['msg'][1:]}"


def _keys_at(kind: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for part in location:
        field = kind.model_fields.get(str(part))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        kind = field.annotation
    return list(kind.model_fields)


def _did_you_mean(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean `{close[0]}`?)" if close else ""
