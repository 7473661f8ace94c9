"""Real small files, made when a test asks for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from musubi import registry
from musubi.config.dataset import DatasetEntry
from musubi.plugin import Input
from musubi.testing import media


class Files:
    """Makes media in a folder. Frame i of a video has the grey level 8 i + 8, so that it is known again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def image(self, name: str, size=(64, 48), caption: str | None = "a ball") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        media.write_image(path, media.frame(*size, colour="red", shape="ball", at=0.5))
        return self.caption(path, caption)

    def caption(self, path: Path, text: str | None) -> Path:
        if text is not None:
            path.with_suffix(".txt").write_text(text, encoding="utf-8")
        return path

    def greys(self, count: int, size=(64, 48)) -> np.ndarray:
        levels = (np.arange(count) * 8 + 8).clip(0, 255).astype(np.uint8)
        return np.broadcast_to(levels[:, None, None, None], (count, size[1], size[0], 3)).copy()

    def video(
        self,
        name: str,
        frames: int | np.ndarray = 9,
        *,
        fps: int = 16,
        times: Sequence[int] | None = None,
        gop: int = 250,
        caption: str | None = "a ball",
        options: dict[str, str] | None = None,
    ) -> Path:
        """`times` are in milliseconds, one for each frame."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures = self.greys(frames) if isinstance(frames, int) else frames
        with av.open(str(path), "w", options=options or {}) as container:
            stream = container.add_stream(
                "libx264", rate=fps, options={"crf": "1", "preset": "veryfast", "g": str(gop)}
            )
            stream.height, stream.width = pictures.shape[1:3]
            stream.pix_fmt = "yuv420p"
            if times is not None:
                stream.codec_context.time_base = Fraction(1, 1000)
            for i, picture in enumerate(pictures):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                if times is not None:
                    frame.pts, frame.time_base = times[i], Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return self.caption(path, caption)

    def folder_of_images(self, name: str, count: int, caption: str | None = "a ball") -> Path:
        path = self.folder / name
        path.mkdir(parents=True)
        for i, picture in enumerate(self.greys(count)):
            Image.fromarray(picture).save(path / f"{i:03d}.png")
        if caption is not None:
            path.with_name(f"{path.stem}.txt").write_text(caption, encoding="utf-8")
        return path

    def entry(self, kind: str = "image", **more) -> DatasetEntry:
        more.setdefault("cache_directory", self.folder / "cache")
        if "jsonl_file" not in more:
            more.setdefault("directory", self.folder)
            more.setdefault("caption_extension", ".txt")
        more.setdefault("resolution", (64, 48))
        more.setdefault("inputs", (CONTROL,))
        control = more.pop("control_directory", None)
        if control is not None:
            more["directories"] = {"control": control}
        return DatasetEntry(index=0, kind=kind, **more)


def levels(frames: np.ndarray) -> list[int]:
    """Which frames these are."""
    middle = frames[:, frames.shape[1] // 2, frames.shape[2] // 2, 0].astype(float)
    return np.rint((middle - 8) / 8).astype(int).tolist()


@pytest.fixture
def files(tmp_path) -> Files:
    return Files(tmp_path)


@pytest.fixture
def numbers():
    return levels


CONTROL = Input(
    name="control",
    kind="video",
    help="Controls.",
    column="control_path",
    directory="control_directory",
    many=True,
    alpha=True,
)


@pytest.fixture(scope="session")
def wan():
    """An architecture whose first task takes controls."""
    found = registry.find("wan")
    first = dataclasses.replace(found.tasks[0], inputs=(CONTROL,))
    return dataclasses.replace(found, tasks=(first, *found.tasks[1:]))
