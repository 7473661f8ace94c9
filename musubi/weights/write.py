"""Writing: under a temporary name in the same folder, to the disk, then renamed into place."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from musubi.errors import CheckpointError, RunError
from musubi.weights.header import Entry, Header, make_header, read_header

_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENAMETOOLONG, errno.ENOTDIR}


def save(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file; an existing one is replaced only by a complete one.

    Args:
        path: The file; its folder is made when absent.
        tensors: On any device, of any layout.
        metadata: Free text for the header.

    Raises:
        RunError: The disk is full, or the folder cannot be written.
    """
    entries = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    stream(path, entries, tensors.__getitem__, metadata)


def stream(
    path: Path,
    entries: Iterable[tuple[str, torch.dtype, Sequence[int]]],
    produce: Callable[[str], torch.Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file one tensor at a time, the next one made while one is written.

    Args:
        path: The file; its folder is made when absent.
        entries: Name, dtype and shape of every tensor.
        produce: Called once for each name, in the order of the file, on a thread; its tensor must have the dtype
            and shape that were announced.
        metadata: Free text for the header.

    Raises:
        RunError: The disk is full, or the folder cannot be written.
        ValueError: `produce` gave something else than was announced.
    """
    path = Path(path)
    header = make_header(entries, metadata)
    with _atomic(path, header.file_size) as temporary, temporary.open("wb") as file:
        file.write(header.raw)
        for name, entry, tensor in _ahead(header, produce):
            if tensor.dtype != entry.dtype or tuple(tensor.shape) != entry.shape:
                raise ValueError(
                    f"{name!r} was announced as {entry.dtype} {entry.shape} and is "
                    f"{tensor.dtype} {tuple(tensor.shape)}"
                )
            flat = tensor.detach().to("cpu").contiguous().reshape(-1)
            if flat.numel():
                file.write(flat.view(torch.uint8).numpy().data)


def _ahead(
    header: Header, produce: Callable[[str], torch.Tensor]
) -> Iterator[tuple[str, Entry, torch.Tensor]]:
    """Each tensor in the order of the file, made while the one before it is written."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="produce") as worker:
        waiting: deque[tuple[str, Entry, Future[torch.Tensor]]] = deque()
        for name, entry in header.entries.items():
            waiting.append((name, entry, worker.submit(produce, name)))
            if len(waiting) > 1:
                name, entry, made = waiting.popleft()
                yield name, entry, made.result()
        for name, entry, made in waiting:
            yield name, entry, made.result()


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it when the block ends well and removed when not.

    Raises:
        RunError: The disk is full, or the folder cannot be written.
    """
    with _atomic(Path(path), None) as temporary:
        yield temporary


def verify(path: Path) -> None:
    """Reopen a safetensors file and compare its header with its length.

    Raises:
        RunError: What is on the disk is not what was written.
    """
    try:
        read_header(Path(path))
    except (CheckpointError, OSError) as error:
        what = error.what if isinstance(error, CheckpointError) else f"{path}: {error}."
        raise RunError(
            f"What was just written did not verify: {what}",
            fix="Check the disk, and write to another one.",
        ) from error


@contextlib.contextmanager
def _atomic(path: Path, size: int | None) -> Iterator[Path]:
    # Not made of the target's name, which may be as long as a name can be.
    temporary = path.parent / f".musubi-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if size is None:
            size = temporary.stat().st_size
        _to_disk(temporary)
        temporary.replace(path)
    except OSError as error:
        explained = _explained(error, path, temporary, size)
        if explained is None:
            raise
        raise explained from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    _folder_to_disk(path.parent)


def _to_disk(path: Path) -> None:
    with path.open("rb+") as file:  # Windows syncs only what is open for writing
        os.fsync(file.fileno())


def _folder_to_disk(folder: Path) -> None:
    """Make a rename last through a power cut, where a folder can be opened for that."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):  # some network file systems refuse
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _explained(error: OSError, path: Path, temporary: Path, size: int | None) -> RunError | None:
    if error.errno in _FULL:
        facts = []
        with contextlib.suppress(OSError):
            size = temporary.stat().st_size if size is None else size
            facts.append(f"{size} bytes were to be written")
        with contextlib.suppress(OSError):
            facts.append(f"{shutil.disk_usage(path.parent).free} bytes are free")
        return RunError(
            f"{path} could not be written, because the disk is full: {', '.join(facts)}.",
            fix="Free some space, or write to another disk.",
        )
    ours = {str(path), str(temporary), str(path.parent)}
    if error.errno in _REFUSED and str(error.filename or path) in ours:
        return RunError(
            f"{path} could not be written: {error.strerror or error}.",
            fix="Check that the folder may be written, and that no other program has the file open.",
        )
    return None
