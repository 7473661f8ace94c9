"""Divides the caching of a dataset among several processes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from musubi.cache.caching_run import CachingRun
from musubi.plugin.report import Progress, Quiet, Report
from musubi.sharing import CLAIMS, Claims, portions

T = TypeVar("T")


class Shares:
    """Gives this process its share of the work, one portion at a time; a single process gets
    everything at once.

    Args:
        caching: The run.
        name: The kind of records: "media" or "text".
    """

    def __init__(self, caching: CachingRun, name: str) -> None:
        self.me = caching.me
        self.report = caching.report
        self.name = name
        self._claims: dict[Path, Claims] = {}

    def inside(self, caching: CachingRun) -> CachingRun:
        """The run for one portion: all portions share one progress bar."""
        if self.me.world == 1:
            return caching
        return replace(caching, report=_WithoutBars(caching.report))

    def dealt(
        self,
        items: Sequence[T],
        *,
        title: str,
        path: Callable[[T], Path],
        done: Callable[[Sequence[T]], Sequence[bool]],
    ) -> Generator[Sequence[T], None, None]:
        """Portions of the items.

        Args:
            items: The work to do.
            title: Title of the progress bar.
            path: A file in the cache directory that stands for an item; it need not exist.
            done: Which of some items another process has made meanwhile.
        """
        if self.me.world == 1:
            yield items
            return

        def told(some: Sequence[T]) -> Sequence[bool]:
            over = done(some)
            bar.advance(sum(over))
            return over

        claims = {folder: self._of(folder) for folder in {path(item).parent for item in items}}
        title = f"{title}, shared by {self.me.world} processes"
        with self.report.progress(title, len(items), unit="item") as bar:
            for portion in portions(
                items,
                claims=lambda item: (claims[path(item).parent], f"{self.name}/{path(item).name}"),
                done=told,
                me=self.me,
                least=1,
            ):
                yield portion
                bar.advance(len(portion))

    def close(self) -> None:
        """Release all locks; the first process deletes the lock file."""
        for claims in self._claims.values():
            claims.close(remove=self.me.first)
        self._claims = {}

    def _of(self, folder: Path) -> Claims:
        if folder not in self._claims:
            self._claims[folder] = Claims(folder / CLAIMS)
        return self._claims[folder]


class _WithoutBars:
    """A report that shows each message once, and no progress bar."""

    def __init__(self, inner: Report) -> None:
        self._inner = inner
        self._said: set[str] = set()

    def note(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._inner.note(text)

    def warn(self, text: str) -> None:
        self._inner.warn(text)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        self._inner.table(title, columns, rows)

    def progress(
        self, title: str, total: int | None, *, done: int = 0, unit: str = "it"
    ) -> Progress:
        return Quiet().progress(title, total, done=done, unit=unit)
