"""Show what will be trained: contact sheets, clips as video files, or text in the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from musubi.data import buckets, check, clips, fonts
from musubi.data.clips import ClipPlan
from musubi.data.survey import Surveyed, survey_of, threads_by_default
from musubi.data.video_writer import write_video
from musubi.errors import DataError, RunError
from musubi.plugin.architecture import Architecture, Task
from musubi.plugin.report import Report
from musubi.plugin.runtime import Clip
from musubi.weights.write import atomic

FRAMES = 8
"""Most frames of one clip on a sheet, evenly taken."""
CELL = 160
"""Pixels that the longer side of a picture has on a sheet."""
ROWS = 12
"""Clips on one sheet."""
_LABEL = 34
_LETTER = 12


def run(config: Any, architecture: Architecture, report: Report) -> None:
    """Show every clip as the encoder will get it: resized, cropped, at the model's frame rate.

    Args:
        config: A `CachePreviewConfig`, of another mode than "html".
        architecture: Whose sizes and frame rate are meant.
        report: Shows what was written; in console mode, shows the pictures.

    Raises:
        ConfigError: The dataset file cannot be used.
        DataError: It gives nothing to train on.
        RunError: The directory cannot be written.
    """
    task, found = surveyed(config, architecture, report)
    rate = task.shape.frame_rate
    workers = config.num_workers or threads_by_default()
    for one in found:
        for said in clips.conversions(one.plans, one.entry, rate):
            report.note(f"Dataset {one.entry.index + 1}: {said}")
        shown = decoded(one, workers, report, config.console_num_images)
        if config.mode == "image":
            written = _sheets(shown, one, Path(config.output))
        elif config.mode == "video":
            written = _videos(shown, one, Path(config.output), rate)
        else:
            _console(shown, report, config.console_width)
            continue
        report.note(f"Dataset {one.entry.index + 1}: files written to {config.output}: {written}.")


def surveyed(
    config: Any, architecture: Architecture, report: Report
) -> tuple[Task, list[Surveyed]]:
    """The task, and what there is to show, after the folder for it was made.

    Raises:
        ConfigError: The dataset file cannot be used.
        DataError: It gives nothing to train on.
        RunError: The directory cannot be written.
    """
    task, found = survey_of(config, architecture, report)
    if not found:
        raise DataError(
            f"There is nothing to show: the files that {config.dataset_config} names are gone.",
            fix="Put them back; records alone can be trained on, but not looked at.",
        )
    if not any(one.plans for one in found):
        raise check.nothing(found)
    check.left_out(found, report)
    folder = Path(config.output)
    if config.mode != "console":
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"The directory {folder} cannot be made: {error.strerror}.",
                fix="Give another --output.",
            ) from error
    captions = {p.source.caption for one in found for p in one.plans}
    if config.mode == "image" and any(fonts.for_text(c, _LETTER) is None for c in captions):
        report.warn(
            "No font of this system has all letters of the captions: the sheets show '?' for them. "
            "`--mode html` shows every letter."
        )
    return task, found


def decoded(
    one: Surveyed, workers: int, report: Report, most: int | None
) -> Iterator[tuple[ClipPlan, Clip]]:
    """The clips of a dataset, one after the other; one that cannot be decoded is warned of."""
    plans = one.plans if most is None else one.plans[:most]
    with report.progress(f"Dataset {one.entry.index + 1}", len(plans), unit="clip") as bar:
        for plan, clip in clips.decode_all(plans, workers):
            bar.advance()
            if isinstance(clip, Exception):
                report.warn(f"{plan.name}: {clip}")
            else:
                yield plan, clip


def described(plan: ClipPlan, clip: Clip) -> str:
    """File, frames, sizes, and the beginning of the caption, in one line."""
    size = f"{plan.size[0]}x{plan.size[1]} to {plan.bucket[0]}x{plan.bucket[1]}"
    count = len(clip.frames)
    frames = f", {count} frame{'s' * (count > 1)}" if plan.video is not None else ""
    return f"{plan.name} ({size}{frames}): {textwrap.shorten(plan.source.caption, 120)}"


# contact sheets


def _sheets(decoded: Iterator[tuple[ClipPlan, Clip]], one: Surveyed, folder: Path) -> int:
    rows: list[Image.Image] = []
    number = 0
    for plan, clip in decoded:
        rows.append(_row(plan, clip))
        if len(rows) == ROWS:
            number += 1
            _sheet(rows, folder / f"dataset{one.entry.index + 1}_{number:03d}.png")
            rows = []
    if rows:
        number += 1
        _sheet(rows, folder / f"dataset{one.entry.index + 1}_{number:03d}.png")
    return number


def _inputs(clip: Clip) -> Iterator[np.ndarray]:
    """The inputs of a clip, in three channels."""
    for given in clip.inputs.values():
        for frames in given:
            yield frames[..., :3] if frames.shape[-1] >= 3 else frames.repeat(3, axis=-1)


def _row(plan: ClipPlan, clip: Clip) -> Image.Image:
    """Frames of a clip side by side, its inputs below, one line of text above."""
    strips = [_strip(frames) for frames in (clip.frames, *_inputs(clip))]
    row = Image.new(
        "RGB", (max(s.width for s in strips), _LABEL + sum(s.height for s in strips)), "white"
    )
    text = described(plan, clip)
    font = fonts.for_text(text, _LETTER)
    words = text if font is not None else fonts.drawable(text)
    lines = _lines(words, font or fonts.for_text("", _LETTER), row.width - 8)
    ImageDraw.Draw(row).text((4, 2), "\n".join(lines), fill="black", font=font)
    top = _LABEL
    for strip in strips:
        row.paste(strip, (0, top))
        top += strip.height
    return row


def _lines(text: str, font: fonts.Font | None, width: int) -> list[str]:
    """The first two lines of a text, as wide as a row; also of scripts that have no spaces."""
    lines = [""]
    for letter in text:
        if font is not None and font.getlength(lines[-1] + letter) > width:
            lines.append("")
        lines[-1] += letter
    return [line.strip() for line in lines[:2]]


def _strip(frames: np.ndarray) -> Image.Image:
    taken = np.unique(np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).astype(int))
    height, width = frames.shape[1:3]
    scale = min(CELL / max(height, width), 1)
    cell = max(int(width * scale), 1), max(int(height * scale), 1)
    strip = Image.new("RGB", (FRAMES * CELL, cell[1]), "white")
    for place, index in enumerate(taken):
        picture = Image.fromarray(buckets.resize_and_crop(frames[index][None], cell)[0])
        mask = picture if picture.mode == "RGBA" else None
        strip.paste(picture, (place * (cell[0] + 2), 0), mask)
    return strip


def _sheet(rows: Sequence[Image.Image], path: Path) -> None:
    sheet = Image.new("RGB", (max(r.width for r in rows), sum(r.height for r in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    with atomic(path) as temporary:
        sheet.save(temporary, format="PNG")


# clips


def _videos(
    decoded: Iterator[tuple[ClipPlan, Clip]], one: Surveyed, folder: Path, rate: float
) -> int:
    count = 0
    for plan, clip in decoded:
        count += 1
        name = f"dataset{one.entry.index + 1}_{plan.cache_stem}"
        if plan.video is None:
            with atomic(folder / f"{name}.png") as temporary:
                Image.fromarray(_side_by_side(clip)[0]).save(temporary, format="PNG")
        else:
            write_video(_side_by_side(clip), folder / f"{name}.mp4", rate)
    return count


def _side_by_side(clip: Clip) -> np.ndarray:
    """The clip, and beside it the inputs of the same size."""
    shape = clip.frames.shape
    beside = [f for f in _inputs(clip) if f.shape[1:] == shape[1:] and len(f) in (1, shape[0])]
    return np.concatenate([clip.frames, *(np.broadcast_to(f, shape) for f in beside)], axis=2)


# the terminal


def _console(decoded: Iterator[tuple[ClipPlan, Clip]], report: Report, width: int) -> None:
    for plan, clip in decoded:
        report.note(described(plan, clip))
        middle = clip.frames[len(clip.frames) // 2]
        for line in half_blocks(middle, width):
            report.note(line)


def half_blocks(picture: np.ndarray, width: int) -> list[str]:
    """A picture as lines of text in 24-bit colour: each character is two pixels, one over the other.

    Args:
        picture: uint8, H W 3.
        width: Characters of a line; a smaller picture is not enlarged.
    """
    height, own = picture.shape[:2]
    columns = min(width, own)
    rows = max(int(height * columns / own / 2), 1) * 2
    small = buckets.shrink(picture, (columns, min(rows, height // 2 * 2 or 1)))
    if len(small) == 1:
        small = np.concatenate([small, small])
    lines: list[str] = []
    for upper, lower in zip(small[::2], small[1::2], strict=True):
        cells = [
            f"\x1b[38;2;{a[0]};{a[1]};{a[2]}m\x1b[48;2;{b[0]};{b[1]};{b[2]}m▀"
            for a, b in zip(upper.tolist(), lower.tolist(), strict=True)
        ]
        lines.append("".join(cells) + "\x1b[0m")
    return lines
