"""A run's folder as data for its page: read from its files alone, so that it outlives the run.

`{output_dir}/{output_name}` holds metrics, settings and what the run noted; checkpoints and samples
lie beside it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from musubi.errors import ConfigError
from musubi.pages import account, columns, curves, norms, samples, settings

REPORT = "report.html"
_CHECKPOINT = re.compile(r"(?:-(?P<epoch>\d{6,})|-step(?P<step>\d{8,}))?\.safetensors")


@dataclass
class RunFolder:
    """The folder of one run; what was read of it is kept, and read again only when it changed.

    Args:
        folder: `{output_dir}/{output_name}`.
    """

    folder: Path
    _norms: norms.Norms = field(default_factory=norms.Norms)

    @property
    def name(self) -> str:
        """`--output_name`."""
        return self.folder.name

    @property
    def checkpoints(self) -> list[tuple[str, Path]]:
        """(what it is, path) of each checkpoint, the oldest first."""
        found: list[tuple[float, str, Path]] = []
        for path in self.folder.parent.glob(f"{_glob(self.name)}*.safetensors"):
            match = _CHECKPOINT.fullmatch(path.name[len(self.name) :])
            if match:
                what = (
                    f"epoch {int(match['epoch'])}"
                    if match["epoch"]
                    else (f"step {int(match['step'])}" if match["step"] else "the end")
                )
                found.append((path.stat().st_mtime, what, path))
        return [(what, path) for _, what, path in sorted(found)]

    def samples(self) -> samples.Samples:
        """What was drawn, by prompt and step."""
        return samples.find(self.folder.parent / "sample", self.name)

    def changed(self) -> tuple[Any, ...]:
        """Something that differs when the page would."""
        seen = [self.folder / "metrics.jsonl", self.folder / account.FOLDER / account.FILE]
        seen += [self.folder.parent, self.folder.parent / "sample"]
        return tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in seen)

    def summary(self) -> dict[str, Any]:
        """What a list of runs shows of it."""
        entries = columns.read(self.folder / "metrics.jsonl")
        noted = account.read(self.folder)
        return {
            "name": self.name,
            "noted": {k: v for k, v in noted.items() if k not in ("items", "buckets", "datasets")},
            "now": _now(entries),
            "series": curves.series(entries, most=240),
            "settings": settings.plain(self.folder / "config.toml"),
        }

    def data(self, show: samples.Show) -> dict[str, Any]:
        """All that the page shows.

        Args:
            show: Gives the address of a sample.
        """
        entries = columns.read(self.folder / "metrics.jsonl")
        checkpoints = self.checkpoints
        return {
            "view": "run",
            "name": self.name,
            "made": time.time(),
            "noted": account.read(self.folder),
            "now": _now(entries),
            "series": curves.series(entries),
            "samples": self.samples().table(show, _labels(entries)),
            "norms": self._norms.of(checkpoints),
            "checkpoints": [
                {"name": p.name, "what": what, "bytes": p.stat().st_size, "at": p.stat().st_mtime}
                for what, p in checkpoints
            ],
            "settings": settings.groups(self.folder / "config.toml"),
            "commands": self._commands(checkpoints),
        }

    def _commands(self, checkpoints: Sequence[tuple[str, Path]]) -> list[dict[str, str]]:
        config = _shell(self.folder / "config.toml")
        found = [
            {
                "title": "Go on from the newest state",
                "text": f"musubi train --config {config} --resume auto",
            },
            {"title": "Watch it live", "text": f"musubi watch {_shell(self.folder.parent)}"},
        ]
        if checkpoints:
            newest = _shell(checkpoints[-1][1])
            found.append(
                {"title": "Look into the newest checkpoint", "text": f"musubi lora info {newest}"}
            )
            found.append(
                {
                    "title": "Generate with it",
                    "text": settings.generation(self.folder / "config.toml", newest),
                }
            )
        return [command for command in found if command["text"]]


def runs_in(folders: Iterable[Path]) -> list[RunFolder]:
    """The runs in some folders, and one and two levels below them; the newest first.

    Raises:
        ConfigError: One of them is no folder.
    """
    found: dict[Path, RunFolder] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(
                f"{folder} is no folder.", fix="Give the --output_dir of a run, or a run's folder."
            )
        for pattern in ("metrics.jsonl", "*/metrics.jsonl", "*/*/metrics.jsonl"):
            for path in folder.resolve().glob(pattern):
                found.setdefault(path.parent, RunFolder(path.parent))
    return sorted(found.values(), key=_age, reverse=True)


def _age(run: RunFolder) -> float:
    return (run.folder / "metrics.jsonl").stat().st_mtime


def _now(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The last step, and the pace of the last ones."""
    steps = [e for e in entries if columns.LOSS.key in e]
    seconds = [e[columns.SECONDS.key] for e in steps[-50:] if e.get(columns.SECONDS.key)]
    last = steps[-1] if steps else {}
    return {
        "step": last.get("step", 0),
        "epoch": last.get("epoch", 0),
        "loss": last.get(columns.AVERAGE.key),
        "seconds": sorted(seconds)[len(seconds) // 2] if seconds else None,
        "tokens": last.get(columns.TOKENS.key),
        "device": max((e.get(columns.DEVICE_MEMORY.key) or 0 for e in steps), default=0) or None,
        "host": max((e.get(columns.HOST_MEMORY.key) or 0 for e in steps), default=0) or None,
    }


def _labels(entries: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """Epoch → its last step."""
    return {e["epoch"]: e["step"] for e in entries if isinstance(e.get("epoch"), int)}


def _glob(name: str) -> str:
    return re.sub(r"([\[\]?*])", r"[\1]", name)


def _shell(path: Path) -> str:
    """A path as a person would type it here: relative where that is shorter, quoted where needed."""
    try:
        text = path.resolve().relative_to(Path.cwd()).as_posix() or "."
    except ValueError:
        text = str(path)
    return text if re.fullmatch(r"[\w./\\:~-]+", text, re.ASCII) else f'"{text}"'
