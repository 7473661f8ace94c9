"""Small images and videos of coloured shapes that move, with captions that say what they show."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from PIL import Image

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 190, 70),
    "blue": (50, 80, 220),
    "white": (240, 240, 240),
}
SHAPES = ("ball", "square")


def frame(width: int, height: int, *, colour: str, shape: str, at: float) -> np.ndarray:
    """One picture, uint8 H W 3: a shape `at` of the way (0 to 1) from left to right."""
    y, x = np.mgrid[0:height, 0:width]
    radius = min(width, height) / 4
    cx, cy = radius + at * (width - 2 * radius), height / 2
    if shape == "ball":
        inside = (x - cx) ** 2 + (y - cy) ** 2 <= radius**2
    else:
        inside = (abs(x - cx) <= radius) & (abs(y - cy) <= radius)
    shade = (40 + 60 * y / max(height - 1, 1)).astype(np.uint8)
    picture = np.stack([shade] * 3, axis=-1)
    picture[inside] = COLOURS[colour]
    return picture


def clip(
    width: int, height: int, frames: int, *, colour: str = "red", shape: str = "ball"
) -> np.ndarray:
    """A short motion, uint8 F H W 3."""
    steps = max(frames - 1, 1)
    return np.stack(
        [frame(width, height, colour=colour, shape=shape, at=i / steps) for i in range(frames)]
    )


def write_video(path: Path, frames: np.ndarray, *, fps: int = 16) -> Path:
    """Write uint8 F H W 3 (even sides) as H.264."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=fps, options={"crf": "12", "preset": "ultrafast"}
        )
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for picture in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def write_image(path: Path, picture: np.ndarray) -> Path:
    """Write uint8 H W 3 in the format its ending names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return path


def write_dataset(
    folder: Path,
    *,
    images: int = 2,
    videos: int = 2,
    width: int = 64,
    height: int = 48,
    frames: int = 9,
    fps: int = 16,
    batch_size: int = 1,
) -> Path:
    """Images and videos with captions beside them, and the dataset file; returns its path."""
    blocks: list[str] = []
    names = list(COLOURS)
    for kind, count in (("image", images), ("video", videos)):
        if not count:
            continue
        place = folder / f"{kind}s"
        for i in range(count):
            colour, shape = names[i % len(names)], SHAPES[i % len(SHAPES)]
            pictures = clip(width, height, frames, colour=colour, shape=shape)
            if kind == "image":
                write_image(place / f"{colour}_{i}.png", pictures[frames // 2])
            else:
                write_video(place / f"{colour}_{i}.mp4", pictures, fps=fps)
            (place / f"{colour}_{i}.txt").write_text(
                f"a {colour} {shape} moves right", encoding="utf-8"
            )
        extra = (
            f'target_frames = [1, {frames}]\nframe_extraction = "head"\n' if kind == "video" else ""
        )
        blocks.append(
            f"[[datasets]]\n{kind}_directory = '{place.as_posix()}'\n"
            f"cache_directory = '{(folder / f'{kind}_cache').as_posix()}'\n{extra}"
        )
    path = folder / "data.toml"
    general = (
        f'[general]\ncaption_extension = ".txt"\nresolution = [{width}, {height}]\n'
        f"batch_size = {batch_size}\nenable_bucket = true\n"
    )
    path.write_text("\n".join([general, *blocks]), encoding="utf-8")
    return path
