"""The free memory of this computer: on the device, and on the host."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from musubi.config.sizes import parse_bytes
from musubi.errors import ConfigError
from musubi.estimate.step import PROCESS

# Kept free for other programs, and for files that are being read.
_MARGIN_PART = 0.05
_MARGIN = 1 << 30
# More than any computer has: what a cgroup of the first version says when it has no limit.
_UNLIMITED = 1 << 60


def device_bytes(text: str) -> int:
    """`--vram` in bytes; "auto" is the device's free memory.

    Raises:
        ConfigError: It is no amount, or there is no device to ask.
    """
    if text.strip().lower() != "auto":
        return parse_bytes(text)
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            "--vram auto asks the device what is free, and there is no CUDA device.",
            fix="Give a size, such as --vram 12GiB.",
        )
    free, _ = torch.cuda.mem_get_info()
    return free


def host_room() -> int | None:
    """Bytes of host memory that a command may plan with here; None: not known.

    Free memory less a margin, divided by the processes that a launcher started on this computer. It
    is at least what any process needs, even one that keeps no weights on the host.
    """
    free = free_host()
    if free is None:
        return None
    room = free - int(_MARGIN_PART * free) - _MARGIN
    local = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(room // max(1, int(local) if local.isdigit() else 1), PROCESS)


def free_host() -> int | None:
    """Bytes of host memory that are free, or can be freed at once; None: not known."""
    if sys.platform == "win32":
        return _windows()
    found = [_available(Path("/proc/meminfo")), *_cgroups(Path("/proc/self/cgroup"))]
    return min((size for size in found if size is not None), default=None)


def _windows() -> int | None:
    class Status(ctypes.Structure):
        _fields_ = [
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            ("total", ctypes.c_uint64),
            ("free", ctypes.c_uint64),
            ("rest", ctypes.c_uint64 * 5),
        ]

    status = Status()
    status.length = ctypes.sizeof(Status)
    try:
        known = ctypes.windll.kernel32.GlobalMemoryStatusEx(  # type: ignore[attr-defined]
            ctypes.byref(status)
        )
    except (AttributeError, OSError):
        return None
    return int(status.free) if known else None


def _available(path: Path) -> int | None:
    return _figures(path).get("MemAvailable:", 0) * 1024 or None


def _cgroups(path: Path, root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """The memory that each cgroup with a limit still allows, from this process's own group to the outermost."""
    for line in _text(path).splitlines():
        _, controllers, name, *_ = *line.split(":", 2), "", ""
        if not controllers:  # the second version
            home, limit, used, cache = root, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            home, limit = root / "memory", "memory.limit_in_bytes"
            used, cache = "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        place = home / name.lstrip("/")
        while True:
            # In a container the name may be that of the host; the outermost is there all the same.
            most = _text(place / limit).strip()
            if most.isdigit() and int(most) < _UNLIMITED:
                now = int(_text(place / used).strip() or 0)
                yield max(0, int(most) - now + _figures(place / "memory.stat").get(cache, 0))
            if place == home or home not in place.parents:
                break
            place = place.parent


def _figures(path: Path) -> dict[str, int]:
    """`name number` of each line."""
    words = [line.split() for line in _text(path).splitlines()]
    return {word[0]: int(word[1]) for word in words if len(word) > 1 and word[1].isdigit()}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
