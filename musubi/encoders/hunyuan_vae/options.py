"""The options that say in what pieces HunyuanVideo's autoencoder works. Read by who has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from musubi.encoders.hunyuan_vae.network import Pieces
from musubi.errors import ConfigError

TILE = 256
"""Side of a spatial tile in pixels, where nobody says otherwise."""


def pieces_from(options: Mapping[str, Any]) -> Pieces:
    """In what pieces a video is worked on: spatial tiles always, windows in time when asked for.

    Raises:
        ConfigError: A tile or a window that the network cannot take.
    """
    tile = _checked(options, "vae_spatial_tile_sample_min_size", 32, least=32)
    window = _checked(options, "vae_temporal_tile_sample_min_size", 16, least=16)
    columns = options.get("vae_chunk_size")
    if columns is not None and columns < 1:
        raise ConfigError(f"vae_chunk_size is {columns}.", fix="Give 32, say.")
    return Pieces(tile=tile or TILE, window=window, columns=columns)


def _checked(options: Mapping[str, Any], name: str, step: int, *, least: int) -> int | None:
    """An option that counts pixels or frames, a multiple of `step`; None when it was not given.

    Raises:
        ConfigError: It is no such multiple, or too small.
    """
    size = options.get(name)
    if size is not None and (size < least or size % step):
        raise ConfigError(
            f"{name} is {size}, and must be a multiple of {step}, at least {least}.",
            fix=f"Write --{name} {max(least, round(size / step) * step)}.",
        )
    return size
