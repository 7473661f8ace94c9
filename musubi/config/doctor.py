"""The options of `musubi doctor`."""

from __future__ import annotations

from musubi.config.options import Options, Retired, option


class DoctorConfig(Options):
    """`musubi doctor`."""

    json_output: bool = option(
        False,
        "Print the report as one JSON object, for programs.",
        group="Output",
        aliases=("json",),
    )
    report: str | None = option(
        None,
        "Also write the report to this file, to paste into an issue. The report contains no path "
        "and no user name.",
        group="Output",
        metavar="FILE",
    )
    disk: str = option(
        ".",
        "The folder whose disk is measured: the one with your records and models.",
        metavar="DIR",
    )


RETIRED: tuple[Retired, ...] = ()
