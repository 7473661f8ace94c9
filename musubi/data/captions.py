"""The captions that are trained with: prefix, suffix, shuffled and dropped tags, a word for another.

Nothing is drawn while training: each caption has a fixed number of variants, which are encoded once,
and training draws among these. Which they are follows from the caption alone, so that every
computer makes the same, and a caption that is not changed is not encoded again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from musubi.config.dataset_entry import CaptionRules

_PARTS = 1 << 64


def variants(texts: Sequence[str], rules: CaptionRules) -> tuple[str, ...]:
    """All captions that training draws from, each once.

    Args:
        texts: What is said of the item: mostly one.
        rules: Of its dataset.

    >>> variants(["a cat"], CaptionRules(prefix="photo of"))
    ('photo of a cat',)
    """
    found: dict[str, None] = {}
    for text in texts:
        many = rules.variants if rules.shuffle or rules.tag_dropout else 1
        for number in range(many):
            changed = text if many == 1 else _changed(text, rules, number)
            said = " ".join(filter(None, (rules.prefix, changed, rules.suffix)))
            found[said.strip()] = None
    return tuple(text for text in found if text)


def of_class(text: str, rules: CaptionRules) -> str | None:
    """The caption with the class word where the trigger word stands; None where it does not.

    >>> of_class("zyx, a zyxy", CaptionRules(trigger="zyx", instead="ball"))
    'ball, a zyxy'
    """
    if rules.trigger is None or rules.instead is None:
        return None
    word = rf"(?<!\w){re.escape(rules.trigger)}(?!\w)"
    instead = rules.instead
    found, count = re.subn(word, lambda _: instead, text)
    return found if count else None


def _changed(text: str, rules: CaptionRules, number: int) -> str:
    tags = [tag for part in text.split(rules.separator) if (tag := part.strip())]
    kept, rest = tags[: rules.keep], list(enumerate(tags[rules.keep :]))

    def rank(what: str, place: int) -> int:
        key = f"{what}\0{number}\0{place}\0{text}".encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")

    left = [p for p in rest if rank("drop", p[0]) >= rules.tag_dropout * _PARTS]
    if not left and not kept:  # nothing at all is what caption dropout is for
        left = rest[:1]
    if rules.shuffle:
        left.sort(key=lambda p: rank("order", p[0]))
    space = "" if rules.separator.isspace() else " "
    return f"{rules.separator}{space}".join([*kept, *(tag for _, tag in left)])
