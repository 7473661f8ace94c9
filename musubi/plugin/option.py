"""One option that an architecture adds to a command. The engine's options are in `musubi.config`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Command = Literal["cache latents", "cache text", "train", "generate", "lora merge", "bench", "plan"]


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option: its flag, its TOML key, its help line and its row in docs/options.md.

    Args:
        name: The name with underscores: `vae_cache_cpu`.
        type: `bool`, `int`, `float`, `str`, or `list[...]` of one of them; `bool` is a plain flag.
        default: The value when the option is not given; None means "not given".
        help: One sentence.
        commands: The commands that take the option.
        choices: The allowed values; None: any value of the type.
        affects_cache: The option changes what is cached: for the cache commands, records made with
            another value are stale. Training takes records as they are, unless its own value of the
            option is another one. For an option that "generate" has too, the value in training is
            for previews.
        lora_exclude: For a plain flag of "generate" and "lora merge": a full-match pattern of
            dotted layer names. With the flag, LoRA files do not change these layers.
        letter: The letter in prompt lines: "of" for `--of target_index=1`; None: there is none.
        preview_letter: The letter in the prompts of training's previews, if it differs; "": there
            is none.
        aliases: Other names of the option in prompt files in TOML and JSON.
        written: `generate` writes the value as a metadata key, as older tools do.
        saves: For options of the VAE: the value that needs less memory. Options that save the most
            come first.
        needs: Another option, without which this one changes nothing; see `config.options.option`.
        task: For a plain flag or a text: task → the task that is used instead if the option is
            given.
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
