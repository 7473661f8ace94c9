"""The options of `musubi watch` and `musubi gallery`."""

from __future__ import annotations

from musubi.config.options import Options, Retired, option


class WatchConfig(Options):
    """`musubi watch`."""

    folders: list[str] = option(
        ["output"],
        "Folders with runs: an --output_dir, a run's own folder, or a folder above them.",
        metavar="FOLDER",
    )
    port: int = option(
        0, "Port of 127.0.0.1 to serve on; a free one when not given.", ge=0, le=65535
    )
    open: bool = option(False, "Open the page in the browser.")
    until_input_ends: bool = option(
        False, "Serve until the standard input is closed; for programs that start this command."
    )


class GalleryConfig(Options):
    """`musubi gallery`."""

    folder: list[str] = option(
        ...,
        "The folder of generated videos and images; folders inside it are included.",
        metavar="FOLDER",
    )
    output: str | None = option(
        None, "The page to write; gallery.html in the folder when not given.", metavar="PATH"
    )
    most: int = option(
        400,
        "Show only this many files, the newest ones; the page says how many more there are.",
        ge=1,
    )


RETIRED: tuple[Retired, ...] = ()
