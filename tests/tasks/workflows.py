"""Holds a workflow file, in either form, against the signatures of ComfyUI's nodes."""

from typing import Any

from zimage.lora.comfyui.workflow import Link, Node, check, signatures


def check_against_signatures(content: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return kind and inputs of each node of a file that ComfyUI would accept; fail where it would not."""
    nodes = from_window(content) if "nodes" in content else from_api(content)
    check(nodes)
    return [(node.kind, dict(node.inputs)) for node in nodes]


def from_api(content: dict[str, Any]) -> list[Node]:
    return [
        Node(int(id_), node["class_type"], node["_meta"]["title"], {k: _value(v) for k, v in node["inputs"].items()}, 0)
        for id_, node in content.items()
    ]


def from_window(content: dict[str, Any]) -> list[Node]:
    """Take a file as ComfyUI's window does: links by number, widgets by their order."""
    sources = {link[0]: link[1] for link in content["links"]}
    nodes = []
    for shown in sorted(content["nodes"], key=lambda node: node["order"]):
        inputs: dict[str, Any] = {slot["name"]: Link(sources[slot["link"]]) for slot in shown["inputs"]}
        values = list(shown["widgets_values"])
        for name, spec in signatures()[shown["type"]]["inputs"].items():
            if name not in inputs:
                inputs[name] = values.pop(0)
                if spec.get("control_after_generate"):
                    assert values.pop(0) in {"fixed", "increment", "decrement", "randomize"}
        assert not values
        nodes.append(Node(shown["id"], shown["type"], shown["title"], inputs, 0))
    return nodes


def _value(value: Any) -> Any:
    return Link(int(value[0])) if isinstance(value, list) else value
