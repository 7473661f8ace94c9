"""Where in time the latents of a section and of its history are: frame indices, and how many sections.

The network was trained with these indices and knows nothing else of time. Plain integers: no torch in
this file. A section is a window of `window` latent frames, generated at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from musubi.errors import ConfigError

WINDOW = 9
FRAME_RATE = 30
"""Frames a second that seconds are counted at; how fast a video is played is another matter."""
HISTORY = (1, 2, 16)
"""Latent frames of the history at 1x, 2x and 4x, from the nearest to the farthest."""
REMEMBERED = sum(HISTORY)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Frame indices of what the network sees at once.

    Args:
        target: Of the latents that are denoised.
        clean: Of the start image or the controls, and of the history at full resolution.
        clean_2x: Of the history in patches twice as large; empty: there is none.
        clean_4x: Of the history in patches four times as large; empty: there is none.
    """

    target: tuple[int, ...]
    clean: tuple[int, ...]
    clean_2x: tuple[int, ...] = ()
    clean_4x: tuple[int, ...] = ()


def inverted(window: int, padding: int) -> Layout:
    """Of a section that is made before those that come earlier in time.

    The history lies behind it: what was made already comes later.

    Args:
        window: Latent frames of a section.
        padding: Sections that lie between the start image and this one.

    >>> inverted(9, 1)  # doctest: +NORMALIZE_WHITESPACE
    Layout(target=(10, 11, 12, 13, 14, 15, 16, 17, 18), clean=(0, 19), clean_2x=(20, 21),
           clean_4x=(22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37))
    """
    first = 1 + padding * window
    behind = first + window
    return Layout(
        target=_span(first, window),
        clean=(0, behind),
        clean_2x=_span(behind + 1, 2),
        clean_4x=_span(behind + 3, 16),
    )


def forward(window: int) -> Layout:
    """Of a section that continues what was made before it, as FramePack-F1 does.

    >>> forward(9).clean, forward(9).clean_2x
    ((0, 19), (17, 18))
    """
    return Layout(
        target=_span(20, window), clean=(0, 19), clean_2x=_span(17, 2), clean_4x=_span(1, 16)
    )


def one_frame(
    window: int,
    *,
    target: int | None = None,
    controls: Sequence[int] = (0,),
    post: bool = True,
    with_2x: bool = True,
    with_4x: bool = True,
) -> Layout:
    """Of a single frame, made from control images.

    Args:
        window: Latent frames of a section; where the frames behind begin follows from it.
        target: Of the frame that is made; the end of the window when None.
        controls: Of each control image.
        post: Whether an empty frame stands behind the window.
        with_2x: Whether empty history follows at 2x.
        with_4x: Whether empty history follows at 4x.

    >>> one_frame(9, target=1, controls=(0, 10), post=False, with_2x=False, with_4x=False)
    Layout(target=(1,), clean=(0, 10), clean_2x=(), clean_4x=())
    """
    return Layout(
        target=(window if target is None else target,),
        clean=(*controls, *((window + 1,) if post else ())),
        clean_2x=_span(window + 2, 2) if with_2x else (),
        clean_4x=_span(window + 4, 16) if with_4x else (),
    )


def sections_of(seconds: float, window: int) -> int:
    """How many sections a video of that many seconds takes.

    >>> sections_of(5.0, 9)
    4
    """
    return max(round(seconds * FRAME_RATE / (window * 4)), 1)


def sections_in(frames: int, window: int) -> int:
    """How many whole sections a video of `frames` frames holds behind its first frame.

    >>> sections_in(73, 9), sections_in(72, 9), sections_in(36, 9)
    (2, 1, 0)
    """
    return max((frames - 1) // 4 // window, 0)


def frames_of(sections: int, window: int) -> int:
    """Frames of a video of that many sections.

    >>> frames_of(2, 9)
    73
    """
    return sections * window * 4 + 1


def paddings(sections: int, given: Sequence[int] = ()) -> tuple[int, ...]:
    """For each section, in the order of making, how many lie between it and the start image.

    Distances beyond three are told as two or three: the network knows no others.

    Args:
        sections: How many there are.
        given: To be used instead, from the first; what is too much is left out.

    >>> paddings(4), paddings(7), paddings(3, (1, 1))
    ((3, 2, 1, 0), (3, 2, 2, 2, 2, 1, 0), (1, 1, 0))
    """
    usual = [3, *[2] * (sections - 3), 1, 0] if sections > 4 else list(range(sections))[::-1]
    own = list(given)[:sections]
    return (*own, *usual[len(own) :])


def paddings_from(text: str) -> tuple[int, ...]:
    """The value of `--latent_paddings`: `3,2,1,0`.

    Raises:
        ConfigError: It is no list of whole numbers from 0.
    """
    try:
        found = tuple(int(part) for part in text.split(","))
        if min(found) < 0:
            raise ValueError
    except ValueError as error:
        raise ConfigError(
            f"--latent_paddings {text!r} is not a list of whole numbers from 0.",
            fix="Write one for each section, the last in time first: 3,2,1,0.",
        ) from error
    return found


def _span(start: int, count: int) -> tuple[int, ...]:
    return tuple(range(start, start + count))
