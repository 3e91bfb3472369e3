"""Compiled and checkpointed blocks: the same step."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.fx import GraphModule, Node

from tests.dynamo import OWN_WARNINGS
from tests.tiny_base import TEXT_WIDTH, tiny_transformer
from zimage.model.denoiser import Denoiser, run_block
from zimage.model.fast.weight_formats import WeightFormat
from zimage.model.sequence import SequenceBucket
from zimage.training.adapters import Adapters, inject, module_names
from zimage.training.block_runner import Checkpointing, make_block_runner
from zimage.training.memory import Sizes, activations_gb
from zimage.training.params import Adapter, LokrParams, Target

pytestmark = OWN_WARNINGS


def _model(  # noqa: PLR0917
    dropout: float = 0.0,
    kind: WeightFormat = "none",
    layers: int = 2,
    dtype: torch.dtype = torch.float32,
    adapter: Adapter = "lora",
    stream: torch.dtype | None = None,
    offloaded: int = 0,
    targets: Sequence[Target] = ("attention", "feed_forward"),
) -> tuple[Denoiser, Adapters]:
    torch.manual_seed(0)
    transformer = tiny_transformer(layers=layers)
    inject(
        transformer,
        targets,
        rank=4,
        dropout=dropout,
        generator=torch.Generator().manual_seed(1),
        adapter=adapter,
        lokr=LokrParams(factor=4, full_matrix=False, alpha=4.0),
    )
    denoiser = Denoiser(
        transformer, dtype=dtype, stream=stream or dtype, weight_format=kind, offloaded_blocks=offloaded
    )
    adapters = Adapters(denoiser, module_names(transformer))
    adapters.values.add_(0.1)
    return denoiser, adapters


@contextmanager
def _counted_nodes() -> Iterator[list[int]]:
    """Give the number of blocks that each backward pass goes through as one node of autograd."""
    found: list[int] = []
    plain: Callable[[Tensor], None] = torch.Tensor.backward

    def backward(loss: Tensor) -> None:
        seen, waiting = set(), [loss.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is not None and node not in seen:
                seen.add(node)
                waiting += [following for following, _ in node.next_functions]
        found.append(sum("OneNode" in node.name() for node in seen))
        plain(loss)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", backward)
        yield found


def _step(
    denoiser: Denoiser, adapters: Adapters, height: int = 8, width: int = 8, caption: int = 32
) -> tuple[Tensor, Tensor]:
    torch.manual_seed(5)
    adapters.gradient.zero_()
    context = denoiser.refine(torch.ones(2, caption, TEXT_WIDTH), torch.tensor([9, caption]))
    velocity = denoiser.velocity(torch.ones(2, 16, height, width), torch.tensor([0.2, 0.7]), context)
    velocity.square().sum().backward()
    return velocity.detach(), adapters.gradient.clone()


@pytest.mark.parametrize(("dropout", "adapter"), [(0.0, "lora"), (0.5, "lora"), (0.0, "lokr"), (0.0, "dora")])
def test_checkpointing_changes_nothing(dropout: float, adapter: Adapter) -> None:
    denoiser, adapters = _model(dropout, adapter=adapter)
    expected = _step(denoiser, adapters)
    denoiser.run = make_block_runner("full", compiled=False, random=dropout > 0)
    found = _step(denoiser, adapters)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.parametrize("targets", [["attention", "feed_forward"], ["image_embedder", "attention"], ["feed_forward"]])
@pytest.mark.parametrize("offloaded", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_as_one_node_give_the_same_step_to_the_last_bit(
    dtype: torch.dtype, offloaded: int, targets: list[Target]
) -> None:
    denoiser, adapters = _model(dtype=dtype, stream=torch.float32, layers=3, offloaded=offloaded, targets=targets)
    expected = _step(denoiser, adapters)
    denoiser.run = make_block_runner("none", compiled=False)
    with _counted_nodes() as nodes:
        found = _step(denoiser, adapters)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    trained_on = 3 + ("image_embedder" in targets)  # main blocks, and the refiner that a gradient passes
    assert nodes == [trained_on]


def test_checkpointing_keeps_less() -> None:
    denoiser, adapters = _model()
    assert _kept(denoiser, adapters, "full") < 0.5 * _kept(denoiser, adapters, "none")


@pytest.mark.parametrize("adapter", ["lora", "lokr", "dora"])
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_compiled_blocks_give_the_same_step(checkpointing: Checkpointing, adapter: Adapter) -> None:
    denoiser, adapters = _model(adapter=adapter)
    expected = _step(denoiser, adapters)
    denoiser.run = make_block_runner(checkpointing, compiled=True, backend="aot_eager")
    found = _step(denoiser, adapters)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("checkpointing", ["none", "selective"])
@pytest.mark.parametrize("kind", ["none", "int8", "fp8", "nf4"])
def test_compiled_blocks_keep_what_is_counted_and_no_weight_in_another_form(
    kind: WeightFormat, checkpointing: Checkpointing
) -> None:
    """By the partition that inductor makes: what comes out of the way forward beside the stream."""
    denoiser, _ = _model(kind=kind, dtype=torch.bfloat16)
    kept: list[int] = []
    samples, tokens = 2, 2 * (16 * 16 + 32)

    def forward(graph: GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        (outputs,) = next(node for node in graph.graph.nodes if node.op == "output").args
        values = [node.meta["val"] for node in outputs[1:] if isinstance(node, Node) and node.op != "placeholder"]
        alike, others = [], []
        for value in values:
            (alike if value.shape[0] in {samples, tokens} else others).append(value)
        assert all(value.numel() < 3000 for value in others)  # as adapters are, and no weight
        kept.append(sum(value.nbytes for value in alike))
        return make_boxed_func(graph.forward)

    backend = aot_autograd(
        fw_compiler=forward,
        bw_compiler=lambda graph, _: make_boxed_func(graph.forward),
        partition_fn=min_cut_rematerialization_partition,
    )
    block, bucket = denoiser.layers[0], SequenceBucket(32, 32, 32)
    sizes = Sizes(*block.w2.frozen.shape[:1], layers=1, refiners=0)
    x = torch.ones(samples, tokens // samples, sizes.width, dtype=torch.bfloat16, requires_grad=True)
    condition = denoiser.condition(torch.tensor([0.2, 0.7]))
    run = make_block_runner(checkpointing, compiled=True, backend=backend)
    run(block, x, condition, denoiser.tables(bucket)[2], None).sum().backward()
    stream = tokens * sizes.width * 2  # goes in, and is kept as it is
    expected = activations_gb(sizes, tokens, checkpointing) * 1e9 - stream
    assert sizes.feed_forward == block.w2.frozen.shape[1]
    least = 0.8 if checkpointing == "none" else 0.9  # without, the compiler computes a norm again all the same
    assert least < kept[0] / expected < 1.1


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("adapter", ["lora", "lokr", "dora"])
def test_weights_in_few_bits_can_be_compiled(kind: WeightFormat, adapter: Adapter) -> None:
    denoiser, adapters = _model(kind=kind, adapter=adapter)
    velocity, gradient = _step(denoiser, adapters)
    denoiser.run = make_block_runner("selective", compiled=True, backend="aot_eager")
    found = _step(denoiser, adapters)
    # A last bit more or less before it is rounded to eight makes a step of one in 127.
    assert float((found[0] - velocity).norm() / velocity.norm()) < 0.01
    assert float((found[1] - gradient).norm() / gradient.norm()) < 0.01


@pytest.mark.parametrize(("kind", "adapter"), [("none", "lora"), ("int8", "lora"), ("none", "lokr"), ("none", "dora")])
def test_adapters_that_are_cast_at_once_get_the_same_gradients_to_the_last_bit(
    kind: WeightFormat, adapter: Adapter
) -> None:
    denoiser, adapters = _model(kind=kind, dtype=torch.bfloat16, adapter=adapter)
    counter = CompileCounterWithBackend("aot_eager")
    denoiser.run = make_block_runner("selective", compiled=True, backend=counter)
    expected = _step(denoiser, adapters)
    denoiser.ready = partial(adapters.cast_for_compile, torch.bfloat16)
    found = _step(denoiser, adapters)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    made = counter.frame_count
    adapters.values.mul_(2)
    assert not torch.equal(_step(denoiser, adapters)[0], expected[0])  # they are cast anew in every step
    assert counter.frame_count == made


def test_few_graphs_serve_many_blocks_and_shapes_and_none_falls_back() -> None:
    denoiser, adapters = _model(layers=4)
    shapes = [(8, 8, 32), (8, 12, 32), (12, 8, 64), (16, 16, 32), (8, 8, 64)]
    expected = [_step(denoiser, adapters, *shape) for shape in shapes]
    counter = CompileCounterWithBackend("aot_eager")
    denoiser.run = make_block_runner("selective", compiled=True, shapes=len(shapes), backend=counter)
    for shape, (_, gradient) in zip(shapes, expected, strict=True):
        torch.testing.assert_close(_step(denoiser, adapters, *shape)[1], gradient, rtol=1e-4, atol=1e-4)
    made = counter.frame_count
    assert made <= 6  # of the noise refiner, the main blocks and the last: of the first shape, and of all others
    _step(denoiser, adapters)
    assert counter.frame_count == made


def _kept(denoiser: Denoiser, adapters: Adapters, checkpointing: Checkpointing) -> int:
    """Return how many bytes autograd keeps from the way forward for the way back."""
    sizes: list[int] = []

    def packed(tensor: Tensor) -> Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    # Of a block that is one node autograd's hooks see nothing, though it keeps the same.
    denoiser.run = run_block if checkpointing == "none" else make_block_runner(checkpointing, compiled=False)
    with torch.autograd.graph.saved_tensors_hooks(packed, lambda tensor: tensor):
        _step(denoiser, adapters)
    return sum(sizes)
