"""From the path that a user gives to the files that hold the weights: shards, indexes, folders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from musubi.errors import CheckpointError, counted, nearest, system_fix, system_reason
from musubi.untrusted import TextError, parse_json, read_text

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)")
_INDEX = ".index.json"
SAFE = (".safetensors", ".sft")
_PICKLED = (".pt", ".pth", ".bin", ".ckpt")
# Tried in this order when a folder holds several sets of files.
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")


@contextmanager
def readable(path: Path | str) -> Iterator[None]:
    """Turn what the operating system refuses inside the block into a `CheckpointError`."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or path} cannot be read: {system_reason(error)}.",
            fix=system_fix(error),
        ) from error


def find_parts(path: Path) -> list[Path]:
    """The files that a path stands for, in order.

    Args:
        path: A weights file, any shard of a set, the index of a set, or a folder with one set.

    Raises:
        CheckpointError: There is nothing of that name, a shard is absent, or the folder holds no
            weights or more than one set of them.
    """
    path = Path(path)
    if path.is_dir():
        sets = weight_sets(path)
        if not sets:
            raise CheckpointError(
                f"The folder {path} holds no weights. {_holding(path)}".rstrip(),
                fix="Give the weights file, or the folder that it is in.",
            )
        return _complete(_preferred(path, sets))
    if not path.exists():
        raise _absent(path)
    return _complete(path)


def weight_sets(folder: Path) -> dict[str, Path]:
    """The sets of weights right inside a folder: stem → one file of the set.

    Where a set exists as safetensors, its pickled copy is not looked at.
    """
    found: dict[str, Path] = {}
    for suffixes in (SAFE, _PICKLED):
        for file in sorted(p for p in folder.iterdir() if p.is_file()):
            if file.suffix.lower() in suffixes and not file.name.startswith("."):
                shard = _SHARD.fullmatch(file.name)
                found.setdefault(shard["stem"] if shard else file.stem, file)
        if found:
            break
    return found


def folders_with_weights(folder: Path) -> list[Path]:
    """Subfolders that hold weights, sorted: the parts of a published snapshot."""
    return [p for p in sorted(folder.iterdir()) if p.is_dir() and weight_sets(p)]


def _preferred(folder: Path, sets: dict[str, Path]) -> Path:
    if len(sets) == 1:
        return next(iter(sets.values()))
    for stem in _STEMS:
        if stem in sets:
            return sets[stem]
    names = ", ".join(file.name for file in sets.values())
    raise CheckpointError(
        f"The folder {folder} holds more than one set of weights: {names}.",
        fix="Give the path of one of them.",
    )


def _complete(path: Path) -> list[Path]:
    if path.name.endswith(_INDEX):
        return _of_index(path)
    shard = _SHARD.fullmatch(path.name)
    count = int(shard["count"]) if shard is not None else 0
    if shard is None or not count:
        return [path]
    names = [
        f"{shard['stem']}-{n:05d}-of-{shard['count']}{shard['suffix']}" for n in range(1, count + 1)
    ]
    return _present(path.parent, names, f"{path} is one of {counted(count, 'shard')}")


def _of_index(path: Path) -> list[Path]:
    try:
        table = parse_json(read_text(path))["weight_map"]
        names = sorted(set(table.values()))
        if not all(type(name) is str and name == Path(name).name for name in names):
            raise TextError("it names files of other folders")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not the index of a sharded checkpoint: it has no readable 'weight_map'.",
            fix="Give the first shard or the folder instead.",
        ) from error
    return _present(path.parent, names, f"{path} names {counted(len(names), 'shard')}")


def _present(folder: Path, names: Iterable[str], what: str) -> list[Path]:
    files = [folder / name for name in names]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise CheckpointError(
            f"{what}, and {_some(absent)} {'is' if len(absent) == 1 else 'are'} missing.",
            fix=f"Download the missing files into {folder}.",
        )
    return files


def _absent(path: Path) -> CheckpointError:
    what = f"There is no file {path}."
    if not path.parent.is_dir():
        return CheckpointError(
            f"{what} The folder {path.parent} does not exist either.", fix="Check the path."
        )
    close = nearest(path.name, [p.name for p in path.parent.iterdir()])
    if close is not None:
        return CheckpointError(what, fix=f"Did you mean {str(path.parent / close)!r}?")
    return CheckpointError(f"{what} {_holding(path.parent)}", fix="Check the path.")


def _holding(folder: Path) -> str:
    names = sorted(p.name + ("/" if p.is_dir() else "") for p in folder.iterdir())
    if not names:
        return f"The folder {folder} is empty."
    return f"The folder {folder} holds {_some(names)}."


def _some(names: list[str], shown: int = 5) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
