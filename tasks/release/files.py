"""Collect the files of a release from a finished workspace; the same workspace gives the same bytes."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tasks.release.card import CardFacts, card
from tasks.release.licences import licences_of, without_place
from tasks.release.samples import FOLDER as SAMPLES
from tasks.release.samples import write_samples
from tasks.release.score import in_words
from tasks.store.releases import Agreed, ScoredUse, Use, described
from zimage.captions.template import subject as called
from zimage.consent import Consent
from zimage.core.errors import InputError
from zimage.core.plain_yaml import load_trusted
from zimage.evaluation.report.summary import ANSWERS, chosen_lora, evaluated
from zimage.lora.comfyui.workflow import Evaluated, release_files, usage_of_toy, variant_of
from zimage.lora.comfyui.workflow import Use as ComfyUse
from zimage.lora.files.header import read_header

METRICS, REPORT, CARD = "metrics.json", "report.html", "README.md"  # as they are called in a release
USAGE = "USAGE.txt"
EVALUATE = Path("data/evaluate")
PREFIX, DORA_PREFIX = "diffusion_model.", "transformer."  # of zimage.lora.files.portable, which would load torch


def collect(
    workspace: Path, folder: Path, subject: str, *, use: Use, consent: Consent, uses: Sequence[ScoredUse] = ()
) -> dict[str, Path]:
    """Return the files of the release by name; new files are written to `folder`.

    The LoRA that was chosen, the model card, how to use it, workflows for ComfyUI, the numbers, the report without real
    photos, a person's review where there is one, and some pictures. Embeddings and photos are no part of it. `uses` are
    further ways in which the LoRA was scored, which card and USAGE.txt state and the workflows take over.

    Raises:
        InputError: the workspace is not finished, or the LoRA is not the one that was evaluated.
    """
    metrics, params = metrics_of(workspace), params_of(workspace)
    licences = licences_of(raw_params(workspace), metrics)
    lora = replace(how_used(workspace, subject), scored=tuple(map(in_words, uses)))
    parts = {lora.lora: _checked_lora(workspace, metrics), METRICS: _made(folder / METRICS, _public(metrics))}
    parts[REPORT] = workspace / EVALUATE / "release.html"
    if not parts[REPORT].is_file():
        raise InputError(f"{parts[REPORT]} is missing, the report without real photos; run the flow `learn` again.")
    facts = CardFacts(subject, use, lora, agreed(consent), params, metrics, licences, uses)
    parts[CARD] = _made(folder / CARD, card(facts).encode())
    if "review" in metrics and not metrics["review"]["unusable"]:
        parts[ANSWERS.name] = workspace / ANSWERS
    if metrics["sampled"]["packaged"]:
        parts[USAGE] = _made(folder / USAGE, usage_of_toy(lora).encode())
    else:
        parts |= {file.name: _made(folder / file.name, file.content) for file in release_files(lora)}
    (folder / SAMPLES).mkdir()
    correlation = params["evaluate"]["copy_correlation"]
    samples = write_samples(
        workspace / EVALUATE, folder / SAMPLES, chosen=metrics["chosen"], copy_correlation=correlation
    )
    return parts | {f"{SAMPLES}/{path.name}": path for path in samples}


def how_used(workspace: Path, subject: str) -> ComfyUse:
    """Return how the LoRA is used: under the subject's name, at the strength and with the settings of the evaluation.

    Raises:
        InputError: an older version evaluated it, and did not write down how.
    """
    metrics, params = metrics_of(workspace), params_of(workspace)
    trigger = called(params["subject"]["trigger"], params["subject"]["class_noun"], "en")
    made = metrics.get("sampled")
    if made is None:
        raise InputError(f"{workspace} was evaluated by an older version; run the flow `learn` again.")
    evaluated = Evaluated(
        base=params["base"]["model"],
        variant=variant_of(raw_params(workspace)["base"]["model"], made["shift"], made["guidance_scale"]),
        **{key: made[key] for key in ("side_px", "steps", "guidance_scale", "shift")},
        precision=made.get("precision"),
    )
    strength = metrics["chosen"]["strength"]
    return ComfyUse(f"{subject}.safetensors", strength, f"a photo of {trigger}", trigger, evaluated)


def metrics_of(workspace: Path) -> dict[str, Any]:
    """Return the metrics of the workspace's evaluation, with a person's review where there is one.

    Raises:
        InputError: it has not been evaluated, or the file of the review is not one.
    """
    path = workspace / EVALUATE / METRICS
    if not path.is_file():
        raise InputError(f"{workspace} has not been evaluated; run the flow `learn` first.")
    return evaluated(workspace)


def params_of(workspace: Path) -> dict[str, Any]:
    """Return a workspace's params.yaml for publication, without paths of the machine."""
    found: dict[str, Any] = public_value(raw_params(workspace))
    return found


def raw_params(workspace: Path) -> dict[str, Any]:
    """Return a workspace's params.yaml as it is."""
    found: dict[str, Any] = load_trusted((workspace / "params.yaml").read_text(encoding="utf-8"))
    return found


def agreed(consent: Consent) -> Agreed:
    """Return the part of a consent that a release states; the document is not published."""
    return Agreed(
        scope=list(consent.scope),
        may_publish=consent.may_publish,
        expires=consent.expires,
        document_sha256=consent.document_sha256,
    )


def _checked_lora(workspace: Path, metrics: dict[str, Any]) -> Path:
    chosen = metrics["chosen"]
    lora = chosen_lora(workspace, chosen["file"])
    if not lora.is_file():
        raise InputError(f"{lora}, the LoRA that was evaluated, is not there; run the flow `learn` again.")
    if described(lora.name, lora).sha256 != chosen["sha256"]:
        raise InputError(f"{lora} is not the LoRA that was evaluated; run the flow `learn` again.")
    names = list(read_header(lora).entries)
    prefix = DORA_PREFIX if any(name.endswith(".dora_scale") for name in names) else PREFIX
    foreign = [name for name in names if not name.startswith(prefix)]
    if foreign:
        raise InputError(
            f"{lora} is not in the dialect that all loaders read ({foreign[0]}); run `zimage convert --to portable`."
        )
    return lora


def _public(metrics: dict[str, Any]) -> bytes:
    """Return the metrics for a release; advice on the next LoRA stays with the photos that it names."""
    published = {key: value for key, value in metrics.items() if key != "coaching"}
    return (json.dumps(public_value(published), indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def public_value(value: Any) -> Any:
    """Return a value of JSON without absolute paths: of each, its last part."""
    match value:
        case dict():
            return {key: public_value(each) for key, each in value.items()}
        case list():
            return [public_value(each) for each in value]
        case str():
            return without_place(value)
        case _:
            return value


def _made(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
