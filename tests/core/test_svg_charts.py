import xml.etree.ElementTree as ET

import pytest

from zimage.core.svg_charts import Group, Point, curve, strips, whiskers

SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg: str) -> ET.Element:
    return ET.fromstring(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def test_every_distance_is_a_dot_and_the_threshold_a_line_between_those_within_and_beyond() -> None:
    chart = parsed(strips([Group("lora", "with the LoRA", [0.2, 0.2, 0.5]), Group("base", "base", [0.8])], 0.6))
    dots = {kind: [float(dot.get("cx", 0)) for dot in chart.iter(f"{SVG}circle") if dot.get("class") == kind]
            for kind in ("lora", "base")}  # fmt: skip
    assert (len(dots["lora"]), len(dots["base"])) == (3, 1)
    line = next(float(one.get("x1", 0)) for one in chart.iter(f"{SVG}line") if one.get("class") == "threshold")
    assert max(dots["lora"]) < line < dots["base"][0]


def test_dots_of_one_value_do_not_hide_each_other() -> None:
    chart = parsed(strips([Group("lora", "same", [0.3] * 4)], 0.6))
    assert len({dot.get("cy") for dot in chart.iter(f"{SVG}circle")}) == 4


def test_the_chosen_candidate_stands_out_and_its_interval_holds_it() -> None:
    chart = parsed(whiskers([Point("0.8", 0.4, 0.3, 0.5, False), Point("1", 0.5, 0.4, 0.6, True)], "closeness"))
    (dot,) = [dot for dot in chart.iter(f"{SVG}circle") if dot.get("class") == "chosen"]
    (line,) = [line for line in chart.iter(f"{SVG}line") if line.get("class") == "whisker chosen"]
    assert float(line.get("y2", 0)) < float(dot.get("cy", 0)) < float(line.get("y1", 0))  # up is smaller in SVG


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5], [1.0, 0.2, 0.4] * 50])
def test_a_curve_of_any_length_stays_within_its_frame(values: list[float]) -> None:
    chart = parsed(curve(list(range(1, len(values) + 1)), values, "loss"))
    width, height = (float(number) for number in chart.get("viewBox", "").split()[2:])
    for line in chart.iter(f"{SVG}polyline"):
        for point in line.get("points", "").split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= width and 0 <= y <= height


def test_words_are_escaped() -> None:
    assert "<b>" not in strips([Group("lora", "<b>", [0.1])], 0.6)
