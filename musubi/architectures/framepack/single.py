"""What `--one_frame_inference` says: `no_2x,no_4x,target_index=1,control_index=0;10`. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from musubi.errors import ConfigError, counted, did_you_mean

FLAGS = ("no_2x", "no_4x", "no_post")
VALUES = ("target_index", "control_index")


@dataclass(frozen=True, kw_only=True)
class OneFrame:
    """How a single frame is made.

    Args:
        target: Frame index of what is made; None: the end of the window.
        controls: Frame index of each control image; None: 0 for all.
        with_2x: Whether empty history follows at 2x.
        with_4x: Whether empty history follows at 4x.
        post: Whether an empty frame stands behind the window.
    """

    target: int | None = None
    controls: tuple[int, ...] | None = None
    with_2x: bool = True
    with_4x: bool = True
    post: bool = True

    def indices(self, count: int) -> tuple[int, ...]:
        """Frame indices for `count` control images, at least one.

        Raises:
            ConfigError: There are more or fewer of them.
        """
        if self.controls is None:
            return (0,) * max(count, 1)
        if len(self.controls) != max(count, 1):
            raise ConfigError(
                f"control_index has {counted(len(self.controls), 'frame index', 'frame indices')} for "
                f"{counted(count, 'control image')}.",
                fix=f"Give one for each: control_index={';'.join('0' * max(count, 1))}, say.",
            )
        return self.controls


def one_frame_from(text: str) -> OneFrame:
    """The value of `--one_frame_inference`.

    >>> one_frame_from("no_2x,target_index=1,control_index=0;10").controls
    (0, 10)

    Raises:
        ConfigError: It holds a word that means nothing, or an index that is no number.
    """
    flags: set[str] = set()
    target: int | None = None
    controls: tuple[int, ...] | None = None
    for word in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (p.strip() for p in word.partition("="))
        if name in FLAGS and not equals:
            flags.add(name)
        elif name == "target_index" and equals:
            (target,) = _indices(value, name, single=True)
        elif name == "control_index" and equals:
            controls = _indices(value, name)
        elif word != "default":
            raise ConfigError(
                f"--one_frame_inference has {word!r}, which means nothing.",
                fix=did_you_mean(name, [*FLAGS, *VALUES, "default"])
                + " Write no_2x,no_4x,target_index=1,control_index=0;10, say.",
            )
    return OneFrame(
        target=target,
        controls=controls,
        with_2x="no_2x" not in flags,
        with_4x="no_4x" not in flags,
        post="no_post" not in flags,
    )


def _indices(value: str, name: str, *, single: bool = False) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in value.split(";"))
        if min(found) < 0 or (single and len(found) > 1):
            raise ValueError
    except ValueError as error:
        raise ConfigError(
            f"{name}={value} is no frame index.",
            fix=f"Write {name}={'1' if single else '0;10'}: whole numbers from 0.",
        ) from error
    return found
