"""What a clip of the tiny world shows, read off its pixels: colour, shape, motion and floor.

The shape is the one whose drawn outline, at the size, place and angle that fit best, overlaps the
picture most; the motion follows from where it is in each frame and, for a spin, how it is turned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from musubi.demo.shapes import COLOURS, FLOORS, HORIZON, SHAPES, SIDE, WALL, coverage

# Turning a shape by this much gives it back; 0: every turn does.
SYMMETRY = {"ball": 0.0, "ring": 0.0, "square": math.pi / 2, "triangle": 2 * math.pi / 3}
SYMMETRY["star"] = 2 * math.pi / 5
FAINT = 45.0  # of 441: less difference from the background than this is noise
MATCH = 0.6  # an overlap under this is no shape


@dataclass(frozen=True)
class Seen:
    """What was found; None where nothing fits.

    Args:
        colour: A key of `COLOURS`.
        shape: What fits most frames.
        motion: How it moves.
        floor: A key of `FLOORS`.
        overlap: Of the shape and the picture, in the middle one of the frames by that.
        worst: In the frame where it fits least: a ball may be flat in a frame, and a ball in most.
    """

    colour: str | None
    shape: str | None
    motion: str | None
    floor: str
    overlap: float
    worst: float

    @property
    def whole(self) -> bool:
        """Whether every frame shows the shape."""
        return self.worst >= MATCH

    def agrees(self, *, colour: str, shape: str, motion: str, floor: str) -> dict[str, bool]:
        """Word by word, whether it is what the caption says."""
        asked = {"colour": colour, "shape": shape, "motion": motion, "floor": floor}
        return {name: getattr(self, name) == word for name, word in asked.items()}


def detect(frames: np.ndarray) -> Seen:
    """Look at uint8 frames, F 64 64 3."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on pictures so small, threads do little but wait for one another
    try:
        return _seen(frames)
    finally:
        torch.set_num_threads(threads)


def _seen(frames: np.ndarray) -> Seen:
    pictures = torch.from_numpy(np.ascontiguousarray(frames)).float()
    floor_rgb = pictures[:, int(0.92 * SIDE) :].flatten(0, 2).median(dim=0).values
    floor = _nearest(floor_rgb, FLOORS)
    rows = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    behind = torch.where((rows > HORIZON)[:, None], floor_rgb, torch.tensor(WALL).float())[:, None]
    away = (pictures - behind).norm(dim=-1)
    near_edge = (rows - HORIZON).abs() < 3 / SIDE
    strong = away > torch.where(near_edge[:, None], 2 * FAINT, FAINT)
    if strong.float().sum(dim=(1, 2)).median() < 20:
        return Seen(None, None, None, floor, 0.0, 0.0)
    solid = pictures[away > 0.7 * away.flatten(1).quantile(0.995, dim=1)[:, None, None]]
    colour_rgb = solid.median(dim=0).values
    colour = _nearest(colour_rgb, COLOURS)
    full = (colour_rgb - behind).norm(dim=-1).clamp(min=FAINT)
    masks = (away / full).clamp(0, 1) * strong
    shape, overlap, fits = _shape(masks)
    motion = _motion(masks, shape, [angle for _, angle in fits])
    return Seen(colour, shape, motion, floor, overlap, min(found for found, _ in fits))


def _shape(masks: torch.Tensor) -> tuple[str | None, float, list[tuple[float, float]]]:
    scores: dict[str, float] = {}
    for shape in (*SHAPES, "star"):
        scores[shape] = float(np.median([_fit(shape, mask)[0] for mask in masks[::4]]))
    best = max(scores, key=lambda name: scores[name])
    fits = [_fit(best, mask) for mask in masks]
    return (best if scores[best] >= MATCH else None), scores[best], fits


def _fit(shape: str, mask: torch.Tensor) -> tuple[float, float]:
    # The best overlap (intersection over union) over angles, and its angle.
    axis = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    mass = mask.sum()
    if mass < 10:
        return 0.0, 0.0
    cy, cx = (mask.sum(1) * axis).sum() / mass, (mask.sum(0) * axis).sum() / mass
    period = SYMMETRY[shape]
    turns = torch.arange(12) * (period / 12) if period else torch.zeros(1)
    area = float(mass) * (2 / SIDE) ** 2
    size = math.sqrt(area / _unit_area(shape))
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    dx, dy = (x - cx) / size, (y - cy) / size
    cos, sin = turns.cos()[:, None, None], turns.sin()[:, None, None]
    drawn = coverage(shape, dx * cos + dy * sin, dy * cos - dx * sin, size)
    both = torch.minimum(drawn, mask).sum((1, 2))
    either = torch.maximum(drawn, mask).sum((1, 2))
    found = both / either
    best = int(found.argmax())
    return float(found[best]), float(turns[best])


_AREAS: dict[str, float] = {}


def _unit_area(shape: str) -> float:
    if shape not in _AREAS:
        axis = torch.linspace(-1.5, 1.5, 301)
        v, u = torch.meshgrid(axis, axis, indexing="ij")
        _AREAS[shape] = float((coverage(shape, u, v, 1e6) > 0.5).sum()) * 0.01**2
    return _AREAS[shape]


def _motion(masks: torch.Tensor, shape: str | None, angles: list[float]) -> str | None:
    axis = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    mass = masks.sum((1, 2)).clamp(min=1e-6)
    ys = ((masks.sum(2) * axis).sum(1) / mass).numpy()
    xs = ((masks.sum(1) * axis).sum(1) / mass).numpy()
    dx, dy = float(xs[-3:].mean() - xs[:3].mean()), float(ys[-3:].mean() - ys[:3].mean())
    travelled, sideways = float(np.abs(np.diff(ys)).sum()), float(np.abs(np.diff(xs)).sum())
    if sideways > 0.8 and sideways > 1.6 * abs(dx) and sideways > 2 * travelled:
        return "swings"
    if travelled > 0.8 and travelled > 1.6 * abs(dy):
        return "bounces"
    if abs(dx) > 0.4 and abs(dx) > 2 * abs(dy):
        return "moves right" if dx > 0 else "moves left"
    if abs(dy) > 0.4 and abs(dy) > 2 * abs(dx):
        return "falls" if dy > 0 else "rises"
    if abs(dx) > 0.25 or abs(dy) > 0.25:
        return None
    period = SYMMETRY.get(shape or "ball", 0.0)
    if period:
        steps = [(b - a + period / 2) % period - period / 2 for a, b in pairwise(angles)]
        if abs(sum(steps)) > math.pi / 3:
            return "spins"
    return "stays still"


def _nearest(rgb: torch.Tensor, names: dict[str, tuple[int, int, int]]) -> str:
    return min(names, key=lambda n: float((rgb - torch.tensor(names[n]).float()).norm()))
