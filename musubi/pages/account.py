"""What a run notes about itself for its page: beside `metrics.jsonl`, in `report/run.json`.

The numbers are in `metrics.jsonl`, the settings in `config.toml`, the samples and checkpoints are
files: only what cannot be read from these is noted here.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from musubi.config.dataset import DatasetEntry
from musubi.data import media
from musubi.data.sources import Source, scan
from musubi.errors import MusubiError
from musubi.pages import pictures
from musubi.untrusted import parse_json, read_text
from musubi.weights.write import atomic

FOLDER = "report"
FILE = "run.json"
SHOWN = 48
"""Files of the dataset that are shown; the page says how many more there are."""
CAPTION = 600
"""Characters of a caption that are kept."""


@dataclass(kw_only=True)
class Account:
    """The facts about a run: those known at its start, and its current state.

    Args:
        name: `--output_name`.
        architecture: Name of the architecture.
        task: Name of the task or variant.
        trained: What is trained, and how much of it.
        total: Optimizer steps.
        per_epoch: Steps of an epoch.
        device: Where it runs, in words.
        started: Seconds since 1970.
        resumed_at: The step it went on from; 0 for a run from the start.
        state: "running", "finished", "stopped" or "failed".
        message: Why it stopped or failed.
        updated: Seconds since 1970, of the last sign of life.
        datasets: Of the dataset file, each with kind, resolution, clips and so on.
        buckets: Size, frames, and how many items.
        items: Some files with caption and thumbnail.
        more: How many files are not among `items`.
        held: Items held back for validation.
    """

    name: str
    architecture: str
    task: str
    trained: str
    total: int
    per_epoch: int
    device: str
    started: float
    resumed_at: int = 0
    state: str = "running"
    message: str = ""
    updated: float = 0.0
    datasets: list[dict[str, Any]] = field(default_factory=list)
    buckets: list[dict[str, Any]] = field(default_factory=list)
    items: list[dict[str, Any]] = field(default_factory=list)
    more: int = 0
    held: int = 0

    def write(self, folder: Path) -> None:
        """Write them into a run's folder."""
        self.updated = time.time()
        place = folder / FOLDER
        place.mkdir(parents=True, exist_ok=True)
        with atomic(place / FILE) as path:
            path.write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")


def read(folder: Path) -> dict[str, Any]:
    """What a run's folder notes; empty where nothing was noted."""
    try:
        found = parse_json(read_text(folder / FOLDER / FILE))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def datasets(entries: Sequence[DatasetEntry], counts: Mapping[int, int]) -> list[dict[str, Any]]:
    """What each dataset is, in short.

    Args:
        entries: Of the dataset file.
        counts: Number of the dataset, from 0 → items in it.
    """
    return [
        {
            "kind": entry.kind,
            "place": entry.place.name,
            "resolution": list(entry.resolution),
            "batch": entry.batch_size,
            "repeats": entry.num_repeats,
            "items": counts.get(number, 0),
        }
        for number, entry in enumerate(entries)
    ]


def buckets(items: Iterable[Any]) -> list[dict[str, Any]]:
    """Size, frames and number of the items of each bucket, the fullest first."""
    counts = Counter(tuple(item.bucket[:3]) for item in items)
    return [
        {"width": w, "height": h, "frames": f, "items": n} for (w, h, f), n in counts.most_common()
    ]


def shown(entries: Sequence[DatasetEntry], most: int = SHOWN) -> tuple[list[dict[str, Any]], int]:
    """Some files of the datasets, evenly over all of them, with captions and thumbnails.

    Returns:
        The files, and how many more there are. A file that cannot be opened has no thumbnail.
    """
    sources: list[Source] = []
    for entry in entries:
        try:
            sources += scan(entry).sources
        except (MusubiError, OSError):  # records alone can be trained on
            continue
    taken = sources if len(sources) <= most else _evenly(sources, most)
    found = [
        {"name": s.path.name, "kind": s.kind, "caption": s.caption[:CAPTION], "thumb": _thumb(s)}
        for s in taken
    ]
    return found, len(sources) - len(taken)


def _evenly(sources: Sequence[Source], most: int) -> list[Source]:
    return [sources[i * len(sources) // most] for i in range(most)]


def _thumb(source: Source) -> str | None:
    """Of a video its frame half a second in, or its first."""
    try:
        if source.kind == "image":
            return pictures.still(media.read_image(source.path))
        video = media.probe_video(source.path, seconds=1.0)
        middle = min(max(video.frames // 2, 0), max(video.frames - 1, 0))
        return pictures.still(next(media.read_frames(video, [middle]))[1])
    except Exception:  # a thumbnail is no reason to stop a run
        return None
