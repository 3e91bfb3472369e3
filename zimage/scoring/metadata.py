"""Read prompt and seed from a picture's metadata: ComfyUI's graph, or the `parameters` of AUTOMATIC1111 and of ours.

Called in the sandboxed process that decodes the picture, never in the main process.
"""

import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image

from zimage.photos.decode import DECODER_FAULTS

MAX_PROMPT = 4000  # characters
MAX_NODES = 2000  # of a ComfyUI graph
FORMATS = ("PNG", "JPEG", "WEBP")
# A1111 writes its text into JPEG and WebP as EXIF's UserComment, whose first 8 bytes name the encoding.
COMMENT_ENCODINGS = {b"UNICODE\0": "utf-16-be", b"ASCII\0\0\0": "ascii"}
NOT_THE_PROMPT = re.compile(r"\n(?:Negative prompt|Steps):")
A1111_SEED = re.compile(r"\bSeed: (\d+)")
NETWORKS = re.compile(r"<(?:lora|lyco|lycoris|hypernet):[^<>]*>")  # A1111 loads LoRAs by such words in the prompt

# Inputs of ComfyUI's nodes, by name. A text may come from another node, such as a primitive.
TEXTS = ("text", "prompt", "string", "value", "text_g", "t5xxl", "clip_l")
SEEDS = ("seed", "noise_seed", "value")
# Where a conditioning comes from, the nearest first: the guider of a sampler, then what a node passes on.
CONDITIONINGS = ("positive", "guider", "conditioning", "conditioning_1", "conditioning_to", "cond")

Node = Mapping[str, Any]  # inputs by name: a value, or [id of a node, its output]


@dataclass(frozen=True)
class Metadata:
    """What a picture's file says of how it was made.

    Args:
        text: The prompt; "" where the file does not say.
        seed: Of the noise; None where the file does not say.
    """

    text: str = ""
    seed: int | None = None


def metadata_of(content: bytes) -> Metadata:
    """Return prompt and seed of a picture's file; what cannot be read counts as absent."""
    try:
        return _metadata_of(content)
    except DECODER_FAULTS:
        return Metadata()


def _metadata_of(content: bytes) -> Metadata:
    texts = _texts(content)
    if "parameters" in texts:
        return _of_a1111(texts["parameters"])
    for graph in (_nodes_of_api(texts.get("prompt", "")), _nodes_of_ui(texts.get("workflow", ""))):
        if (found := _of_graph(graph)).text:
            return found
    return Metadata()


def _texts(content: bytes) -> dict[str, str]:
    """Return the texts of a file by name: PNG's, or in EXIF A1111's comment and what ComfyUI writes as `name:text`."""
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        image.load()  # a PNG may have texts behind its pixels
        texts = {key: value for key, value in image.info.items() if isinstance(key, str) and isinstance(value, str)}
        exif = image.getexif()
        comment = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
        for value in exif.values():
            name, colon, text = str(value).partition(":")
            if colon and name in {"prompt", "workflow"}:
                texts.setdefault(name, text)
    if isinstance(comment, bytes) and (encoding := COMMENT_ENCODINGS.get(comment[:8])):
        texts.setdefault("parameters", comment[8:].decode(encoding, "replace"))
    return texts


def _of_a1111(parameters: str) -> Metadata:
    prompt, *rest = NOT_THE_PROMPT.split(parameters, maxsplit=1)
    seed = A1111_SEED.search(rest[0]) if rest else None
    return Metadata(NETWORKS.sub("", prompt).strip()[:MAX_PROMPT], int(seed[1]) if seed else None)


def _nodes_of_api(text: str) -> dict[str, Node]:
    """Return the nodes of a graph as ComfyUI's server takes it; none where it is no graph."""
    graph = json.loads(text) if text.lstrip().startswith("{") else {}
    nodes = {str(key): node.get("inputs") for key, node in list(graph.items())[:MAX_NODES] if isinstance(node, dict)}
    return {key: inputs for key, inputs in nodes.items() if isinstance(inputs, dict)}


def _nodes_of_ui(text: str) -> dict[str, Node]:
    """Return the nodes of a graph as ComfyUI's window saves it; its values have no names, so the first of a kind counts
    as text or seed.
    """
    graph = json.loads(text) if text.lstrip().startswith("{") else {}
    nodes, links = graph.get("nodes"), graph.get("links")
    if not isinstance(nodes, list) or not isinstance(links, list):
        return {}
    origins = {link[0]: [str(link[1]), link[2]] for link in links if isinstance(link, list) and len(link) > 2}
    found: dict[str, Node] = {}
    for node in nodes[:MAX_NODES]:
        values = node.get("widgets_values")
        values = values if isinstance(values, list) else []
        inputs: dict[str, Any] = {}
        for name, kind in (("text", str), ("seed", int)):
            first = next((value for value in values if type(value) is kind), None)
            inputs |= {} if first is None else {name: first}
        for one in node.get("inputs") or []:
            if one.get("link") in origins:
                inputs[one["name"]] = origins[one["link"]]
        found[str(node["id"])] = inputs
    return found


def _of_graph(nodes: Mapping[str, Node]) -> Metadata:
    """Return what the first sampler of a graph was asked: one whose latent no other sampler has made."""
    samplers = [key for key, node in nodes.items() if _is_link(node.get("positive")) and _has_seed(node)]
    samplers += [key for key, node in nodes.items() if _is_link(node.get("guider")) and _is_link(node.get("noise"))]
    for key in samplers:
        if not any(other in samplers for other in _upstream(nodes, key)):
            seeds = ("noise", *SEEDS) if "guider" in nodes[key] else SEEDS
            text = _followed(nodes, key, CONDITIONINGS, str)
            seed = _followed(nodes, key, seeds, int)
            return Metadata(str(text or "").strip()[:MAX_PROMPT], seed if isinstance(seed, int) else None)
    return Metadata()


def _followed(nodes: Mapping[str, Node], key: str, names: tuple[str, ...], kind: type) -> str | int | None:
    """Return the first value of a kind that these inputs of a node lead to, over as many nodes as it takes."""
    wanted = TEXTS if kind is str else SEEDS
    waiting, seen = [(key, names)], set[str]()
    while waiting:
        at, inputs = waiting.pop()
        if at in seen:
            continue
        seen.add(at)
        node = nodes.get(at, {})
        for name in inputs:
            value: str | int | None = node.get(name)
            if type(value) is kind and value != "" and name in wanted:
                return value
        onward = [node[name][0] for name in inputs if _is_link(node.get(name))]
        further = (*wanted, *CONDITIONINGS) if kind is str else wanted
        waiting += [(str(each), further) for each in reversed(onward)]
    return None


def _upstream(nodes: Mapping[str, Node], key: str) -> Iterator[str]:
    """Yield the nodes that a node takes anything from, near and far."""
    waiting, seen = [key], {key}
    while waiting:
        for value in nodes.get(waiting.pop(), {}).values():
            if _is_link(value) and (other := str(value[0])) not in seen:
                seen.add(other)
                waiting.append(other)
                yield other


def _is_link(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[1], int)


def _has_seed(node: Node) -> bool:
    return any(type(node.get(name)) is int or _is_link(node.get(name)) for name in ("seed", "noise_seed"))
