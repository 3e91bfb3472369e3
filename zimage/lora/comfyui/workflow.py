"""Write ComfyUI workflows for a LoRA, with three lines of instructions. Pure functions without torch.

Every node and value is checked against comfyui_nodes.json, the signatures of ComfyUI's own nodes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal

from zimage.core.assets import read_asset

Variant = Literal["base", "turbo"]
Value = str | int | float


@dataclass(frozen=True)
class Link:
    """The first output of another node; all nodes used here have one at most."""

    node: int


@dataclass(frozen=True)
class Node:
    """One node of a workflow."""

    id: int
    kind: str
    title: str
    inputs: Mapping[str, Value | Link]
    column: int  # where it stands in the picture of the workflow


@dataclass(frozen=True)
class Evaluated:
    """What a LoRA was trained on and how its pictures were made when it was evaluated.

    Args:
        base: What diffusers' `from_pretrained` takes: a hub id, or the name of a folder.
        variant: Which released model that is; None for another one, for which ComfyUI has no file.
        side_px: Height and width.
        steps: Euler steps.
        guidance_scale: As diffusers counts: 0 is none; cfg is 1 more.
        shift: Of the noise schedule.
        precision: Of the base's weights and of the products; None where an older version did not write it down.
    """

    base: str
    variant: Variant | None
    side_px: int
    steps: int
    guidance_scale: float
    shift: float
    precision: str | None = None

    @property
    def how(self) -> str:
        """Return what the LoRA was measured with, as `as evaluated, in bfloat16`."""
        return f"as evaluated, in {self.precision}" if self.precision else "as evaluated, precision not recorded"


@dataclass(frozen=True)
class Scored:
    """A further way in which a LoRA was measured, by `zimage score`.

    Args:
        name: What it is called, such as `Z-Image-Turbo, merged`.
        strength: Of the LoRA.
        made: The base and how the pictures were made.
        sampler: As `zimage.evaluation.generate.image_cache.Sampler` names it.
        merged_weights: Precision to which the weights were rounded with the LoRA in them; None where it stayed apart.
        found: What was found, in words, such as `same person in 85 % of 48 pictures`.
    """

    name: str
    strength: float
    made: Evaluated
    sampler: str
    merged_weights: str | None
    found: str

    def __str__(self) -> str:
        made = self.made
        weights = f"merged into {self.merged_weights} weights" if self.merged_weights else f"apart, in {made.precision}"
        return (
            f"{self.name or 'as evaluated'}: on {made.base}, {weights}, {made.steps} steps, cfg "
            f"{made.guidance_scale + 1:g}, {self.sampler}, shift {made.shift:g}, {made.side_px} px, strength "
            f"{self.strength:g}: {self.found}"
        )


@dataclass(frozen=True)
class Use:
    """How a LoRA is used, for the files of a release.

    Args:
        lora: File name, as it will lie in ComfyUI's models/loras.
        strength: The strength that was chosen by measurement.
        prompt: A prompt with the trigger in it, such as `a photo of ohwx woman in a park`.
        trigger: The words that call the person.
        evaluated: With what the strength was measured.
        scored: Further ways in which it was measured.
    """

    lora: str
    strength: float
    prompt: str
    trigger: str
    evaluated: Evaluated
    scored: tuple[Scored, ...] = ()


@dataclass(frozen=True)
class Settings:
    """How pictures are made in ComfyUI.

    Args:
        steps: Of the sampler.
        cfg: 1 is no guidance.
        shift: Of the noise schedule.
        sampler: One of ComfyUI's samplers.
        side_px: Height and width.
        strength: Of the LoRA.
        measured: How the LoRA was measured so: `as evaluated`, `as scored` or `not measured`.
    """

    steps: int
    cfg: float
    shift: float
    sampler: str
    side_px: int
    strength: float
    measured: str

    def __str__(self) -> str:
        made = f"{self.steps} steps, cfg {self.cfg:g}, {self.sampler}, {SCHEDULER}, shift {self.shift:g}"
        return f"({self.measured}: {made}, {self.side_px} px) at strength {self.strength:g}"


@dataclass(frozen=True)
class ModelFile:
    """A model file that a loader of a workflow names, as ComfyUI's own templates describe theirs."""

    name: str
    url: str
    directory: str  # below ComfyUI's models/


def _model_file(repository: str, directory: str, name: str) -> ModelFile:
    address = f"https://huggingface.co/Comfy-Org/{repository}/resolve/main/split_files/{directory}/{name}"
    return ModelFile(name, address, directory)


# Files, folders and addresses: those that ComfyUI's own templates name (`settings_source` in comfyui_nodes.json).
MODELS: dict[Variant, ModelFile] = {
    "base": _model_file("z_image", "diffusion_models", "z_image_bf16.safetensors"),
    "turbo": _model_file("z_image_turbo", "diffusion_models", "z_image_turbo_bf16.safetensors"),
}
TEXT_ENCODER = _model_file("z_image_turbo", "text_encoders", "qwen_3_4b.safetensors")
VAE = _model_file("z_image_turbo", "vae", "ae.safetensors")
MODEL_FILES = {file.name: file for file in (*MODELS.values(), TEXT_ENCODER, VAE)}
# What ComfyUI's templates set for a variant that the LoRA was not evaluated with: steps, cfg, shift, sampler.
TEMPLATES: dict[Variant, tuple[int, float, float, str]] = {
    "base": (30, 4.0, 3.0, "res_multistep"),
    "turbo": (8, 1.0, 3.0, "res_multistep"),
}
# With these ComfyUI visits the noise levels that diffusers' pipeline does; a test of the workflows compares them.
SCHEDULER, EVALUATED_SAMPLER = "simple", "euler"
HUB_IDS: dict[Variant, str] = {"base": "Tongyi-MAI/Z-Image", "turbo": "Tongyi-MAI/Z-Image-Turbo"}
SHIFTS: dict[Variant, float] = {"base": 6.0, "turbo": 3.0}  # in the released schedulers
# Its loader is the first that knows the names of split attention layers (github.com/comfyanonymous/ComfyUI, pull
# requests 10978 and 10980); the one before drops 240 of the 420 keys of a LoRA on attention and feed-forward layers.
OLDEST_COMFYUI = "0.3.76"


@dataclass(frozen=True)
class ReleaseFile:
    """A file to put beside a released LoRA."""

    name: str
    content: bytes


def variant_of(base: str, shift: float, guidance_scale: float) -> Variant | None:
    """Return which released model a base is: by its hub id, or a folder by how it draws; None for neither."""
    for variant, hub_id in HUB_IDS.items():
        if base == hub_id:
            return variant
    if base.count("/") == 1 and not base.startswith(("/", "~", ".")):
        return None  # another model of the hub
    for variant, released in SHIFTS.items():
        if shift == released and (guidance_scale > 0) == (variant == "base"):
            return variant
    return None


def settings_of(use: Use, variant: Variant) -> Settings:
    """Return how a variant draws: as it was scored or evaluated with it, else as in ComfyUI's templates.

    ComfyUI merges a LoRA into bfloat16 weights, so what was scored in that way comes first.
    """
    of_variant = [
        one for one in use.scored if one.made.variant == variant and one.sampler == EVALUATED_SAMPLER
    ]  # the levels of ComfyUI's other samplers were not compared with diffusers'
    as_merged = [one for one in of_variant if one.merged_weights == "bfloat16"]
    evaluated = use.evaluated
    if as_merged:
        return _measured(as_merged[0].made, as_merged[0].strength, "as scored")
    if evaluated.variant == variant:
        return _measured(evaluated, use.strength, "as evaluated")
    if of_variant:
        return _measured(of_variant[0].made, of_variant[0].strength, "as scored")
    return Settings(*TEMPLATES[variant], evaluated.side_px, use.strength, "not measured")


def _measured(made: Evaluated, strength: float, how: str) -> Settings:
    return Settings(made.steps, made.guidance_scale + 1, made.shift, EVALUATED_SAMPLER, made.side_px, strength, how)


def release_files(use: Use) -> list[ReleaseFile]:
    """Return what belongs beside a released LoRA: workflows for Base and Turbo in both forms, and how to use it."""
    out = [ReleaseFile("USAGE.txt", usage(use).encode())]
    for variant in MODELS:
        nodes = workflow(use, variant)
        check(nodes)
        out.append(ReleaseFile(f"comfyui-{variant}.json", _json(ui_form(nodes))))
        out.append(ReleaseFile(f"comfyui-{variant}-api.json", _json(api_form(nodes))))
    return out


def usage(use: Use) -> str:
    """Return three lines: ComfyUI, diffusers, and what to write in the prompt; and one for each way it was scored."""
    evaluated = use.evaluated
    precision = evaluated.precision or "bfloat16"
    workflows = " or ".join(f"comfyui-{variant}.json {settings_of(use, variant)}" for variant in MODELS)
    return (
        f"ComfyUI: version {OLDEST_COMFYUI} or newer (older ones drop the attention layers); put {use.lora} into "
        f"models/loras and open {workflows}. Each workflow names its model files, with link and folder.\n"
        f'diffusers: pipe = ZImagePipeline.from_pretrained("{evaluated.base}", torch_dtype=torch.{precision}); '
        f"{_call(use)} ({evaluated.how}).\n"
        f"{_prompt(use)}"
        f"{_scored(use)}"
    )


def usage_of_toy(use: Use) -> str:
    """Return how a LoRA of the packaged toy model is used: with that model, and with nothing else."""
    model = 'Path(zimage.tiny.__file__).with_name("model")'
    return (
        "Toy: this LoRA is of the toy model that is packaged with zimage; with the real Z-Image it does nothing, in "
        "ComfyUI or diffusers.\n"
        f"diffusers: pipe = ZImagePipeline.from_pretrained({model}); {_call(use)} ({use.evaluated.how}).\n"
        f"{_prompt(use)}"
        f"{_scored(use)}"
    )


def _call(use: Use) -> str:
    made = use.evaluated
    return (
        f'pipe.load_lora_weights("{use.lora}", adapter_name="person"); pipe.set_adapters("person", {use.strength:g}); '
        f"pipe(prompt, height={made.side_px}, width={made.side_px}, num_inference_steps={made.steps}, "
        f"guidance_scale={made.guidance_scale:g})"
    )


def _prompt(use: Use) -> str:
    return f"Prompt: write {use.trigger!r} where the person stands, for example: {use.prompt}\n"


def _scored(use: Use) -> str:
    """Return a line for each way in which the LoRA was scored."""
    return "".join(f"Scored, {one}.\n" for one in use.scored)


def workflow(use: Use, variant: Variant) -> list[Node]:
    """Return the nodes that draw `use.prompt` with the LoRA; each comes after those it takes from."""
    settings, model = settings_of(use, variant), MODELS[variant]
    side = settings.side_px
    loaders = [
        Node(1, "UNETLoader", "Base model", {"unet_name": model.name, "weight_dtype": "default"}, 0),
        Node(
            2, "CLIPLoader", "Text encoder", {"clip_name": TEXT_ENCODER.name, "type": "lumina2", "device": "default"}, 0
        ),
        Node(3, "VAELoader", "VAE", {"vae_name": VAE.name}, 0),
        Node(4, "EmptySD3LatentImage", "Size", {"width": side, "height": side, "batch_size": 1}, 0),
    ]
    person: dict[str, Value | Link] = {"model": Link(1), "lora_name": use.lora, "strength_model": settings.strength}
    prepared = [
        Node(5, "LoraLoaderModelOnly", "The person", person, 1),
        Node(6, "ModelSamplingAuraFlow", "Shift", {"model": Link(5), "shift": settings.shift}, 2),
        Node(7, "CLIPTextEncode", "Prompt", {"text": use.prompt, "clip": Link(2)}, 1),
        _negative(settings.cfg),
    ]
    sampler: dict[str, Value | Link] = {
        "model": Link(6),
        "seed": 0,
        "steps": settings.steps,
        "cfg": settings.cfg,
        "sampler_name": settings.sampler,
        "scheduler": SCHEDULER,
        "positive": Link(7),
        "negative": Link(8),
        "latent_image": Link(4),
        "denoise": 1.0,
    }
    drawn = [
        Node(9, "KSampler", f"Draw ({settings.measured})", sampler, 2),
        Node(10, "VAEDecode", "Decode", {"samples": Link(9), "vae": Link(3)}, 3),
        Node(
            11, "SaveImage", "Save", {"images": Link(10), "filename_prefix": use.lora.removesuffix(".safetensors")}, 3
        ),
    ]
    return loaders + prepared + drawn


def _negative(cfg: float) -> Node:
    """Without guidance the negative only has to be there; with it, it is an empty prompt."""
    if cfg == 1:
        return Node(8, "ConditioningZeroOut", "No negative", {"conditioning": Link(7)}, 1)
    return Node(8, "CLIPTextEncode", "Negative prompt", {"text": "", "clip": Link(2)}, 1)


def check(nodes: Sequence[Node]) -> None:
    """Check nodes against the signatures.

    Raises:
        ValueError: a kind, an input, a type or a value that ComfyUI would refuse; the message names the node.
    """
    outputs: dict[int, list[str]] = {}
    for node in nodes:
        signature = signatures().get(node.kind)
        if signature is None:
            raise ValueError(f"node {node.id}: ComfyUI has no {node.kind}")
        if node.inputs.keys() != signature["inputs"].keys():
            raise ValueError(f"node {node.id}: {node.kind} takes {list(signature['inputs'])}, not {list(node.inputs)}")
        for name, value in node.inputs.items():
            fault = _fault(signature["inputs"][name], value, outputs)
            if fault:
                raise ValueError(f"node {node.id}: {node.kind}.{name} {fault}")
        if node.id in outputs:
            raise ValueError(f"node {node.id} is there twice")
        outputs[node.id] = signature["outputs"]


def _fault(spec: Mapping[str, Any], value: Value | Link, outputs: Mapping[int, list[str]]) -> str | None:
    kind = spec["type"]
    if isinstance(value, Link):
        given = outputs.get(value.node, [])[:1]
        return None if given == [kind] else f"takes a {kind}, and node {value.node} gives {given}"
    match kind:
        case "COMBO":
            known = spec.get("choices", [value])
            return None if isinstance(value, str) and value in known else f"is none of {known}"
        case "STRING":
            return None if isinstance(value, str) else "is no text"
        case "INT" if isinstance(value, int):
            return _range_fault(spec, value) or ("is out of range" if value % spec.get("step", 1) else None)
        case "FLOAT" if not isinstance(value, str):
            return _range_fault(spec, value)
        case "INT" | "FLOAT":
            return "is out of range"
        case _:
            return f"has to come from a node that gives a {kind}"


def _range_fault(spec: Mapping[str, Any], value: float) -> str | None:
    return None if spec["min"] <= value <= spec["max"] else "is out of range"


def api_form(nodes: Sequence[Node]) -> dict[str, Any]:
    """Return what ComfyUI's `/prompt` endpoint takes, and its menu saves as API format."""
    return {
        str(node.id): {
            "class_type": node.kind,
            "inputs": {name: _api_value(value) for name, value in node.inputs.items()},
            "_meta": {"title": node.title},
        }
        for node in nodes
    }


def _api_value(value: Value | Link) -> Value | list[str | int]:
    return [str(value.node), 0] if isinstance(value, Link) else value


def ui_form(nodes: Sequence[Node]) -> dict[str, Any]:
    """Return what ComfyUI's window opens and shows (docs.comfy.org/specs/workflow_json_0.4)."""
    links: list[list[int | str]] = []
    for node in nodes:
        for slot, (name, value) in enumerate(_linked(node).items()):
            kind = signatures()[node.kind]["inputs"][name]["type"]
            links.append([len(links) + 1, value.node, 0, node.id, slot, kind])
    heights = [0, 0, 0, 0]
    drawn = []
    for order, node in enumerate(nodes):
        height = 70 + 26 * len(node.inputs) + (90 if node.kind == "CLIPTextEncode" else 0)
        drawn.append(_ui_node(node, order, links, (400 * node.column, heights[node.column], height)))
        heights[node.column] += height + 60
    return {
        "last_node_id": max(node.id for node in nodes),
        "last_link_id": len(links),
        "nodes": drawn,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _ui_node(node: Node, order: int, links: Sequence[Sequence[int | str]], box: tuple[int, int, int]) -> dict[str, Any]:
    x, y, height = box
    arriving = {int(link[4]): link[0] for link in links if link[3] == node.id}
    leaving = [link[0] for link in links if link[1] == node.id]
    signature = signatures()[node.kind]
    return {
        "id": node.id,
        "type": node.kind,
        "title": node.title,
        "pos": [x, y],
        "size": [340, height],
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": [
            {"name": name, "type": signature["inputs"][name]["type"], "link": arriving[slot]}
            for slot, name in enumerate(_linked(node))
        ],
        "outputs": [{"name": kind, "type": kind, "links": leaving, "slot_index": 0} for kind in signature["outputs"]],
        "properties": _properties(node),
        "widgets_values": _widgets(node),
    }


def _properties(node: Node) -> dict[str, Any]:
    """Return what ComfyUI's window knows of a node: its name, its origin, and where to get the models it loads."""
    named = [file for value in node.inputs.values() if isinstance(value, str) and (file := MODEL_FILES.get(value))]
    models = {"models": [asdict(file) for file in named]} if named else {}
    return {"cnr_id": "comfy-core", "ver": OLDEST_COMFYUI, "Node name for S&R": node.kind, **models}


def _linked(node: Node) -> dict[str, Link]:
    return {name: value for name, value in _in_order(node).items() if isinstance(value, Link)}


def _in_order(node: Node) -> dict[str, Value | Link]:
    """The inputs in the signature's order, which is the order of slots and widgets."""
    return {name: node.inputs[name] for name in signatures()[node.kind]["inputs"]}


def _widgets(node: Node) -> list[Value]:
    """The values a person can edit; behind a seed stands what happens to it after each picture."""
    values: list[Value] = []
    for name, value in _in_order(node).items():
        if not isinstance(value, Link):
            values.append(value)
            if signatures()[node.kind]["inputs"][name].get("control_after_generate"):
                values.append("randomize")
    return values


@cache
def signatures() -> dict[str, Any]:
    """Return the signatures of the nodes used, by name; see the file for their source."""
    data = json.loads(read_asset("comfyui_nodes.json"))
    nodes: dict[str, Any] = data["nodes"]
    return nodes


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
