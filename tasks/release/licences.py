"""Collect the licences of a LoRA's parts and check that they allow the intended use of a release."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tasks.store.releases import Use
from zimage.core.errors import InputError

# From each model's card on huggingface.co; infra/licences.md has all models and packages.
BASES = {
    "tiny": "Apache-2.0",
    "Tongyi-MAI/Z-Image": "Apache-2.0",
    "Tongyi-MAI/Z-Image-Turbo": "Apache-2.0",
    "ostris/Z-Image-De-Turbo": "Apache-2.0",
}
UNKNOWN = "not known here; see its card"


def licences_of(params: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return the licence of each model that had a part in a LoRA: the base, the face engines, captioner and CLIP.

    Args:
        params: The subject's params.yaml.
        metrics: What evaluate found.
    """
    found = {f"base model {shown_base(params)}": licence_of_base(params["base"]["model"])}
    for engine in filter(None, (metrics["engine"], metrics.get("second_engine"))):
        found[f"face engine {engine['engine_id']}"] = engine["licence"]
    others = {"captioner": params.get("caption", {}).get("vlm"), "CLIP": params.get("evaluate", {}).get("clip")}
    for part, model in others.items():
        if model:
            found[f"{part} {without_place(str(model['model']))}"] = UNKNOWN
    return found


def licence_of_base(model: str) -> str:
    """Return the licence of a base model: of its card where the folder has one, else as it is known here."""
    card = Path(model).expanduser() / "README.md"
    if model not in BASES and card.is_file():
        head = card.read_text(encoding="utf-8", errors="replace").split("---\n")
        meta = yaml.safe_load(head[1]) if len(head) > 2 and not head[0] else None
        if isinstance(meta, dict) and isinstance(meta.get("license"), str):
            return str(meta["license"])
    return BASES.get(model, UNKNOWN)


def check_use(use: Use, licences: Mapping[str, str]) -> None:
    """Pass if no licence contradicts what a release is for.

    Raises:
        InputError: one does, and which.
    """
    if use != "commercial":
        return
    for part, licence in licences.items():
        if "non-commercial" in licence.lower() or "-nc" in licence.lower():
            raise InputError(
                f"Not published for commercial use: the {part} is licensed as `{licence}`. Publish for non-commercial "
                "use, or evaluate with an engine whose licence allows it."
            )
        if licence == UNKNOWN:
            raise InputError(
                f"Not published for commercial use: the licence of the {part} is not known here. Name it in the "
                "`license` of its README.md, or publish for non-commercial use."
            )


def shown_base(params: Mapping[str, Any]) -> str:
    """Return the public name of a base model, never its path."""
    return without_place(str(params["base"]["model"]))


def without_place(text: str) -> str:
    """Return the last part of an absolute path, and other text as it is: a path may name its user."""
    return Path(text).name if text.startswith(("/", "~")) else text
