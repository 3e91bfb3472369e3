"""The metrics of a stage as a table in plain words for Prefect's UI, most important first."""

from collections.abc import Iterator, Mapping
from typing import Any

from zimage.evaluation.wording import cells, quantity

# What a key of metrics.json says, in the order of importance; keys that are not here follow under their own names.
WORDS: dict[str, dict[str, str]] = {
    "ingest": {
        "kept": "photos taken",
        "rejected": "files refused",
        "rejected_by_reason": "why files were refused",
        "files": "files looked at",
        "kept_by_format": "formats of the photos",
        "kept_without_capture_time": "photos that do not tell when they were taken",
    },
    "detect": {
        "train": "photos to train on",
        "holdout": "photos held out, to score with",
        "reject": "photos left out",
        "against": "why photos were left out",
        "review": "photos that a person should look at",
        "photos": "photos looked at",
        "crops": "crops made",
        "bursts": "series of shots that belong together",
        "people": "photos in which each of the people is, the subject first",
        "holdout_sessions": "sessions of the held-out photos",
        "face_px_median": "median width of the face, px",
        "sharpness_median": "median sharpness of the face",
        "yaw_deg_median": "median turn of the head, degrees",
        "distance_median": "median distance between photos of the person",
        "distance_max": "largest distance between photos of the person",
        "overridden": "photos that a person decided on",
        "overrides_unused": "decisions that fit no photo",
    },
    "caption": {
        "captions": "captions written",
        "distinct_captions": "different captions",
        "crops": "crops captioned",
        "trigger": "trigger word",
        "trigger_tokens": "tokens of the trigger word",
        "by_a_person": "captions that a person wrote",
        "by_a_person_without_trigger": "of these without the trigger word",
        "overrides_without_a_crop": "captions that fit no crop",
        "captioner": "written by",
        "words_least": "words in the shortest caption",
        "words_most": "words in the longest caption",
        "rewrites": "captions written anew, and why",
    },
    "encode": {
        "items": "pictures to train on",
        "class_items": "pictures of other people, to preserve the class",
        "masks": "pictures with a mask of the face",
        "sizes": "different picture sizes",
        "texts": "texts encoded",
        "tokens_least": "tokens of the shortest text",
        "tokens_most": "tokens of the longest text",
    },
    "train": {
        "steps": "steps trained",
        "loss_last": "loss at the end",
        "loss_first": "loss at the start",
        "steps_per_s": "steps per second",
        "peak_memory_gb": "memory at most, GB",
        "resumed_after": "steps done by an earlier run, from which this one went on",
        "devices": "computed on",
        "trained_values": "trained parameters",
        "buckets": "groups of pictures of one size",
        "sampler_shift": "shift of the sampler",
    },
}
SCORE_FIGURES = {  # of metrics.json of `zimage score`
    "same_of_all": "same person, of all pictures",
    "second_same": "by the second engine",
    "face_found": "a face is found",
    "gain": "gain over the base model",
    "leak_rise": "shows the person uncalled",
}
IDENTITIES = ("engine",)  # of models, which the report tells


def number_rows(stage: str, metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a stage's table: what is counted, and the value.

    Args:
        stage: Its name.
        metrics: What its metrics.json holds.
    """
    found = _evaluated(metrics) if stage == "evaluate" else _known(WORDS.get(stage, {}), metrics)
    return [{"number": says, "value": value} for says, value in found]


def score_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the table of `score`: one for each result, with its main figures.

    Args:
        metrics: What its metrics.json holds.
    """
    return [
        {
            "what": name,
            "verdict": one["verdict"] or "",
            **{says: _interval(one["estimates"].get(figure)) for figure, says in SCORE_FIGURES.items()},
        }
        for name, one in metrics["results"].items()
    ]


def _interval(estimate: Mapping[str, Any] | None) -> str:
    if estimate is None:
        return ""
    ends = "" if estimate["low"] is None else f" [{estimate['low']:.2f}, {estimate['high']:.2f}]"
    return f"{estimate['value']:.2f}{ends}"


def _evaluated(metrics: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "verdict", metrics["verdict"]
    yield "why", _plain(metrics["why"])
    for each in metrics.get("advice", []):
        yield "what to do next", _plain(each)
    for value, says in cells(metrics):
        yield says, value
    chosen = metrics["chosen"]
    yield "LoRA that was chosen", chosen["file"]
    yield "strength to use it at", chosen["strength"]
    if sampled := metrics.get("sampled"):
        yield "pictures drawn with", _settings(sampled)


def _plain(sentence: str) -> str:
    """Return a sentence without the backticks that mark code: a table shows them as they are."""
    return sentence.replace("`", "")


def _settings(sampled: Mapping[str, Any]) -> str:
    steps = quantity(sampled["steps"], "step")
    return f"{sampled['side_px']} px, {steps}, guidance {sampled['guidance_scale']:g}, shift {sampled['shift']:g}"


def _known(words: Mapping[str, str], metrics: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    others = {key: key.replace("_", " ") for key in metrics if key not in words and key not in IDENTITIES}
    for key, says in {**words, **others}.items():
        if key in metrics:
            yield says, _value(metrics[key])


def _value(value: Any) -> Any:
    """Return a value for a cell: at most four digits of a fraction, and what a mapping or a list holds as text."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        most_first = sorted(value.items(), key=lambda item: (-_size(item[1]), item[0]))
        return ", ".join(f"{name.replace('_', ' ')}: {_value(each)}" for name, each in most_first) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return value


def _size(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
