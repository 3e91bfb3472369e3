"""The LoRA, DoRA or LoKr in training: its layers, its parameters in one vector, and saving it.

One vector for all values and one for all gradients make clipping, the optimiser, the average and the exchange between
processes one operation each, however many layers are adapted.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from peft import LoKrConfig, LoraConfig, inject_adapter_in_model
from peft.tuners.lokr import LoKrLayer
from peft.tuners.lora import LoraLayer
from torch import Tensor

from zimage.core.errors import InputError
from zimage.lora.files.loaders import peft_makes, product_of
from zimage.lora.files.portable import Factors, Weight, decomposed_of, kronecker_of
from zimage.model.denoiser import Denoiser
from zimage.model.fast.dora import DOWN, MAGNITUDE, UP, Dora
from zimage.model.fast.linear import ADAPTER, AdapterFactors, LoraFactors, Projection
from zimage.model.fast.lokr import RANDOM, Lokr, shapes_of
from zimage.training.params import Adapter, LokrParams, Target

if TYPE_CHECKING:
    from diffusers import ZImageTransformer2DModel

_INNER = r"(attention\.to_(q|k|v|out\.0)|feed_forward\.w[123])"
# Names of diffusers@0.42.1:src/diffusers/models/transformers/transformer_z_image.py.
MODULES: dict[Target, str] = {
    "attention": r"layers\.\d+\.attention\.to_(q|k|v|out\.0)",
    "feed_forward": r"layers\.\d+\.feed_forward\.w[123]",
    "modulation": r"layers\.\d+\.adaLN_modulation\.0|all_final_layer\.2-1\.adaLN_modulation\.1",
    "noise_refiner": rf"noise_refiner\.\d+\.{_INNER}",
    "context_refiner": rf"context_refiner\.\d+\.{_INNER}",
    "image_embedder": r"all_x_embedder\.2-1",
    "caption_embedder": r"cap_embedder\.1",
    "time_embedder": r"t_embedder\.mlp\.[02]",
    "final_layer": r"all_final_layer\.2-1\.linear",
}


# A rank that no layer reaches: peft then keeps the second matrix of a LoKr whole.
_WHOLE = 2**30


def inject(
    transformer: "ZImageTransformer2DModel",
    targets: Sequence[Target],
    *,
    rank: int,
    dropout: float,
    generator: torch.Generator,
    adapter: Adapter = "lora",
    lokr: LokrParams | None = None,
) -> None:
    """Put adapters beside the targets' layers, with peft; they change nothing yet.

    Args:
        transformer: Gets the adapters; its own weights are frozen.
        targets: Kinds of layers.
        rank: Of every adapter. The alpha of a LoRA or DoRA is the same, so its strength is 1.
        dropout: Of the adapters' inputs, 0 to 1; a DoRA or LoKr has none.
        generator: Draws the matrices that do not begin at zero, in peft's law (Kaiming uniform, a = sqrt(5): within
            1 / sqrt(columns)): of a LoRA or DoRA the down-matrices, of a LoKr w1 and, where w2 is factored, w2_a.
        adapter: What is put there.
        lokr: Of a LoKr.

    Raises:
        InputError: diffusers would not read the LoKr back.
    """
    pattern = "|".join(f"(?:{MODULES[target]})" for target in targets)
    frozen = transformer.requires_grad_(False)
    if adapter == "lokr":
        assert lokr is not None
        inject_adapter_in_model(_lokr_config(pattern, rank, lokr), frozen)
    else:
        config = LoraConfig(
            r=rank, lora_alpha=rank, lora_dropout=dropout, target_modules=pattern, use_dora=adapter == "dora"
        )
        inject_adapter_in_model(config, frozen)
    for module in transformer.modules():
        if isinstance(module, LoraLayer):
            module.lora_A[ADAPTER].weight.data = _drawn(module.lora_A[ADAPTER].weight, generator)
            module.lora_B[ADAPTER].float()  # peft takes the base's dtype; adapters are float32 whatever that is
        elif isinstance(module, LoKrLayer):
            for name in shapes_of(module, ADAPTER):
                parameter = getattr(module, name)[ADAPTER]
                parameter.data = _drawn(parameter, generator) if name in RANDOM else parameter.data.float()
    if lokr is not None and adapter == "lokr":
        _refuse_unreadable(transformer, lokr)


def _lokr_config(pattern: str, rank: int, params: LokrParams) -> LoKrConfig:
    r, alpha = (_WHOLE, _WHOLE) if params.full_matrix else (rank, params.alpha)
    return LoKrConfig(
        r=r,
        alpha=alpha,
        decompose_factor=params.factor,
        target_modules=pattern,
        init_weights="lycoris",
    )


def _drawn(matrix: Tensor, generator: torch.Generator) -> Tensor:
    bound = matrix.shape[1] ** -0.5
    return (torch.rand(matrix.shape, generator=generator) * 2 - 1).mul_(bound).to(matrix.device)


def _refuse_unreadable(transformer: "ZImageTransformer2DModel", params: LokrParams) -> None:
    """Refuse a factor that diffusers could not find again in the file's shapes."""
    layers = [module for module in transformer.modules() if isinstance(module, LoKrLayer)]
    products = [product_of(shapes_of(layer, ADAPTER)) for layer in layers]
    if not peft_makes(products):
        raise InputError(
            f"train.lokr.factor is {params.factor}, which does not divide the layers' widths alike, so diffusers could "
            "not read the LoKr; set it to 8, 16 or -1."
        )


class Adapters:
    """All adapters of a denoiser, in one vector: first the down-matrices, then the up-matrices.

    Args:
        denoiser: Its adapters' numbers live in `values` from now on, and their gradients in `gradient`.
        names: Module names by module id, as the transformer knows them.
    """

    def __init__(self, denoiser: Denoiser, names: dict[int, str]) -> None:
        self._loras, self._names, self._dtype = denoiser.loras(), names, denoiser.dtype
        self._projections = [projection for projection in denoiser.projections() if projection.lora is not None]
        sizes = [lora.down.numel() for lora in self._loras] + [lora.up.numel() for lora in self._loras]
        self._sizes = sizes
        self.num_down = sum(lora.down.numel() for lora in self._loras)
        self.values = torch.zeros(sum(sizes), device=denoiser.device)
        self.gradient = torch.zeros_like(self.values)
        parts, gradients = self.values.split(sizes), self.gradient.split(sizes)
        count = len(self._loras)
        for lora, down, up in zip(self._loras, parts[:count], parts[count:], strict=True):
            lora.bind(down.view_as(lora.down), up.view_as(lora.up))
        for lora, down, up in zip(self._loras, gradients[:count], gradients[count:], strict=True):
            lora.down.grad, lora.up.grad = down.view_as(lora.down), up.view_as(lora.up)
            if isinstance(lora, LoraFactors):
                lora.gradients = lora.matrices_of(lora.down.grad, lora.up.grad)
        self._rounded: Tensor | None = None
        self._all = torch.nn.Parameter(self.values)
        self._all.grad = self.gradient

    def cast(self, dtype: torch.dtype) -> None:
        """Round all values as they are now for products in fewer bits: one kernel instead of one for every matrix."""
        if self._rounded is None:
            self._rounded = torch.empty_like(self.values, dtype=dtype)
            for lora, down, up in self._split(self._rounded):
                if isinstance(lora, LoraFactors):
                    lora.rounded = lora.matrices_of(down, up)
        self._rounded.copy_(self.values)

    def cast_for_compile(self, dtype: torch.dtype) -> None:
        """Give compiled code all values in fewer bits, as they are now, until the next backward pass.

        One kernel instead of one for every matrix; their gradients become one vector again before they are added.
        """
        # Or autograd would go on adding where the last backward pass did, in its stream, which no graph can record.
        for lora in self._loras:
            lora.low = None
        parts, count = self._all.to(dtype).split(self._sizes), len(self._loras)
        for lora, down, up in zip(self._loras, parts[:count], parts[count:], strict=True):
            lora.low = (down.view_as(lora.down), up.view_as(lora.up))

    @property
    def drop_inputs(self) -> bool:
        """Return whether the adapters have dropout."""
        return any(lora.dropout > 0 for lora in self._loras)

    def halves(self) -> tuple[Tensor, Tensor]:
        """Return all down-matrices and all up-matrices as two parameters; their gradients are parts of `gradient`."""
        halves = []
        for part in (slice(None, self.num_down), slice(self.num_down, None)):
            half = torch.nn.Parameter(self.values[part])
            half.grad = self.gradient[part]
            halves.append(half)
        return halves[0], halves[1]

    def matrices(self) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
        """Return each down-matrix and each up-matrix as a parameter; their gradients are parts of `gradient`."""
        downs: list[torch.nn.Parameter] = []
        ups: list[torch.nn.Parameter] = []
        for (lora, *values), (_, *gradients) in zip(self._split(self.values), self._split(self.gradient), strict=True):
            pairs = zip(_matrices(lora, *values), _matrices(lora, *gradients), strict=True)
            for found, (matrices, of_gradient) in zip((downs, ups), pairs, strict=True):
                for matrix, gradient in zip(matrices, of_gradient, strict=True):
                    parameter = torch.nn.Parameter(matrix)
                    parameter.grad = gradient
                    found.append(parameter)
        return downs, ups

    def _split(self, values: Tensor) -> Iterator[tuple[AdapterFactors, Tensor, Tensor]]:
        """Yield each projection's adapters with their down- and up-matrices, of a vector laid out as `values`."""
        downs, ups = values[: self.num_down], values[self.num_down :]
        for lora in self._loras:
            down, downs = downs[: lora.down.numel()].view_as(lora.down), downs[lora.down.numel() :]
            up, ups = ups[: lora.up.numel()].view_as(lora.up), ups[lora.up.numel() :]
            yield lora, down, up

    def weights(self, values: Tensor) -> dict[str, Weight]:
        """Return each adapted layer's matrices, strength folded in, of a vector laid out as `values`."""
        found: dict[str, Weight] = {}
        for projection, (lora, down, up) in zip(self._projections, self._split(values.detach()), strict=True):
            if isinstance(lora, Dora):
                weights = _decomposed(lora, projection, down.to(self._dtype), down, up)
            else:
                weights = _weights(lora, down, up)
            for member, weight in zip(lora.members, weights, strict=True):
                found[self._names[id(member)]] = weight
        return found


def _matrices(lora: AdapterFactors, down: Tensor, up: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return the matrices of each layer of a projection."""
    if not isinstance(lora, LoraFactors):
        parts = [part for each in lora.parts(down, up) for part in each.items()]
        random = [part for name, part in parts if name in lora.random]
        return random, [part for name, part in parts if name not in lora.random]
    return list(down.split(lora.rank)), list(up.split([rows.stop - rows.start for rows in lora.rows]))


def _decomposed(lora: Dora, projection: Projection, low: Tensor, down: Tensor, up: Tensor) -> list[Weight]:
    """Return what each layer's DoRA makes of its weight; `low` is `down` in the precision of the product."""
    lengths = lora.lengths(projection.frozen, low, up)
    return [
        decomposed_of(
            Factors(parts[DOWN], parts[UP] * lora.scale), parts[MAGNITUDE][:, 0], before=square.sqrt(), after=length
        )
        for parts, square, length in zip(lora.parts(down, up), lora.squares, lengths, strict=True)
    ]


def _weights(lora: LoraFactors | Lokr, down: Tensor, up: Tensor) -> list[Weight]:
    """Return the change of each layer of a projection."""
    if isinstance(lora, Lokr):
        return [
            kronecker_of({name: part * lora.scale if name == "lokr_w1" else part for name, part in parts.items()})
            for parts in lora.parts(down, up)
        ]
    rows = [rows.stop - rows.start for rows in lora.rows]
    pairs = zip(down.split(lora.rank), up.split(rows), strict=True)
    return [Factors(A, B * lora.scale) for A, B in pairs]


def module_names(transformer: "ZImageTransformer2DModel") -> dict[int, str]:
    """Return the name of every module by its id."""
    return {id(module): name for name, module in transformer.named_modules()}
