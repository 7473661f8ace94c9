"""The typed header of a record: everything that decides whether it may still be used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from pydantic_core import from_json

from musubi.weights.digest import is_digest

VERSION = 1
"""Layout of the header itself; a record with another one is stale."""

Kind = Literal["media", "text"]


@dataclass(frozen=True, kw_only=True)
class RecordHeader:
    """What a record was made from. It is stored as JSON under the metadata key `musubi`.

    Args:
        kind: "media" or "text".
        stem: The source's stem, which also names the text record.
        fields: The names of the tensors it holds, as the runtime gave them.
        encoders: Component name → identity of its weights file. A text record lists only the
            encoders that have run. Empty if the record was adopted.
        dtypes: Component name → the dtype it computed in, if one was requested.
        options: The architecture's options that shape records, and their values.
        schema: Version of the task's schema.
        source: Base name of the image, video or directory of frames.
        signature: Sizes and modification times of the source and its controls, as text.
        content: Digest of the bytes of the same files.
        plan: Digest of the settings that decide which clips a source gives.
        preprocessing: Digest of the settings that shape this clip.
        bucket: Width and height in pixels.
        start: First frame of the clip.
        length: Frames of the clip; 1 for an image.
        clip: Which of the source's clips, from 0.
        clips: How many clips the source gives.
        part: Which section of the clip, from 0.
        parts: How many sections the clip has.
        caption: Digest of the caption, for text records.
        digest: Digest of everything in the file except this value; empty in records of older
            versions. See `store.write_record`.
        adopted: The record was made by musubi-tuner, which writes no such header.
        version: Version of this header's layout.
    """

    kind: Kind
    stem: str
    fields: tuple[str, ...] = ()
    encoders: Mapping[str, str] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    schema: int = 1
    source: str = ""
    signature: str = ""
    content: str = ""
    plan: str = ""
    preprocessing: str = ""
    bucket: tuple[int, int] = (0, 0)
    start: int = 0
    length: int = 1
    clip: int = 0
    clips: int = 1
    part: int = 0
    parts: int = 1
    caption: str = ""
    digest: str = field(default="", compare=False)  # says nothing of what a record was made of
    adopted: bool = False
    version: int = VERSION

    def to_json(self) -> str:
        """One line, keys sorted, so that equal headers are equal bytes."""
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True, separators=(",", ":"))


_KNOWN = frozenset(f.name for f in fields(RecordHeader))
_TEXTS = (
    "kind",
    "stem",
    "source",
    "signature",
    "content",
    "plan",
    "preprocessing",
    "caption",
    "digest",
)
_COUNTS = ("schema", "start", "length", "clip", "clips", "part", "parts")
_MOST = 10_000_000
_MOST_PARTS = 10_000  # a name is made for each of them


def parse(text: str) -> RecordHeader | None:
    """The header in a metadata value, or None when it is of another version or not ours."""
    try:
        values = from_json(text)
        if values["version"] != VERSION:
            return None
        values.setdefault("digest", "")
        width, height = values["bucket"]
        values["bucket"] = (width, height)
        values["fields"] = tuple(values["fields"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if values.keys() != _KNOWN or not _plausible(values):
        return None
    header = object.__new__(RecordHeader)
    header.__dict__.update(values)  # 20,000 frozen __init__ calls take a third of a second
    return header


def _plausible(values: Mapping[str, Any]) -> bool:
    """Whether every value has the right type, since the file may be damaged."""
    return (
        all(type(values[name]) is str for name in _TEXTS)
        and all(type(values[name]) is int and 0 <= values[name] < _MOST for name in _COUNTS)
        and values["parts"] <= _MOST_PARTS
        and type(values["adopted"]) is bool
        and all(type(side) is int and 0 <= side < _MOST for side in values["bucket"])
        and all(type(values[name]) is dict for name in ("encoders", "dtypes", "options"))
        and all(type(name) is str for name in values["fields"])
        and all(type(v) is str for d in ("encoders", "dtypes") for v in values[d].values())
        and (not values["digest"] or is_digest(values["digest"]))
    )
