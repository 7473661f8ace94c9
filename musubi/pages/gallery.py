"""`musubi gallery`: a folder of generated videos and images as one page, each with its recipe."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from musubi import registry
from musubi.config.commands import typed
from musubi.config.fields import flags
from musubi.config.pages import GalleryConfig
from musubi.errors import ConfigError, DataError, MusubiError, RunError, counted, system_reason
from musubi.pages import document, samples
from musubi.pages.embed import TOO_MUCH, Embedder
from musubi.plugin import Report

# Of a recipe, as `musubi generate` takes it; sizes and times are written apart.
_FLAGS = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "frames": "video_length",
    "fps": "fps",
    "steps": "infer_steps",
    "flow_shift": "flow_shift",
    "guidance_scale": "guidance_scale",
    "solver": "sample_solver",
    "seed": "seed",
}


def run(config: GalleryConfig, report: Report) -> None:
    """Write the page.

    Raises:
        ConfigError: There is no such folder.
        DataError: It holds nothing to show.
        RunError: The page cannot be written.
    """
    if len(config.folder) != 1:
        raise ConfigError(
            "A gallery is of one folder.", fix="Give one; what lies below it is shown too."
        )
    folder = Path(config.folder[0])
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} is no folder.", fix="Give the --save_path of `musubi generate`."
        )
    page = Path(config.output) if config.output else folder / "gallery.html"
    found = sorted(_files(folder), key=lambda p: p.stat().st_mtime, reverse=True)
    if not found:
        raise DataError(
            f"{folder} holds no videos and no images.",
            fix="Give the --save_path of `musubi generate`.",
        )
    embed = Embedder(page.parent, budget=60_000_000)
    items: list[dict[str, Any]] = []
    taken = found[: config.most]
    with report.progress("Clips", len(taken), unit="clip") as bar:
        for path in taken:
            items.append(_item(path, folder, embed(path)))
            bar.advance()
    data: dict[str, Any] = {
        "view": "gallery",
        "name": folder.resolve().name,
        "made": time.time(),
        "items": items,
    }
    said = []
    if len(found) > len(taken):
        said.append(f"Not shown: {counted(len(found) - len(taken), 'older file')} (--most).")
    if embed.left_out:
        said.append(f"Linked and not shown: {counted(embed.left_out, 'file')}, {TOO_MUCH}.")
    data["thinned"] = " ".join(said)
    try:
        document.write(page, f"{data['name']} - musubi gallery", data)
    except OSError as error:
        raise RunError(
            f"{page} cannot be written: {system_reason(error)}.", fix="Give another --output."
        ) from error
    report.note(f"Wrote {page}, which shows {counted(len(items), 'clip')}.")


def _files(folder: Path) -> Iterator[Path]:
    """Videos and images; of a folder of one video's frames only the first."""
    for path in folder.rglob("*"):
        suffix = path.suffix.lower()
        if suffix in samples.VIDEOS or (
            suffix in samples.IMAGES and (path.stem.endswith("_000") or path.stem[-4:-3] != "_")
        ):
            yield path


def _item(path: Path, folder: Path, media: Mapping[str, Any]) -> dict[str, Any]:
    recipe = samples.recipe(path)
    names = [name for name, _ in _loras(recipe)]
    size = f"{recipe['width']}×{recipe['height']}" if {"width", "height"} <= recipe.keys() else ""
    facts = [
        f"seed {recipe['seed']}" if "seed" in recipe else "",
        size,
        f"{recipe['frames']} frames" if recipe.get("frames", 1) != 1 else "",
        f"{recipe['steps']} steps" if "steps" in recipe else "",
        f"guidance {recipe['guidance_scale']:g}" if _number(recipe.get("guidance_scale")) else "",
        *(Path(name).stem for name in names),
    ]
    return {
        "name": path.relative_to(folder).as_posix(),
        "prompt": str(recipe.get("prompt", "")),
        "facts": [fact for fact in facts if fact],
        "media": media,
        "command": command(recipe),
    }


def command(recipe: Mapping[str, Any]) -> str:
    """The command that makes it again, as far as its recipe says; empty where it says nothing.

    The model files are named only where the recipe names them.
    """
    arch, found = recipe.get("architecture"), typed(["generate"])
    if not isinstance(arch, str) or "prompt" not in recipe or found is None:
        return ""
    try:
        architecture = registry.find(arch)
        known = flags(found.options(architecture))
    except MusubiError:  # an architecture that is not installed here
        return ""
    words = ["musubi", "generate", "--arch", arch]
    if recipe.get("task"):
        words += ["--task", str(recipe["task"])]
    files = recipe.get("files")
    options = recipe.get("options")
    given = {_FLAGS[key]: recipe[key] for key in _FLAGS if recipe.get(key) not in (None, "")}
    given |= files if isinstance(files, dict) else {}
    given |= options if isinstance(options, dict) else {}
    usual = {t.sampling.negative_prompt for t in architecture.tasks}
    for name, value in given.items():
        if name not in known or value in (None, False, known[name].default):
            continue
        if name == "negative_prompt" and value in usual:
            continue
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    if {"width", "height"} <= recipe.keys() and "video_size" in known:
        words += ["--video_size", str(recipe["height"]), str(recipe["width"])]
    loras = _loras(recipe)
    if loras:
        words += ["--lora_weight", *(name for name, _ in loras)]
        words += ["--lora_multiplier", *(f"{factor:g}" for _, factor in loras)]
    return shlex.join(words)


def _loras(recipe: Mapping[str, Any]) -> list[tuple[str, float]]:
    """File and multiplier of each."""
    found = recipe.get("loras")
    if not isinstance(found, list):
        return []
    kept = [one for one in found if isinstance(one, dict) and "file" in one]
    return [
        (str(one["file"]), float(one["multiplier"]) if _number(one.get("multiplier")) else 1.0)
        for one in kept
    ]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
