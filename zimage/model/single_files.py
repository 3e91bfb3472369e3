"""Make a folder in diffusers' layout of a base model's single files, as ComfyUI has them.

Names are mapped by diffusers' own converters, one tensor at a time, so that a file of 12 GB takes little memory. All
configurations, the tokenizer and the scheduler come from a folder in diffusers' layout, whose weights are not needed:
no size and no shift is guessed. Every name and shape is compared with the model of that configuration before anything
is written.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from zimage.core.errors import InputError
from zimage.core.folder import made_aside
from zimage.core.progress import tracked
from zimage.core.tensor_file import TensorWriter
from zimage.model.base import PARTS, cached_snapshot

if TYPE_CHECKING:
    import torch
    from torch import Tensor

logger = logging.getLogger(__name__)

WEIGHTS = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}
# Where ComfyUI looks for each part, below its folder `models`.
FOLDERS = {"transformer": ("diffusion_models", "unet"), "text_encoder": ("text_encoders", "clip"), "vae": ("vae",)}
OPTIONS = {"transformer": "--transformer", "text_encoder": "--text-encoder", "vae": "--vae"}
# ComfyUI's scaled 8-bit files: a factor beside each weight, marks, and factors of inputs, which weights do not need.
SCALES = (".scale_weight", ".weight_scale")
MARKS = ("scaled_fp8", ".scale_input", ".input_scale", ".comfy_quant")
FLOATS = {"F32", "F16", "BF16"}
FP8 = {"F8_E4M3", "F8_E5M2"}
UNUSED = ("norm_final.weight", "lm_head.weight")  # what such files may hold and the model has no place for


@dataclass(frozen=True)
class Entry:
    """A tensor of a file.

    Args:
        shape: Of it.
        dtype: As safetensors calls it, such as BF16.
    """

    shape: tuple[int, ...]
    dtype: str


def make_base(out: Path, configs: str, files: Mapping[str, Path]) -> None:
    """Write a base model's folder, whole or not at all.

    Weights keep their numbers to the last bit; 8-bit floating-point weights with factors are written as bfloat16.

    Args:
        out: The folder; an older one that this made is replaced.
        configs: A folder in diffusers' layout, or a hub id in the local cache; its weights are not read.
        files: Of each part of `WEIGHTS`, its single file.

    Raises:
        InputError: a file or a configuration is absent, or a file is not that part of this model.
    """
    described = _configurations(configs)
    if out.exists() and not (out / "model_index.json").is_file():
        raise InputError(f"{out} is there and is no base model's folder; name another one.")
    entries = {part: _entries(file) for part, file in files.items()}
    wanted = {part: _wanted(part, described) for part in files}
    for part, file in files.items():
        _check(part, file, entries[part], described, wanted[part])
    with made_aside(out) as folder:
        shutil.copyfile(described / "model_index.json", folder / "model_index.json")
        for part in PARTS:
            (folder / part).mkdir()
            for path in _copied(described / part, part):
                shutil.copyfile(path, folder / part / path.name)
        for part, file in files.items():
            _write(part, file, entries[part], described, folder / part / WEIGHTS[part], wanted=sorted(wanted[part]))


def found_in_comfyui(models: Path, given: Mapping[str, Path | None]) -> dict[str, Path]:
    """Return the file of each part: the given one, or the only one in ComfyUI's folder for it.

    Args:
        models: ComfyUI's folder `models`, or the one that holds it.
        given: Files by part; None where one is looked for.

    Raises:
        InputError: there is none, or there are several, of a part.
    """
    models = models / "models" if (models / "models").is_dir() else models
    found = {}
    for part, file in given.items():
        candidates = [path for each in FOLDERS[part] for path in sorted((models / each).rglob("*.safetensors"))]
        if file is not None:
            candidates = [file]
        elif part != "vae":
            candidates = [path for path in candidates if _looks_like(part, path)]
        elif any(path.name == "ae.safetensors" for path in candidates):  # Flux's, by the name it is handed around with
            candidates = [path for path in candidates if path.name == "ae.safetensors"]
        if len(candidates) != 1:
            places = " or ".join(str(models / each) for each in FOLDERS[part])
            names = ", ".join(path.name for path in candidates) or "no file"
            raise InputError(
                f"Of the {part.replace('_', ' ')} there should be one file in {places}, and there is {names}; "
                f"name it with {OPTIONS[part]}."
            )
        found[part] = candidates[0]
    return found


def _looks_like(part: str, path: Path) -> bool:
    """Return whether a file has names that only Z-Image's transformer, or Qwen3, has."""
    mark = "cap_embedder.1.weight" if part == "transformer" else "layers.0.self_attn.q_norm.weight"
    try:
        with safe_open(path, framework="pt") as file:
            return any(name.endswith(mark) for name in file.keys())  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError):
        return False


def _configurations(configs: str) -> Path:
    folder = Path(configs).expanduser()
    if not folder.is_dir():
        folder = cached_snapshot(configs, None) or folder
    absent = [
        name
        for name in ("model_index.json", *(f"{part}/config.json" for part in WEIGHTS), "scheduler", "tokenizer")
        if not (folder / name).exists()
    ]
    if absent:
        raise InputError(
            f"`{configs}` has no {absent[0]}: the configurations, the tokenizer and the scheduler of the model are "
            f'needed, a few MB; fetch them with: hf download {configs} --include "*.json" "*.txt" "tokenizer/*"'
        )
    return folder


def _copied(folder: Path, part: str) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_file() and (part not in WEIGHTS or path.name in {"config.json", "generation_config.json"}):
            yield path


def _entries(path: Path) -> dict[str, Entry]:
    """Return what a file holds by name."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            return {name: Entry(tuple(each.get_shape()), each.get_dtype()) for name, each in slices.items()}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is no .safetensors file that can be read ({error}); download it again.") from None


def _check(
    part: str, file: Path, entries: Mapping[str, Entry], described: Path, wanted: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse a file whose tensors are not those of the configured model.

    Raises:
        InputError: with the first difference.
    """
    import torch

    formats = {entry.dtype for name, entry in entries.items() if _is_weight(name)}
    if odd := formats - FLOATS - FP8:
        raise InputError(
            f"{file} holds weights as {', '.join(sorted(odd))}, which cannot be turned back exactly (INT8 by rotation, "
            "4 bits and the like); take the file in bfloat16, or the one in scaled FP8."
        )
    empty = {
        name: torch.empty(entry.shape, device="meta", dtype=torch.bfloat16)
        for name, entry in entries.items()
        if _is_weight(name)
    }
    found = {name: tuple(each.shape) for name, each in _renamed(part, described, list(empty), empty.__getitem__)}
    absent, unknown = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    other = sorted(name for name in wanted.keys() & found.keys() if wanted[name] != found[name])
    if absent or unknown or other:
        what = (
            f"lacks {len(absent)} tensors, such as {absent[0]}"
            if absent
            else f"holds {len(unknown)} others, such as {unknown[0]}"
            if unknown
            else f"has {other[0]} of shape {found[other[0]]} where the model has {wanted[other[0]]}"
        )
        raise InputError(f"{file} is not the {part.replace('_', ' ')} of the model in {described}: it {what}.")


def _is_weight(name: str) -> bool:
    return not name.endswith((*SCALES, *MARKS, *UNUSED))


def _wanted(part: str, described: Path) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the weights of the configured model, as its folder holds them."""
    import torch

    with torch.device("meta"):
        return {name: tuple(each.shape) for name, each in _model(part, described).state_dict().items()}


def _model(part: str, described: Path) -> "torch.nn.Module":
    from diffusers import AutoencoderKL, ZImageTransformer2DModel
    from transformers import AutoConfig, AutoModel

    if part == "text_encoder":
        encoder: torch.nn.Module = AutoModel.from_config(AutoConfig.from_pretrained(described / part))
        return encoder
    kind: Any = ZImageTransformer2DModel if part == "transformer" else AutoencoderKL
    model: torch.nn.Module = kind.from_config(_config(part, described))
    return model


def _config(part: str, described: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((described / part / "config.json").read_text(encoding="utf-8"))
    return found


def _renamed(
    part: str, described: Path, names: Sequence[str], tensor_of: "Callable[[str], Tensor]"
) -> "Iterator[tuple[str, Tensor]]":
    """Yield a file's tensors under the names of the folder; the transformer's query, key and value come apart.

    Args:
        part: Of `WEIGHTS`.
        described: The folder of configurations.
        names: In the file.
        tensor_of: Returns a tensor by its name in the file.
    """
    from diffusers.loaders.single_file_utils import (
        convert_ldm_vae_checkpoint,
        convert_z_image_transformer_checkpoint_to_diffusers,
    )

    if part == "vae":  # 0.3 GB; its converter wants all at once
        tensors = {name: tensor_of(name) for name in names}
        is_folders = any(name.startswith("encoder.down_blocks.") for name in names)
        yield from (tensors if is_folders else convert_ldm_vae_checkpoint(tensors, _config(part, described))).items()
        return
    is_folders = part == "text_encoder" or any("all_x_embedder." in name for name in names)
    for name in names:
        if is_folders:
            yield name.removeprefix("model.").removeprefix("diffusion_model."), tensor_of(name)
        else:
            yield from convert_z_image_transformer_checkpoint_to_diffusers({name: tensor_of(name)}).items()


def _write(
    part: str, file: Path, entries: Mapping[str, Entry], described: Path, target: Path, *, wanted: Sequence[str]
) -> None:
    """Write the weights of a part under the folder's names."""
    import torch

    names = [name for name in entries if _is_weight(name)]
    if any(entries[name].dtype in FP8 for name in names):
        logger.warning("%s holds 8-bit weights; what rounding to 8 bits took away does not come back", file)
    writer = TensorWriter(target, wanted, {"format": "pt"})
    with safe_open(file, framework="pt") as opened:

        def tensor_of(name: str) -> "Tensor":
            tensor: Tensor = opened.get_tensor(name)
            if entries[name].dtype not in FP8:
                return tensor
            stem = name.removesuffix(".weight")
            scale = next((opened.get_tensor(stem + each) for each in SCALES if stem + each in entries), torch.ones(()))
            scale = scale.float().reshape(-1, *[1] * (tensor.ndim - 1)) if scale.numel() > 1 else scale.float()
            return (tensor.float() * scale).to(torch.bfloat16)

        try:
            renamed = _renamed(part, described, names, tensor_of)
            for name, tensor in tracked(renamed, f"writing the {part.replace('_', ' ')}", len(wanted)):
                writer.add(name, tensor)
            writer.finish()
        finally:
            writer.close()
