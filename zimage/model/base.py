"""The base model: find it, check its identity, and open it or one part of it.

A base is named in params.yaml as the packaged tiny one, a folder or a hub id, and pinned by the hashes of its files or
its commit: the same name with other weights is another base. Nothing here downloads.
"""

import gc
import hashlib
import json
import logging
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zimage.tiny
from zimage.core.errors import InputError
from zimage.core.section import Section
from zimage.model.tokens import open_tokenizer

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

TINY = "tiny"
PIPELINE_CLASS = "ZImagePipeline"
TRANSFORMER_CLASS = "ZImageTransformer2DModel"
PARTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
TURBO_SHIFT = 3.0  # of the released Turbo's noise schedule; Base has 6.0
UNDISTILLED = re.compile(r"de[-_ ]?(turbo|distill)", re.IGNORECASE)  # in the names of such derivatives of Turbo
PARTS_WITH_WEIGHTS = ("text_encoder", "transformer", "vae")
# What from_pretrained reads: weights, configurations, tokenizer tables, chat templates. Not pictures nor licences.
IDENTITY_SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".model", ".jinja"})
PICKLED = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
HASHED_AT_ONCE = 8


class Base(Section):
    """The model that is adapted."""

    model: str
    """`tiny` (packaged), a folder in diffusers' layout, or a hub id whose files are in the local cache."""
    identity: str
    """`sha256:<hex>` over the folder's files, or `hub:<commit>`."""


def find(model: str) -> Path:
    """Return the folder of `model`; its layout is checked and its files are not hashed.

    Raises:
        InputError: there is no such folder or cached repository, or it does not hold Z-Image.
    """
    folder = _folder_of(model) or _cached(model, revision=None)
    check_layout(folder)
    return folder


def identify(model: str) -> str:
    """Return what pins `model`: `sha256:<hex>` over a folder's names and contents, `hub:<commit>` for a cached hub id.

    Raises:
        InputError: there is no such folder or cached repository, or it does not hold Z-Image.
    """
    folder = find(model)
    return f"hub:{folder.name}" if _folder_of(model) is None else identify_folder(folder)


def identify_files(files: Iterable[Path], folder: Path) -> str:
    """Return `sha256:<hex>` over names (relative to `folder`) and contents of files, whatever their order."""
    kept = sorted(path for path in files if path.is_file())
    with ThreadPoolExecutor(HASHED_AT_ONCE) as pool:
        digests = list(pool.map(_digest, kept))
    lines = [f"{path.relative_to(folder).as_posix()} {digest}\n" for path, digest in zip(kept, digests, strict=True)]
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def is_packaged(model: str) -> bool:
    """Return whether a base is the toy model of this package: real and tiny, of a width that no released model has."""
    return model == TINY


def public_name(model: str) -> str:
    """Return the name of a base without its place on this machine: a hub id, `tiny`, or the folder's own name."""
    return model if _folder_of(model) is None else Path(model).name


def shift_of(folder: Path) -> float:
    """Return the shift of a resolved base's noise schedule (Base 6.0, Turbo 3.0 as released)."""
    config = _read_json(folder / "scheduler" / "scheduler_config.json") or {}
    return float(config.get("shift", 1.0))  # diffusers' own default


def is_turbo(model: str, folder: Path) -> bool:
    """Return whether a resolved base is the distilled Turbo, by its name, or else by its noise schedule."""
    name = Path(model).name
    if is_packaged(model) or UNDISTILLED.search(name):
        return False
    return "turbo" in name.lower() or shift_of(folder) == TURBO_SHIFT


def resolve(base: Base) -> Path:
    """Return the folder of `base` after checking that it is the very model its identity names.

    Raises:
        InputError: it is absent, it is not Z-Image, or its files are not those that were pinned.
    """
    folder = _folder_of(base.model)
    if folder is None:
        folder = _cached(base.model, revision=_commit_of(base))
        check_layout(folder)
        return folder
    check_layout(folder)
    found = identify_folder(folder)
    if found != base.identity:
        raise InputError(
            f"The base model `{base.model}` is {found}, but params.yaml pins {base.identity}; "
            f"restore the pinned files, or set base.identity to {found} if the change is meant."
        )
    return folder


def check_layout(folder: Path) -> None:
    """Refuse a folder that diffusers' ZImagePipeline could not open.

    Raises:
        InputError: one sentence with what the folder holds and what is wanted.
    """
    wanted = f"a Z-Image folder in diffusers' layout (model_index.json of a {PIPELINE_CLASS}) is wanted for base.model"
    if folder.is_file():
        raise InputError(f"{folder} is a single file, but {wanted}; `zimage base` makes one of single files.")
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}, and {wanted}; `tiny` names the packaged one.")
    index = _read_json(folder / "model_index.json")
    if index is None:
        raise InputError(f"{folder} has no readable model_index.json, but {wanted}.")
    transformer = _read_json(folder / "transformer" / "config.json") or {}
    if index.get("_class_name") != PIPELINE_CLASS or transformer.get("_class_name") != TRANSFORMER_CLASS:
        raise InputError(f"{folder} holds {_described(index)}, but {wanted}; its adapters would not fit another model.")
    absent = [part for part in PARTS if not (folder / part).is_dir()]
    if absent:
        raise InputError(f"{folder} lacks {', '.join(absent)}, but {wanted}; copy the model again, whole.")
    for part in PARTS_WITH_WEIGHTS:
        require_safetensors(folder / part)


def require_safetensors(folder: Path) -> None:
    """Refuse a model's folder without safetensors weights: other formats are pickles, which run code when opened.

    Raises:
        InputError: it has none.
    """
    if not any(folder.glob("*.safetensors")):
        others = ", ".join(sorted(path.name for path in folder.glob("*") if path.suffix in PICKLED)) or "none"
        raise InputError(
            f"{folder} has no weights in .safetensors files (others: {others}), and pickled weights are never opened, "
            "since they can run code; save the model with `save_pretrained`, or copy its .safetensors files."
        )


def import_pipeline() -> None:
    """Import the libraries of `open_pipeline` and `open_text_encoder`, so that those return sooner.

    What the libraries made stays until the end, so no garbage collection looks at it again, which would take 0.3 s.
    """
    from diffusers import ZImagePipeline  # noqa: F401
    from transformers import AutoModel  # noqa: F401

    gc.freeze()


def open_pipeline(
    folder: Path, *, device: "torch.device | str", dtype: "torch.dtype", travelling: bool = False
) -> "ZImagePipeline":
    """Return diffusers' own pipeline of a resolved base, to sample from texts that are embedded already.

    Args:
        folder: Of the base.
        device: Where it computes.
        dtype: Of the transformer; the autoencoder stays in float32.
        travelling: The transformer's blocks wait in the machine's memory, and each comes to the device when its turn is
            near. That costs time and changes no picture.
    """
    import torch
    from diffusers import ZImagePipeline

    _convolve_in_float32()
    dtypes = {"default": dtype, "vae": torch.float32}
    pipeline = ZImagePipeline.from_pretrained(
        folder, text_encoder=None, tokenizer=None, dtype=dtypes, local_files_only=True, use_safetensors=True
    )
    if not travelling:
        return pipeline.to(device)
    let_travel(pipeline.transformer, torch.device(device))
    pipeline.vae.to(device)
    return pipeline


def let_travel(transformer: "ZImageTransformer2DModel", device: "torch.device") -> None:
    """Keep a transformer in the machine's memory; each block crosses to the device while the one before it computes."""
    transformer.enable_group_offload(
        onload_device=device,
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=device.type == "cuda",
    )


def open_text_encoder(folder: Path, *, dtype: "torch.dtype") -> "tuple[PreTrainedTokenizerBase, PreTrainedModel]":
    """Return the tokenizer and the text encoder (frozen, in evaluation mode) of a resolved base.

    It lies in the machine's memory; `zimage.model.text.embed` takes it to a device layer by layer.
    """
    from transformers import AutoModel

    tokenizer = open_tokenizer(folder)
    encoder = AutoModel.from_pretrained(
        folder / "text_encoder", dtype=dtype, local_files_only=True, use_safetensors=True
    )
    return tokenizer, encoder.eval().requires_grad_(False)


def open_vae(folder: Path, *, device: "torch.device | str") -> "AutoencoderKL":
    """Return the autoencoder of a resolved base, frozen, in float32: its half-precision latents drift."""
    import torch
    from diffusers import AutoencoderKL

    _convolve_in_float32()
    vae = AutoencoderKL.from_pretrained(
        folder / "vae", dtype=torch.float32, local_files_only=True, use_safetensors=True
    )
    return vae.to(device).eval().requires_grad_(False)


def open_transformer(folder: Path, *, device: "torch.device | str", dtype: "torch.dtype") -> "ZImageTransformer2DModel":
    """Return the transformer of a resolved base, frozen, in evaluation mode."""
    from diffusers import ZImageTransformer2DModel

    transformer = ZImageTransformer2DModel.from_pretrained(
        folder / "transformer", dtype=dtype, local_files_only=True, use_safetensors=True
    )
    return transformer.to(device).eval().requires_grad_(False)


def open_scheduler(folder: Path) -> "FlowMatchEulerDiscreteScheduler":
    """Return the scheduler of a resolved base; its own config decides the shift (Base 6.0, Turbo 3.0 as released)."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    logger.info("scheduler of %s: shift %s", folder, scheduler.config.shift)
    return scheduler


def _convolve_in_float32() -> None:
    """Keep cuDNN from rounding to TF32, as it does by default: that has as few digits as float16."""
    import torch

    torch.backends.cudnn.allow_tf32 = False


def _folder_of(model: str) -> Path | None:
    """Return the folder that `model` names, or None for what can only be a hub id ("owner/name" and no folder here)."""
    if model == TINY:
        return Path(zimage.tiny.__file__).with_name("model")
    path = Path(model).expanduser()
    looks_like_id = model.count("/") == 1 and not model.startswith((".", "/", "~"))
    return None if looks_like_id and not path.exists() else path


def _cached(model: str, revision: str | None) -> Path:
    folder = cached_snapshot(model, revision)
    if folder is None:
        pinned = f" --revision {revision}" if revision else ""
        raise InputError(
            f"`{model}` is neither a folder here nor in the local hub cache{f' at {revision}' if revision else ''}; "
            f"run `hf download {model}{pinned}` once, or name a folder in base.model."
        )
    return folder


def cached_snapshot(model: str, revision: str | None) -> Path | None:
    """Return the folder of a hub id in the local cache, None where it is not there; nothing is downloaded.

    Args:
        model: The hub id.
        revision: A commit; None takes the newest that is cached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _commit_of(base: Base) -> str:
    kind, _, commit = base.identity.partition(":")
    if kind != "hub" or not commit:
        raise InputError(
            f"The base model `{base.model}` is a hub id (there is no such folder here), but base.identity is "
            f"`{base.identity}`; give the commit as `hub:<commit>`, or the folder that was pinned."
        )
    return commit


def identify_folder(folder: Path) -> str:
    """Return `sha256:<hex>` over names and contents of what a model is read from: weights, settings, tokenizers."""
    return identify_files([path for path in folder.rglob("*") if _counts(path.relative_to(folder))], folder)


def _counts(relative: Path) -> bool:
    return relative.suffix in IDENTITY_SUFFIXES and not any(part.startswith(".") for part in relative.parts)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _described(index: dict[str, Any]) -> str:
    denoiser = index.get("transformer") or index.get("unet") or [None, "no transformer"]
    return f"a {index.get('_class_name', 'pipeline without a class name')} with {denoiser[-1]}"
