"""Takes the steps of tests/benchmarks/gpu.py as a machine with a GPU would, on one without contents.

python -m tests.fake_gpu.benchmark
    prints one line for each form of a step that went through
"""

from tests.fake_gpu.device import GPU, fake_gpu  # isort: skip - before torch

import torch

from tests.benchmarks import gpu, train

READERS = [("tests.benchmarks.train", name) for name in ("inject", "random_transformer", "_drawn", "_latents")]


def main() -> None:
    """Take steps in each form but those that a compiler or a graph makes."""
    train.random_transformer(gpu.TINY, torch.bfloat16)  # draws the weights, which all forms share
    for name, form in gpu.FORMS.items():
        if form.get("compiled") or form.get("captured"):
            continue
        with fake_gpu(readers=READERS):
            step = train.our_step(gpu.TINY, dtype=torch.bfloat16, device=GPU, **form)
            losses = [step() for _ in range(gpu.STEPS)]
        assert {loss.device for loss in losses} == {GPU}
        print(name)


if __name__ == "__main__":
    main()
