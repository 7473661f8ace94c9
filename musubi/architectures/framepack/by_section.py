"""Texts and pictures by section: `0:a cat;;;-1:a cat asleep`. Plain data: no torch in this file.

Sections are counted in the order of time: 0 is the first, -1 the last.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from musubi.errors import ConfigError

SEPARATOR = ";;;"
# A number, or a range of them, before a colon. `C:\cat.png` has neither.
_INDEX = re.compile(r"\s*(-?\d+)(?:\s*-\s*(\d+))?\s*:(.*)", re.DOTALL)


def by_section(text: str) -> dict[int, str]:
    r"""Number of a section → what is said for it; 0 is always there.

    Without `;;;` the whole text is for every section, whatever colons it holds.

    >>> by_section("0:a cat;;;2-3:it runs;;;-1:it sleeps")
    {0: 'a cat', 2: 'it runs', 3: 'it runs', -1: 'it sleeps'}
    >>> by_section(r"C:\start.png;;;-1:D:\end.png")
    {0: 'C:\\start.png', -1: 'D:\\end.png'}

    Raises:
        ConfigError: A section is named twice, or a range runs backwards.
    """
    if SEPARATOR not in text:
        return {0: text.strip()}
    found: dict[int, str] = {}
    for part in text.split(SEPARATOR):
        if not part.strip():
            continue
        numbers, value = _numbers(part)
        for number in numbers:
            if number in found:
                raise ConfigError(
                    f"Section {number} is named twice in {text!r}.", fix="Name each section once."
                )
            found[number] = value.strip()
    if not found:
        return {0: ""}
    if 0 not in found:
        # What stands for every section that is not named: the nearest to the beginning.
        found[0] = found[min((n for n in found if n >= 0), default=min(found))]
    return found


def chosen(values: Mapping[int, str], section: int, sections: int) -> int:
    """Which key of `by_section` is meant for a section: counted from the end, from the start, or 0.

    >>> chosen({0: "a", 1: "b", -1: "c"}, 1, 2), chosen({0: "a", 1: "b"}, 1, 3)
    (-1, 1)
    """
    for key in (section - sections, section):
        if key in values:
            return key
    return 0


def _numbers(part: str) -> tuple[range, str]:
    match = _INDEX.fullmatch(part)
    if match is None:
        return range(1), part
    first, last = int(match[1]), match[2]
    if last is None:
        return range(first, first + 1), match[3]
    if first < 0 or int(last) < first:
        raise ConfigError(
            f"{match[1]}-{last} is no range of sections.", fix="Write 0-2, say: the smaller first."
        )
    return range(first, int(last) + 1), match[3]
