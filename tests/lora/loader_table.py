"""Measures what diffusers and ComfyUI do with LoRA files of every way of writing, and writes
zimage/assets/loaders.json.

    ZIMAGE_COMFYUI=CHECKOUT python -m tests.lora.loader_table [TEXT]     # with TEXT: only rows whose key has it

Each row is one way of writing: prefix x names (diffusers' or native) x form (the factors and their suffixes) x strength
(none, a tensor `alpha`, metadata). Its file changes every kind of layer of a small Z-Image; both loaders read it for
real, and their change of each layer is compared with the one that the writer means.
"""

import contextlib
import json
import logging as logger
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from diffusers.utils import logging
from safetensors.torch import save_file
from torch import Tensor

from tests.lora import comfyui_oracle
from zimage.lora.files.modules import QKV, QKV_PARTS, native_name

TARGET = Path(__file__).parents[2] / "zimage" / "assets" / "loaders.json"
WIDTH, CAPTION_WIDTH, RANK = 96, 32, 4
TOLERANCE = 1e-4  # of float32 products of small factors
PREFIXES = (
    *("", "transformer.", "diffusion_model.", "model.diffusion_model.", "base_model.model.", "unet.", "pipe.dit."),
    *("base_model.model.transformer.", "lora_unet_", "lora_unet__", "lycoris_", "lora_transformer_", "module."),
    *("_orig_mod.", "transformer._orig_mod.", "diffusion_model._orig_mod.", "transformer.module."),
)
PAIRS = {
    "lora_A": (".lora_A.weight", ".lora_B.weight"),
    "lora_A bare": (".lora_A", ".lora_B"),
    "lora_A.default": (".lora_A.default.weight", ".lora_B.default.weight"),
    "lora_A.other": (".lora_A.other.weight", ".lora_B.other.weight"),
    "lora_down": (".lora_down.weight", ".lora_up.weight"),
    "lora.down": (".lora.down.weight", ".lora.up.weight"),
    "_lora.down": ("_lora.down.weight", "_lora.up.weight"),
    "lora_linear_layer": (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
}
OTHER_FORMS = (
    *("LoKr w1 w2", "LoKr w1 w2ab", "LoKr w1ab w2ab", "LoKr unbalanced", "LoHa", "DoRA in", "DoRA out"),
    *("DoRA magnitude", "DoRA both", "FP8 lora_A", "FP8 lora_down", "diff", "lora_A bias", "lora_down diff_b"),
    *("OFT", "IA3"),
)
STRENGTHS = ("none", "alpha", "metadata", "both")
# The layers of one file, by what they are for a loader.
GROUPS = {
    "attention": ("layers.0.attention.to_q", "layers.0.attention.to_k", "layers.0.attention.to_v"),
    "out": ("layers.0.attention.to_out.0",),
    "feed_forward": ("layers.0.feed_forward.w1", "layers.0.feed_forward.w2"),
    "modulation": ("layers.0.adaLN_modulation.0",),
    "refiner": ("noise_refiner.0.feed_forward.w3", "context_refiner.0.feed_forward.w2"),
    "outer": ("all_x_embedder.2-1", "all_final_layer.2-1.linear", "all_final_layer.2-1.adaLN_modulation.1"),
    "embedders": ("cap_embedder.1", "t_embedder.mlp.0", "t_embedder.mlp.2"),
}
BLOCKS = ("attention", "out", "feed_forward", "modulation", "refiner")
# Layers that are no matrices, and the text encoder's, which a file may change besides.
NORMS = {"layers.0.attention_norm1": WIDTH, "layers.0.ffn_norm2": WIDTH, "layers.0.attention.q_norm": 32}
TEXT_LAYERS = {"layers.0.self_attn.q_proj": (64, 32), "layers.0.mlp.down_proj": (32, 64)}
TEXT_PREFIXES = (
    "lora_te_",
    "lora_te1_",
    "text_encoder.",
    "text_encoders.",
    "text_encoders.qwen3_4b.transformer.model.",
)
ALSO = ("norm diff", "norm w_norm", *TEXT_PREFIXES)


@dataclass(frozen=True)
class Way:
    """One way of writing a LoRA file."""

    prefix: str
    names: str  # "diffusers" or "native"
    form: str  # a key of PAIRS or one of OTHER_FORMS
    strength: str  # one of STRENGTHS
    also: str = ""  # one of ALSO: what the file changes besides

    @property
    def key(self) -> str:
        return "|".join((self.prefix, self.names, self.form, self.strength, self.also))


@dataclass(frozen=True)
class Case:
    """A file: its tensors and metadata, and the change of each layer that its writer means."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    means: Mapping[str, Tensor]


def ways() -> Iterator[Way]:
    """Yield all ways that are measured."""
    for prefix in PREFIXES:
        for names in ("diffusers", "native"):
            for form in PAIRS:
                strengths = STRENGTHS if form in {"lora_A", "lora_down"} else STRENGTHS[:2]
                for strength in strengths:
                    yield Way(prefix, names, form, strength)
    for prefix in ("", "transformer.", "diffusion_model.", "lora_unet_", "lycoris_", "base_model.model."):
        for names in ("diffusers", "native"):
            for form in OTHER_FORMS:
                for strength in ("none", "alpha"):
                    if strength == "none" or form.startswith(("LoKr", "LoHa", "DoRA", "FP8", "lora_down")):
                        yield Way(prefix, names, form, strength)
    for prefix in ("transformer.", "diffusion_model.", ""):
        for form in ("LoKr w1 w2ab", "LoKr w1 w2", "LoHa", "DoRA magnitude"):
            yield Way(prefix, "diffusers", form, "metadata")
    for prefix in ("transformer.", "diffusion_model.", "lora_unet_"):
        for names in ("diffusers", "native"):
            for form, strength in (("lora_A", "none"), ("lora_down", "alpha"), ("lora_down diff_b", "alpha")):
                for also in ALSO:
                    yield Way(prefix, names, form, strength, also)


@cache
def model() -> ZImageTransformer2DModel:
    """Return the small Z-Image whose weights are given values."""
    made = ZImageTransformer2DModel(
        dim=WIDTH,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=3,
        n_kv_heads=3,
        cap_feat_dim=CAPTION_WIDTH,
        axes_dims=[8, 12, 12],
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return made


@cache
def weights() -> dict[str, Tensor]:
    """Return the weight of each layer of `GROUPS`, (out, in) in float32, by diffusers' name."""
    modules = dict(model().named_modules())
    return {name: modules[name].weight.detach().clone() for group in GROUPS.values() for name in group}  # type: ignore[union-attr,operator]


def make(way: Way, groups: tuple[str, ...]) -> Case:
    """Return the file of a way of writing that changes these groups of layers."""
    tensors: dict[str, Tensor] = {}
    means: dict[str, Tensor] = {}
    metadata = {"format": "pt"}
    if way.strength in {"metadata", "both"}:
        kind = {"transformer.r": RANK, "transformer.lora_alpha": 2 * RANK, "transformer.target_modules": ["to_q"]}
        if way.form.startswith(("LoKr", "LoHa")):
            kind = {"transformer.r": RANK, "transformer.alpha": 2 * RANK, "transformer.target_modules": ["to_q"]}
        if way.form == "DoRA magnitude":
            kind["transformer.use_dora"] = True
        metadata["lora_adapter_metadata"] = json.dumps(kind)
    generator = torch.Generator().manual_seed(7)
    for name, rows in _layers(way, groups):
        weight = torch.cat([weights()[row] for row in rows])
        has_bias = f"{rows[0]}.bias" in model().state_dict()
        parts, change = _form(way, weight, generator, has_bias=has_bias)
        flat = way.prefix.endswith("_") and way.prefix != ""
        written = native_name(name) if way.names == "native" and not name.endswith(QKV) else name
        stem = way.prefix + (written.replace(".", "_").replace("-", "_") if flat else written)
        if flat and way.names == "diffusers":
            stem = way.prefix + written.replace(".", "_")
        tensors |= {stem + suffix: tensor.contiguous() for suffix, tensor in parts.items()}
        for row, part in zip(rows, change.chunk(len(rows)), strict=True):
            means[row] = part
    if way.also.startswith("norm"):
        suffix = way.also.removeprefix("norm ")
        for name, width in NORMS.items():
            stem = way.prefix + (name.replace(".", "_") if way.prefix.endswith("_") else name)
            tensors[f"{stem}.{suffix}"] = torch.randn(width, generator=generator)
    elif way.also:
        for name, (out, width) in TEXT_LAYERS.items():
            stem = way.also + (name.replace(".", "_") if way.also.endswith("_") else name)
            down, up = PAIRS["lora_down"] if "down" in way.form else PAIRS["lora_A"]
            tensors |= {stem + down: torch.randn(RANK, width), stem + up: torch.randn(out, RANK)}
            tensors |= {f"{stem}.alpha": torch.tensor(float(RANK))} if way.strength == "alpha" else {}
    return Case(tensors, metadata, means)


def _layers(way: Way, groups: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the name of each layer that a file writes, and the layers of diffusers whose rows it has."""
    for group in groups:
        if group == "attention" and way.names == "native":
            yield "layers.0." + QKV, tuple(f"layers.0.{part}" for part in QKV_PARTS)
            continue
        for name in GROUPS[group]:
            yield name, (name,)


def _form(way: Way, weight: Tensor, generator: torch.Generator, *, has_bias: bool) -> tuple[dict[str, Tensor], Tensor]:
    """Return the tensors of one layer by suffix, and the change that they mean, (out, in)."""
    out, width = weight.shape

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    has_alpha = way.strength in {"alpha", "both"}
    scale = 0.5 if has_alpha else 2.0 if way.strength == "metadata" else 1.0
    alpha = {".alpha": torch.tensor(scale * RANK)} if has_alpha else {}
    form = way.form
    if form.startswith("LoKr"):
        a, b = (2, 2) if form != "LoKr unbalanced" else (out // 8, 2)
        c, d = out // a, width // b
        if form == "LoKr w1 w2":
            parts = {".lokr_w1": draw(a, b), ".lokr_w2": draw(c, d)}
            return parts | alpha, torch.kron(*parts.values())  # without a rank, alpha means nothing
        left = (
            {".lokr_w1_a": draw(a, RANK), ".lokr_w1_b": draw(RANK, b)} if "w1ab" in form else {".lokr_w1": draw(a, b)}
        )
        right = {".lokr_w2_a": draw(c, RANK), ".lokr_w2_b": draw(RANK, d)}
        first, second = _product(left), _product(right)
        return left | right | alpha, scale * torch.kron(first, second)
    if form == "LoHa":
        parts = {
            ".hada_w1_a": draw(out, RANK),
            ".hada_w1_b": draw(RANK, width),
            ".hada_w2_a": draw(out, RANK),
            ".hada_w2_b": draw(RANK, width),
        }
        one, two, three, four = parts.values()
        return parts | alpha, scale * (one @ two) * (three @ four)
    if form == "diff":
        return {".diff": (change := draw(out, width))}, change
    if form == "OFT":
        return {".oft_R.weight": draw(out // 32 or 1, 496)}, torch.full((out, width), torch.nan)
    if form == "IA3":
        return {".weight": draw(out), ".on_input": torch.tensor(False)}, torch.full((out, width), torch.nan)
    down, up = draw(RANK, width), draw(out, RANK)
    change = scale * up @ down
    if form in PAIRS:
        return dict(zip(PAIRS[form], (down, up), strict=True)) | alpha, change
    pair = PAIRS["lora_down" if "lora_down" in form or form in {"DoRA in", "DoRA out"} else "lora_A"]
    if form.startswith("FP8"):
        down, up = down.to(torch.float8_e4m3fn), up.to(torch.float8_e4m3fn)
        change = scale * up.float() @ down.float()
    parts = dict(zip(pair, (down, up), strict=True)) | alpha
    merged = weight + change
    if form == "DoRA in":
        size = weight.norm(dim=0, keepdim=True) * 1.1
        return parts | {".dora_scale": size}, merged * (size / merged.norm(dim=0, keepdim=True)) - weight
    if form in {"DoRA out", "DoRA magnitude", "DoRA both"}:
        size = weight.norm(dim=1, keepdim=True) * 1.1
        share = size / merged.norm(dim=1, keepdim=True)
        # ComfyUI divides by the norm of the weight without the LoRA, so its scale is another number in "DoRA both".
        scale = {".dora_scale": share * weight.norm(dim=1, keepdim=True) if form == "DoRA both" else size}
        magnitude = {".lora_magnitude_vector": size[:, 0]}
        sizes = {"DoRA out": scale, "DoRA magnitude": magnitude, "DoRA both": magnitude | scale}
        return parts | sizes[form], merged * share - weight
    if form == "lora_A bias":
        return parts | {".lora_B.bias": draw(out)}, change
    if form == "lora_down diff_b":
        return parts | ({".diff_b": draw(out)} if has_bias else {}), change
    return parts, change


def _product(side: Mapping[str, Tensor]) -> Tensor:
    first, *rest = side.values()
    return first @ rest[0] if rest else first


def by_diffusers(path: Path) -> dict[str, Tensor]:
    """Return the change of each layer that diffusers' own loader makes, as its forward pass shows it.

    Raises:
        Exception: whatever diffusers or peft raise.
    """
    modules = dict(_loaded(path).named_modules())
    changes = {}
    for name, weight in weights().items():
        layer = modules[name]
        with torch.no_grad():
            shown = (layer(torch.eye(weight.shape[1])) - layer(torch.zeros(1, weight.shape[1]))).T
        if not torch.allclose(shown, weight, atol=1e-6):
            changes[name] = shown - weight
    return changes


def _loaded(path: Path) -> ZImageTransformer2DModel:
    loaded = _copy()
    pipeline = ZImagePipeline(scheduler=None, vae=None, text_encoder=None, tokenizer=None, transformer=loaded)
    logging.set_verbosity(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name, local_files_only=True)
    return loaded


def _copy() -> ZImageTransformer2DModel:
    made = ZImageTransformer2DModel(**{key: value for key, value in model().config.items() if not key.startswith("_")})
    made.load_state_dict(model().state_dict())
    return made.eval()


def by_comfyui(path: Path) -> dict[str, Tensor]:
    """Return the change of each layer that ComfyUI's own loader makes, by diffusers' names."""
    found = comfyui_oracle.changes(path, _comfyui_model(), _comfyui_weights())
    changes = {}
    for name in weights():
        native = native_name(name)
        change = found.get(f"diffusion_model.{native}.weight")
        if change is None:
            continue
        part = next((at for at, part in enumerate(QKV_PARTS) if name.endswith(part)), None)
        changes[name] = change if part is None else change.chunk(3)[part]
    return {name: change for name, change in changes.items() if not torch.allclose(change, torch.zeros(()), atol=1e-6)}


@cache
def _comfyui_model() -> Any:
    return comfyui_oracle.model_of(
        dim=WIDTH, n_layers=1, n_heads=3, n_kv_heads=3, cap_feat_dim=CAPTION_WIDTH, axes_dims=[8, 12, 12]
    )


@cache
def _comfyui_weights() -> dict[str, Tensor]:
    state, found = model().state_dict(), {}
    for name in weights():
        native = native_name(name)
        if native.endswith(QKV):
            block = native.removesuffix(QKV)
            found[native] = torch.cat([state[f"{block}{part}.weight"] for part in QKV_PARTS])
        else:
            found[native] = state[f"{name}.weight"]
    return {f"diffusion_model.{name}.weight": value for name, value in found.items()}


def reading(case: Case, changes: Mapping[str, Tensor], groups: tuple[str, ...]) -> dict[str, str]:
    """Return for each group of layers what a loader made of it: whole, none, some, `x 2` or wrong."""
    said = {}
    for group in groups:
        each = {_compared(case.means[name], changes.get(name)) for name in GROUPS[group]}
        said[group] = each.pop() if len(each) == 1 else "some"
    return said


def _compared(means: Tensor, change: Tensor | None) -> str:
    if change is None:
        return "none"
    if bool(means.isnan().any()):
        return "changed"
    size = float(means.norm())
    if float((change - means).norm()) <= TOLERANCE * size:
        return "whole"
    factor = float((change * means).sum() / (means * means).sum())
    if float((change - factor * means).norm()) <= TOLERANCE * abs(factor) * size:
        return f"x {factor:.4g}"
    return "wrong"


def measured(way: Way) -> dict[str, dict[str, str]]:
    """Return what both loaders make of a way of writing: by group of layers, diffusers without and with outer ones."""
    found: dict[str, dict[str, str]] = {"diffusers": {}, "diffusers_outer": {}, "comfyui": {}}
    everything = tuple(GROUPS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lora.safetensors"
        for groups, loader in ((everything, "comfyui"), (BLOCKS, "diffusers"), (everything, "diffusers_outer")):
            case = make(way, groups)
            save_file(dict(case.tensors), path, metadata=dict(case.metadata))
            read = by_comfyui if loader == "comfyui" else by_diffusers
            try:
                found[loader] = reading(case, read(path), groups)
                if way.form.endswith("bias") and not _biases_are_read(loader, path, case):
                    found[loader] = {
                        group: "some" if answer == "whole" else answer for group, answer in found[loader].items()
                    }
            except Exception as error:  # noqa: BLE001 - what it raises is the answer
                found[loader] = {"error": type(error).__name__}
            if loader == "comfyui" and way.also:
                others = {key for key in case.tensors if key not in make(replace(way, also=""), groups).tensors}
                unread = comfyui_oracle.unread_keys(path, _comfyui_model(), with_text_encoder=True)
                found[loader]["also"] = "none" if others <= unread else "whole" if not others & unread else "some"
    return found


def _biases_are_read(loader: str, path: Path, case: Case) -> bool:
    if loader == "comfyui":
        return not comfyui_oracle.unread_keys(path, _comfyui_model())
    loaded = dict(_loaded(path).named_modules())
    for name, weight in weights().items():
        key = next((key for key in case.tensors if key.endswith(f"{name}.lora_B.bias")), None)
        with torch.no_grad():
            nothing = torch.zeros(1, weight.shape[1])
            gained = (loaded[name](nothing) - dict(model().named_modules())[name](nothing))[0]
        if key is not None and not torch.allclose(gained, case.tensors[key], atol=1e-5):
            return False
    return True


def main() -> None:
    """Measure every way and write the table."""
    logger.getLogger().addHandler(logger.NullHandler())  # ComfyUI's lines about keys it drops
    only = sys.argv[1] if len(sys.argv) > 1 else ""
    rows = json.loads(TARGET.read_text(encoding="utf-8"))["rows"] if only else {}
    todo = [way for way in ways() if only in way.key]
    for at, way in enumerate(todo):
        if at % 25 == 0:
            print(f"{at} of {len(todo)}", file=sys.stderr, flush=True)
        rows[way.key] = measured(way)
    table = {
        "about": "What loaders did with LoRA files of each way of writing; made by tests/lora/loader_table.py.",
        "versions": {
            **{name: version(name) for name in ("diffusers", "peft", "torch")},
            "ComfyUI": comfyui_oracle.version(),
        },
        "rows": rows,
    }
    with contextlib.suppress(FileNotFoundError):
        TARGET.unlink()
    TARGET.write_text(json.dumps(table, indent=None, separators=(",", ":")).replace('"},"', '"},\n"') + "\n")


if __name__ == "__main__":
    main()
