"""Pictures with an identity: a drawn thing that moves over a background, never twice the same."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIDE = 64  # pixels of a frame
FINE = 2  # drawn so many times larger, then scaled down: smooth edges

Rng = np.random.Generator
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Brush:
    """Draws in a thing's own coordinates: about [-1, 1], turned and placed."""

    draw: ImageDraw.ImageDraw
    x: float
    y: float
    size: float
    angle: float
    colour: tuple[int, int, int]
    second: tuple[int, int, int]

    def at(self, x: float, y: float) -> tuple[float, float]:
        c, s = math.cos(self.angle), math.sin(self.angle)
        return self.x + self.size * (c * x - s * y), self.y + self.size * (s * x + c * y)

    def polygon(self, points: Points, second: bool = False) -> None:
        self.draw.polygon([self.at(*p) for p in points], fill=self.second if second else self.colour)

    def disc(self, x: float, y: float, radius: float, second: bool = False) -> None:
        (cx, cy), r = self.at(x, y), radius * self.size
        self.draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=self.second if second else self.colour)

    def line(self, points: Points, width: float, second: bool = False) -> None:
        wide = max(1, round(width * self.size))
        self.draw.line(
            [self.at(*p) for p in points], fill=self.second if second else self.colour, width=wide, joint="curve"
        )


def make_frames(kind: str, rng: Rng, count: int, size: float, loudness: np.ndarray) -> np.ndarray:
    """(count, SIDE, SIDE, 3) uint8: the class's thing at some place, turn and colour, drifting and turning.

    size: radius as a share of the frame. loudness: (count,) in [0, 1]; the thing swells a little with its sound.
    """
    side = SIDE * FINE
    background = _background(rng, side)
    # A class has a favourite hue and strays from it into its neighbours': colour helps and does not decide.
    hue = list(THINGS).index(kind) / len(THINGS) + rng.normal(0, 0.05)
    light = float(background.mean()) / 255
    value = rng.uniform(0.75, 1.0) if light < 0.5 else rng.uniform(0.2, 0.5)
    colour = _rgb(hue, rng.uniform(0.55, 0.95), value)
    second = _rgb(hue + rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.9), 1.1 - value)
    start, drift = rng.uniform(0.38, 0.62, 2), rng.uniform(-0.1, 0.1, 2)
    angle, turn = rng.uniform(-0.35, 0.35), rng.uniform(-0.35, 0.35)
    grain = rng.uniform(2, 9)
    frames = []
    for i in range(count):
        share = i / max(1, count - 1)
        image = Image.fromarray(background)
        x, y = np.clip(start + drift * share, 0.22, 0.78) * side
        radius = size * side * (1 + 0.12 * loudness[i])
        THINGS[kind](Brush(ImageDraw.Draw(image), x, y, radius, angle + turn * share, colour, second))
        small = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32)
        frames.append(
            np.clip(small + grain * rng.standard_normal(small.shape, dtype=np.float32), 0, 255).astype(np.uint8)
        )
    return np.stack(frames)


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    r, g, b = colorsys.hsv_to_rgb(hue % 1, saturation, min(1.0, value))
    return round(255 * r), round(255 * g), round(255 * b)


def _background(rng: Rng, side: int) -> np.ndarray:
    """A gradient between two quiet colours in some direction, with a few blots."""
    dark = rng.uniform() < 0.5
    a, b = (
        np.array(_rgb(rng.uniform(), rng.uniform(0.02, 0.2), rng.uniform(*((0.06, 0.3) if dark else (0.7, 0.95)))))
        for _ in range(2)
    )
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    share = np.clip(0.5 + x * np.cos(angle) + y * np.sin(angle), 0, 1)[..., None]
    image = Image.fromarray((a * (1 - share) + b * share).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 5)):
        cx, cy, r = rng.uniform(0, side), rng.uniform(0, side), rng.uniform(0.02, 0.07) * side
        here = np.asarray(image.getpixel((int(cx), int(cy))))
        blot = tuple(np.clip(here + rng.uniform(-50, 50, 3), 0, 255).astype(int).tolist())
        draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=blot)
    return np.asarray(image)


def _bell(b: Brush) -> None:
    b.disc(0, 0.82, 0.2, second=True)
    b.polygon([(-0.9, 0.7), (-0.55, 0.1), (-0.45, -0.6), (0, -0.95), (0.45, -0.6), (0.55, 0.1), (0.9, 0.7)])


def _bird(b: Brush) -> None:
    b.disc(0, 0.1, 0.55)
    b.disc(0.45, -0.4, 0.36)
    b.polygon([(0.7, -0.55), (1.15, -0.35), (0.7, -0.2)], second=True)
    b.polygon([(-0.35, 0.0), (-1.2, -0.35), (-1.0, 0.45)])
    b.disc(0.55, -0.45, 0.09, second=True)


def _clock(b: Brush) -> None:
    b.disc(0, 0, 1.0)
    b.disc(0, 0, 0.8, second=True)
    b.line([(0, 0), (0, -0.65)], 0.16)
    b.line([(0, 0), (0.45, 0.2)], 0.16)


def _drum(b: Brush) -> None:
    b.polygon([(-0.9, -0.4), (0.9, -0.4), (0.9, 0.7), (-0.9, 0.7)])
    b.line([(-0.9, -0.4), (-0.45, 0.7), (0, -0.4), (0.45, 0.7), (0.9, -0.4)], 0.1, second=True)
    b.line([(-1.0, -0.95), (-0.1, -0.5)], 0.12, second=True)
    b.line([(1.0, -0.95), (0.1, -0.5)], 0.12, second=True)


def _flute(b: Brush) -> None:
    b.polygon([(-1.3, -0.2), (1.3, -0.2), (1.3, 0.2), (-1.3, 0.2)])
    for x in (-0.9, -0.45, 0.0, 0.45, 0.9):
        b.disc(x, 0, 0.11, second=True)


def _motor(b: Brush) -> None:
    teeth = 8
    points = []
    for k in range(4 * teeth):
        radius = 1.05 if k % 4 < 2 else 0.74
        points.append((radius * math.cos(math.pi * k / (2 * teeth)), radius * math.sin(math.pi * k / (2 * teeth))))
    b.polygon(points)
    b.disc(0, 0, 0.3, second=True)


def _rain(b: Brush) -> None:
    for x, y in ((-0.8, -0.6), (-0.25, -0.9), (0.35, -0.5), (0.85, -0.85), (-0.6, 0.35), (0.0, 0.15), (0.6, 0.45)):
        b.line([(x + 0.1, y - 0.1), (x - 0.1, y + 0.5)], 0.14)


def _siren(b: Brush) -> None:
    b.polygon([(-0.85, 0.35), (0.85, 0.35), (0.85, 0.75), (-0.85, 0.75)], second=True)
    arc = [(0.65 * math.cos(math.pi * k / 12), 0.35 - 0.85 * math.sin(math.pi * k / 12)) for k in range(13)]
    b.polygon(arc)
    for x, y in ((-1.1, -0.5), (0, -1.15), (1.1, -0.5)):
        b.line([(0.72 * x, 0.72 * y + 0.05), (x, y)], 0.13)


THINGS: dict[str, Callable[[Brush], None]] = {
    "bell": _bell, "bird": _bird, "clock": _clock, "drum": _drum, "flute": _flute, "motor": _motor, "rain": _rain,
    "siren": _siren,
}  # fmt: skip
