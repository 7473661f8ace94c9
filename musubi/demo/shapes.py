"""Short clips of coloured shapes that move over a floor, drawn from their captions' words.

A clip is 17 frames of 64x64 pixels at 16 frames a second. Positions are in units of half the
picture's side, x to the right and y down, with the centre at (0, 0).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

SIDE, FRAMES, RATE = 64, 17, 16

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 45, 40),
    "green": (45, 190, 70),
    "blue": (55, 95, 230),
    "yellow": (240, 210, 50),
    "purple": (165, 60, 200),
    "white": (245, 245, 245),
}
FLOORS: dict[str, tuple[int, int, int]] = {
    "blue": (40, 60, 120),
    "grey": (110, 110, 115),
    "brown": (115, 75, 45),
    "black": (20, 20, 24),
}
WALL = (62, 64, 72)
SHAPES = ("ball", "square", "triangle", "ring")
MOTIONS = ("bounces", "moves right", "moves left", "rises", "falls", "stays still")
HORIZON = 0.35
RADIUS = 0.36


@dataclass(frozen=True)
class Scene:
    """One clip: what its caption names, and what it leaves open.

    Args:
        colour: A key of `COLOURS`.
        shape: A member of `SHAPES`, or "star".
        motion: A member of `MOTIONS`, or "spins" or "swings".
        floor: A key of `FLOORS`.
        place: Where it is across the motion, -1 to 1.
        size: Relative to `RADIUS`.
        phase: Where in a period the motion begins, 0 to 1.
    """

    colour: str
    shape: str
    motion: str
    floor: str
    place: float = 0.0
    size: float = 1.0
    phase: float = 0.0

    @property
    def caption(self) -> str:
        """Such as "a red ball bounces on a blue floor"."""
        return f"a {self.colour} {self.shape} {self.motion} on a {self.floor} floor"


def random_scene(source: random.Random, **fixed: str) -> Scene:
    """A scene drawn evenly; `fixed` names what is not left to chance."""
    words = {
        "colour": source.choice(list(COLOURS)),
        "shape": source.choice(SHAPES),
        "motion": source.choice(MOTIONS),
        "floor": source.choice(list(FLOORS)),
    }
    return Scene(
        **{**words, **fixed},
        place=source.uniform(-0.6, 0.6),
        size=source.uniform(0.85, 1.15),
        phase=source.random(),
    )


def path(scene: Scene, frames: int = FRAMES) -> list[tuple[float, float, float]]:
    """Centre x, centre y and angle of the shape in each frame."""
    out: list[tuple[float, float, float]] = []
    for i in range(frames):
        s = i / (frames - 1)
        x, y, angle = 0.6 * scene.place, 0.05, 0.0
        if scene.motion == "bounces":
            y = 0.3 - 0.75 * abs(math.sin(math.pi * (2 * s + scene.phase)))
        elif scene.motion in ("moves right", "moves left"):
            direction = 1 if scene.motion == "moves right" else -1
            x, y = direction * (1.2 * s - 0.6), 0.4 * scene.place
        elif scene.motion in ("rises", "falls"):
            direction = 1 if scene.motion == "falls" else -1
            y = direction * (1.2 * s - 0.6)
        elif scene.motion == "swings":
            x, y = 0.5 * math.cos(2 * math.pi * s), 0.3 * scene.place - 0.1
        elif scene.motion == "spins":
            angle = 2 * math.pi * (0.6 * s + scene.phase)
        out.append((x, y, angle))
    return out


def draw(scenes: Sequence[Scene], device: torch.device | str = "cpu") -> torch.Tensor:
    """Clips, uint8 N F H W 3; edges are smooth over one pixel."""
    paths = torch.tensor([path(s) for s in scenes], device=device)
    axis = (torch.arange(SIDE, device=device) + 0.5) / SIDE * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    sizes = torch.tensor([s.size * RADIUS for s in scenes], device=device)[:, None, None, None]
    cx, cy, angle = (paths[..., i, None, None] for i in range(3))
    dx, dy = (x - cx) / sizes, (y - cy) / sizes
    u = dx * angle.cos() + dy * angle.sin()
    v = dy * angle.cos() - dx * angle.sin()
    inside = torch.empty_like(u)
    for shape in {s.shape for s in scenes}:
        these = torch.tensor([s.shape == shape for s in scenes], device=device)
        inside[these] = coverage(shape, u[these], v[these], sizes[these])
    colour = _palette([COLOURS[s.colour] for s in scenes], device)
    floor = _palette([FLOORS[s.floor] for s in scenes], device)
    wall = torch.tensor(WALL, device=device).float()
    below = ((y - HORIZON) * SIDE / 2 + 0.5).clamp(0, 1)[None, None, ..., None]
    behind = wall * (1 - below) + floor * below
    mix = inside[..., None]
    return (behind * (1 - mix) + colour * mix).round().to(torch.uint8)


def coverage(
    shape: str, u: torch.Tensor, v: torch.Tensor, size: torch.Tensor | float
) -> torch.Tensor:
    """How much of a pixel at (u, v) the shape covers, 0 to 1; (u, v) are in units of its radius."""
    distance = _distance(shape, u, v)
    return (0.5 - distance * size * SIDE / 2).clamp(0, 1)


def _distance(shape: str, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    # Signed distance to the edge in units of the radius; negative inside.
    if shape == "ball":
        return torch.hypot(u, v) - 1
    if shape == "ring":
        return (torch.hypot(u, v) - 0.78).abs() - 0.24
    if shape == "square":
        return torch.maximum(u.abs(), v.abs()) - 0.85
    corners = _STAR if shape == "star" else _TRIANGLE
    return _polygon(corners, u, v)


def _polygon(corners: list[tuple[float, float]], u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    nearest = torch.full_like(u, 1e9)
    inside = torch.zeros_like(u, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey = bx - ax, by - ay
        t = (((u - ax) * ex + (v - ay) * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        nearest = torch.minimum(nearest, torch.hypot(u - ax - t * ex, v - ay - t * ey))
        if ay != by:
            crosses = ((ay > v) != (by > v)) & (u < ex * (v - ay) / ey + ax)
            inside ^= crosses
    return torch.where(inside, -nearest, nearest)


def _corners(radii: Sequence[float]) -> list[tuple[float, float]]:
    n = len(radii)
    return [
        (r * math.sin(2 * math.pi * i / n), -r * math.cos(2 * math.pi * i / n))
        for i, r in enumerate(radii)
    ]


_TRIANGLE = _corners([1.1] * 3)
_STAR = _corners([1.25, 0.5] * 5)


def _palette(colours: Sequence[tuple[int, int, int]], device: torch.device | str) -> torch.Tensor:
    return torch.tensor(colours, device=device).float()[:, None, None, None, :]
