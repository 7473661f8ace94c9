"""Work that several processes share: what a launcher says of them, and who does which item.

`torchrun`, `accelerate launch` and SLURM with `torchrun` start one process a GPU and tell each its number
by environment variables. The processes need not talk: an item belongs to the one that has locked its
place in a file. The system lets the lock go with the process, so that what a killed one left undone is
taken over by the others.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from musubi.errors import RunError, system_reason

T = TypeVar("T")
CLAIMS = ".musubi-sharing"
"""The file whose places are locked; empty, and removed at the end."""

_MOST = 256  # locks held at once: the system keeps them in a list
_PROBE = (1 << 30) + 1  # a place that no item has, to find out whether there are locks
_LOOK = 0.2  # seconds between looks at what others hold


@dataclass(frozen=True)
class Launched:
    """The place of this process among those that a launcher started.

    Args:
        rank: Of this process, over all computers.
        world: How many processes there are.
        local: Of this process, on its computer.
        here: How many processes are on this computer.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    here: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks, and tidies up."""
        return self.rank == 0


ALONE = Launched()


def launched() -> Launched:
    """What the launcher says; one process alone without a launcher.

    >>> launched()
    Launched(rank=0, world=1, local=0, here=1)
    """
    world = _number("WORLD_SIZE", 1)
    if world < 2:
        return ALONE
    rank = _number("RANK", 0)
    return Launched(rank, world, _number("LOCAL_RANK", rank), _number("LOCAL_WORLD_SIZE", 1))


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else default


class Claims:
    """Places in a file that this process has locked.

    Args:
        path: The file; its folder is made. All processes must see the same one.

    Raises:
        RunError: It cannot be written, or its file system has no locks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            _lock(self._handle, _PROBE)
        except OSError as error:
            raise RunError(
                f"{path} cannot be written and locked, by which processes share work: "
                f"{system_reason(error)}.",
                fix="Start one process without a launcher, or use another disk.",
            ) from error
        self._held: dict[str, int] = {}

    def take(self, key: str) -> bool:
        """Whether the item is this process's now; False: another process has it."""
        if key in self._held:
            return True
        place = _place(key)
        if not _lock(self._handle, place):
            return False
        self._held[key] = place
        return True

    def release(self, keys: Iterable[str]) -> None:
        """Give items back, done or not."""
        for key in keys:
            place = self._held.pop(key, None)
            # Two keys of one place are as good as one item.
            if place is not None and place not in self._held.values():
                _unlock(self._handle, place)

    def close(self, *, remove: bool = False) -> None:
        """Give everything back."""
        os.close(self._handle)
        self._held.clear()
        if remove:
            with contextlib.suppress(OSError):  # Windows, where another process still looks at it
                self.path.unlink()


def _place(key: str) -> int:
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % (1 << (30 if sys.platform == "win32" else 62))


if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int, place: int) -> bool:
        os.lseek(handle, place, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(handle: int, place: int) -> None:
        os.lseek(handle, place, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)

else:
    import errno
    import fcntl

    def _lock(handle: int, place: int) -> bool:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
        return True

    def _unlock(handle: int, place: int) -> None:
        fcntl.lockf(handle, fcntl.LOCK_UN, 1, place)


def portions(
    items: Sequence[T],
    *,
    claims: Callable[[T], tuple[Claims, str]],
    done: Callable[[Sequence[T]], Sequence[bool]],
    me: Launched,
    least: int = 1,
) -> Generator[list[T], None, None]:
    """Items for this process, a portion at a time, until every item has been somebody's.

    Portions are large at first and shrink towards the end, so that all processes end together. One
    is this process's until the next is asked for, and must be done by then. The last ones are waited
    for: those of a process that is gone are handed out here.

    Args:
        items: In an order that all processes share, as far as they saw the same.
        claims: An item → the file of its claim, and its key there.
        done: For some items, which of them need not be done any more: another process has.
        me: This process.
        least: Items of the smallest portion.
    """
    start = me.rank * len(items) // me.world
    left = [*items[start:], *items[:start]]
    while left:
        size = min(_MOST, max(least, -(-len(left) // (2 * me.world))))
        taken: list[T] = []
        busy: list[T] = []
        seen = 0
        for item in left:
            if len(taken) == size:
                break
            seen += 1
            file, key = claims(item)
            (taken if file.take(key) else busy).append(item)
        left = left[seen:] + busy
        if taken:
            over = done(taken)
            mine = [item for item, gone in zip(taken, over, strict=True) if not gone]
            try:
                if mine:
                    yield mine
            finally:
                for item in taken:
                    file, key = claims(item)
                    file.release([key])
        elif left:
            time.sleep(_LOOK)


def agreed(name: str, value: T, me: Launched) -> T:
    """The first process's value, on all of them: something that JSON can say.

    Args:
        name: Of the value; each is agreed on once in the life of the processes.
        value: The first process's.
        me: This process.
    """
    if me.world == 1:
        return value
    store = _store(me)
    if me.first:
        store.set(f"musubi/{name}", json.dumps(value))
        return value
    return json.loads(store.get(f"musubi/{name}").decode())


_stores: list[Any] = []


def _store(me: Launched) -> Any:
    """The launcher's store, or one that the first process holds; kept as long as the process."""
    if not _stores:
        from torch.distributed.rendezvous import rendezvous

        found = next(iter(rendezvous("env://", me.rank, me.world)))
        _stores.append(found[0])
    return _stores[0]


def place_name(me: Launched) -> str:
    """What to call a process in a message.

    >>> place_name(Launched(1, 2)).startswith("process 1 on ")
    True
    """
    return f"process {me.rank} on {socket.gethostname()}"
