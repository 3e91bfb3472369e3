"""Write the results of an evaluation as metrics.json and the tables behind the plots."""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from zimage.core.jsonl import Row, write_metrics
from zimage.evaluation.figures import Figures
from zimage.evaluation.gate import Judgement
from zimage.evaluation.hidden import degraded, overcooked
from zimage.evaluation.intervals import Estimate
from zimage.evaluation.protocol import PROTOCOL_VERSION
from zimage.evaluation.report.coaching import Tip
from zimage.evaluation.rows import write_csv
from zimage.evaluation.score.impostors import Impostors
from zimage.evaluation.score.likeness import Targets
from zimage.evaluation.score.picture import PictureScorer
from zimage.evaluation.select.checkpoint_selection import Selection
from zimage.evaluation.select.choice import Sweep


@dataclass(frozen=True)
class Sampled:
    """How every picture was made: what someone has to set to get the same ones.

    Args:
        side_px: Height and width.
        steps: Of the sampler.
        guidance_scale: As diffusers' ZImagePipeline counts: 0 is none; ComfyUI's cfg is 1 more.
        shift: Of the noise schedule, by the base's own scheduler.
        packaged: Whether the base is the toy model of this package, whose LoRAs do nothing with the real one.
        precision: Of the base's weights and of the products: float32 or bfloat16.
        sampler: The integrator.
    """

    side_px: int
    steps: int
    guidance_scale: float
    shift: float
    packaged: bool
    precision: str
    sampler: str = "euler"


@dataclass(frozen=True)
class Findings:
    """All that an evaluation found.

    Args:
        outcome: The pictures and the choice.
        figures: What they amount to.
        judgement: The verdict.
        picture_scorer: It scored the pictures; holds the real photos and the engines.
        impostors: Real photos of other people; None where none were asked for.
        absent: What was asked for and is not on this machine.
        suite: Name of the prompt suite.
        base: Identity of the base model.
        copy_correlation: From this likeness on a picture counted as a copy.
        sampled: How every picture was made.
        advice: Likely causes of a failed verdict, each with the next step.
        coaching: What would make the next LoRA better, whatever the verdict.
    """

    outcome: Selection
    figures: Figures
    judgement: Judgement
    picture_scorer: PictureScorer
    impostors: Impostors | None
    absent: list[str]
    suite: str
    base: str
    copy_correlation: float
    sampled: Sampled
    advice: list[str]
    coaching: list[Tip]


class SweepRow(Row):
    """A candidate of a sweep."""

    sweep: str
    label: str
    closeness: float | None
    low: float | None
    high: float | None
    behind: float | None
    behind_low: float | None
    behind_high: float | None
    as_good: bool
    chosen: bool


class DistanceRow(Row):
    """One distance to the held-out centroid, for the distributions."""

    engine: str
    """Who measured."""
    threshold: float
    """Same person up to this distance."""
    group: str
    """lora, base, impostor, training (these two real photos at the pictures' size) or holdout (against each other)."""
    distance: float


def write_results(folder: Path, findings: Findings) -> None:
    """Write metrics.json, scores.csv, sweep.csv, distances.csv and gate.csv."""
    outcome = findings.outcome
    write_metrics(folder / "metrics.json", metrics_of(findings))
    write_csv(folder / "scores.csv", outcome.rows)
    write_csv(
        folder / "sweep.csv",
        [*sweep_rows("checkpoint", outcome.checkpoints), *sweep_rows("strength", outcome.strengths)],
    )
    write_csv(folder / "distances.csv", distance_rows(findings))
    write_csv(folder / "gate.csv", findings.judgement.rules)


def metrics_of(findings: Findings) -> dict[str, Any]:
    """Return the numbers; the main ones stand on top by themselves, all with interval and n below `estimates`."""
    outcome, figures, scorer = findings.outcome, findings.figures, findings.picture_scorer
    return {
        "verdict": findings.judgement.verdict,
        "why": findings.judgement.why,
        "advice": findings.advice,
        "coaching": [tip.model_dump() for tip in findings.coaching],
        "face_found_rate": figures.face_found.value,
        "same_person_rate": figures.same_of_found.value or 0.0,
        "same_person_rate_of_all": figures.same_of_all.value,
        "base_face_found_rate": figures.base_face_found.value,
        "base_same_person_rate": figures.base_same_of_found.value or 0.0,
        "gain": figures.gain.value,
        "copy_rate": figures.copied.value,
        "pictures": len(outcome.rows),
        "estimates": {
            field.name: asdict(value)
            for field in fields(figures)
            if isinstance(value := getattr(figures, field.name), Estimate)
        },
        "leaks": {kind: asdict(estimate) for kind, estimate in figures.leaks.items()},
        **hidden_metrics(figures),
        "gate": {rule.name: rule.model_dump(exclude={"name"}) for rule in findings.judgement.rules},
        "chosen": {
            "file": outcome.lora.name,
            "sha256": sha256_of(outcome.lora),
            "strength": outcome.strength,
        },
        "engine": _engine(scorer.targets),
        "second_engine": _engine(scorer.second) if scorer.second else None,
        "clip": "present" if scorer.clip else "absent",
        "absent": findings.absent,
        "variety_by": "clip" if scorer.clip else "pixels",
        "impostors": _strangers(findings.impostors),
        "protocol": PROTOCOL_VERSION,
        "suite": findings.suite,
        "base": findings.base,
        "sampled": asdict(findings.sampled),
    }


def hidden_metrics(figures: Figures) -> dict[str, Any]:
    """Return what stands beside likeness and is kept by look or by condition."""
    return {
        "drifts": {look: asdict(estimate) for look, estimate in figures.drifts.items()},
        "drifts_from_photos": {look: asdict(estimate) for look, estimate in figures.drifts_from_photos.items()},
        "overcooked": overcooked(figures.drifts, figures.drifts_from_photos),
        "degradations": {look: asdict(estimate) for look, estimate in figures.degradations.items()},
        "degradations_from_photos": {
            look: asdict(estimate) for look, estimate in figures.degradations_from_photos.items()
        },
        "properties": {name: asdict(estimate) for name, estimate in figures.properties.items()},
        "degraded": degraded(figures.degradations, figures.degradations_from_photos),
        "conditions": {name: asdict(estimate) for name, estimate in figures.conditions.items()},
    }


def sweep_rows(name: str, sweep: Sweep | None) -> list[SweepRow]:
    """Return a row for each candidate of a sweep, in its order."""
    return [
        SweepRow(
            sweep=name,
            label=candidate.label,
            closeness=candidate.closeness.value,
            low=candidate.closeness.low,
            high=candidate.closeness.high,
            behind=candidate.behind.value,
            behind_low=candidate.behind.low,
            behind_high=candidate.behind.high,
            as_good=candidate.as_good,
            chosen=number == sweep.chosen,
        )
        for number, candidate in enumerate(sweep.candidates if sweep else [])
        if sweep
    ]


def distance_rows(findings: Findings) -> list[DistanceRow]:
    """Return all distances to the held-out centroid, by where they come from."""
    outcome, targets = findings.outcome, findings.picture_scorer.targets
    groups: dict[str, Iterable[float]] = {
        "lora": [row.distance for row in outcome.test if row.distance is not None],
        "base": [row.distance for row in outcome.base if row.distance is not None],
        "impostor": [one.distance for one in findings.impostors.faces if one.distance is not None]
        if findings.impostors
        else [],
        "training": targets.ceiling().tolist(),
        "holdout": targets.genuine().tolist(),
    }
    info = targets.info
    return [
        DistanceRow(engine=info.engine_id, threshold=info.threshold, group=group, distance=value)
        for group, values in groups.items()
        for value in values
    ]


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _strangers(found: Impostors | None) -> dict[str, Any] | None:
    """Return who they are, by where their photos come from, and whether one of them would pass."""
    if found is None:
        return None
    distances = [one.distance for one in found.faces if one.distance is not None]
    return {
        "faces": len(found.faces),
        "found": len(distances),
        "same_person": sum(one.same for one in found.faces),
        "nearest": min(distances, default=None),
        "photos": sorted({one.photo for one in found.faces}),
    }


def _engine(targets: Targets) -> dict[str, Any]:
    info = targets.info
    return {
        "engine_id": info.engine_id,
        "metric": info.metric,
        "threshold": info.threshold,
        "model_sha256": info.model_sha256,
        "licence": info.licence,
        "embedded": info.embedded,
        "holdout_photos": len(targets.holdout),
        "training_photos": len(targets.training),
    }
