"""Plan which pictures and captions each step uses, for all steps before the first.

The plan is a pure function of the data's shape and the seed, so a resumed run needs only the number of its step.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from zimage.model.sequence import SequenceBucket


@dataclass(frozen=True)
class StepSource:
    """A picture that steps may take.

    Args:
        item: Its number in the dataset.
        height: Of its latents.
        width: Of its latents.
        texts: Numbers of its captions, used in rotation.
    """

    item: int
    height: int
    width: int
    texts: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """The samples of one optimiser step; all of one shape, so they need no mask."""

    bucket: SequenceBucket
    items: tuple[int, ...]
    texts: tuple[int, ...]

    def part(self, rows: slice) -> "Step":
        """Return some of the samples as a step of their own."""
        return Step(self.bucket, self.items[rows], self.texts[rows])


def plan(
    sources: Sequence[StepSource],
    lengths: Sequence[int],
    *,
    steps: int,
    batch: int,
    generator: torch.Generator,
    dropout: float = 0.0,
    empty: int | None = None,
) -> list[Step]:
    """Return `steps` full batches in which all pictures come equally often.

    Each round takes every picture once, in a new order, with its next caption. Pictures of one bucket that do not fill
    a batch wait for the next round, so none is left out and no batch is short.

    Args:
        sources: The pictures; at least one.
        lengths: The padded length of each text, by number.
        steps: How many batches are wanted.
        batch: Samples in each.
        generator: Decides the order, the first captions and the dropped ones.
        dropout: Share of captions that the empty text takes the place of.
        empty: Number of the empty text; needed where dropout is not 0.
    """
    first = [int(torch.randint(len(source.texts), (1,), generator=generator)) for source in sources]
    waiting: dict[SequenceBucket, list[tuple[int, int]]] = defaultdict(list)
    planned: list[Step] = []
    turn = 0
    while len(planned) < steps:
        order = torch.randperm(len(sources), generator=generator).tolist()
        dropped = (torch.rand(len(sources), generator=generator) < dropout).tolist()
        for number in order:
            source = sources[number]
            text = source.texts[(first[number] + turn) % len(source.texts)]
            if dropped[number]:
                assert empty is not None
                text = empty
            bucket = SequenceBucket(source.height, source.width, lengths[text])
            waiting[bucket].append((source.item, text))
            if len(waiting[bucket]) == batch:
                items, texts = zip(*waiting.pop(bucket), strict=True)
                planned.append(Step(bucket, items, texts))
        turn += 1
    return planned[:steps]
