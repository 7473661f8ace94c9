"""The options of `musubi init`."""

from __future__ import annotations

from typing import Literal

from musubi.config.options import Options, Retired, option

Goal = Literal["person", "object", "style", "motion"]


class InitConfig(Options):
    """`musubi init`."""

    folder: list[str] = option(
        ["."],
        "The folder of clips and pictures, each with a text file of the same name that holds its "
        "caption.",
        metavar="FOLDER",
    )
    arch: str | None = option(
        None,
        "The architecture. When not given, the command asks.",
        metavar="NAME",
        aliases=("architecture",),
    )
    task: str | None = option(
        None, "The task or published variant. When not given, the command asks."
    )
    goal: Goal | None = option(
        None, "What the LoRA is for. When not given, the command asks.", aliases=("for",)
    )
    vram: str | None = option(
        None,
        "Memory of the card, such as 12GiB, or auto for the card in this computer. When not "
        "given, the command asks.",
        metavar="SIZE",
    )
    name: str | None = option(
        None, "Name of the LoRA; the folder's name when not given.", metavar="NAME"
    )
    to: str = option(".", "Where the files are written.", metavar="DIR")
    force: bool = option(False, "Replace existing files.")
    no_ask: bool = option(
        False, "Ask no questions: use the defaults for everything that is not given."
    )


RETIRED: tuple[Retired, ...] = ()
