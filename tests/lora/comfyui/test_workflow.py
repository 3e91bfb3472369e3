"""The ComfyUI workflows against the signatures of ComfyUI's nodes."""

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from zimage.lora.comfyui.workflow import (
    Evaluated,
    Link,
    Node,
    Scored,
    Use,
    Variant,
    api_form,
    check,
    release_files,
    settings_of,
    signatures,
    ui_form,
    usage,
    variant_of,
    workflow,
)

OF_BASE = Evaluated("Tongyi-MAI/Z-Image", "base", side_px=512, steps=28, guidance_scale=3.0, shift=6.0)
OF_TURBO = Evaluated("Tongyi-MAI/Z-Image-Turbo", "turbo", side_px=768, steps=9, guidance_scale=0.0, shift=3.0)
USE = Use("ada.safetensors", 0.9, "a photo of ohwx woman in a park", "ohwx woman", OF_BASE)


@pytest.mark.parametrize("variant", ["base", "turbo"])
def test_both_workflows_fit_comfyuis_signatures(variant: Variant) -> None:
    check(workflow(USE, variant))


@pytest.mark.parametrize("variant", ["base", "turbo"])
def test_the_lora_stands_between_the_base_model_and_the_sampler_at_its_strength(variant: Variant) -> None:
    prompt = api_form(workflow(USE, variant))
    sampler = next(node for node in prompt.values() if node["class_type"] == "KSampler")
    shift = prompt[sampler["inputs"]["model"][0]]
    lora = prompt[shift["inputs"]["model"][0]]
    base = prompt[lora["inputs"]["model"][0]]
    assert [shift["class_type"], lora["class_type"], base["class_type"]] == [
        *("ModelSamplingAuraFlow", "LoraLoaderModelOnly", "UNETLoader"),
    ]
    assert lora["inputs"] == {"model": ["1", 0], "lora_name": "ada.safetensors", "strength_model": 0.9}
    positive = prompt[sampler["inputs"]["positive"][0]]
    assert positive["inputs"]["text"] == "a photo of ohwx woman in a park"
    assert prompt[positive["inputs"]["clip"][0]]["inputs"]["type"] == "lumina2"


def settings(evaluated: Evaluated, variant: Variant) -> dict[str, Any]:
    """Return what decides a workflow's pictures besides prompt, LoRA and noise."""
    nodes = api_form(workflow(replace(USE, evaluated=evaluated), variant))
    by_kind = {node["class_type"]: node for node in nodes.values()}
    sampler = by_kind["KSampler"]
    return {
        "model": by_kind["UNETLoader"]["inputs"]["unet_name"],
        "shift": by_kind["ModelSamplingAuraFlow"]["inputs"]["shift"],
        "side": by_kind["EmptySD3LatentImage"]["inputs"]["width"],
        "title": sampler["_meta"]["title"],
        **{key: sampler["inputs"][key] for key in ("steps", "cfg", "sampler_name", "scheduler")},
    }


def test_the_workflow_of_the_base_draws_as_the_evaluation_did() -> None:
    assert settings(OF_BASE, "base") == {
        **{"model": "z_image_bf16.safetensors", "steps": 28, "cfg": 4.0, "shift": 6.0, "side": 512},
        **{"sampler_name": "euler", "scheduler": "simple", "title": "Draw (as evaluated)"},
    }
    assert settings(OF_TURBO, "turbo") == {
        **{"model": "z_image_turbo_bf16.safetensors", "steps": 9, "cfg": 1.0, "shift": 3.0, "side": 768},
        **{"sampler_name": "euler", "scheduler": "simple", "title": "Draw (as evaluated)"},
    }


@pytest.mark.parametrize(
    ("evaluated", "variant", "steps", "cfg"), [(OF_BASE, "turbo", 8, 1), (OF_TURBO, "base", 30, 4)]
)
def test_the_other_variant_is_marked_as_not_measured(
    evaluated: Evaluated, variant: Variant, steps: int, cfg: float
) -> None:
    found = settings(evaluated, variant)
    assert (found["title"], found["steps"], found["cfg"]) == ("Draw (not measured)", steps, cfg)
    assert f"comfyui-{variant}.json (not measured: {steps} steps" in usage(replace(USE, evaluated=evaluated))


MERGED_TURBO = Scored("Z-Image-Turbo, merged", 0.7, OF_TURBO, "euler", "bfloat16", "same person in 85 % of 48 pictures")


def test_a_variant_that_was_scored_draws_as_it_was_scored_and_at_that_strength() -> None:
    use = replace(USE, scored=(MERGED_TURBO,))
    found = settings_of(use, "turbo")
    assert (found.steps, found.cfg, found.shift, found.side_px) == (9, 1, 3.0, 768)
    graph = api_form(workflow(use, "turbo"))
    assert graph["5"]["inputs"]["strength_model"] == 0.7 and graph["9"]["_meta"]["title"] == "Draw (as scored)"
    assert api_form(workflow(use, "base"))["5"]["inputs"]["strength_model"] == 0.9
    lines = usage(use).splitlines()
    assert "(as evaluated: 28 steps, cfg 4, euler, simple, shift 6, 512 px) at strength 0.9 or" in lines[0]
    assert "(as scored: 9 steps, cfg 1, euler, simple, shift 3, 768 px) at strength 0.7." in lines[0]
    assert lines[3].startswith("Scored, Z-Image-Turbo, merged: on ") and lines[3].endswith("of 48 pictures.")


@pytest.mark.parametrize(
    ("changes", "how", "strength"),
    [
        ({"made": OF_BASE}, "as scored", 0.7),  # merged, as ComfyUI does it, comes before the evaluation
        ({"made": OF_BASE, "merged_weights": None}, "as evaluated", 0.9),
        ({"made": OF_BASE, "merged_weights": "fp8"}, "as evaluated", 0.9),
        ({"made": OF_BASE, "sampler": "unipc"}, "as evaluated", 0.9),
    ],
)
def test_only_what_was_merged_as_comfyui_merges_replaces_the_evaluation(
    changes: dict[str, Any], how: str, strength: float
) -> None:
    found = settings_of(replace(USE, scored=(replace(MERGED_TURBO, **changes),)), "base")
    assert (found.measured, found.strength) == (how, strength)


@pytest.mark.parametrize(
    ("base", "shift", "guidance_scale", "variant"),
    [
        ("Tongyi-MAI/Z-Image", 6.0, 3.0, "base"),
        ("Tongyi-MAI/Z-Image-Turbo", 3.0, 0.0, "turbo"),
        ("ostris/Z-Image-De-Turbo", 3.0, 0.0, None),
        ("/models/z-image", 6.0, 3.0, "base"),
        ("/models/turbo", 3.0, 0.0, "turbo"),
        ("/models/other", 2.0, 3.0, None),
    ],
)
def test_the_variant_is_told_by_hub_id_and_else_by_how_the_base_draws(
    base: str, shift: float, guidance_scale: float, variant: Variant | None
) -> None:
    assert variant_of(base, shift, guidance_scale) == variant


def test_the_lora_of_a_base_that_comfyui_has_no_file_of_was_measured_with_neither_workflow() -> None:
    lines = usage(replace(USE, evaluated=Evaluated("ostris/Z-Image-De-Turbo", None, 512, 28, 3.0, 3.0))).splitlines()
    assert lines[0].count("not measured") == 2 and "as evaluated" not in lines[0]
    assert 'from_pretrained("ostris/Z-Image-De-Turbo"' in lines[1]


@pytest.mark.parametrize("evaluated", [OF_BASE, OF_TURBO])
def test_comfyui_visits_the_noise_levels_that_the_evaluation_did(evaluated: Evaluated) -> None:
    walk = FlowMatchEulerDiscreteScheduler(shift=evaluated.shift)
    walk.set_timesteps(
        sigmas=np.linspace(1.0, 1 / evaluated.steps, evaluated.steps), mu=0.0
    )  # zimage/model/sampling.py
    # ComfyUI 0.3.76: comfy/model_sampling.py, ModelSamplingDiscreteFlow; comfy/samplers.py, simple_scheduler
    times = np.arange(1, 1001) / 1000
    table = evaluated.shift * times / (1 + (evaluated.shift - 1) * times)
    simple = [table[-(1 + int(x * 1000 / evaluated.steps))] for x in range(evaluated.steps)] + [0.0]
    assert walk.sigmas.numpy() == pytest.approx(np.array(simple), abs=3e-3)  # its table has 1,000 levels


@pytest.mark.parametrize("variant", ["base", "turbo"])
def test_each_model_file_has_its_link_and_folder_where_comfyuis_window_looks_for_them(variant: Variant) -> None:
    nodes = ui_form(workflow(USE, variant))["nodes"]
    loaders = [node for node in nodes if node["type"] in {"UNETLoader", "CLIPLoader", "VAELoader"}]
    assert len(loaders) == 3
    for node in loaders:
        (model,) = node["properties"]["models"]
        folder = next(spec["folder"] for spec in signatures()[node["type"]]["inputs"].values() if spec.get("folder"))
        assert (model["name"], model["directory"]) == (node["widgets_values"][0], folder)
        assert re.fullmatch(
            rf"https://huggingface.co/Comfy-Org/z_image(_turbo)?/resolve/main/.*{folder}/{model['name']}", model["url"]
        )
    assert not any("models" in node["properties"] for node in nodes if node not in loaders)


@pytest.mark.parametrize("variant", ["base", "turbo"])
def test_the_window_form_is_the_same_graph_as_the_api_form(variant: Variant) -> None:
    nodes = workflow(USE, variant)
    shown, prompt = ui_form(nodes), api_form(nodes)
    kinds = {node["id"]: node["type"] for node in shown["nodes"]}
    assert kinds == {int(id_): node["class_type"] for id_, node in prompt.items()}
    edges = {
        (int(value[0]), int(id_), name)
        for id_, node in prompt.items()
        for name, value in node["inputs"].items()
        if isinstance(value, list)
    }
    assert {(link[1], link[3], _input(shown, link)["name"]) for link in shown["links"]} == edges
    for node in shown["nodes"]:
        values = [value for value in node["widgets_values"] if value != "randomize"]
        assert values == [
            prompt[str(node["id"])]["inputs"][name]
            for name in signatures()[node["type"]]["inputs"]
            if not isinstance(prompt[str(node["id"])]["inputs"][name], list)
        ]


def _input(shown: dict[str, Any], link: list[Any]) -> dict[str, Any]:
    """The input slot a link ends in; the slot and the link have to name each other."""
    node = next(node for node in shown["nodes"] if node["id"] == link[3])
    slot: dict[str, Any] = node["inputs"][link[4]]
    assert slot["link"] == link[0]
    assert slot["type"] == link[5]
    source = next(node for node in shown["nodes"] if node["id"] == link[1])
    assert link[0] in source["outputs"][link[2]]["links"]
    return slot


def test_no_two_nodes_of_the_window_form_overlap() -> None:
    boxes = [(*node["pos"], *node["size"]) for node in ui_form(workflow(USE, "base"))["nodes"]]
    for at, (x, y, width, height) in enumerate(boxes):
        for x2, y2, width2, height2 in boxes[at + 1 :]:
            assert x + width <= x2 or x2 + width2 <= x or y + height <= y2 or y2 + height2 <= y


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "LoraLoaderZImage"}, "ComfyUI has no LoraLoaderZImage"),
        ({"inputs": {"model": Link(1)}}, "takes .*strength_model"),
        (
            {"inputs": {"model": Link(2), "lora_name": "a", "strength_model": 1.0}},
            r"takes a MODEL, and node 2 gives \['CLIP'\]",
        ),
        ({"inputs": {"model": Link(99), "lora_name": "a", "strength_model": 1.0}}, "node 99 gives"),
        ({"inputs": {"model": Link(1), "lora_name": "a", "strength_model": 1000.0}}, "is out of range"),
        ({"inputs": {"model": "x", "lora_name": "a", "strength_model": 1.0}}, "has to come from a node"),
        ({"inputs": {"model": Link(1), "lora_name": 3, "strength_model": 1.0}}, "is none of"),
        ({"id": 1}, "is there twice"),
    ],
)
def test_a_workflow_that_comfyui_would_refuse_is_refused_here(change: dict[str, Any], message: str) -> None:
    nodes = workflow(USE, "base")
    at = next(at for at, node in enumerate(nodes) if node.kind == "LoraLoaderModelOnly")
    with pytest.raises(ValueError, match=message):
        check([*nodes[:at], replace(nodes[at], **change)])


@pytest.mark.parametrize(("width", "fits"), [(1024, True), (1000, False), (8, False), (1024.0, False)])
def test_sizes_are_multiples_of_16_in_range(width: float, fits: bool) -> None:
    node = Node(1, "EmptySD3LatentImage", "Size", {"width": width, "height": 16, "batch_size": 1}, 0)
    if fits:
        check([node])
    else:
        with pytest.raises(ValueError, match="out of range"):
            check([node])


def test_a_release_gets_four_workflows_and_three_lines() -> None:
    files = {file.name: file.content.decode() for file in release_files(USE)}
    assert sorted(files) == [
        *("USAGE.txt", "comfyui-base-api.json", "comfyui-base.json", "comfyui-turbo-api.json", "comfyui-turbo.json"),
    ]
    for name in files.keys() - {"USAGE.txt"}:
        assert "ada.safetensors" in json.dumps(json.loads(files[name]))
    lines = files["USAGE.txt"].splitlines()
    assert [line.split(":")[0] for line in lines] == ["ComfyUI", "diffusers", "Prompt"]
    assert all("0.9" in line for line in lines[:2])
    assert (
        "version 0.3.76 or newer" in lines[0]
        and "(as evaluated: 28 steps, cfg 4, euler, simple, shift 6, 512 px)" in lines[0]
    )
    assert 'from_pretrained("Tongyi-MAI/Z-Image"' in lines[1]
    assert "height=512, width=512, num_inference_steps=28, guidance_scale=3)" in lines[1]
    assert lines[1].endswith("(as evaluated, precision not recorded).")
    assert "'ohwx woman'" in lines[2]


def test_the_diffusers_line_names_the_precision_that_was_measured() -> None:
    of_float32 = replace(USE, evaluated=replace(OF_BASE, precision="float32"))
    line = usage(of_float32).splitlines()[1]
    assert "torch_dtype=torch.float32)" in line and line.endswith("(as evaluated, in float32).")
