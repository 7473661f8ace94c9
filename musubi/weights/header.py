"""The safetensors header: 8 bytes of length, then JSON that says where each tensor's bytes are."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from musubi.errors import CheckpointError
from musubi.untrusted import TextError, parse_json
from musubi.weights.dtypes import stored_code, stored_dtype

MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library
_MOST = 2**63
_MOST_LISTS = 1_000_000  # two a tensor; each takes a hundred bytes of memory
_ALIGNMENT = 256  # of the first tensor's bytes, as the files of older tools have it


@dataclass(frozen=True)
class Entry:
    """One tensor: `start` and `end` count bytes from the end of the header; dtype None is unknown."""

    dtype: torch.dtype | None
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a safetensors file says it holds.

    Args:
        entries: Tensor name to its entry, in the order of the bytes.
        metadata: The free text beside them.
        raw: The header's bytes, length included.
    """

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    raw: bytes

    @property
    def file_size(self) -> int:
        """The bytes that the whole file must have."""
        return len(self.raw) + max((e.end for e in self.entries.values()), default=0)


def read_header(path: Path) -> Header:
    """Read and check a header, and that the file is as long as it says.

    Raises:
        CheckpointError: It is no safetensors header, or the file is shorter or longer.
        OSError: The file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else MAX_HEADER + 1
        if length > MAX_HEADER:
            raise CheckpointError(
                f"{path} is not a safetensors file: its first 8 bytes are not a header's length.",
                fix="Download or export it again.",
            )
        text = file.read(length)
    if len(text) < length:
        raise CheckpointError(
            f"{path} is truncated: its header has {length} bytes, and the file ends after {size}.",
            fix="Download it again.",
        )
    try:
        entries, metadata = parse_header(text)
    except ValueError as error:
        raise CheckpointError(
            f"{path} is not a safetensors file: its header cannot be understood ({error}).",
            fix="Download or export it again.",
        ) from error
    header = Header(entries, metadata, first + text)
    if size < header.file_size:
        raise CheckpointError(
            f"{path} is truncated: its header says {header.file_size} bytes, and the file has {size}.",
            fix="Download it again.",
        )
    if size > header.file_size:
        raise CheckpointError(
            f"{path} is damaged: its header says {header.file_size} bytes, and the file has {size}.",
            fix="Download it again.",
        )
    return header


def make_header(
    entries: Iterable[tuple[str, torch.dtype, Sequence[int]]], metadata: Mapping[str, str] | None
) -> Header:
    """Lay tensors out. Wider dtypes come first, so that each tensor is aligned to its own size.

    Raises:
        ValueError: A name occurs twice, or a dtype cannot be stored.
    """
    ordered = sorted(entries, key=lambda e: -e[1].itemsize)
    found: dict[str, Entry] = {}
    facts: dict[str, object] = {}
    if metadata:
        facts["__metadata__"] = {str(key): str(value) for key, value in metadata.items()}
    start = 0
    for name, dtype, shape in ordered:
        if name in facts:
            raise ValueError(f"two tensors are named {name!r}")
        end = start + math.prod(shape) * dtype.itemsize
        found[name] = Entry(dtype, tuple(shape), start, end)
        facts[name] = {
            "dtype": stored_code(dtype),
            "shape": list(shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(facts, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return Header(found, dict(metadata or {}), struct.pack("<Q", len(text)) + text)


def parse_header(text: bytes) -> tuple[dict[str, Entry], dict[str, str]]:
    """The entries, in the order of their bytes, and the metadata, by the rules of the safetensors library.

    Args:
        text: The JSON behind the length.

    Raises:
        TextError: It is no JSON object, two tensors have one name, a shape or an offset is no
            natural number, or the tensors' bytes overlap or leave holes.
    """
    if text.count(b"[") > _MOST_LISTS:
        raise TextError(f"it has more than {_MOST_LISTS} lists")
    facts = parse_json(text.decode("utf-8"), unique=True)
    if not isinstance(facts, dict):
        raise TextError("it is no JSON object")
    metadata = facts.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise TextError("its __metadata__ is not a table of texts")
    found = {name: _entry(name, fact) for name, fact in facts.items()}
    ordered = sorted(found.items(), key=lambda item: (item[1].start, item[1].end))
    end = 0
    for name, entry in ordered:
        if entry.start != end:
            what = "overlap those" if entry.start < end else "leave a hole behind those"
            raise TextError(f"the bytes of the tensor {name!r} {what} of the one before")
        end = entry.end
    return dict(ordered), metadata


def _entry(name: str, fact: object) -> Entry:
    if not isinstance(fact, dict) or not {"dtype", "shape", "data_offsets"} <= fact.keys():
        raise TextError(f"the tensor {name!r} lacks its dtype, its shape or its offsets")
    code, shape, offsets = fact["dtype"], fact["shape"], fact["data_offsets"]
    if not isinstance(code, str):
        raise TextError(f"the dtype of the tensor {name!r} is no text")
    if not _natural(shape) or not _natural(offsets) or len(offsets) != 2:
        raise TextError(f"the shape or the offsets of the tensor {name!r} are no natural numbers")
    start, end = offsets
    dtype = stored_dtype(code)
    if end < start or (dtype is not None and end - start != math.prod(shape) * dtype.itemsize):
        raise TextError(f"the tensor {name!r} has the wrong number of bytes")
    return Entry(dtype, tuple(shape), start, end)


def _natural(numbers: object) -> bool:
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n < _MOST for n in numbers)
