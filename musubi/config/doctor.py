"""The options of `musubi doctor`."""

from __future__ import annotations

from musubi.config.options import Options, Retired, option


class DoctorConfig(Options):
    """`musubi doctor`."""

    json_output: bool = option(
        False, "Say it as one JSON object, for programs.", group="Output", aliases=("json",)
    )
    report: str | None = option(
        None,
        "Also write it to this file, to paste into an issue: it names no path and no user.",
        group="Output",
        metavar="FILE",
    )
    disk: str = option(
        ".", "The folder whose disk is measured: where records and models lie.", metavar="DIR"
    )


RETIRED: tuple[Retired, ...] = ()
