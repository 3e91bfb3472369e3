"""Split the keys of a LoRA file into prefix (writer), path (layer) and part (factor)."""

import re
from dataclasses import dataclass
from typing import Literal, cast

Part = Literal[
    "down",
    "up",
    "mid",
    "alpha",
    "bias",
    "dora_scale",
    "magnitude",
    "diff",
    "diff_b",
    "w_norm",
    "b_norm",
    "set_weight",
    "weight",
    "hada_w1_a",
    "hada_w1_b",
    "hada_w2_a",
    "hada_w2_b",
    "hada_t1",
    "hada_t2",
    "lokr_w1",
    "lokr_w1_a",
    "lokr_w1_b",
    "lokr_w2",
    "lokr_w2_a",
    "lokr_w2_b",
    "lokr_t2",
    "oft",
    "glora",
    "ia3",
    "t_lora",
    "vera",
    "unknown",
]
Style = Literal[
    "lora_A",
    "lora_A bare",
    "lora_A.default",
    "lora_A.other",
    "lora_down",
    "lora.down",
    "_lora.down",
    "lora_linear_layer",
    "other",
]

# What torch.compile, DDP, FSDP and checkpointing put into names, anywhere; it names no layer.
_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_ddp_wrapped_module|module)\."
    r"|(?<=_)_orig_mod_(?=layers|noise|context)"
)
# Longest first: what the trainers write and ComfyUI reads (ComfyUI v0.33.0:comfy/weight_adapter/{lora,loha,lokr}.py).
_PREFIX = re.compile(
    r"(?:base_model\.model\.(?:transformer\.|unet\.|diffusion_model\.)?|model\.diffusion_model\.|diffusion_model\."
    r"|pipe\.dit\.|dit\.|pipe\.transformer\.|transformer\.|unet\.|text_encoder(?:_\d)?\.(?:text_model\.)?|text_encoders\."
    r"|lora_transformer_|lora_prior_unet_|lora_unet__|lora_unet_|lora_te\d?_|lycoris_)"
)
TEXT_ENCODER_PREFIX = re.compile(r"lora_te\d?_|text_encoders?(?:_\d)?\.")
_ADAPTER = r"\.(?P<adapter>(?!weight$|bias$)[^.]+)"
_SUFFIXES: tuple[tuple[re.Pattern[str], Style], ...] = (
    (re.compile(r"\.lora_(?P<factor>[AB])\.weight$"), "lora_A"),
    (re.compile(r"\.lora_(?P<factor>[AB])$"), "lora_A bare"),
    (re.compile(r"\.lora_(?P<factor>[AB])\.(?P<adapter>default)\.weight$"), "lora_A.default"),
    (re.compile(rf"\.lora_(?P<factor>[AB]){_ADAPTER}(?:\.weight)?$"), "lora_A.other"),
    (re.compile(r"\.lora_(?P<factor>up|down|mid)\.weight$"), "lora_down"),
    (re.compile(r"\.lora\.(?P<factor>up|down)\.weight$"), "lora.down"),
    (re.compile(r"_lora\.(?P<factor>up|down)\.weight$"), "_lora.down"),
    (re.compile(r"\.lora_linear_layer\.(?P<factor>up|down)\.weight$"), "lora_linear_layer"),
    (re.compile(r"\.lora_B\.(?:(?P<adapter>[^.]+)\.)?(?P<factor>bias)$"), "other"),
    (re.compile(r"\.lora_(?:up|down)\.(?P<factor>bias)$"), "other"),
    (re.compile(r"\.(?P<factor>hada_(?:w[12]_[ab]|t[12])|lokr_w[12](?:_[ab])?|lokr_t2)(?:\.[^.]+)?$"), "other"),
    (re.compile(r"\.(?P<factor>alpha|dora_scale|diff|diff_b|w_norm|b_norm|set_weight)$"), "other"),
    (re.compile(rf"\.lora_(?P<factor>magnitude)_vector(?:{_ADAPTER})?(?:\.weight)?$"), "other"),
    (
        re.compile(r"\.(?P<factor>oft)_(?:R|blocks|diag)(?:\.[^.]+)?(?:\.weight)?$|\.(?:boft_[RS])(?:\.[^.]+)?$"),
        "other",
    ),
    (re.compile(r"\.rescale$"), "other"),
    (re.compile(r"\.(?:a1|a2|b1|b2)\.weight$"), "other"),
    (re.compile(r"\.on_input$|\.ia3_l(?:\.[^.]+)?$"), "other"),
    (re.compile(r"\.(?:q_layer|p_layer|lambda_layer|base_q|base_p|base_lambda)(?:\.weight)?$"), "other"),
    (re.compile(r"\.vera_lambda_[bd](?:\.[^.]+)?$"), "other"),
    (re.compile(r"\.(?P<factor>weight|bias)$"), "other"),
)
_PARTS = {"A": "down", "B": "up"}
# Suffixes that no group names: what form they belong to.
_FORMS: tuple[tuple[str, Part], ...] = (
    ("oft", "oft"),
    ("rescale", "oft"),
    ("vera", "vera"),
    (".on_input", "ia3"),
    ("ia3_l", "ia3"),
    ("_layer", "t_lora"),
    ("base_", "t_lora"),
    (".a1.", "glora"),
    (".a2.", "glora"),
    (".b1.", "glora"),
    (".b2.", "glora"),
)


@dataclass(frozen=True)
class Key:
    """One key of a LoRA file, taken apart."""

    name: str
    prefix: str  # as written, with the names that wrappers put before the layer
    path: str  # the layer's name as written, without prefix and wrappers
    part: Part
    style: Style
    adapter: str  # the name of an adapter within it, "" where there is none

    @property
    def module(self) -> str:
        """The layer's name with every separator an underscore, as all dialects can be compared."""
        return re.sub(r"[.\-/]+", "_", self.path.replace(".processor.", "."))


def split_key(name: str) -> Key:
    """Return the parts of a key; a suffix nobody is known to write makes the part `unknown`."""
    for pattern, style in _SUFFIXES:
        if found := pattern.search(name):
            groups = found.groupdict()
            factor = groups.get("factor")
            if factor is None or factor == "oft":
                part = next(form for text, form in _FORMS if text in found[0])
            else:
                part = cast(Part, _PARTS.get(factor, factor))  # the patterns name nothing but parts
            return _with_prefix(name, name[: found.start()], part, style, groups.get("adapter") or "")
    return _with_prefix(name, name, "unknown", "other", "")


def _with_prefix(name: str, stem: str, part: Part, style: Style, adapter: str) -> Key:
    bare = _WRAPPERS.sub("", stem)
    found = _PREFIX.match(bare)
    start = found.end() if found else 0
    path = bare[start:]
    # A wrapper in the middle of a layer's name makes a name that is in nobody's table.
    prefix = stem[: len(stem) - len(path)] if stem.endswith(path) else f"{bare[:start]}…"
    return Key(name, prefix, path, part, style, adapter)
