"""Archives as folders of a dataset: unpacked once into its cache directory, and again when they change.

What an archive says is not believed. A name that leads out of the folder, a link, a device, and more
bytes than such a file can honestly hold refuse the archive as a whole; nothing of it stays.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from musubi.config.dataset import DatasetEntry
from musubi.config.dataset_values import is_archive
from musubi.errors import DataError, RunError, system_fix, system_reason
from musubi.untrusted import TextError, parse_json, read_text, reason, text_fault
from musubi.weights import temporary as temporaries
from musubi.weights.digest import file_digest
from musubi.weights.write import atomic

MARK = ".musubi-archive.json"
"""In an unpacked folder: the archive that it was made of, and its files with their sizes."""

FOLDER = "unpacked"

_MOST_FILES = 1_000_000
_MOST_LEVELS = 16
_FREE_BYTES = 1 << 30
_MOST_RATIO = 200
"""Unpacked over packed, beyond the first GiB. Pictures reach 100 when they are plain, a bomb 1000."""

_LARGEST_READ = 128 << 20
"""Bytes that the reader of an archive may want at once: a million names, or one long name."""

_ZIP_END = 22
"""Bytes of the last record of a ZIP file, before its comment; the number of files stands at 10."""

_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class _Member:
    """A file of an archive: its path in it, its size, and what opens it."""

    name: str
    parts: tuple[str, ...]
    size: int
    opened: Callable[[], IO[bytes]]


def unpacked(entry: DatasetEntry) -> DatasetEntry:
    """The dataset with each archive replaced by the folder that it was unpacked into.

    Raises:
        DataError: An archive is damaged, or holds what no dataset does.
        RunError: The cache directory cannot be written.
    """
    directory = entry.directory
    if not any(is_archive(p) for p in (directory, *entry.directories.values()) if p is not None):
        return entry
    if directory is not None and is_archive(directory):
        directory = _folder_of(directory, entry.cache_directory / FOLDER)
    inputs = {
        name: _folder_of(place, entry.cache_directory / f"{FOLDER}-{name}")
        if is_archive(place)
        else place
        for name, place in entry.directories.items()
    }
    return replace(entry, directory=directory, directories=inputs)


def _folder_of(archive: Path, folder: Path) -> Path:
    """`folder`, which holds what the archive holds now."""
    try:
        seen = archive.stat()
        state: dict[str, Any] = {"size": seen.st_size, "mtime_ns": seen.st_mtime_ns}
        mark = _mark_of(folder)
        if mark and {key: mark.get(key) for key in state} == state:
            return folder
        state["digest"] = file_digest(archive)
    except OSError as error:
        raise _unreadable(archive, system_reason(error)) from error
    try:
        if mark and mark.get("digest") == state["digest"] and mark.get("size") == state["size"]:
            with atomic(folder / MARK) as path:  # copied or touched: the times alone have changed
                path.write_text(json.dumps({**mark, **state}), encoding="utf-8")
            return folder
        _unpack(archive, folder, state)
    except OSError as error:
        raise RunError(
            f"{archive} cannot be unpacked into {folder}: {system_reason(error)}.",
            fix=system_fix(error),
        ) from error
    return folder


def _mark_of(folder: Path) -> dict[str, Any] | None:
    """What an unpacked folder says of itself; None when it lacks a file, or one has another size."""
    try:
        mark = parse_json(read_text(folder / MARK, limit=1 << 30))
        files = mark["files"]
        there = all(os.stat(folder / name).st_size == size for name, size in files.items())  # noqa: PTH116 - many
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return mark if there else None


def _unpack(archive: Path, folder: Path, state: dict[str, Any]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporaries.sweep(folder.parent)
    made, old = temporaries.new_name(folder.parent), temporaries.new_name(folder.parent)
    try:
        made.mkdir()
        with _members(archive) as members:
            files = _written(archive, _checked(archive, members), made)
        text = json.dumps({"archive": archive.name, **state, "files": files})
        (made / MARK).write_text(text, encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        try:
            made.rename(folder)
        except OSError:
            if _mark_of(folder) is None:  # else another process was quicker
                raise
    finally:
        temporaries.forget(made)
        temporaries.forget(old)


def _written(archive: Path, members: list[_Member], folder: Path) -> dict[str, int]:
    """Path in the folder → bytes of every file."""
    files: dict[str, int] = {}
    for member in members:
        path = folder.joinpath(*member.parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with member.opened() as packed, path.open("xb") as file:
                while chunk := packed.read(_CHUNK):
                    files["/".join(member.parts)] = file.tell() + len(chunk)
                    if file.tell() + len(chunk) > member.size:
                        raise _refused(archive, f"{member.name!r} is larger than it says")
                    file.write(chunk)
        except FileExistsError as error:
            raise _refused(archive, f"it holds {member.name!r} twice") from error
        if files.setdefault("/".join(member.parts), 0) != member.size:
            raise _unreadable(archive, f"{member.name!r} ends too early")
    return files


def _checked(archive: Path, members: Iterator[_Member]) -> list[_Member]:
    """The files, with a folder that holds all of them left out of their paths."""
    most = _FREE_BYTES + _MOST_RATIO * archive.stat().st_size
    kept: list[_Member] = []
    total = 0
    for number, member in enumerate(members):
        total += max(member.size, 0)
        if number >= _MOST_FILES:
            raise _refused(archive, f"it holds more than {_MOST_FILES} files")
        if member.size < 0 or total > most:
            raise _refused(archive, "it holds far more bytes than such a file can hold")
        if fault := _fault(member):
            raise _refused(archive, f"the name {member.name!r:.200} in it {fault}")
        hidden = any(part.startswith(".") for part in member.parts)
        if not hidden and member.parts[0] != "__MACOSX":
            kept.append(member)
    if not kept:
        raise _refused(archive, "it holds no files")
    while len({m.parts[0] for m in kept}) == 1 and all(len(m.parts) > 1 for m in kept):
        kept = [replace(m, parts=m.parts[1:]) for m in kept]
    return kept


def _fault(member: _Member) -> str | None:
    """Why a name of an archive is not used."""
    name = member.name
    if name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/"):
        return "leads out of its folder"
    if any(ord(letter) < 32 for letter in name):
        return "holds a control character"
    if not member.parts or len(member.parts) > _MOST_LEVELS:
        return f"has no part, or more than {_MOST_LEVELS}"
    return text_fault(name)


class _Bounded:
    """A file of which no great part is read at once, whatever length a header announces."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell, self.close = file.seek, file.tell, file.close
        self.seekable, self.readable, self.writable = file.seekable, file.readable, file.writable
        self.closed = False

    def read(self, count: int = -1) -> bytes:
        """As of a file."""
        if count is None or not 0 <= count <= _LARGEST_READ:
            room = os.fstat(self._file.fileno()).st_size - self._file.tell()
            if room > _LARGEST_READ:
                raise TextError("a header in it is too long")
        return self._file.read(count)


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[_Member]]:
    """The files of an archive, which stays open inside."""
    try:
        with archive.open("rb") as file:
            bounded: Any = _Bounded(file)
            if archive.suffix.lower() == ".zip":
                with zipfile.ZipFile(bounded) as opened:
                    yield _of_zip(archive, opened)
            else:
                with tarfile.open(fileobj=bounded, mode="r:") as opened:
                    yield _of_tar(archive, opened)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise _unreadable(archive, str(error).rstrip(".") or "it is damaged") from error
    except (TextError, NotImplementedError, RuntimeError, OverflowError) as error:
        raise _unreadable(archive, reason(error)) from error
    except (
        ValueError,
        IndexError,
        KeyError,
        struct.error,
    ) as error:  # Python's readers, of odd headers
        raise _unreadable(archive, "a header in it makes no sense") from error
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOVERFLOW, errno.ENAMETOOLONG, errno.ENOTDIR):
            raise
        raise _unreadable(archive, system_reason(error)) from error  # an odd offset, or a long name


def _of_zip(archive: Path, opened: zipfile.ZipFile) -> Iterator[_Member]:
    # Python's reader does not compare what it found with the number that the file says.
    assert opened.fp is not None
    opened.fp.seek(-_ZIP_END - len(opened.comment), os.SEEK_END)
    said = int.from_bytes(opened.fp.read(_ZIP_END)[10:12], "little")
    if said not in (len(opened.infolist()) & 0xFFFF, 0xFFFF):
        raise _unreadable(archive, "it is damaged or cut off")
    for info in opened.infolist():
        if info.is_dir():
            continue
        mode = info.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise _refused(archive, f"{info.filename!r} in it is a link or a device")
        if info.flag_bits & 1:
            raise _refused(archive, f"{info.filename!r} in it is locked by a password")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _refused(archive, f"{info.filename!r} in it is packed in an uncommon way")
        yield _Member(
            name=info.filename,
            parts=_parts(info.filename),
            size=info.file_size,
            opened=lambda info=info: opened.open(info),
        )


def _of_tar(archive: Path, opened: tarfile.TarFile) -> Iterator[_Member]:
    before = -1
    while (info := opened.next()) is not None:
        if info.offset <= before:
            raise _refused(archive, "its headers lead in a circle")
        before = info.offset
        if info.isdir():
            continue
        if not info.isreg() or info.issparse():
            raise _refused(archive, f"{info.name!r} in it is a link, a device or full of holes")
        yield _Member(
            name=info.name,
            parts=_parts(info.name),
            size=info.size,
            opened=lambda info=info: _file_of(opened, info),
        )
    # Python's reader takes a damaged header for the end, which is a block of zeros.
    bounded = opened.fileobj
    assert bounded is not None
    bounded.seek(opened.offset)
    if bounded.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise _unreadable(archive, "it is damaged or cut off")


def _file_of(opened: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    found = opened.extractfile(info)
    assert found is not None  # it is a regular file
    return found


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.split("/") if part not in ("", "."))


def _refused(archive: Path, why: str) -> DataError:
    return DataError(
        f"{archive} is not unpacked: {why}.",
        fix="Unpack it yourself where you trust it, and give the folder.",
    )


def _unreadable(archive: Path, why: str) -> DataError:
    return DataError(f"{archive} cannot be read: {why}.", fix="Make or fetch the archive again.")
