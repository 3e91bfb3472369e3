"""The optimisers of several libraries behind one name, with clipping and a moving average; resumable.

AdamW and Muon are torch's, the 8-bit AdamW is bitsandbytes', Prodigy's schedule-free form is that of
prodigy-plus-schedule-free, all others are those of pytorch-optimizer. What a value is
updated by depends on that value's own gradients alone in AdamW, so its parameters are two vectors. Adafactor, CAME and
Muon look at rows and columns, so theirs are the matrices of every layer.
"""

import json
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zimage.core.errors import InputError
from zimage.training.adapters import Adapters
from zimage.training.checkpoint import restore
from zimage.training.params import FIND_A_RATE, OptimiserName, OptimiserParams, ScheduleParams

NUMBERS = "numbers"  # what is no tensor in a torch optimiser's state, as JSON in a tensor of bytes
CAME_BETA = 0.9999  # the third decay of CAME, of the residuals; as in arXiv 2307.02047

# What each does not read in `train.optimiser` and `train.schedule`.
NOT_READ: dict[OptimiserName, tuple[str, ...]] = {
    "adafactor": ("optimiser.betas",),
    "prodigy": ("optimiser.learning_rate", "optimiser.lora_plus_ratio"),
    "schedule_free": ("optimiser.ema_decay", "schedule.type"),
    "prodigy_schedule_free": (
        "optimiser.learning_rate",
        "optimiser.lora_plus_ratio",
        "optimiser.clip_norm",
        "optimiser.ema_decay",
        "schedule.type",
    ),
}
SCHEDULE_FREE: tuple[OptimiserName, ...] = ("schedule_free", "prodigy_schedule_free")


def rate_factor(step: int, steps: int, params: ScheduleParams) -> float:
    """Return what the learning rate is multiplied with at a step, counted from 0, of `steps`."""
    if step < params.warmup_steps:
        return (step + 1) / params.warmup_steps
    if params.type == "constant":
        return 1.0
    done = (step - params.warmup_steps) / max(1, steps - params.warmup_steps)
    return params.final_fraction + (1 - params.final_fraction) * (1 + math.cos(math.pi * done)) / 2


def schedule_of(params: OptimiserParams, schedule: ScheduleParams) -> ScheduleParams:
    """Return the schedule that an optimiser takes: a schedule-free one has a warm-up and then a constant rate."""
    return schedule.model_copy(update={"type": "constant"}) if params.name in SCHEDULE_FREE else schedule


def learning_rate(params: OptimiserParams) -> float:
    """Return the learning rate of the down-matrices; Prodigy's is a factor of the one that it finds."""
    return 1.0 if params.name in FIND_A_RATE else params.learning_rate


class Optimiser:
    """The optimiser of one run. With AdamW, nothing in a step waits for the device."""

    def __init__(self, adapters: Adapters, params: OptimiserParams) -> None:
        self._adapters, self._params = adapters, params
        parts = adapters.matrices() if params.name in {"adafactor", "came", "muon"} else adapters.vectors()
        self._torch = _MAKERS[params.name]([{"params": part} for part in parts], params)
        ratio = 1.0 if params.name in FIND_A_RATE else params.lora_plus_ratio
        self._rates = [learning_rate(params) * factor * each for factor in adapters.factors for each in (1.0, ratio)]
        self.average = adapters.values.clone()
        if params.max_layer_norm > 0 and (params.name in SCHEDULE_FREE or not adapters.are_loras):
            raise InputError(
                "train.optimiser.max_layer_norm limits LoRAs whose values the optimiser keeps itself, and not those of "
                f"{params.name} with other adapters or with an average of its own; set it to 0, or train.adapter to "
                "lora and train.optimiser.name to adamw."
            )

    def step(self, rate_factor: float, number: int) -> Tensor:
        """Update the adapters and return the gradient norm before clipping, on the device.

        Args:
            rate_factor: Of the schedule.
            number: The step, counted from 0; the average forgets its beginning faster in the first ones.
        """
        gradient = self._adapters.gradient
        norm: Tensor = torch.linalg.vector_norm(gradient)
        if self._params.clip_norm > 0 and "optimiser.clip_norm" not in NOT_READ.get(self._params.name, ()):
            gradient.mul_((self._params.clip_norm / (norm + 1e-6)).clamp(max=1.0))
        for group, rate in zip(self._torch.param_groups, self._rates, strict=True):
            group["lr"] = rate * rate_factor
        self._torch.step()
        if self._params.max_layer_norm > 0:
            self._adapters.limit_changes(self._params.max_layer_norm)
        if self._averages:
            # The warm-up of the decay is that of tensorflow's ExponentialMovingAverage(num_updates).
            decay = min(self._params.ema_decay, (1 + number) / (10 + number))
            self.average.lerp_(self._adapters.values, 1 - decay)
        return norm

    @property
    def _averages(self) -> bool:
        return self._params.ema_decay > 0 and self._params.name not in SCHEDULE_FREE

    @property
    def result(self) -> Tensor:
        """Return the values that become the LoRA: the average where there is one."""
        if self._params.name in SCHEDULE_FREE:
            return self._schedule_free_average()
        return self.average if self._averages else self._adapters.values

    def _schedule_free_average(self) -> Tensor:
        """Return the average x of arXiv 2405.15682: the values are y = (1 - beta) z + beta x. They are not changed."""
        parts = []
        groups = self._torch.param_groups
        for group in (*groups[::2], *groups[1::2]):  # first all down-matrices
            (values,) = group["params"]
            z = self._torch.state[values].get("z", values)
            parts.append(torch.lerp(values.detach(), z.detach(), 1 - 1 / group["betas"][0]))
        return torch.cat(parts)

    @property
    def found_learning_rate(self) -> float | None:
        """Return the learning rate that the optimiser has found; None where it was told one."""
        return float(self._torch.param_groups[0]["d"]) if self._params.name in FIND_A_RATE else None

    def tensors(self) -> dict[str, Tensor]:
        """Return the optimiser's state; without moments before the first step."""
        found = {"values": self._adapters.values, "average": self.average}
        numbers: dict[str, Any] = {}
        for name, value in self._state().items():
            if isinstance(value, Tensor):
                found[name] = value
            else:
                numbers[name] = value
        found[NUMBERS] = torch.frombuffer(bytearray(json.dumps(numbers, sort_keys=True).encode()), dtype=torch.uint8)
        return found

    def _state(self) -> dict[str, Any]:
        """Return what changes from step to step: of parameters as `exp_avg.0`, of groups as `group.d.0`."""
        state = self._torch.state_dict()
        found: dict[str, Any] = {}
        for number, each in state["state"].items():
            for key, value in each.items():
                nested = value if isinstance(value, dict) else {"": value}  # bitsandbytes nests what it quantised
                found |= {
                    f"{key}/{name}.{number}" if name else f"{key}.{number}": part for name, part in nested.items()
                }
        for number, group in enumerate(state["param_groups"]):
            for key, value in group.items():
                if isinstance(value, float | int | Tensor):
                    found[f"group.{key}.{number}"] = value
        return found

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Restore the state that `tensors` returned."""
        restore(self._adapters.values, tensors, "values")
        restore(self.average, tensors, "average")
        saved: dict[str, Any] = json.loads(bytes(tensors[NUMBERS].tolist()))
        saved |= {name: each for name, each in tensors.items() if name not in {"values", "average", NUMBERS}}
        whole = self._torch.state_dict()
        state: dict[int, dict[str, Any]] = {}
        for name, value in saved.items():
            key, _, number = name.rpartition(".")
            # A copy on the device: what a group holds, torch would leave where it is.
            own = value.to(self._adapters.values.device, copy=True) if isinstance(value, Tensor) else value
            if key.startswith("group."):
                whole["param_groups"][int(number)][key.removeprefix("group.")] = own
            else:
                outer, _, inner = key.partition("/")
                of_parameter = state.setdefault(int(number), {})
                if inner:
                    of_parameter.setdefault(outer, {})[inner] = own
                else:
                    of_parameter[outer] = own
        self._torch.load_state_dict({**whole, "state": state})
        parameters = [each for group in self._torch.param_groups for each in group["params"]]
        for place, of_parameter in state.items():
            loaded = self._torch.state[parameters[place]]
            for key, value in of_parameter.items():
                # torch gives a state the dtype of its parameter, but one in bfloat16 goes on in bfloat16 only.
                if isinstance(value, Tensor) and loaded[key].dtype != value.dtype:
                    loaded[key] = value


Groups = list[dict[str, Any]]  # of parameters: for each factor of the learning rate first down, then up


def _adamw(groups: Groups, params: OptimiserParams) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        groups, lr=params.learning_rate, betas=_betas(params), weight_decay=params.weight_decay, fused=True
    )


def _adamw_8bit(groups: Groups, params: OptimiserParams) -> torch.optim.Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise InputError(
            "train.optimiser.name is adamw_8bit, which needs the package bitsandbytes; "
            "run `pip install 'zimage[8bit]'`, or choose another optimiser."
        ) from None
    found: torch.optim.Optimizer = AdamW8bit(
        groups, lr=params.learning_rate, betas=_betas(params), weight_decay=params.weight_decay
    )
    return found


def _adafactor(groups: Groups, params: OptimiserParams) -> torch.optim.Optimizer:
    from pytorch_optimizer import AdaFactor

    # Steps in proportion to the size of a matrix would hardly move the up-matrices, which begin as zeros.
    found: torch.optim.Optimizer = AdaFactor(
        groups,
        lr=params.learning_rate,
        betas=(None, 0.999),  # no momentum; the second is the limit of the decay, which rises with the steps
        weight_decay=params.weight_decay,
        scale_parameter=False,
        relative_step=False,
    )
    return found


def _prodigy(groups: Groups, params: OptimiserParams) -> torch.optim.Optimizer:
    from pytorch_optimizer import Prodigy

    # As its authors advise for diffusion models; without the safeguard, a warm-up is taken for steep ground.
    found: torch.optim.Optimizer = Prodigy(
        groups,
        lr=1.0,
        betas=_betas(params),
        weight_decay=params.weight_decay,
        bias_correction=True,
        safeguard_warmup=True,
    )
    return found


def _schedule_free(groups: Groups, params: OptimiserParams) -> torch.optim.Optimizer:
    from pytorch_optimizer import ScheduleFreeAdamW

    found: torch.optim.Optimizer = ScheduleFreeAdamW(
        groups, lr=params.learning_rate, betas=_betas(params), weight_decay=params.weight_decay
    )
    return found


def _prodigy_schedule_free(groups: Groups, params: OptimiserParams) -> torch.optim.Optimizer:
    from prodigyplus import ProdigyPlusScheduleFree

    # One step size for all, as Prodigy's paper has it; the package's own default is one for each group.
    found: torch.optim.Optimizer = ProdigyPlusScheduleFree(
        groups, lr=1.0, betas=_betas(params), weight_decay=params.weight_decay, split_groups=False
    )
    return found


def _came(groups: Groups, params: OptimiserParams) -> torch.optim.Optimizer:
    from pytorch_optimizer import CAME

    found: torch.optim.Optimizer = CAME(
        groups, lr=params.learning_rate, betas=(*_betas(params), CAME_BETA), weight_decay=params.weight_decay
    )
    return found


def _muon(groups: Groups, params: OptimiserParams) -> torch.optim.Optimizer:
    return torch.optim.Muon(
        groups,
        lr=params.learning_rate,
        weight_decay=params.weight_decay,
        momentum=params.betas[0],
        adjust_lr_fn="match_rms_adamw",  # so that a learning rate means what it means to AdamW
    )


_MAKERS: dict[OptimiserName, Callable[[Groups, OptimiserParams], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw_8bit": _adamw_8bit,
    "adafactor": _adafactor,
    "prodigy": _prodigy,
    "prodigy_schedule_free": _prodigy_schedule_free,
    "schedule_free": _schedule_free,
    "came": _came,
    "muon": _muon,
}


def _betas(params: OptimiserParams) -> tuple[float, float]:
    first, second = params.betas
    return first, second
