"""Single values of the dataset file: what each may be, and what it means."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from musubi.errors import ConfigError, nearest
from musubi.plugin.architecture import Architecture, Task

Kind = Literal["image", "video"]
RESOLUTION = (960, 544)
ARCHIVES = (".zip", ".tar")
"""Endings of files that stand for a folder."""

MOST_PIXELS = 65_536
"""Of one side."""

MOST_FRAMES = 100_000
MOST_LENGTHS = 1000


def extension_of(text: str | None, listed: bool, where: str, notes: list[str]) -> str | None:
    """The ending of caption files; None when a list names the captions."""
    if listed:
        return None
    if not text:
        raise ConfigError(
            f"{where} does not say where captions are: caption_extension is not given.",
            fix='Write caption_extension = ".txt".',
        )
    if text.startswith((".", "_", "-")):  # "_caption.txt" has always worked too
        return text
    notes.append(f'{where}: caption_extension = "{text}" is read as ".{text}".')
    return f".{text}"


def resolution_of(
    given: Mapping[str, Any], where: str, architecture: Architecture, task: Task
) -> tuple[int, int]:
    """Width and height in pixels."""
    value, multiple = given.get("resolution", RESOLUTION), task.shape.side
    sides = (value, value) if isinstance(value, int) else tuple(value)
    if len(sides) != 2 or min(sides) < multiple or max(sides) > MOST_PIXELS:
        raise ConfigError(
            f"{where}: resolution = {value!r:.100} cannot be used.",
            fix=f"Write a number or [width, height], each at least {multiple} and at most"
            f" {MOST_PIXELS}.",
        )
    if not given.get("enable_bucket", False) and any(side % multiple for side in sides):
        whole = [side // multiple * multiple for side in sides]
        raise ConfigError(
            f"{where}: resolution = {value!r} is not a multiple of {multiple}, which "
            f"{architecture.title} needs.",
            fix=f"Write resolution = {whole}, or enable_bucket = true.",
        )
    return sides[0], sides[1]


def lengths_of(
    given: Mapping[str, Any], kind: Kind, where: str, task: Task, notes: list[str]
) -> tuple[int, ...]:
    """Clip lengths, rounded down to what the task takes, ascending, each once."""
    if kind == "image":
        return (1,)
    asked = list(given.get("target_frames", [1]))
    if not asked or min(asked) < 1 or max(asked) > MOST_FRAMES or len(asked) > MOST_LENGTHS:
        raise ConfigError(
            f"{where}: target_frames = {asked!r:.100} cannot be used.",
            fix=f"Write a list of numbers from 1 to {MOST_FRAMES}, such as [1, 25, 49].",
        )
    step = task.shape.period
    rounded = {n: task.shape.fitting_frames(n) for n in asked}
    changed = [f"{n} to {m}" for n, m in sorted(rounded.items()) if n != m]
    if changed and given.get("frame_extraction") != "full":
        notes.append(
            f"{where}: clips have {step} * k + 1 frames; target_frames rounded down: "
            f"{', '.join(changed)}."
        )
    return tuple(sorted(set(rounded.values())))


def is_archive(path: Path) -> bool:
    """Whether a file stands for the folder that is packed in it, by its ending."""
    return path.suffix.lower() in ARCHIVES and path.is_file()


def found(text: str, home: Path, base: Path | None = None) -> tuple[Path, Path]:
    """The path that is meant, and the directory it was meant from.

    Args:
        text: As written.
        home: The directory of the dataset file.
        base: Where to put what does not exist; the working directory when None.
    """
    path = Path(text).expanduser()
    here = Path()
    if path.is_absolute() or path.exists():
        return path, here
    if (home / path).exists():
        return home / path, home
    return (base or here) / path, base or here


def near(path: Path, otherwise: str, *more: Path) -> str:
    """What lies beside the path, or beside one of `more`, under nearly that name."""
    for place in (path, *more):
        try:
            names = sorted(p.name for p in place.parent.iterdir())
        except OSError:
            continue
        if close := nearest(place.name, names):
            return f"Did you mean {place.parent / close}?"
    return otherwise
