"""Reading weights files: one view of safetensors, of shards, of folders and of torch's own format.

Nothing in a file is ever run: what torch pickled is read with `weights_only=True`.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock, get_ident
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch

from musubi.errors import CheckpointError
from musubi.weights.header import Entry, Header, read_header
from musubi.weights.paths import SAFE, find_parts, readable

_LEVELS = ("module", "state_dict", "model")  # top-level keys under which tensors are published
_GLOBAL = re.compile(r"GLOBAL (\S+)")
_DAMAGED = "Download it again."


class Weights(Protocol):
    """An open checkpoint. A context manager; several threads may read at once.

    Attributes:
        path: What was asked for.
        parts: The files it consists of.
        names: Tensor names, in the order of the files' bytes.
        shapes: Name to shape.
        dtypes: Name to dtype.
        metadata: Free text from the headers of safetensors files.
    """

    path: Path
    parts: tuple[Path, ...]
    names: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    metadata: dict[str, str]

    def __enter__(self) -> Weights: ...
    def __exit__(self, *exc: object) -> None: ...

    def read(self, name: str) -> torch.Tensor:
        """One tensor, on the CPU. It may be a view of a mapped file: do not write into it.

        Raises:
            CheckpointError: The file has no such tensor, or it cannot be read.
        """
        ...

    def readinto(self, name: str, room: memoryview, at: int = 0) -> None:
        """Fill memory with a tensor's bytes, row by row, from byte `at` on.

        Raises:
            CheckpointError: The file has no such tensor, or it cannot be read.
        """
        ...


def open_weights(path: Path | str) -> Weights:
    """Open a checkpoint, whatever its form; only headers are read.

    Args:
        path: A `.safetensors` file, any shard or the `.index.json` of a set, a folder with one set
            of weights, or a `.pt`, `.pth` or `.bin` file of plain tensors. The form is told by the
            content, not by the name.

    Raises:
        CheckpointError: The file is absent, empty, truncated, incomplete, no checkpoint, or pickled
            code.
    """
    path = Path(path)
    with readable(path):
        parts = find_parts(path)
        kinds = {part: _kind(part) for part in parts}
        if all(kind == "safetensors" for kind in kinds.values()):
            return _Safetensors(path, parts)
        return _Pickled(path, parts, kinds)


class _Safetensors:
    def __init__(self, path: Path, parts: Sequence[Path]) -> None:
        self.path = path
        self.parts = tuple(parts)
        self.metadata: dict[str, str] = {}
        self._home: dict[str, Path] = {}
        self._first: dict[Path, int] = {}
        # One handle a thread and file: each has a place in the file, and the system reads ahead
        # of each.
        self._files: dict[tuple[int, Path], BinaryIO] = {}
        self._opening = Lock()
        entries: dict[str, Entry] = {}
        for part in parts:
            header = read_header(part)
            self._add(part, header)
            self._first[part] = len(header.raw)
            entries.update(header.entries)
        self._entries = entries
        self.names = tuple(entries)
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: entry.shape for name, entry in entries.items()
        }
        self.dtypes: Mapping[str, torch.dtype] = {
            name: e.dtype for name, e in entries.items() if e.dtype is not None
        }
        unread = [name for name in self.names if name not in self.dtypes]
        if unread:
            raise CheckpointError(
                f"{self._home[unread[0]]} stores {unread[0]!r} in a dtype that this torch does not have.",
                fix="Use the file in bfloat16, float16 or fp8, or a newer torch.",
            )

    def _add(self, part: Path, header: Header) -> None:
        for name in header.entries:
            if name in self._home:
                raise CheckpointError(
                    f"{name!r} is both in {self._home[name].name} and in {part.name}.",
                    fix="The shards are of different sets; download them again.",
                )
            self._home[name] = part
        self.metadata.update(header.metadata)

    def __enter__(self) -> _Safetensors:
        return self

    def __exit__(self, *exc: object) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def read(self, name: str) -> torch.Tensor:
        if name not in self._entries:
            raise _no_tensor(self.path, name)
        tensor = torch.empty(self._entries[name].shape, dtype=self.dtypes[name])
        if tensor.numel():
            self.readinto(name, tensor.view(-1).view(torch.uint8).numpy().data)
        return tensor

    def readinto(self, name: str, room: memoryview, at: int = 0) -> None:
        # Read, not mapped: pages of a mapped file count as this process's memory, and come one
        # fault at a time, which takes minutes over a network.
        if name not in self._entries:
            raise _no_tensor(self.path, name)
        part = self._home[name]
        try:
            file = self._handle(part)
            file.seek(self._first[part] + self._entries[name].start + at)
            done = 0
            while done < len(room):
                count = file.readinto(room[done:])  # type: ignore[attr-defined]
                if not count:
                    raise OSError("the file ends before the tensor")
                done += count
        except OSError as error:
            raise CheckpointError(
                f"{name!r} of {part} cannot be read: {error}.", fix=_DAMAGED
            ) from error

    def _handle(self, part: Path) -> BinaryIO:
        key = get_ident(), part
        with self._opening:
            if key not in self._files:
                self._files[key] = part.open("rb", buffering=0)  # type: ignore[assignment]
            return self._files[key]


class _Pickled:
    def __init__(self, path: Path, parts: Sequence[Path], kinds: Mapping[Path, str]) -> None:
        self.path = path
        self.parts = tuple(parts)
        self.metadata: dict[str, str] = {}
        self._tensors: dict[str, torch.Tensor] = {}
        for part in parts:
            self._tensors.update(_tensors(part, mapped=kinds[part] == "zip"))
        self.names = tuple(self._tensors)
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: tuple(t.shape) for name, t in self._tensors.items()
        }
        self.dtypes: Mapping[str, torch.dtype] = {
            name: t.dtype for name, t in self._tensors.items()
        }

    def __enter__(self) -> _Pickled:
        return self

    def __exit__(self, *exc: object) -> None:
        self._tensors.clear()

    def read(self, name: str) -> torch.Tensor:
        if name not in self._tensors:
            raise _no_tensor(self.path, name)
        return self._tensors[name]

    def readinto(self, name: str, room: memoryview, at: int = 0) -> None:
        tensor = self.read(name)
        if not tensor.is_contiguous():
            tensor = self._tensors[name] = tensor.contiguous()
        stored = tensor.reshape(-1).view(torch.uint8).numpy()
        np.copyto(np.frombuffer(room, dtype=np.uint8), stored[at : at + len(room)])


def _kind(path: Path) -> str:
    """safetensors, zip (torch since 1.6) or pickle (torch before), by the first bytes."""
    size = path.stat().st_size
    if size == 0:
        raise CheckpointError(f"{path} is empty: it has 0 bytes.", fix=_DAMAGED)
    with path.open("rb") as file:
        first = file.read(64)
    if first[:4] == b"PK\x03\x04":
        return "zip"
    if first[:1] == b"\x80" and first[8:9] != b"{":
        return "pickle"
    if first[8:9] == b"{" or (path.suffix.lower() in SAFE and not _stranger(first)):
        return "safetensors"
    raise CheckpointError(
        f"{path} is not a checkpoint{_stranger(first)}.",
        fix="Give a .safetensors, .pt or .pth file of weights.",
    )


def _stranger(first: bytes) -> str:
    """What a file is instead, for the files that people give by mistake."""
    if first.startswith(b"version https://git-lfs"):
        return ": it is a Git LFS pointer, which stands for a file that was not downloaded"
    if first.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return ": it is a web page, so the download went wrong"
    if first.startswith(b"GGUF"):
        return ": it is a GGUF file, a form that is not read here"
    if re.match(rb"\s*(#|\[{1,2}[\w.-]+\]|[\w.-]+\s*=)", first):
        return ": it is a TOML file of settings"
    if first.lstrip()[:1] in (b"{", b"["):
        return ": it is JSON text"
    return ""


def _tensors(path: Path, *, mapped: bool) -> dict[str, torch.Tensor]:
    found = _unpickled(path, mapped=mapped)
    for _ in _LEVELS:
        if isinstance(found, Mapping) and not any(torch.is_tensor(v) for v in found.values()):
            found = next((found[k] for k in _LEVELS if isinstance(found.get(k), Mapping)), found)
    tensors = (
        {str(k): v.detach() for k, v in found.items() if torch.is_tensor(v)}
        if isinstance(found, Mapping)
        else {}
    )
    if not tensors:
        raise CheckpointError(
            f"{path} is not a checkpoint: it holds no named tensors.",
            fix="Give a file of weights: a dictionary of tensors, or one under 'state_dict'.",
        )
    return tensors


def _unpickled(path: Path, *, mapped: bool) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old files: typed storages, other pickle protocols
            if path.suffix.lower() not in SAFE:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
            with path.open("rb") as file:  # torch would go by the name, which is wrong here
                return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = _GLOBAL.search(str(error))
        what = (
            f"carries Python code beside its tensors ({named[1]})"
            if named
            else "was pickled as something else than plain tensors"
        )
        raise CheckpointError(
            f"{path} {what}; it was not read, and nothing in it was run.",
            fix="Use the safetensors version, or convert it with a tool you trust.",
        ) from error
    except OSError:
        raise
    except Exception as error:  # a damaged file fails in any of torch's and pickle's ways
        raise CheckpointError(
            f"{path} is truncated or damaged: torch cannot read it ({_line(error)}).", fix=_DAMAGED
        ) from error


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _no_tensor(path: Path, name: str) -> CheckpointError:
    return CheckpointError(f"{path} has no tensor {name!r}.", fix="Give another file.")
