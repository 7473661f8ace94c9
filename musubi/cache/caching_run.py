"""The inputs and the result of one caching run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musubi.cache import foreign
from musubi.cache.freshness import Wanted
from musubi.cache.training_set import Problem
from musubi.errors import DataError, MusubiError, RunError, counted, system_reason
from musubi.plugin.architecture import Architecture
from musubi.plugin.report import Report
from musubi.plugin.runtime import Networks, Runtime
from musubi.sharing import ALONE, Launched

if TYPE_CHECKING:
    from musubi.config.dataset import DatasetEntry, DatasetFile

_SHOWN = 20


class DeviceFullError(RunError):
    """The device's memory is too small for one clip or one caption.

    Args:
        what: What happened, with the name of the source.
        fix: What to do, if no better advice is known.
        component: The network that ran.
        size: Width, height and frames of the clip; None for a caption.
    """

    def __init__(
        self, what: str, *, fix: str, component: str, size: tuple[int, int, int] | None = None
    ) -> None:
        super().__init__(what, fix=fix)
        self.component = component
        self.size = size


@dataclass(frozen=True, kw_only=True)
class CachingRun:
    """One run of caching.

    Args:
        dataset: The dataset file, resolved.
        architecture: The architecture of the records.
        runtime: Made for the task.
        nets: The encoders.
        wanted: What records must have been made with to be fresh.
        dtypes: Component name to the dtype it computes in now.
        options: The architecture's options that shape records, and their values now.
        report: Shows messages and progress.
        workers: Threads that read and decode.
        skip_existing: Skip items that have a record.
        keep: Keep records that the dataset does not name.
        strict: Stop at the first file that cannot be used.
        me: This process among those that share the run.
    """

    dataset: DatasetFile
    architecture: Architecture
    runtime: Runtime
    nets: Networks
    wanted: Wanted
    report: Report
    dtypes: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 1
    skip_existing: bool = False
    keep: bool = False
    strict: bool = False
    me: Launched = ALONE

    def gone(self, entry: DatasetEntry) -> bool:
        """Whether a dataset's files are no longer there; its records are then left as they are."""
        if entry.place.exists():
            return False
        self.report.warn(
            f"{entry.place} is gone; the records in {entry.cache_directory} are left as they are."
        )
        return True

    def failed(self, summary: Summary, name: str, error: Exception | str) -> None:
        """Leave an item out, or end the run with `strict`."""
        reason = _reason(error)
        if self.strict:
            raise DataError(
                reason if name in reason else f"{name}: {reason}",
                fix="Mend or remove the file, or leave out --strict to go on without it.",
            )
        summary.failed.append(Problem(name=name, what="source", reason=reason))


def _reason(error: Exception | str) -> str:
    if isinstance(error, MusubiError):
        return error.what
    if isinstance(error, OSError) and error.errno is not None:
        return system_reason(error)
    return str(error) or repr(error)


Told = frozenset[tuple[str, str]]
"""Names and reasons of left-out files that were already shown to the user."""


@dataclass(kw_only=True)
class Summary:
    """The result of a caching run, counted in records.

    Args:
        encoded: Made in this run.
        fresh: Already fresh, or kept because of `--skip_existing`.
        adopted: Written by musubi-tuner, and used as they are.
        renewed: The source's bytes are the same, only its times or settings changed: just the
            header was rewritten.
        removed: Leftovers that were deleted.
        failed: Sources left out, each with its reason.
    """

    encoded: int = 0
    fresh: int = 0
    adopted: int = 0
    renewed: int = 0
    removed: list[Path] = field(default_factory=list)
    failed: list[Problem] = field(default_factory=list)

    @property
    def usable(self) -> int:
        """Records that exist now."""
        return self.encoded + self.fresh + self.adopted + self.renewed

    def tell(self, report: Report, what: str, *, told: Told = frozenset()) -> None:
        """Show the result: one line, then the left-out files that were not shown before."""
        parts = [f"{self.encoded} encoded", f"{self.fresh} fresh already"]
        parts += [f"{self.renewed} given new headers"] if self.renewed else []
        parts += [f"{self.adopted} adopted"] if self.adopted else []
        parts += [f"{counted(len(self.removed), 'leftover')} deleted"] if self.removed else []
        parts += [f"{len(self.failed)} left out"] if self.failed else []
        report.note(f"{what}: {', '.join(parts)}.")
        if self.adopted:
            report.note(foreign.said(self.adopted))
        rows = sorted({(p.name, p.reason) for p in self.failed} - told)
        if rows:
            report.table("Left out", ("file", "reason"), rows)

    def nothing(self, what: str) -> DataError:
        """The error for a run that ended without one record."""
        return DataError(
            f"Not one of the dataset's files gave a record of {what}. {listed(self.failed)}".rstrip(),
            fix="`musubi cache check` accounts for every file.",
        )


def listed(problems: Sequence[Problem]) -> str:
    """Problems as sentences; the first twenty of many."""
    # Sorted, since threads find them in any order.
    ordered = sorted(problems, key=lambda problem: problem.name)
    lines = [p.reason if p.name in p.reason else f"{p.name}: {p.reason}" for p in ordered]
    more = [f"And {len(lines) - _SHOWN} more."] if len(lines) > _SHOWN else []
    return " ".join(line.rstrip(".") + "." for line in lines[:_SHOWN] + more)
