"""How many prompts and seeds an interval of a wanted width needs, for the share of pictures that are the same person.

Pictures of one prompt are alike, so seeds help less than prompts: with an intraclass correlation r among them, the
n = k * m pictures of k prompts count as n / (1 + (m - 1) r) independent ones (Kish 1965), and never as more than k / r.
"""

from dataclasses import dataclass

from zimage.evaluation.intervals import normal_quantile, student_quantile, wilson

MOST_SEEDS, MOST_PROMPTS = 64, 2000
WORST_SHARE = 0.5  # at which an interval is widest
ASSUMED_CORRELATION = 0.5  # halfway between independent pictures and a prompt that always gives one answer


@dataclass(frozen=True)
class Plan:
    """What a wanted precision takes.

    Args:
        precision: Half of the interval's width that is wanted.
        prompts: Prompts of the suite that ask for the person.
        seeds: Pictures of each prompt that are enough; else the number beyond which nothing is won.
        expected: Half of the width that they give.
        prompts_needed: With as many seeds; more than `prompts` where no number of seeds is enough.
        correlation: Of the pictures of one prompt; assumed.
    """

    precision: float
    prompts: int
    seeds: int
    expected: float
    prompts_needed: int
    correlation: float

    @property
    def is_reached(self) -> bool:
        """Return whether the suite's prompts are enough."""
        return self.expected <= self.precision

    def __str__(self) -> str:
        """Return the plan as a person reads it before the run."""
        assumed = (
            f"if pictures of one prompt correlate at {self.correlation:g} (an assumption) and half of all are the same "
            "person, which is the worst case"
        )
        made = f"{self.prompts} prompts with {self.seeds} seeds each give an interval of ±{self.expected:.3f}"
        if self.is_reached:
            return f"Precision ±{self.precision:g}: {made}, {assumed}."
        return (
            f"Precision ±{self.precision:g} cannot be reached with this suite: {made}, {assumed}, and more seeds "
            f"hardly narrow it; {self.prompts_needed} prompts would be needed with as many seeds."
        )


def plan(precision: float, prompts: int, *, correlation: float = ASSUMED_CORRELATION) -> Plan:
    """Return how many seeds an interval of ±`precision` needs with this many prompts.

    Where no number of seeds is enough, the plan has the fewest that come within a tenth of what `MOST_SEEDS` give.

    Args:
        precision: Half of the wanted width, 0 to 1.
        prompts: How many ask for the person.
        correlation: Of whether two pictures of one prompt are the same person, 0 to 1.
    """
    best = half_width(prompts, MOST_SEEDS, correlation=correlation)
    wanted = precision if best <= precision else 1.1 * best
    seeds = next(m for m in range(1, MOST_SEEDS + 1) if half_width(prompts, m, correlation=correlation) <= wanted)
    needed = next(
        (k for k in range(prompts, MOST_PROMPTS) if half_width(k, seeds, correlation=correlation) <= precision),
        MOST_PROMPTS,
    )
    return Plan(precision, prompts, seeds, half_width(prompts, seeds, correlation=correlation), needed, correlation)


def half_width(prompts: int, seeds: int, *, correlation: float, share: float = WORST_SHARE) -> float:
    """Return half the width of the interval that `zimage.evaluation.intervals.rate` is expected to give."""
    effect = 1 + (seeds - 1) * correlation
    quantile = student_quantile(prompts - 1) if effect > 1 else normal_quantile()
    low, high = wilson(share, prompts * seeds / effect, quantile)
    return (high - low) / 2
