"""What a picture costs in an evaluation: reading prompts, sampling, decoding, scoring.

    python -m tests.benchmarks.evaluate [BASE_FOLDER]

CPU seconds of this process and its children, which a busy machine does not change; on an idle machine of n cores the
wall time is about an n-th of them.

What was measured, and under which conditions, stands in infra/benchmarks.md.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tests.evaluation.photos import DLIB, small, views
from zimage.captions.subject import Subject
from zimage.evaluation.generate.generator import Generator
from zimage.evaluation.generate.image_cache import Request, Sampling
from zimage.evaluation.generate.suite import read_suite, with_subject
from zimage.evaluation.score.picture import Search, SearchedPicture
from zimage.model.base import TINY, Base, identify, open_pipeline, open_text_encoder, resolve
from zimage.model.memory import usual_batch
from zimage.model.text import embed
from zimage.photos.pictures import write_png

PICTURES = 32
SUBJECT = Subject(trigger="ohzw", class_noun="woman")


def main(model: str) -> None:
    """Print a line for each part of the work."""
    sampling = Sampling(side_px=128, steps=16, guidance_scale=0.0)
    folder = resolve(Base(model=model, identity=identify(model)))
    texts = [with_subject(prompt, SUBJECT) for prompt in read_suite("demo")]
    with timed("open the text encoder", 1):
        tokenizer, encoder = open_text_encoder(folder, dtype=torch.float32)
    with timed("read a prompt", len(texts)):
        states = embed(tokenizer, encoder, texts, torch.device("cpu"))
    with timed("open the pipeline", 1):
        pipeline = open_pipeline(folder, device="cpu", dtype=torch.float32)
    batch_size = usual_batch(sampling.side_px, guided=False, device="cpu")
    studio = Generator(pipeline, dict(zip(texts, states, strict=True)), sampling, batch_size)
    requests = [Request(str(number), texts[number % 20], number, None, 0.0) for number in range(PICTURES)]
    with timed(f"sample a picture, {sampling.steps} steps, and decode it", PICTURES):
        list(studio.pictures(requests))
    with timed("decode alone", PICTURES), torch.inference_mode():
        pipeline.vae.decode(torch.randn(PICTURES, 16, 16, 16))
    with tempfile.TemporaryDirectory() as name:
        files = [Path(name) / f"{number}.png" for number in range(PICTURES)]
        for file, picture in zip(files, small(views(PICTURES, seed=0)), strict=True):
            write_png(file, picture)
        with timed("start the searchers and score a picture", PICTURES), Search([DLIB]) as search:
            list(search.faces_in([SearchedPicture(file) for file in files]))


@contextmanager
def timed(what: str, count: int) -> Iterator[None]:
    """Print the CPU time of the body, by its count."""
    wall, before = time.perf_counter(), cpu_s()
    yield
    print(f"{(cpu_s() - before) / count:8.3f} s CPU  {(time.perf_counter() - wall) / count:8.3f} s wall  {what}")


def cpu_s() -> float:
    """Return the CPU seconds of this process and of its ended children."""
    used: Callable[[int], resource.struct_rusage] = resource.getrusage
    return sum(one.ru_utime + one.ru_stime for one in map(used, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else TINY)
