"""A short name for the content of a weights file, for telling whether a cache was made with it."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from musubi.weights.paths import find_parts, folders_with_weights, readable, weight_sets

# A full digest of 30 GB takes a minute; a finetune changes every tensor, so samples tell it apart.
_ENDS = 1 << 20
_SAMPLES = 256
_SAMPLE = 4096


def identity(path: Path) -> str:
    """Sixteen hexadecimal digits that follow from what a weights file, its shards or a folder hold.

    Names and times do not count, so a file may move. Sizes, the first and last MiB and 256 samples
    of each file do.

    Raises:
        CheckpointError: There is nothing there, or it cannot be read.
    """
    digest = hashlib.blake2b(digest_size=8)
    with readable(path):
        for file in _files(Path(path)):
            facts = file.stat()
            digest.update(_of_file(file.resolve(), facts.st_size, facts.st_mtime_ns))
    return digest.hexdigest()


def _files(path: Path) -> list[Path]:
    if path.is_dir() and not weight_sets(path):
        inside = folders_with_weights(path)
        if inside:
            return [file for folder in inside for file in find_parts(folder)]
    return find_parts(path)


@lru_cache(maxsize=256)
def _of_file(path: Path, size: int, changed: int) -> bytes:
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        digest.update(file.read(_ENDS))
        middle = size - 2 * _ENDS
        for i in range(_SAMPLES if middle > 0 else 0):
            file.seek(_ENDS + middle * i // _SAMPLES)
            digest.update(file.read(_SAMPLE))
        file.seek(max(_ENDS, size - _ENDS))
        digest.update(file.read(_ENDS))
    return digest.digest()
