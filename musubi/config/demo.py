"""The options of `musubi demo`."""

from __future__ import annotations

from musubi.config.options import Options, Retired, option


class DemoConfig(Options):
    """`musubi demo`."""

    out: str = option("musubi-demo", "Folder for everything that the demo makes.", metavar="DIR")
    keep: bool = option(
        False, "Go on with what an earlier demo left in the folder instead of starting afresh."
    )
    fast: bool = option(False, "Train and generate a little: the steps, not the result.")


RETIRED: tuple[Retired, ...] = ()
