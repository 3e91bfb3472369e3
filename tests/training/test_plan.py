"""Which pictures and captions each step learns from."""

from collections import Counter

import torch

from zimage.training.plan import Step, StepSource, plan

SOURCES = [StepSource(number, 8, 8 if number < 5 else 16, (0, 1) if number % 2 else (2,)) for number in range(9)]
LENGTHS = [32, 64, 32, 32]
EMPTY = 3


def _plan(steps: int = 200, batch: int = 4, dropout: float = 0.0, seed: int = 0) -> list[Step]:
    generator = torch.Generator().manual_seed(seed)
    return plan(SOURCES, LENGTHS, steps=steps, batch=batch, generator=generator, dropout=dropout, empty=EMPTY)


def test_every_batch_is_full_and_of_one_shape() -> None:
    for step in _plan():
        assert len(step.items) == len(step.texts) == 4
        assert {(SOURCES[item].height, SOURCES[item].width) for item in step.items} == {step.bucket[:2]}
        assert {LENGTHS[text] for text in step.texts} == {step.bucket.caption}


def test_all_pictures_come_equally_often_also_those_alone_in_their_bucket() -> None:
    counts = Counter(item for step in _plan(steps=900) for item in step.items)
    assert set(counts) == set(range(9))
    assert max(counts.values()) - min(counts.values()) <= 8  # what waits in a bucket for its batch to fill


def test_all_captions_of_a_picture_take_their_turn() -> None:
    counts = Counter(
        text for step in _plan(steps=900) for item, text in zip(step.items, step.texts, strict=True) if item == 1
    )
    assert abs(counts[0] - counts[1]) <= 4


def test_captions_are_dropped_as_often_as_asked() -> None:
    texts = [text for step in _plan(steps=1000, dropout=0.1) for text in step.texts]
    assert abs(texts.count(EMPTY) / len(texts) - 0.1) < 0.02


def test_the_same_seed_gives_the_same_plan_and_a_longer_run_begins_alike() -> None:
    assert _plan(steps=50) == _plan(steps=200)[:50]
    assert _plan() != _plan(seed=1)


def test_fewer_pictures_than_a_batch_still_fill_it() -> None:
    generator = torch.Generator().manual_seed(0)
    (step,) = plan(SOURCES[:1], LENGTHS, steps=1, batch=3, generator=generator)
    assert step.items == (0, 0, 0)
