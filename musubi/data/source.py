"""One file of a dataset: an image or a video with its captions and its inputs, or why it is left out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from musubi.config.dataset_entry import CaptionRules
from musubi.data.captions import of_class, variants
from musubi.data.images import is_animated_webp


@dataclass(frozen=True, kw_only=True)
class Source:
    """One image or video to train on.

    Args:
        kind: What it is; a directory of images is a video.
        path: The file, or the directory.
        stem: Its name up to the last dot: the first part of its records' names, and unique.
        captions: Those that training draws from, each stripped, none empty; one or more.
        class_captions: For each, what is said of what is to be kept; None where nothing is.
        inputs: Name of an input → its files, in order.
        dataset: Number of its dataset.
    """

    kind: Literal["image", "video"]
    path: Path
    stem: str
    captions: tuple[str, ...]
    class_captions: tuple[str | None, ...] = ()
    inputs: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    dataset: int = 0

    @property
    def caption(self) -> str:
        """The first one."""
        return self.captions[0]

    @property
    def texts(self) -> dict[str, str]:
        """What is encoded of it: what tells the names of its records apart, → the text."""
        found = {caption_ending(i): text for i, text in enumerate(self.captions)}
        return found | {
            caption_ending(i, of_class=True): text
            for i, text in enumerate(self.class_captions)
            if text is not None
        }

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file or directory that its media records are made of."""
        return (self.path, *(path for given in self.inputs.values() for path in given))


def caption_ending(number: int, *, of_class: bool = False) -> str:
    """What stands last in the names of text records; nothing for an item's first caption.

    >>> caption_ending(0), caption_ending(2), caption_ending(0, of_class=True)
    ('', '~2', '~0c')
    """
    return f"~{number}{'c' if of_class else ''}" if number or of_class else ""


def class_ending(ending: str) -> str:
    """The `caption_ending` of what is to be kept, from that of the caption.

    >>> class_ending("")
    '~0c'
    """
    return f"{ending or '~0'}c"


def captions_of(texts: Sequence[str], rules: CaptionRules) -> dict[str, Any]:
    """`captions` and `class_captions` of a `Source`."""
    found = variants(texts, rules)
    return {"captions": found, "class_captions": tuple(of_class(text, rules) for text in found)}


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A file that is left out.

    Args:
        path: The file.
        reason: One sentence that names it.
    """

    path: Path
    reason: str


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A dataset's files.

    Args:
        sources: In the order of their names.
        skipped: Images and videos that cannot be used.
        others: Other files that are not used; not an error, but worth a look.
    """

    sources: list[Source]
    skipped: list[Skipped] = field(default_factory=list)
    others: list[Skipped] = field(default_factory=list)


def stem_of(name: str) -> str:
    """A name up to its last dot."""
    return os.path.splitext(name)[0]  # noqa: PTH122 - 10,000 of them are counted in milliseconds


def ending(name: str) -> str:
    """What follows the last dot of a name, with it, in lower case."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - see stem_of


def of_kind(path: Path, kind: str) -> bool:
    """A WebP that moves is a video, and one that does not is an image; other endings tell."""
    if ending(path.name) != ".webp":
        return True
    return is_animated_webp(path) == (kind == "video")
