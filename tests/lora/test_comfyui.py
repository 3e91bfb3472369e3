"""The ComfyUI workflows against the signatures of ComfyUI's nodes."""

import json
from dataclasses import replace
from typing import Any

import pytest

from zimage.lora.comfyui import Link, Node, Use, Variant, api_form, check, release_files, signatures, ui_form, workflow

USE = Use("ada.safetensors", 0.9, "a photo of ohwx woman in a park", "ohwx woman")


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


def test_turbo_is_drawn_in_few_steps_without_guidance_and_base_with_it() -> None:
    settings = {}
    for variant in ("base", "turbo"):
        prompt = api_form(workflow(USE, variant))
        sampler = next(node for node in prompt.values() if node["class_type"] == "KSampler")["inputs"]
        settings[variant] = (sampler["steps"], sampler["cfg"], prompt["1"]["inputs"]["unet_name"])
    assert settings == {
        "base": (30, 4.0, "z_image_bf16.safetensors"),
        "turbo": (8, 1.0, "z_image_turbo_bf16.safetensors"),
    }


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
    assert "'ohwx woman'" in lines[2]
