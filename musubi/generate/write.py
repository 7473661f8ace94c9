"""Write videos, images and latents; each file is written completely or not at all.

Names: `{time}_{seed}.mp4`, `{time}_{seed}_latent.safetensors`, `{time}_{seed}/{time}_{seed}_000.png`
(without the folder when there is one frame); time is `YYYYmmdd-HHMMSS`. What is decoded from a latent
file carries that file's stem behind the seed.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from musubi.data import video_writer
from musubi.data.video_writer import Quality
from musubi.errors import CheckpointError, DataError, RunError
from musubi.plugin import Recipe, Report
from musubi.untrusted import TextError, parse_json
from musubi.weights.files import open_weights
from musubi.weights.write import atomic, save

_LONGEST = 120  # bytes of another file's name that are taken over into a name
RECIPE = "musubi"  # the metadata key of the whole recipe, as JSON


def metadata(recipe: Recipe, *, written: Iterable[str] = (), **facts: Any) -> dict[str, str]:
    """The recipe as metadata: every number of it under `musubi`, and the keys of older tools.

    Args:
        recipe: What was made.
        written: Options whose values are keys of their own.
        facts: What else decides the result: architecture, task, files, LoRAs.
    """
    entries = {
        "seeds": recipe.seed,
        "prompt": recipe.prompt,
        "height": recipe.height,
        "width": recipe.width,
        "video_length": recipe.frames,
        "infer_steps": recipe.steps,
        "guidance_scale": recipe.guidance_scale,
    }
    for name in written:
        if recipe.options.get(name) is not None:
            entries[name] = recipe.options[name]
    if recipe.negative_prompt:
        entries["negative_prompt"] = recipe.negative_prompt
    whole = json.dumps({**asdict(recipe), **facts}, ensure_ascii=False, default=str)
    return {**{key: str(value) for key, value in entries.items()}, RECIPE: whole}


def stem(folder: Path, seed: int, *, original: str | None = None) -> str:
    """A name for what is made now: `{time}_{seed}[_{original}]`, free in `folder`.

    Args:
        folder: Where it will be written.
        seed: A number, and nothing that a file says.
        original: The stem of the latent file that is decoded.
    """
    name = f"{datetime.now():%Y%m%d-%H%M%S}_{int(seed)}"
    if original:
        short = Path(original).name.encode(errors="ignore")[:_LONGEST]
        name += f"_{short.decode(errors='ignore')}"
    taken = {path.name for path in folder.glob(f"{name[:15]}*")} if folder.is_dir() else set()
    free, count = name, 1
    while any(other == free or other.startswith((f"{free}.", f"{free}_")) for other in taken):
        free, count = f"{name}-{count}", count + 1
    return free


def write_video(
    pictures: Iterable[np.ndarray],
    path: Path,
    fps: float,
    metadata: Mapping[str, str] | None = None,
    quality: Quality | None = None,
) -> Path:
    """Write pictures, each uint8 or uint16 H W 3, as mp4; the recipe goes into the comment.

    Each is encoded as it comes, so that a long video need not be in memory.
    """
    tags = {"comment": metadata.get(RECIPE) or json.dumps(dict(metadata))} if metadata else None
    return video_writer.write_video(pictures, path, fps, quality=quality, tags=tags)


def write_images(
    pictures: Iterable[np.ndarray],
    folder: Path,
    name: str,
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write pictures, each uint8 H W 3, as `folder/name/name_000.png` …; one alone as
    `folder/name_000.png`.
    """
    info = PngInfo()
    for key, value in (metadata or {}).items():
        info.add_itxt(key, value)
    rest = iter(pictures)
    first = list(islice(rest, 2))
    place = folder if len(first) == 1 else folder / name
    place.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for i, picture in enumerate(chain(first, rest)):
        path = place / f"{name}_{i:03d}.png"
        with atomic(path) as temporary:
            Image.fromarray(picture).save(temporary, format="PNG", pnginfo=info)
        written.append(path)
    return written


def write_latents(
    latents: torch.Tensor, path: Path, metadata: Mapping[str, str] | None = None
) -> Path:
    """Write latents (1) C F H W as the tensor `latent`, C F H W, float32."""
    path.parent.mkdir(parents=True, exist_ok=True)
    latent = (latents[0] if latents.ndim == 5 else latents).float().cpu().contiguous()
    save(path, {"latent": latent}, dict(metadata or {}))
    return path


def write_latents_somewhere(
    latents: torch.Tensor, path: Path, metadata: Mapping[str, str] | None, report: Report
) -> Path:
    """`write_latents`; in the system's folder for temporary files when `path` cannot be written.

    Raises:
        RunError: Neither folder can be written.
    """
    try:
        return write_latents(latents, path, metadata)
    except RunError as error:
        other = Path(tempfile.gettempdir()) / path.name
        try:
            write_latents(latents, other, metadata)
        except RunError:
            raise error from None
        report.warn(f"{error} The latents are in {other} instead.")
        return other


@dataclass(frozen=True)
class LatentFile:
    """Latents 1 C F H W, float32, and the metadata beside them."""

    latents: torch.Tensor
    metadata: Mapping[str, str]

    @property
    def recipe(self) -> dict[str, Any]:
        """The whole recipe when the file carries one, else empty."""
        try:
            found = parse_json(self.metadata.get(RECIPE, "{}"))
        except TextError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def seed(self) -> int:
        """The seed; 0 when the file does not say, or says what is no seed."""
        text = self.metadata.get("seeds", "0")
        return int(text) if re.fullmatch(r"[0-9]{1,19}", text) else 0

    @property
    def fps(self) -> float | None:
        """Frames per second, when the file says a number that can be meant."""
        given = self.recipe.get("fps")
        if isinstance(given, bool) or not isinstance(given, (int, float)):
            return None
        return float(given) if 0 < given <= 1000 else None


def read_latents(path: Path) -> LatentFile:
    """Read a latent file: `.safetensors`, or `.pt` without code in it; a batch axis of 1 goes.

    Raises:
        CheckpointError: The file cannot be read, or is no file of tensors.
        DataError: It holds no latents.
    """
    found, notes = _read_bare(path) if path.suffix.lower() in (".pt", ".pth") else _read(path)
    if found.ndim == 4:
        found = found[None]
    if found.ndim != 5 or found.shape[0] != 1 or not found.numel():
        raise DataError(
            f"{path} holds a tensor of shape {tuple(found.shape)}, which is no latents.",
            fix="Give a file of C F H W, as --output_type latent writes it.",
        )
    if not found.isfinite().all():
        raise DataError(f"{path} holds latents that are not finite.", fix="Make them again.")
    return LatentFile(found.float(), notes)


def _read(path: Path) -> tuple[torch.Tensor, Mapping[str, str]]:
    with open_weights(path) as weights:
        if "latent" not in weights.names:
            raise DataError(
                f"{path} has no tensor named latent.", fix="Give what --output_type latent wrote."
            )
        return weights.read("latent").float(), dict(weights.metadata)


def _read_bare(path: Path) -> tuple[torch.Tensor, Mapping[str, str]]:
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist.", fix="Check the path.")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for pickled code and for broken files
        raise CheckpointError(
            f"{path} cannot be read as plain tensors.", fix="Save it as safetensors."
        ) from error
    if isinstance(found, Mapping):
        found = found.get("latent")
    if not isinstance(found, torch.Tensor):
        raise DataError(f"{path} holds no tensor of latents.", fix="Save the tensor alone.")
    return found.float(), {}
