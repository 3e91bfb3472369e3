"""Look up what diffusers and ComfyUI did with a LoRA file written in the same way.

`loaders.json` has one row for each way of writing (prefix, names, form of the factors, where the strength is) with the
change that each loader made of each group of layers. tests/lora/loader_table.py makes it by running both loaders; its
tests run part of it again. A way that nobody measured is answered with `not measured`, never with a guess.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

from zimage.core.assets import read_asset
from zimage.lora.files.layers import Layer
from zimage.lora.files.modules import QKV, QKV_PARTS, Place, place_of
from zimage.lora.files.strength import Strengths

Reading = Literal["all", "some", "none", "other strength", "wrong", "error", "not measured"]
Loader = Literal["diffusers", "comfyui"]
NAMES: dict[Loader, str] = {"diffusers": "diffusers", "comfyui": "ComfyUI"}
FP8 = ("F8_E4M3", "F8_E5M2")
_OUTER = ("all_x_embedder.", "all_final_layer.")
_EMBEDDERS = ("cap_embedder.", "t_embedder.")
NOT_MEASURED: Final = "not measured"


@dataclass(frozen=True)
class LoaderReading:
    """How much of a file a loader applies.

    Args:
        reading: In a word; `all` only where each layer changes as its writer meant.
        layers: What it makes of how many layers: whole, none, `x 2`, wrong, …
        error: The exception that it raises, or "".
    """

    reading: Reading
    layers: Mapping[str, int]
    error: str = ""

    def sentence(self, loader: Loader) -> str:
        """Return what the loader does, as `ComfyUI applies 24 of its 54 layers`."""
        name, total = NAMES[loader], sum(self.layers.values())
        match self.reading:
            case "all":
                return f"{name} applies all of it"
            case "none":
                return f"{name} applies nothing of it"
            case "error":
                return f"{name} refuses it with a {self.error}"
            case "other strength":
                strengths = ", ".join(
                    sorted({each.removeprefix("x ") for each in self.layers if each.startswith("x ")})
                )
                return f"{name} applies it with {strengths} times the strength that its metadata tells"
            case "wrong":
                return f"{name} applies {self.layers.get('wrong', 0)} of its {total} layers as another change"
            case "not measured":
                return f"what {name} does with it was not measured"
            case _:
                return f"{name} applies {self.layers.get('whole', 0)} of its {total} layers"


@cache
def table() -> dict[str, dict[str, dict[str, str]]]:
    """Return the rows, by `prefix|names|form|strength|also`."""
    found: dict[str, dict[str, dict[str, str]]] = _data()["rows"]  # type: ignore[assignment]
    return found


@cache
def versions() -> dict[str, str]:
    """Return the versions of the loaders that were run."""
    found: dict[str, str] = _data()["versions"]  # type: ignore[assignment]
    return found


@cache
def _data() -> dict[str, object]:
    found: dict[str, object] = json.loads(read_asset("loaders.json"))
    return found


def readings(layers: Sequence[Layer], strengths: Strengths) -> dict[Loader, LoaderReading]:
    """Return what each loader makes of a file's layers."""
    others = [layer for layer in layers if _is_other(layer)]
    picture = [layer for layer in layers if not _is_other(layer)]
    also = _also(others)
    native = any(place is not None and place.naming == "native" for place in map(_place, picture))
    names = "native" if native else "diffusers"
    balanced = is_balanced(picture)
    ways = {layer.module + layer.style: _way(layer, names, strengths, balanced=balanced) for layer in picture}
    return {
        "diffusers": _by_diffusers(picture, others, ways, also),
        "comfyui": _by_comfyui(picture, others, ways, also),
    }


def _is_other(layer: Layer) -> bool:
    return layer.is_text_encoder or layer.kind == "norm" or _is_siglip(layer)


def _is_siglip(layer: Layer) -> bool:
    return layer.module.startswith("siglip")


def _place(layer: Layer) -> Place | None:
    return place_of(layer.module)


def _by_diffusers(
    picture: Sequence[Layer], others: Sequence[Layer], ways: Mapping[str, str], also: str | None
) -> LoaderReading:
    """diffusers looks at all keys before it reads one, so the file must be of one measured way."""
    forms = set(ways.values())
    rows = [_row(way, also) for way in forms]
    if not rows or None in rows or also is None:
        return _not_measured(picture, others)
    outer = any(_group(layer) in {"outer", "embedders"} for layer in picture)
    found: Counter[str] = Counter()
    for layer in picture:
        row = _row(ways[layer.module + layer.style], also)
        assert row is not None
        answers = row["diffusers_outer" if outer else "diffusers"]
        if "error" in answers:
            return LoaderReading("error", {"error": len(picture) + len(others)}, answers["error"])
        found[answers.get(_group(layer), NOT_MEASURED)] += 1
    if len(forms) > 1 and set(found) != {"none"} and not _are_lokr_of_one_way(forms):
        return _not_measured(picture, others)
    if others:
        found["none"] += len(others)
    return LoaderReading(_word(found), found)


def _are_lokr_of_one_way(forms: Collection[str]) -> bool:
    """Whether ways differ only in which layers of a LoKr keep their second matrix whole.

    diffusers gives each layer its own rank then (test_lokr.py: a file of both is applied whole).
    """
    alike = {form.replace("|LoKr w1 w2ab|", "|LoKr w1 w2|") for form in forms}
    return len(alike) == 1 and "|LoKr w1 w2|" in next(iter(alike))


def _by_comfyui(
    picture: Sequence[Layer], others: Sequence[Layer], ways: Mapping[str, str], also: str | None
) -> LoaderReading:
    """ComfyUI looks up each layer by itself."""
    found: Counter[str] = Counter()
    for layer in picture:
        row = _row(ways[layer.module + layer.style], "") or _row(ways[layer.module + layer.style], also)
        if row is None:
            found[NOT_MEASURED] += 1
        elif "error" in row["comfyui"]:
            return LoaderReading("error", {"error": len(picture)}, row["comfyui"]["error"])
        else:
            found[row["comfyui"].get(_group(layer), NOT_MEASURED)] += 1
    for layer in others:
        found[_other_by_comfyui(layer)] += 1
    return LoaderReading(_word(found), found)


def _other_by_comfyui(layer: Layer) -> str:
    """What ComfyUI makes of a norm's or a text encoder's layer: measured beside pairs of the commonest names."""
    if _is_siglip(layer):
        return "none"  # no model that is built from the released weights has them
    if layer.kind == "norm":
        also = "norm w_norm" if "w_norm" in layer.keys else "norm diff"
        ways = [f"{layer.prefix}|{names}|lora_down|alpha" for names in ("native", "diffusers")]
    else:
        also, ways = _text_prefix(layer), ["diffusion_model.|diffusers|lora_down|alpha"]
    rows = [row for way in ways if (row := _row(way, also)) is not None]
    return rows[0]["comfyui"].get("also", NOT_MEASURED) if rows else NOT_MEASURED


def _not_measured(picture: Sequence[Layer], others: Sequence[Layer]) -> LoaderReading:
    return LoaderReading(NOT_MEASURED, {NOT_MEASURED: len(picture) + len(others)})


def _word(found: Mapping[str, int]) -> Reading:
    kinds = {answer for answer, count in found.items() if count}
    if kinds == {"whole"}:
        return "all"
    if NOT_MEASURED in kinds:
        return NOT_MEASURED
    if kinds == {"none"} or not kinds:
        return "none"
    if kinds & {"wrong", "changed"}:
        return "wrong"
    if all(kind.startswith("x ") or kind == "whole" for kind in kinds):
        return "other strength"
    return "some"


def _row(way: str, also: str | None) -> dict[str, dict[str, str]] | None:
    return table().get(f"{way}|{also}") if also is not None else None


def _also(others: Sequence[Layer]) -> str | None:
    """Return what else a file changes, as the table names it; None for what was not measured."""
    if any(map(_is_siglip, others)):
        return None
    kinds = {
        ("norm w_norm" if "w_norm" in layer.keys else "norm diff") if layer.kind == "norm" else _text_prefix(layer)
        for layer in others
    }
    return next(iter(kinds)) if len(kinds) == 1 else None if kinds else ""


def _text_prefix(layer: Layer) -> str:
    full = layer.prefix + layer.path
    longest = "text_encoders.qwen3_4b.transformer.model."
    return longest if full.startswith(longest) else layer.prefix


def _way(layer: Layer, names: str, strengths: Strengths, *, balanced: bool) -> str:
    return "|".join((layer.prefix, names, form_of(layer, balanced=balanced), _where_strength_is(layer, strengths)))


def _where_strength_is(layer: Layer, strengths: Strengths) -> str:
    has_alpha = "alpha" in layer.keys
    if strengths.source != "metadata":  # no loader reads a configuration beside the file
        return "alpha" if has_alpha else "none"
    strength = strengths.of(layer.path, layer.rank)
    if strength is None or (strength == 1.0 and not has_alpha):
        return "alpha" if has_alpha else "none"
    return "both" if has_alpha else "metadata"


def form_of(layer: Layer, *, balanced: bool = True) -> str:
    """Return the form of a layer's tensors, as the table names it."""
    match layer.kind:
        case "LoKr":
            first = "w1ab" if "lokr_w1_a" in layer.keys else "w1"
            second = "w2ab" if "lokr_w2_a" in layer.keys else "w2"
            return "LoKr unbalanced" if not balanced else f"LoKr {first} {second}"
        case "DoRA":
            if is_dora_for_both(layer):
                return "DoRA both"
            if "magnitude" in layer.keys:
                return "DoRA magnitude"
            shape = layer.entries["dora_scale"].shape
            return "DoRA in" if len(shape) == 2 and shape[0] == 1 else "DoRA out"
        case "LoRA":
            fp8 = any(entry.dtype in FP8 for entry in layer.entries.values())
            style = f"FP8 {layer.style}" if fp8 else layer.style
            extra = next((part for part in ("bias", "diff_b") if part in layer.keys), None)
            return f"{style} {extra}" if extra else style
        case "full weights":
            return "diff" if set(layer.keys) <= {"diff", "diff_b"} else "full weights"
        case kind:
            return kind


def is_dora_for_both(layer: Layer) -> bool:
    """Return whether a DoRA layer has the lengths of its rows in both forms; see `zimage.lora.files.portable`."""
    scale = layer.entries.get("dora_scale")
    return "magnitude" in layer.keys and scale is not None and len(scale.shape) == 2 and scale.shape[1] == 1


@dataclass(frozen=True)
class Product:
    """The shapes of a Kronecker product, as a file keeps it.

    Args:
        out: Rows of the weight that it changes.
        width: Its columns.
        left: Shape of the first matrix.
        left_rank: Rank of the first matrix where it is kept as two factors, else None.
        right_rank: The same of the second matrix.
    """

    out: int
    width: int
    left: tuple[int, int]
    left_rank: int | None
    right_rank: int | None


def product_of(shapes: Mapping[str, Sequence[int]]) -> Product:
    """Return what a file keeps of a Kronecker product whose tensors have these shapes, by their suffixes."""
    sides, ranks = [], []
    for name in ("lokr_w1", "lokr_w2"):
        whole = shapes.get(name)
        sides.append((whole[0], whole[1]) if whole else (shapes[f"{name}_a"][0], shapes[f"{name}_b"][1]))
        ranks.append(None if whole else shapes[f"{name}_b"][0])
    left, right = sides
    return Product(left[0] * right[0], left[1] * right[1], left, ranks[0], ranks[1])


def peft_makes(products: Sequence[Product]) -> bool:
    """Return whether diffusers reads a file of these Kronecker products: peft must make matrices of the same shapes.

    diffusers 0.42.1:utils/peft_utils.py:_create_lokr_config looks for one factor that divides rows and columns of all
    layers alike; peft 0.21:tuners/lokr/layer.py decides by the rank which of the two matrices it keeps as factors.
    """
    candidates = [*sorted({product.left[0] for product in products}), -1]
    both = any(product.left_rank is not None for product in products)
    return all(_same_factors(product, both=both) for product in products) and any(
        all(
            (factorized(product.out, factor)[0], factorized(product.width, factor)[0]) == product.left
            for product in products
        )
        for factor in candidates
    )


def _same_factors(product: Product, *, both: bool) -> bool:
    rows, columns = product.left
    if not rows or not columns:
        return False
    right = max(product.out // rows, product.width // columns)
    rank = product.right_rank or product.left_rank or right
    left_is_factored = both and rank < max(product.left) / 2
    right_is_factored = rank < right / 2
    return (
        left_is_factored == (product.left_rank is not None)
        and right_is_factored == (product.right_rank is not None)
        and product.left_rank in {None, rank}
    )


def is_balanced(layers: Sequence[Layer]) -> bool:
    """Return whether diffusers reads the Kronecker products of a file; see `peft_makes`."""
    return peft_makes([_product(layer) for layer in layers if layer.kind == "LoKr" and layer.shape is not None])


def _product(layer: Layer) -> Product:
    assert layer.shape is not None
    whole, first = layer.entries.get("lokr_w1"), layer.entries.get("lokr_w1_a")
    second, right = layer.entries.get("lokr_w1_b"), layer.entries.get("lokr_w2_b")
    if whole is not None:
        left = (whole.shape[0], whole.shape[-1]) if whole.shape else (0, 0)
    else:
        left = (first.shape[0], second.shape[-1]) if first is not None and second is not None else (0, 0)
    left_rank = first.shape[-1] if whole is None and first is not None else None
    return Product(*layer.shape, left, left_rank, right.shape[0] if right is not None else None)


def factorized(dimension: int, factor: int) -> tuple[int, int]:
    """Return two factors of a number, near `factor` or near its root: peft 0.21:tuners/lokr/layer.py:factorization."""
    if factor > 0 and dimension % factor == 0:
        return factor, dimension // factor
    limit = dimension if factor == -1 else factor
    first, second = 1, dimension
    while first < second:
        candidate = next(n for n in range(first + 1, dimension + 1) if dimension % n == 0)
        other = dimension // candidate
        if candidate + other > first + second or candidate > limit:
            break
        first, second = candidate, other
    return min(first, second), max(first, second)


def _group(layer: Layer) -> str:
    place = place_of(layer.module)
    name = place.name if place is not None else ""
    if name.startswith(_OUTER):
        return "outer"
    if name.startswith(_EMBEDDERS):
        return "embedders"
    if name.endswith((QKV, *QKV_PARTS)):
        return "attention"
    if name.endswith("to_out.0"):
        return "out"
    if "adaLN_modulation" in name:
        return "modulation"
    return "feed_forward"
