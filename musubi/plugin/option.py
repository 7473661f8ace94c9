"""One option that an architecture adds to a command; the engine's own are in `musubi.config`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Command = Literal["cache latents", "cache text", "train", "generate", "lora merge", "bench", "plan"]


@dataclass(frozen=True, kw_only=True)
class Option:
    """A flag, a TOML key, a help line and a row of the reference at once.

    Args:
        name: With underscores: `vae_cache_cpu`.
        type: `bool`, `int`, `float`, `str`, or `list[...]` of one of them; `bool` is a plain flag.
        default: The value when nobody says anything; None means "not given".
        help: One sentence.
        commands: The commands that take it.
        choices: The allowed values, when they are few.
        affects_cache: It changes what is cached: records made with another value are stale when caching.
            Training takes records as they are, unless it is told another value; what "generate" has
            as well is about previews there.
        lora_exclude: For a plain flag of "generate" and "lora merge": the layers that it keeps from LoRA
            files, as a full-match pattern of their dotted names.
        letter: In prompt lines: "of" for `--of target_index=1`; None: a line cannot say it.
        preview_letter: The letter in the prompts of training's previews, where it is another one;
            "" when they cannot say it.
        aliases: Other keys of prompt files in TOML and JSON that mean it.
        written: Its value is a metadata key of what `generate` writes, as older tools have it.
        saves: For the VAE: the value with which it needs less memory; the options that save the
            most come first.
        needs: Another option, without which this one changes nothing; as `config.options.option` says.
        task: For a plain flag or a text: task → the task that is meant once the option is given.
    """

    name: str
    type: Any
    help: str
    commands: tuple[Command, ...]
    default: Any = None
    choices: tuple[str, ...] = ()
    affects_cache: bool = False
    lora_exclude: str = ""
    letter: str | None = None
    preview_letter: str | None = None
    aliases: tuple[str, ...] = ()
    written: bool = False
    saves: bool | int | None = None
    needs: str = ""
    task: Mapping[str, str] = field(default_factory=dict[str, str])
