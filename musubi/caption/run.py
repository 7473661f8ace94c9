"""`musubi cache caption`: a text file beside every clip and picture that has none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from musubi.caption.model import Captioner
from musubi.config.caption import CaptionConfig
from musubi.data import media
from musubi.data.media import VIDEO_EXTENSIONS, image_extensions
from musubi.errors import ConfigError, DataError, MusubiError, RunError, counted
from musubi.plugin import Report
from musubi.weights.dtypes import parse_dtype
from musubi.weights.write import atomic, not_written


def run(config: CaptionConfig, report: Report) -> None:
    """Caption every file of a folder.

    Raises:
        ConfigError: An option that cannot be.
        DataError: The folder holds nothing to caption.
        CheckpointError: The model cannot be loaded.
        RunError: Some files could not be captioned, or nothing can be written.
    """
    if len(config.folder) != 1:
        raise ConfigError(
            "`musubi cache caption` takes one folder.", fix="Run the command once for each folder."
        )
    folder, ending = Path(config.folder[0]), config.caption_extension
    if not ending.startswith(".") or ending.lower() in {*VIDEO_EXTENSIONS, *image_extensions()}:
        raise ConfigError(
            f"--caption_extension is {ending!r}.", fix="Write an ending of texts, such as .txt."
        )
    dtype, device = parse_dtype(config.dtype), _device(config.device)
    files = list(_files(folder))
    if not files:
        raise DataError(
            f"{folder} holds no clips and no pictures.", fix="Give the folder they lie in."
        )
    wanted = [f for f in files if config.overwrite or not _has_text(f.with_suffix(ending))]
    if len(files) > len(wanted):
        report.note(f"{counted(len(files) - len(wanted), 'caption')} found, and kept as they are.")
    if not wanted:
        return
    captioner = Captioner(config.model, device, dtype)
    failed: list[str] = []
    with report.progress("Captions", len(wanted), unit="file") as bar:
        for path in wanted:
            try:
                text = _caption(path, captioner, config)
            except MusubiError as error:
                failed.append(path.name)
                report.warn(f"{path.name}: {error}")
            else:
                _write(path.with_suffix(ending), text)
            bar.advance()
    report.note(
        f"Wrote {counted(len(wanted) - len(failed), 'caption')}. Read them: a LoRA learns what they say."
    )
    if failed:
        raise RunError(
            f"No caption for {counted(len(failed), 'file')}: {', '.join(failed[:8])}.",
            fix="Mend or remove what is named, and run the command again.",
        )


def _caption(path: Path, captioner: Captioner, config: CaptionConfig) -> str:
    video = path.suffix.lower() in VIDEO_EXTENSIONS
    pictures = _frames(path, config.frames) if video else [media.read_image(path)]
    question = config.prompt.replace("{kind}", "video" if video else "picture")
    text = captioner.caption(
        [_small(p, config.side) for p in pictures], question, config.max_tokens
    )
    if not text:
        raise DataError("The model said nothing.", fix="Ask something else by --prompt.")
    return f"{config.trigger}, {text}" if config.trigger else text


def _frames(path: Path, count: int) -> list[np.ndarray]:
    """Frames evenly over a clip."""
    video = media.probe_video(path)
    places = np.unique(
        np.linspace(0, video.frames - 1, min(count, video.frames)).round().astype(int)
    )
    return [picture for _, picture in media.read_frames(video, places.tolist())]


def _small(picture: np.ndarray, side: int) -> np.ndarray:
    image = Image.fromarray(picture)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _files(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder.", fix="Give the folder that your clips are in.")
    known = {*VIDEO_EXTENSIONS, *image_extensions()}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix.lower() in known:
            yield path


def _has_text(path: Path) -> bool:
    try:
        return bool(path.read_bytes().strip())
    except OSError:
        return False


def _write(path: Path, text: str) -> None:
    try:
        with atomic(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise not_written(path, error) from error


def _device(asked: str | None) -> torch.device:
    try:
        return torch.device(asked or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ConfigError(f"--device {asked} is no device.", fix="Write cuda or cpu.") from error
