"""A digest of content that finds damage: CRC-32, which keeps up with a disk and misses one fault in four billion.

It is no guard against someone who means to deceive: who can change a file can change its digest.
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path

_CHUNK = 4 << 20
_FORM = re.compile(r"crc32:[0-9a-f]{8}")


class Digest:
    """The digest of bytes that come in pieces."""

    def __init__(self) -> None:
        self._sum = 0

    def update(self, data: bytes | memoryview) -> None:
        """Take up more bytes; other threads run meanwhile."""
        self._sum = zlib.crc32(data, self._sum)

    @property
    def text(self) -> str:
        """As it is written into files: `crc32:` and eight digits."""
        return f"crc32:{self._sum:08x}"


def file_digest(path: Path) -> str:
    """The digest of a whole file.

    Raises:
        OSError: It cannot be read.
    """
    digest = Digest()
    room = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(room):  # type: ignore[attr-defined]
            digest.update(room[:count])
    return digest.text


def is_digest(text: object) -> bool:
    """Whether a value read from a file is a digest of a kind that is known here."""
    return isinstance(text, str) and _FORM.fullmatch(text) is not None
