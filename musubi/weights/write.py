"""Writing: under a temporary name in the same folder, to the disk, then renamed into place."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from musubi.errors import CheckpointError, RunError, system_fix, system_reason
from musubi.weights import temporary as temporaries
from musubi.weights.digest import Digest, file_digest
from musubi.weights.header import Entry, Header, make_header, read_header

_NO_ROOM = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def save(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> str:
    """Write a safetensors file; an existing one is replaced only by a complete one.

    Args:
        path: The file; its folder is made when absent.
        tensors: On any device, of any layout.
        metadata: Free text for the header.

    Returns:
        The digest of the file.

    Raises:
        RunError: The disk is full, or the folder cannot be written.
    """
    entries = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    return stream(path, entries, tensors.__getitem__, metadata)


def stream(
    path: Path,
    entries: Iterable[tuple[str, torch.dtype, Sequence[int]]],
    produce: Callable[[str], torch.Tensor],
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Write a safetensors file one tensor at a time, the next one made while one is written.

    Args:
        path: The file; its folder is made when absent.
        entries: Name, dtype and shape of every tensor.
        produce: Called once for each name, in the order of the file, on a thread; its tensor must have the dtype
            and shape that were announced.
        metadata: Free text for the header.

    Returns:
        The digest of the file.

    Raises:
        RunError: The disk is full, or the folder cannot be written.
        ValueError: `produce` gave something else than was announced.
    """
    path = Path(path)
    header = make_header(entries, metadata)
    digest = Digest()
    with _atomic(path, header.file_size) as temporary, temporary.open("wb") as file:
        file.write(header.raw)
        digest.update(header.raw)
        for name, entry, tensor in _ahead(header, produce):
            if tensor.dtype != entry.dtype or tuple(tensor.shape) != entry.shape:
                raise ValueError(
                    f"{name!r} was announced as {entry.dtype} {entry.shape} and is "
                    f"{tensor.dtype} {tuple(tensor.shape)}"
                )
            flat = tensor.detach().to("cpu").contiguous().reshape(-1)
            if flat.numel():
                stored = flat.view(torch.uint8).numpy().data
                file.write(stored)
                digest.update(stored)
    return digest.text


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


def verify(path: Path, digest: str | None = None) -> None:
    """Reopen a safetensors file and compare it with what was written.

    Args:
        path: The file.
        digest: What `save` gave; without it only the header and the length are compared.

    Raises:
        RunError: What is on the disk is not what was written.
    """
    path = Path(path)
    try:
        read_header(path)
        if digest is None or file_digest(path) == digest:
            return
        error, what = None, f"{path} holds other bytes."
    except CheckpointError as refused:
        error, what = refused, refused.what
    except OSError as refused:
        error, what = refused, f"{path} cannot be read: {system_reason(refused)}."
    raise RunError(
        f"What was just written did not verify: {what}",
        fix="Check the disk, and write to another one.",
    ) from error


@contextlib.contextmanager
def _atomic(path: Path, size: int | None) -> Iterator[Path]:
    folder = path.parent
    temporary = temporaries.new_name(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporaries.sweep(folder)
        yield temporary
        if size is None:
            size = temporary.stat().st_size
        _to_disk(temporary)
        temporary.replace(path)
    except OSError as error:
        ours = {str(path), str(temporary), str(folder)}
        if error.filename is None or str(error.filename) in ours:
            raise not_written(path, error, _sizes(error, temporary, size)) from error
        raise
    finally:
        temporaries.forget(temporary)
    folder_to_disk(folder)


def not_written(path: Path, error: OSError, more: str = "") -> RunError:
    """The failure to write a file or a folder, in words.

    Args:
        path: What was to be written.
        error: What the system said.
        more: What else is known, such as the bytes that were to be written.
    """
    return RunError(
        f"{path} could not be written: {system_reason(error)}{more}.", fix=system_fix(error)
    )


def _to_disk(path: Path) -> None:
    with path.open("rb+") as file:  # Windows syncs only what is open for writing
        os.fsync(file.fileno())


def folder_to_disk(folder: Path) -> None:
    """Make a rename last through a power cut, where a folder can be opened for that."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):  # some network file systems refuse
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _sizes(error: OSError, temporary: Path, size: int | None) -> str:
    """What was to be written and what is free, where room was what lacked."""
    if error.errno not in _NO_ROOM:
        return ""
    facts: list[str] = []
    with contextlib.suppress(OSError):
        size = temporary.stat().st_size if size is None else size
        facts.append(f"{size} bytes were to be written")
    if error.errno == errno.ENOSPC:
        with contextlib.suppress(OSError):
            facts.append(f"{shutil.disk_usage(temporary.parent).free} bytes are free")
    return f" ({', '.join(facts)})" if facts else ""
