"""Format figures for people, in the same way in summary, approval, report and model card.

A share of few pictures is written as a count, for a percentage would claim more than it rests on. Works on the numbers
as metrics.json holds them, without numpy.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

TOY = (
    "The base is the packaged toy model, a tiny Z-Image: a LoRA of it does nothing with the real Z-Image, in diffusers "
    "or in ComfyUI. For one that does, train with `--base Tongyi-MAI/Z-Image` and a preset such as `--preset 24gb`."
)
UNIT = re.compile(r"(\d) (%|px\b|GB\b|MB\b|s\b|min\b|h\b|steps\b)")
NOT_MEASURED = "not measured"
FEW = 20  # pictures; one of fewer moves a rate by more than 5 %

Unit = Literal["count", "share", "number"]
"""count: a share that is a number of pictures out of n; share: any other; number: no share at all."""


@dataclass(frozen=True)
class Figure:
    """A figure that a person is shown.

    Args:
        name: Its key below `estimates`, or below `leaks`, of metrics.json.
        says: What it is a share of, as the end of a sentence that begins with the value.
        unit: What its value is.
        rule: The limit of the gate that is set on it; empty for none.
        above: What the limit counts from, where that is not 0.
    """

    name: str
    says: str
    unit: Unit = "count"
    rule: str = ""
    above: str = ""


BASE = " above the base model"
FIGURES = (
    Figure("face_found", "of the pictures show a face", rule="face_found_rate_min"),
    Figure("same_of_found", "of those are the same person as the held-out photos"),
    Figure("base_same_of_found", "of the base model's own faces are that person, without the LoRA"),
    Figure("copied", "of the pictures are copies of a training photo", rule="copy_rate_max"),
    Figure("leak_class", "pictures asked for the class noun alone show the person", rule="leak_rise_max", above=BASE),
    Figure("leak_other", "pictures asked for another class noun show the person", rule="leak_rise_max", above=BASE),
    Figure("leak_two", "pictures asked for a second person give it the same face", rule="leak_rise_max", above=BASE),
    Figure("following", "of what a prompt asks for is found again in its picture", "share"),
)
OF_THE_RELEASE = (
    Figure("same_of_all", "of all pictures are the same person as the held-out photos", rule="same_person_rate_min"),
    Figure("second_same", "of all pictures are the same person by the second engine", rule="second_engine_rate_min"),
    Figure("nearest_share", "of the faces are nearest to one and the same training photo", rule="nearest_share_max"),
    Figure("gain", "gain over the base model (0) towards real photos (1)", "number", "gain_low_min"),
    Figure("clip_drop", "prompt following lost against the base model, by CLIP", "number", "clip_drop_max"),
    Figure("variety_ratio", "variety within a prompt, over the base model's", "number", "variety_ratio_min"),
    Figure(
        "shared_session", "of the held-out photos are from a session that was trained on", rule="shared_session_max"
    ),
    Figure("reviewed", "of all pictures are the same person to a reviewer", rule="reviewer_same_rate_min"),
)
"""What the card of a release tells as well."""


def percent(value: float) -> str:
    """Return a share as `97.9 %`, or as `100 %` where it is a whole number of percent."""
    return f"{100 * value:.1f}".removesuffix(".0") + " %"


def quantity(n: int, noun: str) -> str:
    """Return a number with its noun, such as `1 picture` or `48 pictures`; the plural of `noun` ends in s."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def unbroken(text: str) -> str:
    """Return a text for a page in which no line breaks between a number and its unit: a no-break space joins them."""
    return UNIT.sub("\\1\N{NO-BREAK SPACE}\\2", text)


def counted(value: float, n: int) -> str:
    """Return a share of n pictures as `47 of 48`."""
    return f"{round(value * n)} of {n}"


def shown(value: float | None, n: int, unit: Unit) -> str:
    """Return a figure: `97.9 %`, or `1 of 3` where it is a count of few pictures, or `0.02`."""
    if value is None:
        return NOT_MEASURED
    if unit == "number":
        return f"{value:.2f}"
    return counted(value, n) if unit == "count" and n < FEW else percent(value)


def limit_shown(name: str, limit: float, unit: Unit) -> str:
    """Return a limit of the gate as `at least 70 %`."""
    return f"{'at least' if name.endswith('_min') else 'at most'} {value_shown(limit, unit)}"


def value_shown(limit: float, unit: Unit) -> str:
    """Return a limit without its direction."""
    return f"{limit:g}" if unit == "number" else percent(limit)


def estimate_of(metrics: Mapping[str, Any], figure: Figure) -> Mapping[str, Any]:
    """Return value, low, high and n of a figure; without a value where it was not measured."""
    of_all: dict[str, Mapping[str, Any]] = {**metrics.get("estimates", {}), **metrics.get("leaks", {})}
    return of_all.get(figure.name, {"value": None, "low": None, "high": None, "n": 0})


def lines(metrics: Mapping[str, Any]) -> list[str]:
    """Return a line for each of `FIGURES`: its value, what it says, how many pictures it rests on, and its rule."""
    return [f"{value:>12}  {says}" for value, says in cells(metrics)]


def cells(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return value and sentence of each of `FIGURES`, as `lines` has them."""
    return [_cells(metrics, figure) for figure in FIGURES]


def rule_of(metrics: Mapping[str, Any], figure: Figure) -> str:
    """Return what the gate made of a figure: its limit and whether it holds, or that it is not a rule here."""
    rule = metrics.get("gate", {}).get(figure.rule)
    if rule is None:
        return ""
    if rule["verdict"] == "off":
        return "not a rule here"
    says = f"limit {limit_shown(figure.rule, rule['limit'], rule['unit'])}{figure.above}"
    says += f", changed from {value_shown(rule['usual'], rule['unit'])}" if rule["limit"] != rule["usual"] else ""
    return says + ("; broken" if rule["verdict"] == "fail" else "")


def _cells(metrics: Mapping[str, Any], figure: Figure) -> tuple[str, str]:
    found = estimate_of(metrics, figure)
    value = shown(found["value"], found["n"], figure.unit)
    rests_on = ""
    if found["value"] is not None and figure.unit == "count" and found["n"] >= FEW:
        rests_on = counted(found["value"], found["n"])
    elif found["value"] is not None and figure.unit != "count":
        rests_on = quantity(found["n"], "picture")
    details = "; ".join(filter(None, [rests_on, rule_of(metrics, figure)]))
    return value, figure.says + (f" ({details})" if details else "")
