"""Latents to frames, a chunk at a time: neighbouring chunks are decoded whole and faded into another."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

Span = tuple[int, int]


def chunks(length: int, window: int, *, forward: bool) -> list[Span]:
    """Spans of latent frames that are decoded together, in the order of time.

    Each is two sections long, and the next begins a section later, so that a section is decoded once
    with what precedes it and once with what follows. The section that was made first stands alone.

    Args:
        length: Latent frames of the video.
        window: Latent frames of a section.
        forward: Sections were made in the order of time, as FramePack-F1 makes them.

    >>> chunks(28, 9, forward=False), chunks(28, 9, forward=True)
    ([(0, 19), (10, 28), (19, 28)], [(0, 10), (1, 19), (10, 28)])
    """
    # A whole video has one latent frame before its sections; one in the making may have none.
    count = max((length - (window == 1)) // window, 1)
    ends = [length - i * window for i in range(count)][::-1]
    if forward:
        return [(max(end - 2 * window, 0) if i else 0, end) for i, end in enumerate(ends)]
    starts = [0, *ends[:-1]]
    return [(start, min(end + window, length)) for start, end in zip(starts, ends, strict=True)]


def soft_appended(
    decode: Callable[[torch.Tensor], torch.Tensor],
    latents: torch.Tensor,
    window: int,
    *,
    forward: bool,
) -> Iterator[torch.Tensor]:
    """Frames of the whole video, in pieces in the order of time.

    At most two chunks are in memory. Where two overlap, the earlier one fades out in a straight line
    over 4 window - 3 frames.

    Args:
        decode: B C f H W to B 3 (4 f - 3) 8H 8W.
        latents: B C F H W.
        window: Latent frames of a section.
        forward: Sections were made in the order of time.
    """
    overlap = 4 * window - 3
    tail: torch.Tensor | None = None  # of the chunk before, what the next one shares
    spans = chunks(latents.shape[2], window, forward=forward)
    for number, (start, end) in enumerate(spans):
        frames = decode(latents[:, :, start:end])
        if tail is not None:
            fade = torch.linspace(1, 0, overlap, device=frames.device)[:, None, None]
            yield tail * fade + frames[:, :, :overlap] * (1 - fade)
            frames = frames[:, :, overlap:]
        if number == len(spans) - 1:
            tail = None
        else:
            frames, tail = frames[:, :, :-overlap], frames[:, :, -overlap:]
        if frames.shape[2]:
            yield frames
