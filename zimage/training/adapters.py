"""The LoRA, DoRA or LoKr in training: its layers, its parameters in one vector, and saving it.

One vector for all values and one for all gradients make clipping, the optimiser, the average and the exchange between
processes one operation each, however many layers are adapted.
"""

from collections.abc import Iterator, Mapping, Sequence
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
from zimage.training.params import Adapter, LokrParams, Target, TargetParams
from zimage.training.targets import adapted_layers, own_ranks

if TYPE_CHECKING:
    from diffusers import ZImageTransformer2DModel

# A rank that no layer reaches: peft then keeps the second matrix of a LoKr whole.
_WHOLE = 2**30


def inject(
    transformer: "ZImageTransformer2DModel",
    targets: Sequence[Target | TargetParams],
    *,
    rank: int,
    dropout: float,
    generator: torch.Generator,
    adapter: Adapter = "lora",
    lokr: LokrParams | None = None,
) -> dict[str, TargetParams]:
    """Put adapters beside the targets' layers, with peft; they change nothing yet.

    Returns:
        The target of each layer, by its name.

    Args:
        transformer: Gets the adapters; its own weights are frozen.
        targets: Kinds of layers, some with blocks or values of their own.
        rank: Of every adapter whose target has none of its own. The alpha of a LoRA or DoRA is the same (strength 1).
        dropout: Of the adapters' inputs, 0 to 1; a DoRA or LoKr has none.
        generator: Draws the matrices that do not begin at zero, in peft's law (Kaiming uniform, a = sqrt(5): within
            1 / sqrt(columns)): of a LoRA or DoRA the down-matrices, of a LoKr w1 and, where w2 is factored, w2_a.
        adapter: What is put there.
        lokr: Of a LoKr.

    Raises:
        InputError: diffusers would not read the LoKr back, or the targets do not fit the base.
    """
    layers = adapted_layers(transformer, targets)
    names, ranks = list(layers), own_ranks(layers, rank)
    frozen = transformer.requires_grad_(False)
    if adapter == "lokr":
        assert lokr is not None
        inject_adapter_in_model(_lokr_config(names, rank, ranks, lokr), frozen)
    else:
        config = LoraConfig(
            r=rank,
            lora_alpha=rank,
            rank_pattern=ranks,
            alpha_pattern=ranks,
            lora_dropout=dropout,
            target_modules=names,
            use_dora=adapter == "dora",
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
    return layers


def _lokr_config(names: list[str], rank: int, ranks: Mapping[str, int], params: LokrParams) -> LoKrConfig:
    r, alpha = (_WHOLE, _WHOLE) if params.full_matrix else (rank, params.alpha)
    own = {} if params.full_matrix else ranks
    return LoKrConfig(
        r=r,
        alpha=alpha,
        decompose_factor=params.factor,
        target_modules=names,
        rank_pattern=own,
        alpha_pattern={name: alpha * own[name] / rank for name in own},  # the same strength everywhere
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
        targets: What `inject` returned; only factors of the learning rate are read, and without it all are 1.
    """

    def __init__(
        self, denoiser: Denoiser, names: dict[int, str], targets: Mapping[str, TargetParams] | None = None
    ) -> None:
        self._names, self._dtype = names, denoiser.dtype
        projections = [projection for projection in denoiser.projections() if projection.lora is not None]
        factors = {id(each): _factor(each, names, targets or {}) for each in projections}
        # Adapters of one learning rate lie side by side, so that an optimiser takes them as one vector.
        self._projections = sorted(projections, key=lambda each: factors[id(each)], reverse=True)
        self._factors = [factors[id(each)] for each in self._projections]
        self._loras: list[AdapterFactors] = [each.lora for each in self._projections if each.lora is not None]
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
    def are_loras(self) -> bool:
        """Return whether all are plain LoRAs."""
        return all(isinstance(lora, LoraFactors) for lora in self._loras)

    @torch.no_grad()
    def limit_changes(self, limit: float) -> None:
        """Scale down every LoRA whose change of its layer's weight has a larger Frobenius norm, both matrices alike.

        The norm of B A is taken from two matrices of the rank's size, so no matrix of the weight's size is made.
        """
        for lora in self._loras:
            assert isinstance(lora, LoraFactors)
            for A, B in zip(lora.exact.down.split(lora.rank), lora.exact.ups, strict=True):
                norm = ((A @ A.t()) * (B.t() @ B)).sum().clamp_min(0).sqrt() * lora.scale
                factor = (limit / norm).clamp(max=1.0).sqrt()  # 1 where the norm is 0
                A.mul_(factor)
                B.mul_(factor)

    @property
    def drop_inputs(self) -> bool:
        """Return whether the adapters have dropout."""
        return any(lora.dropout > 0 for lora in self._loras)

    @property
    def factors(self) -> list[float]:
        """Return the factors of the learning rate, each once, in the order of `vectors` and `matrices`."""
        return list(dict.fromkeys(self._factors))

    def vectors(self) -> list[torch.nn.Parameter]:
        """Return for each factor all its down-matrices and then all its up-matrices as one parameter each.

        Their gradients are parts of `gradient`.
        """
        found: dict[float, list[torch.nn.Parameter]] = {factor: [] for factor in self.factors}
        start = 0
        for sizes in (self._sizes[: len(self._loras)], self._sizes[len(self._loras) :]):
            for factor, vectors in found.items():
                stop = start + sum(size for size, own in zip(sizes, self._factors, strict=True) if own == factor)
                vectors.append(_parameter(self.values[start:stop], self.gradient[start:stop]))
                start = stop
        return [vector for pair in found.values() for vector in pair]

    def matrices(self) -> list[list[torch.nn.Parameter]]:
        """Return for each factor each of its down-matrices and then each of its up-matrices as parameters.

        Their gradients are parts of `gradient`.
        """
        found: dict[float, tuple[list[torch.nn.Parameter], ...]] = {factor: ([], []) for factor in self.factors}
        parts = zip(self._split(self.values), self._split(self.gradient), self._factors, strict=True)
        for (lora, *values), (_, *gradients), factor in parts:
            pairs = zip(_matrices(lora, *values), _matrices(lora, *gradients), strict=True)
            for side, (matrices, of_gradient) in zip(found[factor], pairs, strict=True):
                side += [_parameter(*pair) for pair in zip(matrices, of_gradient, strict=True)]
        return [side for sides in found.values() for side in sides]

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


def _parameter(values: Tensor, gradient: Tensor) -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(values)
    parameter.grad = gradient
    return parameter


def _factor(projection: Projection, names: Mapping[int, str], targets: Mapping[str, TargetParams]) -> float:
    """Return the factor of the learning rate of a projection's layers, which are of one target."""
    assert projection.lora is not None
    own = [targets[name] for member in projection.lora.members if (name := names[id(member)]) in targets]
    return own[0].learning_rate_factor if own else 1.0


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
