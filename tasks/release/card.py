"""Write the model card of a release in the Hugging Face Hub's format (hf.co/docs/hub/model-cards)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml

from tasks.release.licences import shown_base
from tasks.release.score import found_of
from tasks.store.releases import Agreed, ScoredUse, Use
from zimage.core.assets import asset
from zimage.evaluation.wording import FEW, FIGURES, OF_THE_RELEASE, TOY, estimate_of, rule_of, shown
from zimage.lora.comfyui.workflow import Use as ComfyUse
from zimage.lora.comfyui.workflow import usage, usage_of_toy

TEMPLATE = asset("card.md.jinja")


@dataclass(frozen=True)
class CardFacts:
    """What a card says.

    Args:
        subject: The pseudonym.
        use: What the release is for.
        lora: How the LoRA is used.
        consent: What the person agreed to.
        params: The subject's params.yaml.
        metrics: What evaluate found.
        licences: Of each model that had a part.
        uses: Further ways in which the LoRA was scored.
    """

    subject: str
    use: Use
    lora: ComfyUse
    consent: Agreed
    params: Mapping[str, Any]
    metrics: Mapping[str, Any]
    licences: Mapping[str, str]
    uses: Sequence[ScoredUse] = ()


@dataclass(frozen=True)
class Row:
    """A row of the card's table."""

    says: str
    value: str
    interval: str
    n: int
    rule: str


def card(facts: CardFacts) -> str:
    """Return the card; equal facts give equal text."""
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined, autoescape=False)
    metrics, train = facts.metrics, facts.params["train"]
    front = yaml.safe_dump(meta(facts), sort_keys=False, allow_unicode=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        meta=front,
        subject=facts.subject,
        use=facts.use,
        consent=facts.consent,
        base=shown_base(facts.params),
        identity=facts.params["base"]["identity"],
        lora=facts.lora.lora,
        strength=f"{facts.lora.strength:g}",
        trigger=facts.lora.trigger,
        prompt=facts.lora.prompt,
        toy=TOY if metrics["sampled"]["packaged"] else "",
        usage=usage_of_toy(facts.lora) if metrics["sampled"]["packaged"] else usage(facts.lora),
        how=facts.lora.evaluated.how.removeprefix("as evaluated, "),
        steps=train["steps"],
        form=form_of(train),
        verdict=metrics["verdict"],
        why=metrics["why"],
        rows=rows(metrics),
        engines=engines(metrics),
        holdout=metrics["engine"]["holdout_photos"],
        pictures=metrics["pictures"],
        suite=Path(metrics["suite"]).name,
        protocol=metrics.get("protocol"),
        licences=facts.licences,
        uses=[(one, found_of(one)) for one in facts.uses],
        chosen_by_them=any(len(one.strengths) > 1 for one in facts.uses),
    )


def form_of(train: Mapping[str, Any]) -> str:
    """Return what was trained, in words; a workspace that was trained before there was LoKr says nothing of it."""
    match train.get("adapter", "lora"):
        case "lora":
            return f"rank {train['rank']}"
        case "dora":
            return f"DoRA, rank {train['rank']}"
    lokr = train["lokr"]
    size = "full matrix" if lokr["full_matrix"] else f"rank {train['rank']}, alpha {lokr['alpha']:g}"
    return f"LoKr, factor {lokr['factor']}, {size}"


def meta(facts: CardFacts) -> dict[str, Any]:
    """Return the card's metadata for the hub; a base that is no model of the hub is named in the text only."""
    base = facts.params["base"]
    is_on_hub = str(base["identity"]).startswith("hub:")
    return {
        "license": "other",
        "license_name": "as-agreed-with-the-person",
        **({"base_model": base["model"], "base_model_relation": "adapter"} if is_on_hub else {}),
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "instance_prompt": facts.lora.prompt,
        "tags": ["lora", "z-image", "text-to-image", "diffusers", "template:sd-lora"],
    }


def rows(metrics: Mapping[str, Any]) -> list[Row]:
    """Return the figures that were measured, for and against the LoRA, with their intervals and the gate's rules."""
    found = [(figure, estimate_of(metrics, figure)) for figure in (*FIGURES, *OF_THE_RELEASE)]
    return [
        Row(
            figure.says,
            shown(one["value"], one["n"], figure.unit),
            "" if one["low"] is None else " to ".join(shown(one[end], FEW, figure.unit) for end in ("low", "high")),
            one["n"],
            rule_of(metrics, figure),
        )
        for figure, one in found
        if one["value"] is not None
    ]


def engines(metrics: Mapping[str, Any]) -> list[str]:
    """Return the ids of the face engines of the evaluation."""
    return [one["engine_id"] for one in (metrics["engine"], metrics.get("second_engine")) if one]
