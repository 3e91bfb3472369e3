"""Drawn faces: what the packaged tiny base is pre-trained on, so that no real person is in it.

A face is painted from soft shapes with a light, a turned head and camera-like grain. It is plain enough to draw
thousands in minutes and near enough to a photo that a face detector finds most of them.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

BOX_SHARE = 0.79  # measured: dlib's box is this much of the brow-to-chin height a face is drawn with

Plane = NDArray[np.floating[Any]]  # (side, side)
Colour = NDArray[np.floating[Any]]  # (3,), linear-ish RGB in 0..1


@dataclass(frozen=True)
class Drawing:
    """A drawn face and what is known of it because it was drawn so.

    Args:
        pixels: (side, side, 3) uint8 RGB.
        class_noun: "woman" or "man".
        face_height: Height of the face from brow to chin as a share of the picture, as a detector's box has it.
        yaw_deg: Turn of the head, positive towards the picture's right.
        roll_deg: Tilt of the head, clockwise positive.
    """

    pixels: NDArray[np.uint8]
    class_noun: Literal["woman", "man"]
    face_height: float
    face_centre_xy: tuple[float, float]
    yaw_deg: float
    roll_deg: float


def draw_face(generator: np.random.Generator, side: int = 128) -> Drawing:
    """Return a new face: everything about it is drawn from `generator`."""
    return _Portrait(generator, side).paint()


class _Portrait:
    """A canvas with a head on it. Head coordinates: x right, y down, the brow-to-chin face is about 2 units high."""

    def __init__(self, generator: np.random.Generator, side: int) -> None:
        self.g, self.side = generator, side
        self.class_noun: Literal["woman", "man"] = "woman" if generator.random() < 0.5 else "man"
        self.woman = self.class_noun == "woman"
        self.head_height = float(np.clip(generator.normal(0.60, 0.10), 0.34, 0.86))
        self.face_height = BOX_SHARE * self.head_height
        self.yaw_deg = float(np.clip(generator.normal(0, 14), -40, 40))
        self.roll_deg = float(np.clip(generator.normal(0, 6), -20, 20))
        self.pitch = generator.normal(0, 0.06)
        self.centre = (
            0.5 + generator.normal(0, 0.035),
            0.49 + generator.normal(0.0, 0.035) + (0.60 - self.head_height) * 0.10,
        )
        grid = (np.arange(side, dtype=np.float32) + 0.5) / side
        self.u, self.v = np.meshgrid(grid, grid)
        scale = self.head_height / 2
        roll = np.deg2rad(self.roll_deg)
        dx, dy = (self.u - self.centre[0]) / scale, (self.v - self.centre[1]) / scale
        self.x = (np.cos(roll) * dx + np.sin(roll) * dy).astype(np.float32)
        self.y = (-np.sin(roll) * dx + np.cos(roll) * dy).astype(np.float32)
        # The body stays upright when the head tilts.
        self.body_x, self.body_y = dx.astype(np.float32), dy.astype(np.float32)
        self.soft = 1.2 / (scale * side)  # edge width of about one pixel
        self.turn = np.sin(np.deg2rad(self.yaw_deg))
        self.light = np.array([generator.normal(0, 0.55), generator.normal(-0.45, 0.3), 1.0], dtype=np.float32)
        self.light /= np.linalg.norm(self.light)
        self.skin = self._skin_colour()
        self.hair = self._hair_colour()
        self.canvas = np.zeros((side, side, 3), dtype=np.float32)

    # --- colours -----------------------------------------------------------------------------------------------

    def _skin_colour(self) -> Colour:
        tones = np.array(
            [
                [0.95, 0.80, 0.71],
                [0.91, 0.73, 0.62],
                [0.84, 0.64, 0.51],
                [0.72, 0.52, 0.39],
                [0.55, 0.37, 0.26],
                [0.36, 0.24, 0.17],
            ],
            dtype=np.float32,
        )
        at = self.g.uniform(0, len(tones) - 1)
        low = int(at)
        tone = tones[low] + (at - low) * (tones[min(low + 1, len(tones) - 1)] - tones[low])
        return np.asarray(np.clip(tone + self.g.normal(0, 0.02, 3), 0.05, 1), np.float32)

    def _hair_colour(self) -> Colour:
        colours = [
            [0.07, 0.06, 0.06],
            [0.16, 0.10, 0.07],
            [0.30, 0.18, 0.10],
            [0.45, 0.28, 0.15],
            [0.72, 0.55, 0.32],
            [0.55, 0.22, 0.10],
            [0.6, 0.6, 0.6],
        ]
        return np.clip(np.array(colours[self.g.integers(len(colours))]) + self.g.normal(0, 0.02, 3), 0.02, 1).astype(
            np.float32
        )

    # --- brushes -----------------------------------------------------------------------------------------------

    def _inside(self, distance: Plane, softness: float = 1.0) -> Plane:
        """Return coverage 0..1 of a shape given by a signed distance (negative inside)."""
        return np.asarray(1 / (1 + np.exp(np.clip(distance / (self.soft * softness) * 2.5, -30, 30))), np.float32)

    def _ellipse(self, cx: float, cy: float, rx: float, ry: float, angle: float = 0.0, *, power: float = 2.0) -> Plane:
        """Return the (approximate) signed distance to a superellipse in head coordinates."""
        return _superellipse(self.x - cx, self.y - cy, rx, ry, angle, power)

    def _blob(self, cx: float, cy: float, rx: float, ry: float, angle: float = 0.0) -> Plane:
        """Return a Gaussian spot of height 1 in head coordinates."""
        c, s = np.cos(angle), np.sin(angle)
        dx, dy = self.x - cx, self.y - cy
        return np.asarray(np.exp(-0.5 * (((c * dx + s * dy) / rx) ** 2 + ((-s * dx + c * dy) / ry) ** 2)), np.float32)

    def _lay(self, coverage: Plane, colour: Colour | NDArray[np.float32], opacity: float = 1.0) -> None:
        alpha = (coverage * opacity)[..., None]
        self.canvas = self.canvas * (1 - alpha) + colour * alpha

    def _tint(self, amount: Plane, colour: Colour) -> None:
        """Multiply towards `colour` where `amount` is 1."""
        self.canvas *= 1 - amount[..., None] * (1 - colour)

    def _at(self, x: float, depth: float = 0.0) -> float:
        """Return where a feature at `x`, `depth` in front of the face's edge, appears when the head turns."""
        return float(x * np.sqrt(1 - self.turn**2) + self.turn * (0.35 + depth))

    # --- the picture -------------------------------------------------------------------------------------------

    def paint(self) -> Drawing:
        self._background()
        self.head_x = self.turn * 0.12
        length = self._hair_behind()
        self._body()
        self._neck()
        self._ears(length)
        self._face()
        self._eyes()
        self._nose()
        self._mouth()
        if not self.woman and self.g.random() < 0.3:
            self._beard()
        self._hair_front()
        if self.g.random() < 0.12:
            self._glasses()
        return Drawing(
            self._photographed(), self.class_noun, self.face_height, self.centre, self.yaw_deg, self.roll_deg
        )

    def _background(self) -> None:
        g = self.g
        base = g.uniform(0.05, 0.95) + g.normal(0, 0.10, 3) * (g.random() < 0.8) * g.uniform(0.3, 2.0)
        base = np.clip(base, 0.02, 0.98).astype(np.float32)
        slope = g.normal(0, 0.12, 2)
        shade = 1 + slope[0] * (self.u - 0.5) * 2 + slope[1] * (self.v - 0.5) * 2
        self.canvas = base[None, None] * shade[..., None].astype(np.float32)
        kind = g.random()
        if kind < 0.35:  # out-of-focus things
            for _ in range(g.integers(1, 7)):
                d = _superellipse(
                    self.u - g.random(),
                    self.v - g.random(),
                    g.uniform(0.05, 0.4),
                    g.uniform(0.05, 0.4),
                    g.uniform(0, 3),
                    g.choice([2.0, 6.0]),
                )
                colour = np.clip(base + g.normal(0, 0.25, 3), 0, 1).astype(np.float32)
                self._lay(1 / (1 + np.exp(np.clip(d * g.uniform(15, 90), -30, 30))), colour, g.uniform(0.3, 1))
        elif kind < 0.5:  # stripes: a flag, a shelf, blinds
            angle, period = g.uniform(0, 3.1), g.uniform(0.08, 0.3)
            wave = np.sin((np.cos(angle) * self.u + np.sin(angle) * self.v) * 6.283 / period + 0.3 * np.sin(self.v * 9))
            colour = np.clip(base + g.normal(0, 0.3, 3), 0, 1).astype(np.float32)
            self._lay((wave > 0).astype(np.float32), colour, g.uniform(0.3, 0.9))

    def _hair_behind(self) -> float:
        g = self.g
        self.volume = g.uniform(0.02, 0.30) + 0.08 * self.woman
        length = g.uniform(0.2, 2.4) if self.woman else g.uniform(-0.4, 0.35)
        width = 0.93 + self.volume
        top = self._ellipse(self.head_x, -0.45, width, 1.05 + self.volume, power=g.uniform(2.0, 2.5))
        shape = top
        if length > 0:
            fall = _superellipse(
                self.x - self.head_x,
                self.y - (-0.4 + length / 2),
                width * g.uniform(0.92, 1.12),
                0.55 + length / 2,
                0,
                3.5,
            )
            shape = np.minimum(top, fall)
        shape = shape + 0.04 * g.random() * np.sin(self.x * g.uniform(5, 20)) + 0.03 * np.sin(self.y * g.uniform(4, 16))
        self._lay(self._inside(shape, 1.5), self._strands() * 0.75)
        return float(length)

    def _strands(self) -> NDArray[np.float32]:
        """Return hair colour (side, side, 3) with strands and a sheen."""
        g = self.g
        angle = np.arctan2(self.x - self.head_x, self.y + 1.6)
        wave = sum(np.sin(angle * f + g.uniform(0, 6.3) + self.y * g.uniform(-4, 4)) for f in g.uniform(15, 90, 5))
        sheen = np.exp(-(((self.y + 1.0 + 0.15 * wave / 5) / 0.25) ** 2)) * g.uniform(0, 0.35)
        light = 1 + 0.10 * wave / 2 + 0.25 * (self.light[0] * self.x - self.light[1] * -self.y * 0.3)
        return np.asarray(
            np.clip(self.hair * np.clip(light, 0.4, 1.8)[..., None] + sheen[..., None] * 0.5, 0, 1), np.float32
        )

    def _body(self) -> None:
        g = self.g
        cloth = np.clip(g.uniform(0.05, 0.95) + g.normal(0, 0.22, 3), 0.02, 0.98).astype(np.float32)
        if g.random() < 0.15:
            cloth = np.clip(np.array([0.9, 0.42, 0.1]) + g.normal(0, 0.08, 3), 0, 1).astype(np.float32)
        slope = g.uniform(0.35, 0.75)
        top, half = g.uniform(1.35, 1.65), g.uniform(1.7, 3.0)
        distance = np.maximum(top + slope * np.abs(self.body_x) ** 1.3 * 0.45 - self.body_y, np.abs(self.body_x) - half)
        shade = (
            0.85
            + 0.25 * self.light[0] * self.body_x
            + 0.12 * np.sin(self.body_x * g.uniform(2, 9) + self.body_y * g.uniform(1, 6))
        )
        self._lay(
            self._inside(distance.astype(np.float32)),
            np.clip(cloth * np.clip(shade, 0.4, 1.3)[..., None], 0, 1).astype(np.float32),
        )
        if g.random() < 0.55:  # an open collar
            deep = g.uniform(0.1, 0.9)
            d = np.maximum(
                np.abs(self.body_x) * g.uniform(1.1, 2.2) + self.body_y - (top + 0.35 + deep), top - 0.3 - self.body_y
            )
            colour = (
                self.skin * 0.85 if g.random() < 0.6 else np.clip(cloth + g.normal(0, 0.3, 3), 0, 1).astype(np.float32)
            )
            self._lay(self._inside(d.astype(np.float32)), colour)
        for _ in range(g.integers(0, 3)):  # badges, buttons, hoses
            d = _superellipse(
                self.body_x - g.normal(0, 0.8),
                self.body_y - g.uniform(1.7, 2.6),
                g.uniform(0.05, 0.3),
                g.uniform(0.05, 0.3),
                0,
                g.choice([2.0, 5.0]),
            )
            self._lay(self._inside(d), np.clip(g.uniform(0, 1, 3), 0, 1).astype(np.float32), 0.9)

    def _neck(self) -> None:
        half = self.g.uniform(0.42, 0.52) + 0.1 * (not self.woman)
        d = np.maximum(
            np.abs(self.body_x - self.head_x * 0.4) - half - 0.10 * np.maximum(self.body_y - 1.2, 0), self.body_y - 1.75
        )
        d = np.maximum(d, 0.3 - self.body_y)
        shade = np.clip(0.80 + 0.35 * self.light[0] * self.body_x, 0.35, 1.1)[..., None]
        shadow = 1 - 0.45 * np.exp(-(((self.body_y - 1.02) / 0.28) ** 2))[..., None]
        self._lay(self._inside(d.astype(np.float32)), np.clip(self.skin * shade * shadow, 0, 1).astype(np.float32))

    def _ears(self, hair_length: float) -> None:
        if self.woman and hair_length > 0.3 and self.g.random() < 0.7:
            return
        for sign in (-1, 1):
            visible = 0.5 + 0.5 * np.clip(1 - sign * self.turn * 2.2, 0, 1)
            d = self._ellipse(
                sign * 0.80 + self.head_x * 0.2 - self.turn * 0.1, -0.12, 0.13 * visible, 0.25, sign * 0.15
            )
            self._lay(self._inside(d), self.skin * 0.82)

    def _face(self) -> None:
        g = self.g
        width, jaw = g.uniform(0.70, 0.82), g.uniform(0.60, 0.95) + 0.06 * (not self.woman)
        self.face_width = width
        y = self.y
        # Narrower towards the chin; the crown reaches above the brow under the hair.
        t = np.clip((y + 0.1) / 1.1, 0, 1.3)
        narrowing = 1 - (1 - 0.62 * jaw) * t ** g.uniform(1.7, 2.8)
        d = _superellipse(
            (self.x - self.head_x) / np.maximum(narrowing, 0.3), y + 0.22, width, 1.24, 0, g.uniform(2.1, 2.5)
        )
        self.face_mask = self._inside(d)
        nx = np.clip((self.x - self.head_x * 0.6) / (width * 1.08), -1, 1) - self.turn * 0.35
        ny = np.clip((y + 0.15) / 1.25, -1, 1)
        nz = np.sqrt(np.clip(1 - nx**2 * 0.85 - ny**2 * 0.55, 0.05, 1))
        lambert = np.clip(nx * self.light[0] + ny * self.light[1] + nz * self.light[2], 0, 1.3)
        ambient = g.uniform(0.35, 0.6)
        shade = ambient + (1.05 - ambient) * lambert
        tone = self.skin * shade[..., None]
        tone = tone * (1 - np.array([0.0, 0.10, 0.12], np.float32) * (1 - np.clip(shade, 0, 1))[..., None])
        for sign in (-1, 1):  # cheeks: blush, and the light on the bone
            cx = self._at(sign * 0.42, 0.05)
            tone = tone * (
                1
                - self._blob(cx, 0.28, 0.20, 0.16)[..., None]
                * np.array([0.0, 0.10, 0.09], np.float32)
                * g.uniform(0.2, 1.2)
            )
            tone = tone + self._blob(cx, 0.10, 0.17, 0.10, sign * 0.4)[..., None] * 0.07 * g.uniform(0.3, 1.4)
        tone = tone + self._blob(self._at(0, 0.05), -0.85, 0.35, 0.2)[..., None] * 0.06 * g.uniform(0.2, 1.5)
        tone = tone - self._blob(self._at(0, 0.1), 0.82, 0.16, 0.05)[..., None] * 0.05
        self._lay(self.face_mask, np.clip(tone, 0, 1).astype(np.float32))

    def _eyes(self) -> None:
        g = self.g
        self.eye_y = -0.24 + g.normal(0, 0.03) + self.pitch
        self.eye_x = g.uniform(0.30, 0.38)
        half_w, half_h = g.uniform(0.125, 0.17), g.uniform(0.045, 0.085)
        tilt, socket = g.normal(0.05, 0.08), g.uniform(0.15, 0.5)
        iris = np.array([[0.24, 0.14, 0.08], [0.13, 0.08, 0.05], [0.30, 0.40, 0.48], [0.30, 0.36, 0.22]], np.float32)[
            g.integers(4)
        ]
        brow_y, brow_t = self.eye_y - g.uniform(0.19, 0.29), g.uniform(0.022, 0.06) + 0.012 * (not self.woman)
        arch, brow_dark = g.uniform(0.0, 0.10), g.uniform(0.45, 0.9)
        gaze = g.normal(0, 0.18)
        brow_colour = np.clip(self.hair * 0.75, 0.03, 0.6).astype(np.float32)
        lip_shadow = np.array([0.55, 0.42, 0.38], np.float32)
        for sign in (-1, 1):
            cx, cy = self._at(sign * self.eye_x), self.eye_y
            w = half_w * float(np.clip(1 - sign * self.turn * 0.55, 0.45, 1.15))
            self._tint(self._blob(cx, cy - 0.04, 0.20, 0.12) * socket * self.face_mask, lip_shadow)
            self._tint(self._blob(cx - sign * 0.13, cy - 0.02, 0.06, 0.10) * 0.35 * self.face_mask, lip_shadow)
            self._tint(self._blob(cx, cy + 0.13, 0.14, 0.035) * g.uniform(0.05, 0.3) * self.face_mask, lip_shadow)
            almond = np.maximum(
                _superellipse(self.x - cx, self.y - cy - half_h * 0.7, w * 1.15, half_h * 1.9, sign * tilt, 2.0),
                _superellipse(self.x - cx, self.y - cy + half_h * 0.7, w * 1.15, half_h * 1.9, sign * tilt, 2.0),
            )
            opening = self._inside(almond)
            self._lay(opening, np.array([0.88, 0.86, 0.84], np.float32) * g.uniform(0.75, 1.0))
            ix = cx + gaze * w + self.turn * 0.03
            self._lay(opening * self._inside(self._ellipse(ix, cy - 0.005, 0.073, 0.078)), iris)
            self._lay(opening * self._inside(self._ellipse(ix, cy - 0.005, 0.034, 0.036)), np.full(3, 0.02, np.float32))
            self._lay(
                self._inside(self._ellipse(ix + self.light[0] * 0.03 + 0.012, cy - 0.03, 0.014, 0.014)) * opening,
                np.ones(3, np.float32),
                0.9,
            )
            lid = np.abs(
                _superellipse(self.x - cx, self.y - cy - half_h * 0.7, w * 1.15, half_h * 1.9, sign * tilt, 2.0)
            )
            upper = (
                self._inside(lid - (0.016 + 0.014 * self.woman))
                * self._inside(self.y - cy - 0.01)
                * self._inside(np.abs(self.x - cx) - w * 1.1)
            )
            self._lay(upper, np.array([0.08, 0.05, 0.04], np.float32), g.uniform(0.5, 0.95))
            self._tint(
                self._blob(cx, cy - half_h - 0.055, w * 0.9, 0.016) * g.uniform(0.2, 0.6) * self.face_mask, lip_shadow
            )
            bx = cx + sign * 0.01
            line = np.abs(
                self.y - (brow_y - arch * (1 - ((self.x - bx) / 0.22) ** 2) + sign * 0.10 * tilt * (self.x - bx))
            )
            taper = brow_t * np.clip(
                1.1 - 0.5 * np.clip(sign * (self.x - bx) / 0.2, -1, 1) ** 2 - 0.25 * sign * (self.x - bx) / 0.2,
                0.2,
                1.3,
            )
            brow = self._inside((line - taper).astype(np.float32), 1.6) * self._inside(
                np.abs(self.x - bx) - 0.20 * w / half_w
            )
            self._lay(brow * self.face_mask, brow_colour, brow_dark)

    def _nose(self) -> None:
        g = self.g
        tip_y, width, length = 0.22 + g.normal(0, 0.04) + self.pitch, g.uniform(0.12, 0.19), 0.45
        nx = self._at(0, 0.22)
        self.nose_tip = (nx, tip_y)
        shadow = np.array([0.62, 0.48, 0.42], np.float32)
        side = -1 if self.light[0] > 0 else 1
        strength = g.uniform(0.15, 0.5) + 0.3 * abs(float(self.light[0]))
        bridge = (self._at(0, 0.08) + nx) / 2
        self._tint(
            self._blob(bridge + side * 0.10, tip_y - length / 2, 0.05, 0.24, -side * 0.1) * strength * self.face_mask,
            shadow,
        )
        self._tint(
            self._blob(bridge - side * 0.10, tip_y - length / 2, 0.04, 0.2, side * 0.1)
            * strength
            * 0.35
            * self.face_mask,
            shadow,
        )
        self.canvas += (self._blob(bridge - side * 0.02, tip_y - length / 2, 0.035, 0.22) * 0.10 * g.uniform(0.4, 1.4))[
            ..., None
        ] * self.skin
        self.canvas += (self._blob(nx - side * 0.02, tip_y - 0.06, 0.05, 0.045) * 0.16 * g.uniform(0.4, 1.4))[..., None]
        for sign in (-1, 1):
            wing = nx + sign * width * float(np.clip(1 - sign * self.turn * 0.6, 0.5, 1.2))
            self._tint(self._blob(wing, tip_y, 0.03, 0.05) * 0.5 * self.face_mask, shadow)
            self._lay(
                self._blob(nx + sign * width * 0.52, tip_y + 0.055, 0.036, 0.018, sign * 0.3),
                self.skin * 0.25,
                g.uniform(0.5, 0.95),
            )
        self._tint(self._blob(nx, tip_y + 0.085, width * 0.9, 0.025) * 0.45 * self.face_mask, shadow)
        self._tint(self._blob(nx * 0.95, tip_y + 0.20, 0.03, 0.06) * 0.25 * self.face_mask, shadow)

    def _mouth(self) -> None:
        g = self.g
        my, half = 0.55 + g.normal(0, 0.03) + self.pitch, g.uniform(0.25, 0.38)
        mx = self._at(0, 0.12)
        smile, upper, lower = g.normal(0.07, 0.06), g.uniform(0.03, 0.06), g.uniform(0.045, 0.085)
        red = np.array([0.78, 0.42, 0.40], np.float32) if self.woman else np.array([0.82, 0.58, 0.54], np.float32)
        lip = np.clip(
            self.skin * red * g.uniform(0.85, 1.1)
            + (np.array([0.12, 0, 0.02], np.float32) if self.woman and g.random() < 0.4 else 0),
            0,
            1,
        ).astype(np.float32)
        rel = (self.x - mx) / half
        curve = my - smile * np.clip(np.abs(rel), 0, 1.2) ** 2 + smile * 0.3
        profile = np.sqrt(np.clip(1 - rel**2, 0, 1))
        bow = 1 - 0.25 * np.exp(-((rel / 0.15) ** 2))
        top, bottom = curve - upper * profile * bow, curve + lower * profile
        width = self._inside((np.abs(rel) - 1) * half)
        self._lay(
            self._inside((top - self.y).astype(np.float32)) * self._inside((self.y - curve).astype(np.float32)) * width,
            lip * 0.85,
        )
        self._lay(
            self._inside((curve - self.y).astype(np.float32))
            * self._inside((self.y - bottom).astype(np.float32))
            * width,
            lip,
        )
        self.canvas += (self._blob(mx, my + lower * 0.5, half * 0.35, 0.018) * 0.12 * g.uniform(0, 1.5))[..., None]
        gap = max(0.0, g.normal(0.01, 0.06)) if smile > 0 else 0.0
        if gap > 0.015:  # a smile that shows teeth
            opening = np.abs(self.y - curve - gap * 0.3) - gap * profile * 0.8
            mouth = self._inside(opening.astype(np.float32)) * self._inside((np.abs(rel) - 0.85) * half)
            self._lay(mouth, np.array([0.90, 0.87, 0.82], np.float32) * g.uniform(0.8, 1.0))
            self._tint(mouth * np.clip(np.abs(rel) - 0.4, 0, 1), np.array([0.3, 0.25, 0.25], np.float32))
        line = self._inside((np.abs(self.y - curve) - 0.012).astype(np.float32)) * width
        self._lay(line, self.skin * 0.30, 0.8 if gap <= 0.015 else 0.25)
        for sign in (-1, 1):
            self._tint(
                self._blob(mx + sign * half * 1.08, my - smile * 0.9, 0.035, 0.04) * 0.45 * self.face_mask,
                np.array([0.5, 0.38, 0.34], np.float32),
            )
            fold = (
                self._blob(mx + sign * (half * 1.12), 0.36, 0.02, 0.15, sign * 0.45)
                * g.uniform(0.0, 0.4)
                * (0.6 + 6 * max(smile, 0))
            )
            self._tint(np.clip(fold, 0, 0.6) * self.face_mask, np.array([0.6, 0.46, 0.42], np.float32))
        self._tint(
            self._blob(mx, my + lower + 0.06, half * 0.5, 0.035) * g.uniform(0.1, 0.4) * self.face_mask,
            np.array([0.65, 0.52, 0.47], np.float32),
        )

    def _beard(self) -> None:
        g = self.g
        mx = self._at(0, 0.1)
        area = self.face_mask * self._inside(
            (0.30 + 0.25 * np.exp(-(((self.x - mx) / 0.45) ** 2)) - self.y).astype(np.float32), 8
        )
        mouth = self._blob(mx, 0.55, 0.24, 0.07)
        grain = 1 + 0.15 * g.standard_normal(self.x.shape).astype(np.float32)
        self._lay(np.clip(area * (1 - mouth) * grain, 0, 1), self.hair * 0.7, g.uniform(0.2, 0.8))

    def _hair_front(self) -> None:
        g = self.g
        if not self.woman and g.random() < 0.08:
            return
        line = -0.75 - g.uniform(0, 0.25)
        part = g.uniform(-0.6, 0.6)
        fringe = g.uniform(0.0, 0.35) if self.woman else g.uniform(-0.05, 0.12)
        curve = (
            line
            + fringe * np.exp(-(((self.x - part) / 0.5) ** 2))
            + 0.75 * np.abs((self.x - self.head_x) / 0.85) ** g.uniform(2.5, 5)
        )
        curve = curve + 0.03 * np.sin(self.x * g.uniform(10, 30) + g.uniform(0, 6))
        cap = self._ellipse(self.head_x, -0.45, 0.90 + self.volume, 1.02 + self.volume, power=2.2)
        self._lay(self._inside(np.maximum(cap, self.y - curve).astype(np.float32), 1.8), self._strands())
        self._tint(
            self._inside((self.y - curve - 0.10).astype(np.float32), 6)
            * self._inside((curve - self.y).astype(np.float32))
            * self.face_mask
            * 0.35,
            np.array([0.5, 0.4, 0.36], np.float32),
        )

    def _glasses(self) -> None:
        g = self.g
        rx, ry, power = g.uniform(0.19, 0.26), g.uniform(0.13, 0.22), g.choice([2.0, 3.0, 5.0])
        colour = np.array([[0.05, 0.05, 0.05], [0.35, 0.22, 0.1], [0.6, 0.58, 0.5]], np.float32)[g.integers(3)]
        thick = g.uniform(0.012, 0.035)
        for sign in (-1, 1):
            d = (
                np.abs(
                    self._ellipse(self._at(sign * (self.eye_x + 0.01), 0.08), self.eye_y + 0.02, rx, ry, power=power)
                )
                - thick
            )
            self._lay(self._inside(d), colour)
        bridge = np.maximum(
            np.abs(self.y - self.eye_y) - thick, np.abs(self.x - self._at(0, 0.08)) - (self.eye_x - rx + 0.01)
        )
        self._lay(self._inside(bridge.astype(np.float32)), colour)

    def _photographed(self) -> NDArray[np.uint8]:
        """Return the canvas as a camera gives it: exposure, white balance, contrast, grain, sometimes no colour."""
        g = self.g
        picture = np.clip(self.canvas, 0, 1.2)
        picture = picture ** np.exp(g.normal(0, 0.12))
        picture = picture * np.exp(g.normal(0, 0.22)) * np.exp(g.normal(0, 0.06, 3)).astype(np.float32)
        if g.random() < 0.08:
            picture = np.repeat((picture @ np.array([0.299, 0.587, 0.114], np.float32))[..., None], 3, axis=2)
        picture = picture + g.standard_normal(picture.shape).astype(np.float32) * g.uniform(0, 0.018)
        return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def _superellipse(  # noqa: PLR0917
    dx: Plane, dy: Plane, rx: float, ry: float, angle: float = 0.0, power: float = 2.0
) -> Plane:
    """Return the approximate signed distance to `|dx/rx|^power + |dy/ry|^power = 1`, turned by `angle` radians."""
    c, s = np.cos(angle), np.sin(angle)
    x, y = c * dx + s * dy, -s * dx + c * dy
    radius = (np.abs(x / rx) ** power + np.abs(y / ry) ** power + 1e-9) ** (1 / power)
    return np.asarray((radius - 1) * min(rx, ry), np.float32)
