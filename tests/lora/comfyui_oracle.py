"""What ComfyUI itself does with a LoRA file for the released Z-Image: its own code, from a checkout of it.

ComfyUI is GPL-3.0 and no package ships it for Python 3.11, so nothing of it is here. The variable ZIMAGE_COMFYUI names
a checkout (tried at v0.33.0, 783545f689a0; packages comfy-kitchen 0.2.31, comfy-aimdo 0.4.13 and einops). The model is
built on the meta device, so its 12 GB take no memory; only the weights that a file changes are made, filled with zeros.
"""

import importlib.abc
import importlib.machinery
import logging
import sys
import types
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests import checkouts

VARIABLE = "ZIMAGE_COMFYUI"
# Imported by ComfyUI and not needed to read a LoRA; there is no torchvision for every build of torch.
PACKAGES = ("comfy_kitchen", "comfy_aimdo", "einops")
STUBS = ("torchvision", "torchaudio", "torchsde")


class _Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds packages of `STUBS`, with any submodule and any name in them, all without contents."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in STUBS:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Stub(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


class _Stub(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Stub(f"{self.__name__}.{name}")


def checkout() -> Path | None:
    """Return the checkout that ZIMAGE_COMFYUI names; None where it names none or a package that it needs is absent."""
    if any(find_spec(package) is None for package in PACKAGES):
        return None
    return checkouts.checkout(VARIABLE, "comfy/lora.py")


def version() -> str:
    """Return the version of the checkout, such as 0.33.0."""
    found = checkout()
    assert found is not None
    return (found / "comfyui_version.py").read_text(encoding="utf-8").rsplit('"', maxsplit=2)[1]


@cache
def _comfy() -> Any:
    """Import ComfyUI's `comfy` for a CPU."""
    found = checkout()
    assert found is not None
    sys.meta_path.append(_Stubs())  # behind all others: a package that is installed is used
    sys.path.insert(0, str(found))
    import comfy.cli_args  # type: ignore[import-not-found]

    comfy.cli_args.args.cpu = True
    import comfy.float  # type: ignore[import-not-found]
    import comfy.lora  # type: ignore[import-not-found]
    import comfy.lora_convert  # type: ignore[import-not-found]
    import comfy.model_base  # type: ignore[import-not-found]
    import comfy.supported_models  # type: ignore[import-not-found]
    import comfy.weight_adapter.lora  # type: ignore[import-not-found]

    return comfy


def model_of(**sizes: Any) -> Any:
    """Return ComfyUI's model of a Z-Image of these sizes on the meta device; the released ones unless given."""
    config = {
        "image_model": "lumina2",
        "patch_size": 2,
        "in_channels": 16,
        "dim": 3840,
        "cap_feat_dim": 2560,
        "n_layers": 30,
        "qk_norm": True,
        "n_heads": 30,
        "n_kv_heads": 30,
        "axes_dims": [32, 48, 48],
        "axes_lens": [1536, 512, 512],
        "rope_theta": 256.0,
        "ffn_dim_multiplier": 8.0 / 3.0,
        "z_image_modulation": True,
        "time_scale": 1000.0,
        "pad_tokens_multiple": 32,
        **sizes,
    }
    supported = _comfy().supported_models.ZImage(config)
    supported.set_inference_dtype(torch.float32, None)
    return supported.get_model({}, device=torch.device("meta"))


@cache
def released_model() -> Any:
    """Return ComfyUI's model of the released Z-Image on the meta device."""
    return model_of()


def unread_keys(path: Path, model: Any = None, *, with_text_encoder: bool = False) -> set[str]:
    """Return the keys that ComfyUI's loader leaves out, with the text encoder's names known to it where asked for."""
    return _patches(path, model or released_model(), with_text_encoder)[1]


@cache
def _text_encoder() -> Any:
    _comfy()
    import comfy.text_encoders.z_image  # type: ignore[import-not-found]

    return comfy.text_encoders.z_image.te()(device=torch.device("meta"), dtype=torch.float32)


def changes(path: Path, model: Any = None, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return what each changed weight of ComfyUI's model gains, (out, in) in float32, by ComfyUI's own names.

    Args:
        path: The LoRA file.
        model: ComfyUI's model; the released one unless given.
        weights: The model's weights, where the change depends on them (DoRA); zeros unless given.

    Raises:
        Exception: whatever ComfyUI raises.
    """
    model = model or released_model()
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    by_weight: dict[str, list[Any]] = {}
    for target, patch in _patches(path, model)[0].items():
        name, offset = (target, None) if isinstance(target, str) else (target[0], target[1])
        if name not in shapes:  # as ModelPatcher.add_patches: a patch for a weight that is not there is left out
            continue
        by_weight.setdefault(name, []).append((1.0, patch, 1.0, offset, None))
    found = {}
    for name, patches in by_weight.items():
        before = weights[name] if weights and name in weights else torch.zeros(shapes[name])
        found[name] = _comfy().lora.calculate_weight(patches, before.clone(), name) - before
    return found


def merged(weight: Tensor, down: Tensor, up: Tensor, *, strength: float) -> Tensor:
    """Return a weight with a LoRA merged by ComfyUI as its ModelPatcher.patch_weight_to_device does on a CPU."""
    comfy = _comfy()
    adapter = comfy.weight_adapter.lora.LoRAAdapter(set(), (up, down, None, None, None, None))
    compute = comfy.model_management.lora_compute_dtype(torch.device("cpu"))
    patches = [(strength, adapter, 1.0, None, None)]
    summed = comfy.lora.calculate_weight(patches, weight.to(compute, copy=True), "weight")
    return comfy.float.stochastic_rounding(summed, weight.dtype, seed=0)  # type: ignore[no-any-return]


def _patches(path: Path, model: Any, with_text_encoder: bool = False) -> tuple[dict[Any, Any], set[str]]:
    comfy = _comfy()
    tensors = load_file(path)
    tensors = comfy.lora_convert.convert_lora(tensors)
    unread: set[str] = set()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            unread.add(record.getMessage().removeprefix("lora key not loaded: "))

    listener = Listener()
    logging.getLogger().addHandler(listener)
    try:
        names = dict(_key_map(model))
        if with_text_encoder:
            names = comfy.lora.model_lora_keys_clip(_text_encoder(), names)
        patches = comfy.lora.load_lora(tensors, names)
    finally:
        logging.getLogger().removeHandler(listener)
    return patches, unread


_key_maps: dict[int, dict[str, Any]] = {}


def _key_map(model: Any) -> dict[str, Any]:
    """Return ComfyUI's table from a LoRA's names to weights of a model."""
    if id(model) not in _key_maps:
        _key_maps[id(model)] = _comfy().lora.model_lora_keys_unet(model, {})
    return _key_maps[id(model)]
