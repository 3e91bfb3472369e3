"""The model card of a release, in the Hugging Face Hub's format (hf.co/docs/hub/model-cards)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml

from tasks.licences import shown_base
from tasks.release import Agreed, Use
from zimage.lora.comfyui import Use as ComfyUse
from zimage.lora.comfyui import usage

TEMPLATE = Path(__file__).with_name("card.md.jinja")
FIGURES = {
    "face_found": "a face is found",
    "same_of_all": "the same person as in the held-out photos, of all pictures",
    "same_of_found": "the same, of the pictures with a face",
    "base_same_of_found": "the same with the base model alone",
    "second_same": "the same person by the second engine",
    "gain": "gain over the base model (0) towards real photos (1)",
    "clip_drop": "prompt following lost, by CLIP",
    "copied": "pictures that are a training photo come back",
    "leak_rise": "the person appears uncalled, above the base model",
}
RATES = frozenset(FIGURES) - {"gain", "clip_drop"}


@dataclass(frozen=True)
class Told:
    """What a card tells.

    Args:
        subject: The pseudonym.
        use: What the release is for.
        lora: How the LoRA is used.
        consent: What the person agreed to.
        params: The subject's params.yaml.
        metrics: What evaluate found.
        licences: Of each model that had a part.
    """

    subject: str
    use: Use
    lora: ComfyUse
    consent: Agreed
    params: Mapping[str, Any]
    metrics: Mapping[str, Any]
    licences: Mapping[str, str]


@dataclass(frozen=True)
class Figure:
    """A row of the card's table."""

    says: str
    value: str
    interval: str
    n: int


def card(told: Told) -> str:
    """Return the card; equal facts give equal text."""
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined, autoescape=False)
    metrics, train = told.metrics, told.params["train"]
    front = yaml.safe_dump(meta(told), sort_keys=False, allow_unicode=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        meta=front,
        subject=told.subject,
        use=told.use,
        consent=told.consent,
        base=shown_base(told.params),
        identity=told.params["base"]["identity"],
        lora=told.lora.lora,
        strength=f"{told.lora.strength:g}",
        trigger=told.lora.trigger,
        prompt=told.lora.prompt,
        usage=usage(told.lora),
        steps=train["steps"],
        rank=train["rank"],
        verdict=metrics["verdict"],
        why=metrics["why"],
        figures=figures(metrics),
        engines=engines(metrics),
        holdout=metrics["engine"]["holdout_photos"],
        pictures=metrics["pictures"],
        suite=Path(metrics["suite"]).name,
        licences=told.licences,
    )


def meta(told: Told) -> dict[str, Any]:
    """Return what the hub reads of a card; a base that is no model there is told in the text only."""
    base = told.params["base"]
    is_on_hub = str(base["identity"]).startswith("hub:")
    return {
        "license": "other",
        "license_name": "as-agreed-with-the-person",
        **({"base_model": base["model"], "base_model_relation": "adapter"} if is_on_hub else {}),
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "instance_prompt": told.lora.prompt,
        "tags": ["lora", "z-image", "text-to-image", "diffusers", "template:sd-lora"],
    }


def figures(metrics: Mapping[str, Any]) -> list[Figure]:
    """Return the figures that were measured, with their intervals."""
    found = metrics["estimates"]
    return [
        Figure(says, _shown(name, one["value"]), _interval(name, one), one["n"])
        for name, says in FIGURES.items()
        if (one := found.get(name)) and one["value"] is not None
    ]


def engines(metrics: Mapping[str, Any]) -> list[str]:
    """Return the ids of the face engines that judged."""
    return [one["engine_id"] for one in (metrics["engine"], metrics.get("second_engine")) if one]


def _interval(name: str, one: Mapping[str, Any]) -> str:
    return "" if one["low"] is None else f"{_shown(name, one['low'])} to {_shown(name, one['high'])}"


def _shown(name: str, value: float) -> str:
    return f"{value:.1%}" if name in RATES else f"{value:.2f}"
