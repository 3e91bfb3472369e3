"""Charts as inline SVG, styled by classes of the page's style sheet (light and dark)."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

# Px of the view boxes: about what a column of the page, or a phone, shows, so that type keeps its size.
WIDE, NARROW = 400, 330
LEFT, RIGHT = 40.0, 18.0
HEIGHT, TOP, BOTTOM = 180.0, 12.0, 138.0  # of charts with a vertical scale


@dataclass(frozen=True)
class Group:
    """A row of dots in `strips`.

    Args:
        name: Class of its colour: lora, base, impostor, training or holdout.
        label: What it is.
        values: Distances.
    """

    name: str
    label: str
    values: Sequence[float]


@dataclass(frozen=True)
class Point:
    """A value with its interval in `whiskers`."""

    label: str
    value: float
    low: float | None
    high: float | None
    chosen: bool


def strips(groups: Sequence[Group], threshold: float) -> str:
    """Return a row of dots for each group on one axis of distance, with the line at which a person ends."""
    row, top, radius = 66.0, 24.0, 3.6
    largest = max([threshold * 1.4, *(value for group in groups for value in group.values)])
    scale = _Scale(0.0, largest * 1.04, 10.0, WIDE - RIGHT)
    height = top + row * len(groups) + 30
    parts = [f'<rect class="inside" x="{scale(0):.1f}" y="{top}" width="{scale(threshold) - scale(0):.1f}" '
             f'height="{row * len(groups):.1f}"/>']  # fmt: skip
    x = scale(threshold)
    parts.append(f'<line class="threshold" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 4}" y2="{height - 26:.1f}"/>')
    for number, group in enumerate(groups):
        base = top + row * (number + 1) - 12
        n = len(group.values)
        parts.append(_text(scale(0) + 4, base - 39, f"{group.label} · {n}", "label"))
        places = [(scale(value), base - lift) for value, lift in _heaped(group.values, scale, radius)]
        parts += [f'<circle class="{group.name}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>' for x, y in places]
        parts.append(
            f'<line class="rule" x1="{scale(0):.1f}" x2="{WIDE - RIGHT}" y1="{base + 5:.1f}" y2="{base + 5:.1f}"/>'
        )
    parts.append(_text(scale(threshold), top - 9, f"same person up to {threshold:g}", "tick", "middle"))
    parts += [_text(scale(tick), height - 10, f"{tick:g}", "tick", "middle") for tick in _ticks(0, largest, 6)]
    return _svg(WIDE, height, parts, "Distances to the held-out photos")


def whiskers(points: Sequence[Point], unit: str) -> str:
    """Return values with their intervals side by side; the chosen one is highlighted."""
    ends = [end for point in points for end in (point.low, point.high, point.value) if end is not None]
    scale = _Scale(*_room(min(ends), max(ends)), BOTTOM, TOP)
    step = (NARROW - LEFT - RIGHT) / len(points)
    parts: list[str] = []
    for number, point in enumerate(points):
        x, kind = LEFT + step * (number + 0.5), "chosen" if point.chosen else "other"
        if point.low is not None and point.high is not None:
            span = f'y1="{scale(point.low):.1f}" y2="{scale(point.high):.1f}"'
            parts.append(f'<line class="whisker {kind}" x1="{x:.1f}" x2="{x:.1f}" {span}/>')
        parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{scale(point.value):.1f}" r="5.5"/>')
        parts.append(_text(x, BOTTOM + 20, point.label, "tick strong" if point.chosen else "tick", "middle"))
    return _chart(scale, parts, unit)


def curve(steps: Sequence[float], values: Sequence[float], unit: str) -> str:
    """Return a noisy curve as it is, pale, with its running mean on top."""
    smooth = _running_mean(values, max(1, len(values) // 20))
    shown = sorted(values)
    across = _Scale(steps[0], max(steps[-1], steps[0] + 1), LEFT, NARROW - RIGHT)
    scale = _Scale(*_room(shown[0], shown[max(0, round(0.98 * len(shown)) - 1)]), BOTTOM, TOP)
    lines = [_line(steps, values, across, scale, "raw"), _line(steps, smooth, across, scale, "smooth")]
    return _chart(scale, [*_below(across, steps[0], steps[-1]), *lines], unit)


def line(places: Sequence[float], values: Sequence[float], unit: str) -> str:
    """Return a curve from 0 up, over places that are the middles of equal parts of [0, 1]."""
    across, scale = _Scale(0.0, 1.0, LEFT, NARROW - RIGHT), _Scale(0.0, max(values) * 1.05, BOTTOM, TOP)
    return _chart(scale, [*_below(across, 0, 1), _line(places, values, across, scale, "smooth")], unit)


@dataclass(frozen=True)
class _Scale:
    """Map [start, stop] to [first, last] px; values outside are clamped."""

    start: float
    stop: float
    first: float
    last: float

    def __call__(self, value: float) -> float:
        share = (min(max(value, self.start), self.stop) - self.start) / (self.stop - self.start)
        return self.first + share * (self.last - self.first)


def _chart(scale: _Scale, parts: Sequence[str], unit: str) -> str:
    """Return parts on a grid of the vertical scale, with the unit of the horizontal one below."""
    grid = [_grid(scale, tick) for tick in _ticks(scale.start, scale.stop, 4)]
    below = _text(LEFT + (NARROW - LEFT - RIGHT) / 2, HEIGHT - 4, unit, "tick", "middle")
    return _svg(NARROW, HEIGHT, [*grid, *parts, below], unit)


def _below(across: _Scale, first: float, last: float) -> list[str]:
    """Return the numbers below a horizontal scale."""
    return [_text(across(tick), BOTTOM + 20, f"{tick:g}", "tick", "middle") for tick in _ticks(first, last, 5)]


def _heaped(values: Sequence[float], scale: _Scale, radius: float) -> list[tuple[float, float]]:
    """Return each value with the vertical offset of its dot, so that dots overlap as little as possible."""
    placed: list[tuple[float, float]] = []
    for value in sorted(values):
        x = scale(value)
        lifts = [lift for other, lift in placed if abs(scale(other) - x) < 2 * radius]
        lift = next((step * 1.7 * radius for step in range(5) if step * 1.7 * radius not in lifts), 0.0)
        placed.append((value, lift))
    return placed


def _room(low: float, high: float) -> tuple[float, float]:
    margin = (high - low) * 0.08 or 0.05
    return low - margin, high + margin


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Return at most `most` + 1 round numbers within [low, high]."""
    rough = max(high - low, 1e-9) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    return [round(number * step, 10) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _running_mean(values: Sequence[float], reach: int) -> list[float]:
    windows = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _line(steps: Sequence[float], values: Sequence[float], across: _Scale, scale: _Scale, kind: str) -> str:
    points = " ".join(f"{across(x):.1f},{scale(y):.1f}" for x, y in zip(steps, values, strict=True))
    return f'<polyline class="{kind}" points="{points}"/>'


def _grid(scale: _Scale, tick: float) -> str:
    y = scale(tick)
    line = f'<line class="rule" x1="{LEFT}" x2="{NARROW - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + _text(LEFT - 6, y + 4, f"{tick:g}", "tick", "end")


def _text(x: float, y: float, words: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(words)}</text>'


def _svg(width: int, height: float, parts: Sequence[str], title: str) -> str:
    inner = "".join(parts)
    return (
        f'<svg viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{html.escape(title)}">'
        f"<title>{html.escape(title)}</title>{inner}</svg>"
    )
