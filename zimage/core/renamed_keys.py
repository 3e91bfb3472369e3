"""Keys of params.yaml that had other names in version 0.1, and their names of today.

No stage reads this: a stage knows today's names only, so that a key that is renamed makes no other stage stale.
"""

from collections.abc import Iterator, Mapping
from typing import Any

RENAMED = {  # keys by their whole old path, to the last part of their new one
    "train.batch": "batch_size",
    "train.at_once": "micro_batch_size",
    "train.optimiser.up_rate": "lora_plus_ratio",
    "train.schedule.law": "type",
    "train.sigma": "timestep_sampling",
    "train.sigma.law": "distribution",
    "train.preservation": "prior_preservation",
    "train.preservation.batch": "batch_size",
    "train.memory.frozen": "base_quantization",
    "train.stored": "save_dtype",
    "train.explosion": "divergence_factor",
    "machine.graphs": "cuda_graphs",
    "evaluate.seeds.choosing": "selection",
    "evaluate.seeds.reporting": "test",
}
MOVED = {  # keys that stand in another section now
    "train.memory.checkpointing": "machine.checkpointing",
    "train.memory.offloaded_blocks": "machine.offloaded_blocks",
    "train.memory.graphs": "machine.cuda_graphs",
}
VALUES = {("train.memory.frozen", "plain"): "none"}


def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by `section.key` under today's names; a value may be a section, whose keys are renamed too.

    Args:
        values: Values by dotted key, under today's names or under those of 0.1. A whole params.yaml will do.
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        moved = {old: new for old, new in MOVED.items() if old.startswith(f"{key}.")}
        taken = {new: _at(value, old.removeprefix(f"{key}.")) for old, new in moved.items()}
        found |= {new: each for new, each in taken.items() if each is not _ABSENT}
        found[MOVED.get(key, new_name(key))] = _below(key, value)
    return found


def new_name(key: str) -> str:
    """Return a dotted key of 0.1 under today's name; each part of it may have been renamed."""
    parts = key.split(".")
    return ".".join(RENAMED.get(".".join(parts[: number + 1]), part) for number, part in enumerate(parts))


def old_keys(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the keys of 0.1 that stand in `values`, with what they are called now.

    Args:
        values: Values by dotted key, or a whole params.yaml.
    """
    known = {old: new_name(old) for old in RENAMED} | MOVED
    return {key: known[key] for key in _keys(values) if key in known}


_ABSENT = object()


def _below(key: str, value: Any) -> Any:
    """Return a value without what has moved to another section, all keys in it under today's names."""
    if isinstance(value, Mapping):
        below = {name: each for name, each in value.items() if f"{key}.{name}" not in MOVED}
        return {RENAMED.get(f"{key}.{name}", name): _below(f"{key}.{name}", each) for name, each in below.items()}
    return VALUES.get((key, value), value) if isinstance(value, str) else value


def _at(value: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        value = value.get(name, _ABSENT) if isinstance(value, Mapping) else _ABSENT
    return value


def _keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{name}.")
