"""Architectures by name, found through the entry points of installed packages."""

from __future__ import annotations

from functools import cache, lru_cache
from importlib.metadata import EntryPoint, entry_points

from musubi.errors import ConfigError, did_you_mean
from musubi.plugin.architecture import Architecture

GROUP = "musubi.architectures"


@lru_cache(maxsize=1)
def _points() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
        known = found.get(point.name)
        if known is not None and known.value != point.value:
            raise ConfigError(
                f"Two packages register the architecture {point.name!r}: {known.value} and {point.value}.",
                fix="Uninstall one of them.",
            )
        found[point.name] = point
    return found


def names() -> list[str]:
    """Registered names, sorted; nothing is imported."""
    return list(_points())


@cache
def find(name: str) -> Architecture:
    """The architecture of that name.

    Raises:
        ConfigError: Nothing of that name is registered, or what is registered cannot be imported.
    """
    point = _points().get(name)
    if point is None:
        raise ConfigError(
            f"There is no architecture {name!r}.",
            fix=did_you_mean(name, names()) + " `musubi models` lists them all.",
        )
    package = point.dist.name if point.dist is not None else point.value
    try:
        value = point.load()
    except Exception as error:  # whatever a plugin raises while importing, its name must be said
        raise ConfigError(
            f"The architecture {name!r} of the package {package!r} cannot be imported: {error!r}.",
            fix=f"Reinstall {package!r}, or uninstall it.",
        ) from error
    if not isinstance(value, Architecture) or value.name != name:
        raise ConfigError(
            f"The entry point {name!r} of the package {package!r} is not an Architecture of that name.",
            fix="Its author must register `module:ARCHITECTURE` under the architecture's own name.",
        )
    return value
