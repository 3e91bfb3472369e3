"""The modules of a Z-Image transformer that a LoRA can change: their diffusers names and their true widths."""

import re

DIM = 3840
FEED_FORWARD = 10240
NUM_LAYERS = 30
NUM_REFINERS = 2

# Names and widths: diffusers 0.42.1:models/transformers/transformer_z_image.py (ZImageTransformer2DModel and its
# defaults). `context_refiner` has no adaLN_modulation (modulation=False); `siglip_*` exist in Omni and Edit only.
_BLOCK_INNER = r"(?:attention\.(?:to_q|to_k|to_v|to_out\.0)|feed_forward\.w[123]|adaLN_modulation\.0)"
_MODULE = re.compile(
    rf"(?:(?:layers|noise_refiner|context_refiner|siglip_refiner)\.\d{{1,3}}\.{_BLOCK_INNER}"
    r"|all_x_embedder\.\d{1,2}-\d{1,2}"
    r"|all_final_layer\.\d{1,2}-\d{1,2}\.(?:linear|adaLN_modulation\.1)"
    r"|cap_embedder\.1|siglip_embedder\.1|t_embedder\.mlp\.[02])"
)
_INNER_SHAPES = {
    "attention.to_q": (DIM, DIM),
    "attention.to_k": (DIM, DIM),
    "attention.to_v": (DIM, DIM),
    "attention.to_out.0": (DIM, DIM),
    "feed_forward.w1": (FEED_FORWARD, DIM),
    "feed_forward.w2": (DIM, FEED_FORWARD),
    "feed_forward.w3": (FEED_FORWARD, DIM),
    "adaLN_modulation.0": (4 * DIM, 256),
}
_OUTER_SHAPES = {
    "all_x_embedder.2-1": (DIM, 64),
    "all_final_layer.2-1.linear": (64, DIM),
    "all_final_layer.2-1.adaLN_modulation.1": (DIM, 256),
    "cap_embedder.1": (DIM, 2560),
    "t_embedder.mlp.0": (1024, 256),
    "t_embedder.mlp.2": (256, 1024),
}


def is_module(name: str) -> bool:
    """Return whether a Z-Image of some size has a linear layer of this diffusers name."""
    return _MODULE.fullmatch(name) is not None


def released_shapes() -> dict[str, tuple[int, int]]:
    """Return the (out, in) widths of every linear layer of the released Z-Image (Base, Turbo, De-Turbo), in its order."""
    shapes = {name: _OUTER_SHAPES[name] for name in list(_OUTER_SHAPES)[:3]}
    blocks = [("noise_refiner", NUM_REFINERS), ("context_refiner", NUM_REFINERS), ("layers", NUM_LAYERS)]
    for stack, count in blocks:
        for index in range(count):
            for inner, shape in _INNER_SHAPES.items():
                if not (stack == "context_refiner" and inner == "adaLN_modulation.0"):
                    shapes[f"{stack}.{index}.{inner}"] = shape
    return shapes | _OUTER_SHAPES
