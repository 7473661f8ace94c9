"""Record files: their names, their tensor keys, and how they are written and read.

Names, keys and metadata are those that musubi-tuner reads and writes; our typed header is one more
metadata key. No batch axis is stored.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic_core import from_json

from musubi.cache.header import RecordHeader, parse
from musubi.errors import CheckpointError, DataError, system_fix, system_reason
from musubi.plugin.architecture import Architecture
from musubi.plugin.record import Field, is_mask, lacking
from musubi.plugin.record import declared as declared_as
from musubi.plugin.runtime import Record
from musubi.weights.digest import Digest
from musubi.weights.dtypes import stored_code
from musubi.weights.header import read_header as read_safetensors_header
from musubi.weights.write import save

FORMAT_VERSION = "1.0.1"
"""`format_version` of the files that musubi-tuner writes and accepts."""

KEY = "musubi"
"""The metadata key of the typed header."""

_FIRST_READ = 4096
_SPAN = re.compile(r"\d{5,}-\d{3,}(-\d{4,})?")
_HEADER_LIMIT = 100_000_000
_MOST = 2**40
_READ = os.O_RDONLY | getattr(os, "O_BINARY", 0)


# names


def media_name(
    stem: str,
    size: tuple[int, int],
    suffix: str,
    *,
    span: tuple[int, int] | None = None,
    section: int | None = None,
) -> str:
    """The file name of a media record.

    Args:
        stem: The source's name without its last extension.
        size: Width and height: the original size of an image, the bucket of a video.
        suffix: The architecture's.
        span: First frame and number of frames, for a video.
        section: Number of the section in time order, for clips that are trained in sections.

    >>> media_name("cat", (640, 480), "toy")
    'cat_0640x0480_toy.safetensors'
    >>> media_name("cat", (640, 480), "fp", span=(4, 37), section=0)
    'cat_00004-037-0000_0640x0480_fp.safetensors'
    """
    middle = ""
    if span is not None:
        middle = f"_{span[0]:05d}-{span[1]:03d}" + ("" if section is None else f"-{section:04d}")
    return f"{stem}{middle}_{size[0]:04d}x{size[1]:04d}_{suffix}.safetensors"


def text_name(stem: str, suffix: str, ending: str = "") -> str:
    """The file name of a text record.

    Args:
        stem: The source's name without its last extension.
        suffix: The architecture's.
        ending: Which of its captions: see `Source.texts`. It stands behind all else, where no stem
            reaches: beside `cat.png` there may be a `cat~1.png`.

    >>> text_name("cat", "toy"), text_name("cat", "toy", "~1")
    ('cat_toy_te.safetensors', 'cat_toy_te~1.safetensors')
    """
    return f"{stem}_{suffix}_te{ending}.safetensors"


def is_text_name(name: str, suffix: str) -> bool:
    """Whether a file has the name of a text record.

    >>> is_text_name("cat_toy_te~1.safetensors", "toy"), is_text_name("cat_toy.safetensors", "toy")
    (True, False)
    """
    return re.search(rf"_{re.escape(suffix)}_te(~\d+c?)?\.safetensors\Z", name) is not None


def empty_caption_name(suffix: str) -> str:
    """The file name of the record of the empty caption, which caption dropout uses.

    It ends in neither `_{suffix}.safetensors` nor `_{suffix}_te.safetensors`, so that no tool takes
    it for an item's record, and musubi-tuner does not delete it as a leftover.

    >>> empty_caption_name("toy")
    'empty-caption.toy.safetensors'
    """
    return f"empty-caption.{suffix}.safetensors"


def possible_stems(name: str) -> tuple[str, ...]:
    """The possible stems of a media record, from its file name: as an image, and as a video.

    >>> possible_stems("my_cat_00000-009_0064x0048_toy.safetensors")
    ('my_cat_00000-009', 'my_cat')
    """
    image = name.rpartition("_")[0].rpartition("_")[0]
    stem, _, span = image.rpartition("_")
    return (image, stem) if stem and _SPAN.fullmatch(span) else (image,)


# tensor keys


def dtype_of(tensor: torch.Tensor) -> str:
    """The name of a tensor's dtype, as keys spell it: "bfloat16"."""
    return str(tensor.dtype).removeprefix("torch.")


def tensor_key(
    field: Field, tensor: torch.Tensor, latents: torch.Tensor | None, *, name: str | None = None
) -> str:
    """The key of one tensor of a record.

    Args:
        field: The tensor's field in the schema.
        tensor: The tensor.
        latents: The record's main latent, C F H W, whose F, H and W stand in every latent key but
            those of a field that is `many`, where each tensor has a size of its own.
        name: The tensor's name in the record, if it differs from the field's name.
    """
    name = name or field.name
    key = f"varlen_{name}" if field.varlen else name
    if field.is_latents:
        measured = tensor if latents is None or field.many else latents
        frames, height, width = measured.shape[-3:]
        key += f"_{frames}x{height}x{width}"
    return key if field.is_mask else f"{key}_{dtype_of(tensor)}"


@lru_cache(maxsize=4096)
def field_name(key: str) -> str:
    """The field that a tensor key belongs to.

    >>> field_name("latents_image_1x30x52_bfloat16"), field_name("varlen_t5_bfloat16")
    ('latents_image', 't5')
    """
    name = key.removeprefix("varlen_")
    if not is_mask(name):
        name = name.rpartition("_")[0]
        if name.startswith("latents_"):
            name = name.rpartition("_")[0]
    return name


def check_record(
    record: Mapping[str, torch.Tensor],
    fields: Sequence[Field],
    name: str,
    *,
    complete: bool = True,
) -> None:
    """Refuse a record that the schema does not describe, or that holds NaN or infinity.

    Args:
        record: The output of an encoder.
        fields: The fields of the schema.
        name: The item, for the message.
        complete: Whether every field that is not optional must be there.

    Raises:
        DataError: Naming the item and the field.
    """
    absent = lacking(fields, record) if complete else []
    if absent:
        raise DataError(f"{name}: its record lacks {absent[0]!r}, which the task declares.")
    for key, tensor in record.items():
        declared = declared_as(fields, key)
        if declared is None:
            raise DataError(f"{name}: its record holds {key!r}, which the task does not declare.")
        sizes = dict(declared.sizes)
        fits = tensor.ndim == len(declared.dims) and all(
            sizes.get(letter, length) == length
            for letter, length in zip(declared.dims, tensor.shape, strict=False)
        )
        if not fits:
            raise DataError(
                f"{name}: {key!r} has the shape {tuple(tensor.shape)}, and the task declares "
                f"{declared.dims}{f' with {sizes}' if sizes else ''}."
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise DataError(
                f"{name}: its {key} are not finite (NaN or infinity).",
                fix="Try a wider dtype for the encoder, such as fp32, and check the file.",
            )


# writing


def metadata_of(
    architecture: Architecture,
    header: RecordHeader,
    *,
    size: tuple[int, int] = (0, 0),
    frames: int | None = None,
    caption: str = "",
) -> dict[str, str]:
    """The metadata of a record: the old keys and ours.

    Args:
        architecture: The architecture; its name becomes the key `architecture`.
        header: The typed header.
        size: Width and height as in the file name, for media.
        frames: Frames of the clip, for videos.
        caption: The caption, for text.
    """
    out = {"architecture": architecture.name, "format_version": FORMAT_VERSION}
    if header.kind == "text":
        out["caption1"] = caption
    else:
        out["width"], out["height"] = str(size[0]), str(size[1])
        if frames is not None:
            out["frame_count"] = str(frames)
    out[KEY] = header.to_json()
    return out


def write_record(
    path: Path,
    record: Mapping[str, torch.Tensor],
    fields: Sequence[Field],
    metadata: Mapping[str, str],
) -> None:
    """Write a record: a reader finds the old file or the complete new one.

    Its typed header gets the digest of all that the file holds: see `_digest`.

    Args:
        path: Where; the directory is made when absent.
        record: Field name to tensor, without a batch axis.
        fields: The schema's fields; each tensor must be one of them.
        metadata: See `metadata_of`.

    Raises:
        RunError: The disk is full, or the directory cannot be written.
    """
    latents = record.get("latents")
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in record.items():
        field = declared_as(fields, name)
        assert field is not None, name  # `check_record` was here
        key = tensor_key(field, tensor, latents, name=name)
        tensors[key] = tensor.detach().cpu().contiguous()
    save(path, tensors, _sealed(metadata, tensors))


def rewrite_header(path: Path, header: RecordHeader) -> None:
    """Give a record another header; its tensors and its other metadata stay.

    Raises:
        DataError: The record cannot be read, or is damaged.
    """
    tensors, metadata = _read_whole(path)
    save(path, tensors, _sealed({**metadata, KEY: header.to_json()}, tensors))


# digests


def _sealed(metadata: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """The metadata of a record with the digest in its typed header, when it has one."""
    header = parse(metadata[KEY]) if KEY in metadata else None
    if header is None:
        return dict(metadata)
    sealed = replace(header, digest=_digest(header, metadata, tensors))
    return {**metadata, KEY: sealed.to_json()}


def _digest(
    header: RecordHeader, metadata: Mapping[str, str], tensors: Mapping[str, torch.Tensor]
) -> str:
    """Digest of everything in a record: metadata without the digest, and each tensor's name, dtype,
    shape and bytes.

    How the tensors lie in the file does not count, so that any writer of safetensors may copy it.
    """
    bare = {**metadata, KEY: replace(header, digest="").to_json()}
    rows: list[Any] = [sorted(bare.items())]
    for key in sorted(tensors):
        tensor, digest = tensors[key], Digest()
        digest.update(_bytes_of(tensor))
        rows.append([key, stored_code(tensor.dtype), tuple(tensor.shape), digest.text])
    digest = Digest()
    digest.update(json.dumps(rows).encode())
    return digest.text


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    flat = tensor.reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def is_whole(path: Path) -> bool:
    """Whether a record matches its digest; True if it has none."""
    try:
        _read_whole(path)
    except DataError:
        return False
    return True


def _read_whole(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors of a record by their keys, and its metadata, compared with its digest.

    Raises:
        DataError: The file cannot be read, or is not what was written.
    """
    try:
        known = read_safetensors_header(path)
        tensors = {}
        with path.open("rb", buffering=0) as file:
            file.seek(len(known.raw))
            for key, entry in known.entries.items():
                if entry.dtype is None:
                    raise _broken(str(path))
                tensor = tensors[key] = torch.empty(entry.shape, dtype=entry.dtype)
                room, done = _bytes_of(tensor), 0
                while done < len(room):
                    count = file.readinto(room[done:])  # type: ignore[attr-defined]
                    if not count:
                        raise _broken(str(path))
                    done += count
    except FileNotFoundError as error:
        raise DataError(
            f"The record {str(path)!r} does not exist.", fix="Cache the dataset again."
        ) from error
    except OSError as error:
        raise _unreadable(str(path), error) from error
    except (CheckpointError, RuntimeError, ValueError) as error:
        raise _broken(str(path)) from error
    metadata = dict(known.metadata)
    header = parse(metadata[KEY]) if KEY in metadata else None
    if header is not None and header.digest not in ("", _digest(header, metadata, tensors)):
        raise _broken(str(path))
    return tensors, metadata


# reading


class Stored(NamedTuple):
    """The head of a record file, read without the tensors.

    Args:
        metadata: All of it, as text.
        shapes: Field name to shape.
        header: The typed header, or None when the record has none that we understand.
        damaged: Its content was compared with its digest, and is not what was written.
        twice: A field that the file holds in two dtypes; empty when there is none.
        refused: Why a record without a typed header cannot be used; empty if this was not checked.
    """

    metadata: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    header: RecordHeader | None = None
    damaged: bool = False
    twice: str = ""
    refused: str = ""

    def belongs_to(self, architecture: Architecture) -> bool:
        """Whether this is a record of that architecture, ours or musubi-tuner's, and not just any
        safetensors file.
        """
        return (
            self.metadata.get("architecture") == architecture.name
            and "format_version" in self.metadata
        )


def read_head(path: str | os.PathLike[str]) -> Stored:
    """Read a record's head: two system calls and no tensor.

    Raises:
        DataError: The file is absent, truncated, or no safetensors file.
    """
    name = os.fspath(path)
    try:
        file = os.open(name, _READ)
        try:
            start = os.read(file, _FIRST_READ)
            (length,) = struct.unpack_from("<Q", start)
            if length > _HEADER_LIMIT:
                raise ValueError("no header of such length")
            rest = length + 8 - len(start)
            text = start[8 : 8 + length] + (os.read(file, rest) if rest > 0 else b"")
            size = os.fstat(file).st_size
        finally:
            os.close(file)
        entries: dict[str, Any] = from_json(text)
        metadata: dict[str, str] = entries.pop("__metadata__", None) or {}
        end, twice = 0, ""
        shapes: dict[str, tuple[int, ...]] = {}
        for key, entry in entries.items():
            field = field_name(key)
            twice = field if field in shapes else twice
            shape = shapes[field] = tuple(entry["shape"])
            if not all(type(side) is int and 0 <= side < _MOST for side in shape):
                raise TypeError("a side is no natural number")
            end = max(end, entry["data_offsets"][1])
        if not all(type(value) is str for value in metadata.values()):
            raise TypeError("metadata that is no text")
    except OSError as error:
        raise _unreadable(name, error) from error
    except (ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise _broken(name) from error
    if size != 8 + length + end:
        raise _broken(name)
    header = parse(metadata[KEY]) if KEY in metadata else None
    return Stored(metadata, shapes, header, twice=twice)


def read_header(path: str | os.PathLike[str]) -> RecordHeader | None:
    """The typed header of a record, or None when it has none that we understand."""
    return read_head(path).header


def read_record(
    path: Path, wanted: Callable[[str], bool] | None = None
) -> tuple[Record, RecordHeader | None]:
    """Read a record's tensors, on the CPU, by field name.

    Args:
        path: The file.
        wanted: Whether a tensor of that name is wanted; None means all.

    Raises:
        DataError: The file cannot be read, or holds one field in two dtypes.
    """
    record: Record = {}
    tensors, metadata = _read_whole(path)
    for key, tensor in tensors.items():
        name = field_name(key)
        if wanted is not None and not wanted(name):
            continue
        if name in record:
            raise DataError(
                f"The record {str(path)!r} holds {name!r} twice, in two dtypes.",
                fix="Delete it and cache the dataset again.",
            )
        record[name] = tensor
    return record, parse(metadata[KEY]) if KEY in metadata else None


def _unreadable(name: str, error: OSError) -> DataError:
    return DataError(
        f"The record {name!r} cannot be read: {system_reason(error)}.",
        fix=f"{system_fix(error)} Or cache the dataset again.",
    )


def _broken(name: str) -> DataError:
    return DataError(
        f"The record {name!r} is truncated or damaged: its content is not what was written.",
        fix="Cache the dataset again: damaged records are made anew.",
    )
