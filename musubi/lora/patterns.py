"""Which layers take an adapter: the architecture's targets, and the user's patterns and groups.

A pattern matches a whole dotted name; older tools matched from its start only, so that
`blocks.0` there also meant `blocks.0.ffn`: write `blocks.0.*` here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from musubi.errors import ConfigError, did_you_mean
from musubi.plugin import LoraTargets


def compiled(patterns: Iterable[str]) -> list[re.Pattern[str]]:
    """Each as a regular expression.

    Raises:
        ConfigError: One is not a regular expression.
    """
    found = []
    for pattern in patterns:
        try:
            found.append(re.compile(pattern))
        except re.error as error:
            raise ConfigError(
                f"The pattern {pattern!r} is not a regular expression: {error}.",
                fix="Escape special characters with a backslash.",
            ) from error
    return found


def choose(
    names: Sequence[str],
    targets: LoraTargets,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    groups: Sequence[str] = (),
    extra: Collection[str] = (),
) -> tuple[list[str], list[str]]:
    """The layers that take an adapter, and a line for each pattern that matches nothing.

    Args:
        names: Dotted names of linear layers.
        targets: What the architecture says.
        include: Layers that these match stay, whatever excludes them.
        exclude: Layers that these match are left out.
        groups: Names of the architecture's groups; only layers of these take part.
        extra: Those among the names that need not be what the architecture says: a pattern of
            `include` is enough.

    Raises:
        ConfigError: A pattern is broken, or a group unknown.
    """
    for group in groups:
        if group not in targets.groups:
            raise ConfigError(
                f"There is no group {group!r} of layers.", fix=did_you_mean(group, targets.groups)
            )
    base = compiled(targets.include)
    dropped = compiled((*targets.exclude, *exclude))
    kept = compiled(include)
    wanted = compiled(p for group in groups for p in targets.groups[group])
    candidates = [
        n
        for n in names
        if (_any(base, n) and (not groups or _any(wanted, n))) or (n in extra and _any(kept, n))
    ]
    chosen = [n for n in candidates if not _any(dropped, n) or _any(kept, n)]
    notes = [
        f"The pattern {pattern.pattern!r} matches no layer; a pattern must match a whole name, "
        f"such as {candidates[0] if candidates else 'blocks.0.attn.q'!r}."
        for pattern in (*kept, *compiled(exclude))
        if not any(pattern.fullmatch(n) for n in candidates)
    ]
    if include and not exclude and not any(_any(kept, n) and _any(dropped, n) for n in candidates):
        notes.append(
            "include_patterns alone leaves out no layer, and what it matches takes an adapter anyway: to "
            "train only these layers, add \"exclude_patterns=['.*']\" to --network_args."
        )
    return chosen, notes


def _any(patterns: Iterable[re.Pattern[str]], name: str) -> bool:
    return any(p.fullmatch(name) for p in patterns)
