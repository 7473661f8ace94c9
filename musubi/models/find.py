"""`musubi models find`: model files on this machine, recognised by what is in them, not by their names."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musubi import registry
from musubi.config.commands import architectures
from musubi.config.models import FindConfig, model_folders, settings_file
from musubi.errors import CheckpointError, ConfigError
from musubi.plugin import Architecture, Component, Report
from musubi.weights.contents import Inspection, examine
from musubi.weights.files import open_weights
from musubi.weights.paths import SAFE, weight_sets

_PICKLED = (".pt", ".pth", ".bin", ".ckpt")
_SMALLEST = 4096
"""Bytes; what is smaller is no model: embeddings, statistics, files of a failed download."""
_MOST = 20_000
"""Folders that are looked into."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A file that some component can be loaded from.

    Args:
        path: The file, or the folder of its shards.
        architecture: Whose component.
        component: That it is read as.
        contents: What is in it.
        size: In bytes.
    """

    path: Path
    architecture: Architecture
    component: Component
    contents: Inspection
    size: int

    @property
    def eight_bits(self) -> bool:
        """Whether its weights are stored in 8 bits."""
        return any(dtype.itemsize == 1 for dtype in self.contents.dtypes.values())

    @property
    def variants(self) -> list[str]:
        """The published variants that it may be: for a DiT those of its numbers."""
        if not _is_dit(self):
            return []
        numbers = self.contents.numbers
        fit = [
            v.name
            for v in self.architecture.variants
            if all(numbers.get(k) == n for k, n in v.numbers.items())
            and all(numbers.get(k) == n for k, n in self.architecture.task(v.task).requires.items())
        ]
        named = [name for name in fit if name in self._published]
        return named or fit

    @property
    def _published(self) -> frozenset[str]:
        """The variants whose published repository or, failing that, file has this name."""
        folders = set(self.path.parts)
        published = self.architecture.publications
        files = [
            p
            for p in published
            if folders & {p.repo.rpartition("/")[2], "models--" + p.repo.replace("/", "--")}
        ]
        files = files or [p for p in published if Path(p.file).name == self.path.name]
        return frozenset(name for p in files for name in p.variants)


def run(config: FindConfig, report: Report) -> None:
    """List what is found.

    Raises:
        ConfigError: A folder does not exist, or none was named anywhere.
    """
    folders = [Path(folder) for folder in config.folders] or model_folders()
    absent = next((folder for folder in folders if not folder.is_dir()), None)
    if absent is not None:
        raise ConfigError(f"{absent} is no folder.", fix="Give a folder with model files.")
    if not folders:
        raise ConfigError(
            "No folder with model files is known.",
            fix=f'Give one, set MUSUBI_MODELS, or write models = "DIR" into {settings_file()}.',
        )
    wanted = [registry.find(config.arch)] if config.arch else list(architectures())
    found = list(search(folders, wanted, report))
    if config.json_output:
        report.note(json.dumps([_plain(one) for one in found], ensure_ascii=False, indent=2))
        return
    rows = [
        (
            one.architecture.name,
            f"--{one.component.name}",
            ", ".join(one.variants) or ("another size" if _is_dit(one) else "all"),
            f"{one.size / 1e9:.2f} GB",
            one.contents.dialect.name + (", 8 bits" if one.eight_bits else ""),
            one.path,
        )
        for one in sorted(found, key=lambda f: (f.architecture.name, f.component.name, f.path))
    ]
    places = ", ".join(str(folder) for folder in folders)
    if not rows:
        report.note(f"No model file of {_names(wanted)} is in {places}.")
        return
    report.table(
        f"Model files in {places}", ("--arch", "option", "for", "size", "layout", "file"), rows
    )


def search(
    folders: Iterable[Path],
    wanted: Sequence[Architecture],
    report: Report,
    components: Sequence[str] | None = None,
) -> Iterator[Found]:
    """Every model file in some folders, read by its header alone.

    Args:
        folders: Where to look, and below.
        wanted: Whose files.
        report: Shows a bar.
        components: Names of the components that matter; None is all.
    """
    paths = list(dict.fromkeys(path for folder in folders for path in candidates(folder)))
    with report.progress("Looking at model files", len(paths), unit="file") as bar:
        for path in paths:
            yield from _recognised(path, wanted, components)
            bar.advance()


def candidates(folder: Path) -> Iterator[Path]:
    """Files that may hold a model, and folders of one that is in shards, below a folder."""
    seen: set[str] = set()
    for count, (place, folders, files) in enumerate(os.walk(folder, followlinks=True)):
        real = os.path.realpath(place)
        if real in seen or count > _MOST:  # a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(
            f for f in folders if not f.startswith(".") and f not in ("blobs", "refs")
        )
        here = Path(place)
        if not any(name.lower().endswith((*SAFE, *_PICKLED)) for name in files):
            continue
        try:
            sets = weight_sets(here)
            for file in sets.values():
                sharded = "-of-" in file.name
                path = here if sharded and len(sets) == 1 else file
                if path.is_dir() or path.stat().st_size >= _SMALLEST:
                    yield path
        except OSError:  # what may not be read is nothing that was found
            continue


def _recognised(
    path: Path, wanted: Sequence[Architecture], components: Sequence[str] | None
) -> Iterator[Found]:
    try:
        weights = open_weights(path)
    except CheckpointError:
        return
    with weights:
        for architecture in wanted:
            for component in architecture.components:
                if components is not None and component.name not in components:
                    continue
                if component.role == "dit" and component is not architecture.dit:
                    continue  # a file does not say which of several experts it is
                try:
                    contents = examine(component, weights)
                except CheckpointError:
                    continue
                yield Found(
                    path=path,
                    architecture=architecture,
                    component=component,
                    contents=contents,
                    size=_size(path),
                )


def _is_dit(one: Found) -> bool:
    return one.component.name == one.architecture.dit.name


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(f.stat().st_size for f in path.iterdir() if f.suffix in (*SAFE, *_PICKLED))


def _plain(one: Found) -> dict[str, Any]:
    return {
        "architecture": one.architecture.name,
        "component": one.component.name,
        "variants": one.variants,
        "path": str(one.path),
        "bytes": one.size,
        "layout": one.contents.dialect.name,
        "eight_bits": one.eight_bits,
    }


def _names(wanted: Iterable[Architecture]) -> str:
    return " or ".join(a.name for a in wanted)
