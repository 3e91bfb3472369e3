"""Migrate a person's LoRA of another model: that model draws the photos, and the stages train a new LoRA.

Weights of another architecture cannot be converted; the pictures that they generate can be trained on.
"""

import argparse
import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zimage.core.assets import asset
from zimage.core.errors import InputError

logger = logging.getLogger(__name__)

PACKAGED_RENDER = asset("migrate.yaml")
RECORD = "migration.json"
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".heic", ".heif", ".tif", ".tiff", ".bmp"})


@dataclass(frozen=True)
class Migration:
    """The inputs of a migration.

    Args:
        lora: The old LoRA.
        old_base: The folder of the model it was trained on, in diffusers' layout.
        person: What its prompts called the person, such as `ohwx woman`.
        class_noun: What Z-Image shall call the person: person, man or woman.
        trigger: The rare word for the person in Z-Image's prompts; "" for that of `params_file`.
        consent: The subject's consent.yaml.
        photos: Real photos of the person to score against, and to choose among the drawn faces by; None for none.
        params_file: A params.yaml; its base is the Z-Image to train on.
        render_file: A file like zimage/assets/migrate.yaml; None for that one.
    """

    lora: Path
    old_base: Path
    person: str
    class_noun: str
    trigger: str
    consent: Path
    photos: Path | None
    params_file: Path
    render_file: Path | None


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `migrate`; it sets `run`, a function of the parsed arguments that returns the exit code."""
    summary = "Make a Z-Image LoRA of a person from pictures that another model's LoRA generates."
    parser = subparsers.add_parser("migrate", help=summary, description=summary)
    parser.add_argument("lora", type=Path, help="the old LoRA, of any model that diffusers can load")
    parser.add_argument("out", type=Path, help="a folder that becomes a workspace; run again to go on")
    parser.add_argument(
        "--old-base", type=Path, required=True, help="the model it was trained on, in diffusers' layout"
    )
    parser.add_argument("--person", required=True, help="what its prompts called the person, such as 'ohwx woman'")
    parser.add_argument("--class-noun", choices=["person", "man", "woman"], required=True, help="in Z-Image's prompts")
    parser.add_argument("--trigger", default="", help="the rare word for the person in Z-Image's prompts; else `ohzw`")
    parser.add_argument("--consent", type=Path, required=True, help="the subject's consent.yaml")
    parser.add_argument("--photos", type=Path, help="a folder of real photos to score against; else drawn ones")
    parser.add_argument("--params", dest="params_file", type=Path, default=Path("params.yaml"), help="else params.yaml")
    parser.add_argument("--render", dest="render_file", type=Path, help="how to draw; else zimage/assets/migrate.yaml")
    parser.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> int:
    names = ("lora", "old_base", "person", "class_noun", "trigger", "consent", "photos", "params_file", "render_file")
    migrate(Migration(**{name: getattr(parsed, name) for name in names}), parsed.out)
    from zimage.evaluation.report.summary import summary

    print(*summary(parsed.out), f"LoRA     {parsed.out / 'lora.safetensors'} (portable)", sep="\n")  # noqa: T201
    return 0


def migrate(given: Migration, out: Path) -> None:
    """Make `out` a workspace whose photos the old model drew, run all stages in it, and write out/lora.safetensors.

    Drawn pictures and finished stages of an earlier call with the same input are not made again. That the
    training set is synthetic is recorded in out/migration.json, in the report and in the LoRA's metadata.

    Raises:
        InputError: the consent excludes it or has expired; `out` holds another migration; or see
            `zimage.migration.rendering.render` and the stages.
    """
    from zimage.consent import read_consent
    from zimage.core.folder import claim
    from zimage.core.section import read_section
    from zimage.core.signatures import STAGES
    from zimage.migration.rendering import OldModel, RenderParams, planned, render
    from zimage.permission import require_for, today

    require_for(STAGES, read_consent(given.consent), today())
    render_params = read_section(given.render_file or PACKAGED_RENDER, "render", RenderParams)
    rows = planned(render_params, given.person)
    record = _record(given, render_params.model_dump(), len(rows))
    claim(out, RECORD, record, held="a migration from other files or settings", purpose="the migration")
    render(OldModel(given.old_base, given.lora), rows, out / "renders", params=render_params)
    _fill(out, given, _real_photos(given.photos))
    for name, stage in _stages(out).items():
        if (out / "data" / name).is_dir():
            logger.info("%s is there already", name)
        else:
            stage()
    _release(out, record)


def _record(given: Migration, render_params: dict[str, Any], pictures: int) -> dict[str, Any]:
    """Return the inputs that identify this migration, for its record."""
    from zimage.lora.files.inspection import inspect_file
    from zimage.model.base import IDENTITY_SUFFIXES, identify_files

    if not given.old_base.is_dir():
        raise InputError(f"There is no folder {given.old_base}; name the old model in diffusers' layout.")
    weights = [path for path in given.old_base.rglob("*") if path.suffix in IDENTITY_SUFFIXES]
    photos = _real_photos(given.photos)
    return {
        "training_set": "synthetic",
        "pictures": pictures,
        "lora": given.lora.name,
        "lora_sha256": _sha256(given.lora),
        "lora_family": inspect_file(given.lora).family,
        "old_base": identify_files(weights, given.old_base),
        "person": given.person,
        "subject": _subject(given),
        "render": render_params,
        "params_sha256": _sha256(given.params_file),
        "real_photos_sha256": sorted(_sha256(path) for path in photos),
    }


def _real_photos(folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    if not folder.is_dir():
        raise InputError(
            f"There is no folder {folder} with real photos; leave out --photos to score against drawn ones."
        )
    photos = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not photos:
        raise InputError(f"{folder} holds no photos; leave out --photos to score against drawn ones.")
    return photos


def _fill(out: Path, given: Migration, real: list[Path]) -> None:
    """Write photos, consent, decisions and params of the workspace; they depend on the input only and are rewritten.

    Real photos are all held out, never trained on, and serve as references of the person: curation refuses a generated
    face that the face engine takes for another person's.
    """
    from zimage.core.folder import write_whole
    from zimage.core.params import with_values

    data = out / "data"
    for folder in (data / "photos", data / "overrides"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    for path in sorted((out / "renders").glob("*.png")):
        shutil.copyfile(path, data / "photos" / path.name)
    shutil.copyfile(given.consent, data / "consent.yaml")
    values: dict[str, Any] = {"evaluate.report.note": _note(given, bool(real))} | _subject(given)
    if real:
        (data / "overrides" / "reference").mkdir()
        decisions = []
        for path in real:
            shutil.copyfile(path, data / "photos" / f"real-{path.name}")
            shutil.copyfile(path, data / "overrides" / "reference" / path.name)
            decisions.append(f"{_sha256(path)[:16]}: {{decision: holdout, reason: a real photo}}\n")
        (data / "overrides" / "decisions.yaml").write_text("".join(decisions), encoding="utf-8")
        # Hold out (almost) nothing but the real photos, which are held out by decision.
        values |= {"detect.split.holdout_share": 0.001, "detect.split.min_holdout": 1}
    params = with_values(given.params_file.read_text(encoding="utf-8"), values, "zimage migrate")
    write_whole(out / "params.yaml", params.encode())


def _subject(given: Migration) -> dict[str, str]:
    """Return the values of params.yaml that name the person in Z-Image's prompts."""
    trigger = {"subject.trigger": given.trigger} if given.trigger else {}
    return {"subject.class_noun": given.class_noun, **trigger}


def _note(given: Migration, scored_on_real: bool) -> str:
    targets = "real photos, none of which was trained on" if scored_on_real else "drawn pictures as well"
    return (
        f"The training set is synthetic: {given.lora.name} and its own model drew it. The LoRA cannot be more like the "
        f"person than those pictures are. It is scored against {targets}."
    )


def _stages(out: Path) -> dict[str, Callable[[], None]]:
    """Return the six stages of the workspace, in order, each as a call without arguments."""
    from zimage.captions.subject import Subject
    from zimage.core.section import read_section
    from zimage.model.base import Base
    from zimage.stages.caption import CaptionParams, caption
    from zimage.stages.detect import DetectParams, detect
    from zimage.stages.encode import EncodeParams, encode
    from zimage.stages.evaluate import EvaluateParams, evaluate
    from zimage.stages.ingest import IngestParams, ingest
    from zimage.stages.train import train
    from zimage.training.params import MachineParams, TrainParams

    data, file = out / "data", out / "params.yaml"
    base, subject = read_section(file, "base", Base), read_section(file, "subject", Subject)
    ingest_params = read_section(file, "ingest", IngestParams)
    detect_params = read_section(file, "detect", DetectParams)
    caption_params = read_section(file, "caption", CaptionParams)
    encode_params = read_section(file, "encode", EncodeParams)
    train_params, machine = read_section(file, "train", TrainParams), read_section(file, "machine", MachineParams)
    evaluate_params = read_section(file, "evaluate", EvaluateParams)
    at = {name: data / name for name in ("ingest", "detect", "caption", "encode", "train", "evaluate")}
    overrides = data / "overrides"
    return {
        "ingest": lambda: ingest(data / "photos", data / "consent.yaml", at["ingest"], params=ingest_params),
        "detect": lambda: detect(at["ingest"], overrides, at["detect"], params=detect_params),
        "caption": lambda: caption(
            at["detect"], overrides, at["caption"], params=caption_params, base=base, subject=subject
        ),
        "encode": lambda: encode(
            at["detect"], at["caption"], at["encode"], params=encode_params, base=base, subject=subject
        ),
        "train": lambda: train(
            at["encode"], at["train"], params=train_params, base=base, subject=subject, machine=machine
        ),
        "evaluate": lambda: evaluate(
            at["detect"], at["caption"], at["train"], at["evaluate"], params=evaluate_params, base=base, subject=subject
        ),
    }


def _release(out: Path, record: dict[str, Any]) -> None:
    """Write the LoRA that was chosen as out/lora.safetensors; its metadata names the origin of its training set."""
    from zimage.core.tensor_file import copy_tensors
    from zimage.evaluation.report.summary import chosen_lora

    metrics = json.loads((out / "data" / "evaluate" / "metrics.json").read_text(encoding="utf-8"))
    chosen = chosen_lora(out, metrics["chosen"]["file"])
    drawn_by = f"{record['lora_family']} LoRA sha256:{record['lora_sha256']}"
    origin = {"zimage.training_set": f"synthetic: {record['pictures']} pictures drawn by {drawn_by}"}
    copy_tensors(chosen, out / "lora.safetensors", origin)


def _sha256(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"There is no file {path}.")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
