"""The options of `musubi demo`."""

from __future__ import annotations

from musubi.config.options import Options, Retired, option


class DemoConfig(Options):
    """`musubi demo`."""

    out: str = option("musubi-demo", "Folder for everything that the demo makes.", metavar="DIR")
    keep: bool = option(
        False, "Continue an earlier demo in this folder instead of starting from the beginning."
    )
    fast: bool = option(
        False, "Train and generate only a little: shows the steps, without a good result."
    )


RETIRED: tuple[Retired, ...] = ()
