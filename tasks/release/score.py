"""Read from a `zimage score` how a LoRA is used in other ways than it was evaluated in: its metrics.json."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.store.releases import ScoredUse, Share
from tasks.workspace.sources import content
from zimage.core.errors import InputError
from zimage.evaluation.wording import FEW, counted, percent
from zimage.lora.comfyui.workflow import Evaluated, Scored, variant_of

MAX_BYTES = 50_000_000


class _Read(BaseModel):
    """A part of metrics.json, of which more is there than is read."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _Sampled(_Read):
    side_px: int
    steps: int
    guidance_scale: float
    sampler: str
    precision: str
    merged_weights: str | None


class _Use(_Sampled):
    base: str
    model: str
    shift: float


class _Survival(_Read):
    share: float


class _Estimates(_Read):
    same_of_all: Share | None = None  # finished pictures without a base model beside them have none


class _Result(_Read):
    use: str
    sha256: str | None = None  # the base and finished pictures have none
    strength: float = 1.0
    trigger: str = ""
    verdict: str | None = None
    merging: _Survival | None = None
    estimates: _Estimates


class _Difference(_Read):
    measure: str
    first: str
    second: str
    better: Literal["first", "second", "not shown"] | None


class Score(_Read):
    """What `zimage score` found, as far as a release states it."""

    protocol: int
    results: dict[str, _Result]
    differences: list[_Difference]
    uses: dict[str, _Use]


def read_score(address: str) -> Score:
    """Return the metrics.json of a `zimage score` at `address`, a file or `s3://bucket/key`.

    Raises:
        InputError: there is none, or it is something else.
    """
    found = content(address, max_bytes=MAX_BYTES)
    if found is None:
        raise InputError(f"There is no score {address}; name the metrics.json of `zimage score`, or s3://bucket/key.")
    try:
        return Score.model_validate_json(found)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise InputError(
            f"{address} is not the metrics.json of a `zimage score` of this version ({where}: "
            f"{error.errors()[0]['msg']}); score the LoRA again, and name the metrics.json in its folder."
        ) from None


def scored_uses(score: Score, *, sha256: str, trigger: str) -> list[ScoredUse]:
    """Return each way in which a LoRA was scored, with one strength.

    Of several strengths it is the lowest to which none is shown to be better in likeness, as `evaluate` chooses.

    Args:
        score: What was found.
        sha256: Of the LoRA's file.
        trigger: The word that calls the person.

    Raises:
        InputError: another LoRA was scored, or this one by another word.
    """
    named = {name: one for name, one in score.results.items() if one.sha256 == sha256}
    if not named:
        raise InputError(
            "The score is of other LoRAs than the one that is published (none of its files has the SHA-256 "
            f"{sha256[:16]}…); score that one: it is the file that `evaluate` chose."
        )
    word = next((one.trigger for one in named.values() if one.trigger != trigger), None)
    if word is not None:
        raise InputError(
            f"The LoRA was scored with the word {word!r}, and {trigger!r} calls the person; score it again with "
            f"--trigger {trigger}."
        )
    by_use: dict[str, dict[str, _Result]] = defaultdict(dict)
    for name, one in named.items():
        by_use[one.use][name] = one
    return [_scored_use(score, use, found) for use, found in by_use.items()]


def _scored_use(score: Score, use: str, found: Mapping[str, _Result]) -> ScoredUse:
    beaten = {
        {"first": one.second, "second": one.first}[one.better]
        for one in score.differences
        if one.measure == "likeness" and one.better in {"first", "second"} and {one.first, one.second} <= found.keys()
    }
    chosen = min((one for name, one in found.items() if name not in beaten), key=lambda one: one.strength)
    made = score.uses[use]
    return ScoredUse(
        use=use,
        base=made.model,
        identity=made.base,
        variant=variant_of(made.model, made.shift, made.guidance_scale),
        strength=chosen.strength,
        strengths=sorted(one.strength for one in found.values()),
        shift=made.shift,
        survival=chosen.merging.share if chosen.merging else None,
        verdict=chosen.verdict,
        same_of_all=chosen.estimates.same_of_all,
        protocol=score.protocol,
        **made.model_dump(include=set(_Sampled.model_fields)),
    )


def in_words(one: ScoredUse) -> Scored:
    """Return a way in which a LoRA was scored as USAGE.txt and the workflows have it."""
    made = Evaluated(
        base=one.base,
        variant=one.variant,
        side_px=one.side_px,
        steps=one.steps,
        guidance_scale=one.guidance_scale,
        shift=one.shift,
        precision=one.precision,
    )
    return Scored(one.use, one.strength, made, one.sampler, one.merged_weights, found_of(one))


def found_of(one: ScoredUse) -> str:
    """Return what was found, such as `same person in 85 % (70 % to 93 %) of 48 pictures, pass`."""
    same = one.same_of_all
    if same is None or same.value is None:
        return "not measured"
    value = counted(same.value, same.n) if same.n < FEW else percent(same.value)
    ends = "" if same.low is None or same.high is None else f" ({percent(same.low)} to {percent(same.high)})"
    of = "pictures" if same.n < FEW else f"of {same.n} pictures"
    return f"same person in {value}{ends} {of}" + (f", {one.verdict}" if one.verdict else "")
