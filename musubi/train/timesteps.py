"""`--show_timesteps`: show the distribution of the noise levels, as text or as a picture."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw

from musubi.config.optimization import TimestepOptions
from musubi.plugin.report import Report
from musubi.train.step import draw_times, weight_at

SAMPLES = 100_000
BINS = 50
BAR = 50  # characters of the longest bar
_WIDTH, _HEIGHT, _MARGIN = 900, 420, 50
_TOKENS = 4096  # of a 1024 x 1024 image, for a shift by resolution


def histogram(options: TimestepOptions, seed: int = 0) -> tuple[list[float], list[float]]:
    """For each of 50 equal parts of 0..1000: the percentage of draws, and the mean loss weight."""
    generator = torch.Generator().manual_seed(seed)
    t = draw_times(options, SAMPLES, tokens=_TOKENS, generator=generator)
    places = (t * BINS).long().clamp(0, BINS - 1)
    counts = torch.bincount(places, minlength=BINS).double()
    weights = weight_at(options, t).double()
    sums = torch.zeros(BINS, dtype=torch.float64).index_add_(0, places, weights)
    return (100 * counts / SAMPLES).tolist(), (sums / counts.clamp(min=1)).tolist()


def weighting_of(options: TimestepOptions) -> str:
    """The name of the loss weighting."""
    gamma = options.min_snr_gamma
    return options.weighting_scheme if gamma is None else f"min-SNR {gamma:g}"


def show(options: TimestepOptions, path: Path, report: Report) -> None:
    """Show the distribution in the console, and as a PNG when a picture was asked for.

    Args:
        options: The options of the run; `show_timesteps` says how to show the distribution.
        path: Where the picture goes.
        report: Where the text goes.
    """
    shares, weights = histogram(options)
    title = f"Timesteps: {options.timestep_sampling}, weighting {weighting_of(options)}"
    if options.show_timesteps == "image":
        path.parent.mkdir(parents=True, exist_ok=True)
        _picture(shares, weights, title).save(path)
        report.note(f"{title}: wrote {path}.")
        return
    width = 1000 // BINS
    most = max(shares) or 1.0
    rows = [
        (
            f"{i * width}-{(i + 1) * width}",
            f"{share:.2f}%",
            f"{weight:.3g}",
            "█" * round(BAR * share / most),
        )
        for i, (share, weight) in enumerate(zip(shares, weights, strict=True))
    ]
    report.table(title, ("noise", "share", "loss weight", "of the largest share"), rows)


def _picture(shares: list[float], weights: list[float], title: str) -> Image.Image:
    """Bars for the density, and a line for the mean weight of the loss."""
    image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = _MARGIN, _MARGIN, _WIDTH - _MARGIN, _HEIGHT - _MARGIN
    step = (right - left) / BINS
    most, heaviest = max(shares) or 1.0, max(weights) or 1.0
    draw.text(
        (left, 18),
        f"{title} - highest bar {most:.2f}%, line: loss weight up to {heaviest:.3g}",
        "black",
    )
    points: list[tuple[float, float]] = []
    for i, (share, weight) in enumerate(zip(shares, weights, strict=True)):
        x = left + i * step
        y = bottom - (bottom - top) * share / most
        draw.rectangle((x, y, x + step - 1, bottom), fill=(84, 130, 196))
        points.append((x + step / 2, bottom - (bottom - top) * weight / heaviest))
    draw.line(points, fill=(200, 80, 40), width=2)
    draw.line((left, bottom, right, bottom), fill="black")
    for level in range(0, 1001, 100):
        x = left + (right - left) * level / 1000
        draw.line((x, bottom, x, bottom + 5), fill="black")
        draw.text((x - 10, bottom + 8), str(level), "black")
    return image
