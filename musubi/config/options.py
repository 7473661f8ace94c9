"""How an option is declared: once, as a field of a command's model.

The same field is a flag, a TOML key, a line of `--help` and a row of `docs/options.md`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, create_model, field_validator

from musubi.plugin.architecture import Architecture, Component
from musubi.plugin.option import Command
from musubi.untrusted import value_fault

ROLES: Mapping[str, tuple[str, ...]] = {
    "cache latents": ("vae", "image"),
    "cache text": ("text",),
    "train": ("dit", "vae", "text", "image"),
    "generate": ("dit", "vae", "text", "image"),
    "lora merge": ("dit",),
    "bench": (),
    "plan": ("dit", "vae", "text", "image"),
}
# `plan` takes the options of the commands that it plans.
_PLANNED: frozenset[Command] = frozenset({"train", "generate"})


class Options(BaseModel):
    """The model of a command. Field types are bool, int, float, str, Path, Literal, tuples of a
    fixed length (`--video_size H W`) and lists of these (`--x a b`); None means "not given".
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    own: ClassVar[frozenset[str]] = frozenset()
    """Which of the fields `for_architecture` took from the architecture's own options."""

    @field_validator("*", mode="after")
    @classmethod
    def _plausible(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what no option can mean, whatever its own limits."""
        if info.field_name and value == cls.model_fields[info.field_name].default:
            return value
        for one in value if isinstance(value, (list, tuple)) else (value,):
            fault = value_fault(one)
            if fault is not None:
                raise ValueError(fault)
        return value


@dataclass(frozen=True)
class Retired:
    """An old flag that no longer does anything: accepted, and answered with one line.

    Args:
        name: With underscores.
        says: The line.
        takes: How many values follow it; -1 means any number.
    """

    name: str
    says: str
    takes: int = 1


def option(
    default: Any,
    help: str,
    *,
    group: str = "Options",
    metavar: str | None = None,
    aliases: tuple[str, ...] = (),
    **limits: Any,
) -> Any:
    """Declare one option.

    Args:
        default: The value if the option is not given; `...` makes the option required.
        help: One sentence, with units.
        group: The panel it is shown in.
        metavar: The placeholder in help, such as "H W".
        aliases: Other names that people know it by.
        limits: pydantic's own: `ge`, `gt`, `le`, `lt`.
    """
    extra = {"group": group, "metavar": metavar, "aliases": list(aliases)}
    return Field(default, description=help, json_schema_extra=extra, **limits)


def for_architecture(
    model: type[Options], architecture: Architecture, command: Command
) -> type[Options]:
    """The command's model with the architecture's path flags and its own options added."""
    fields: dict[str, Any] = {}
    for component in architecture.components:
        if component.role in ROLES[command] and component.option not in model.model_fields:
            # Of components that share an option, the first describes it.
            if component.option in fields:
                continue
            fields[component.option] = (
                str | None,
                option(None, component.help, group="Models", metavar="PATH"),
            )
            if component.tokenizer is not None:
                fields[f"{component.name}_tokenizer"] = (
                    str | None,
                    option(
                        None,
                        f"Directory or file of the {component.name} tokenizer, when it is neither "
                        "beside the weights nor in the hub's cache.",
                        group="Models",
                        metavar="PATH",
                    ),
                )
        if (
            component.fp8 is not None
            and component.role in ROLES[command]
            and component.fp8 not in model.model_fields
        ):
            fields[component.fp8] = (
                bool,
                option(
                    False,
                    f"Store the large matrices of the {component.name} in 8 bits: half the memory.",
                    group="Memory and speed",
                ),
            )
    fields |= _input_fields(model, architecture, command)
    fields |= _expert_fields(architecture, command)
    if "timestep_sampling" in model.model_fields and architecture.shifts:
        fields["timestep_sampling"] = _more_choices(model, "timestep_sampling", architecture.shifts)
    if ROLES[command] and "models" not in model.model_fields:
        fields["models"] = (
            str | None,
            option(
                None,
                "Folder, such as ComfyUI's `models`, in which to search for model files that are "
                "not given; files are recognised by their content. When not given: "
                "MUSUBI_MODELS, or the folder in the settings file.",
                group="Models",
                metavar="DIR",
            ),
        )
    taken = _own(model, architecture, command)
    for own in architecture.options:
        if own.name in taken:
            kind: Any = Literal[own.choices] if own.choices else own.type
            annotation = kind if own.default is not None else kind | None
            fields[own.name] = (annotation, option(own.default, own.help, group=architecture.title))
    made = create_model(f"{model.__name__}_{architecture.name}", __base__=model, **fields)
    made.own = taken | {one.flag for one in architecture.inputs if one.flag in fields}
    return made


def _input_fields(
    model: type[Options], architecture: Architecture, command: Command
) -> dict[str, Any]:
    """The flags for the pictures and videos of a prompt."""
    fields: dict[str, Any] = {}
    for one in architecture.inputs if command in ("generate", "plan") else ():
        if one.flag is not None and one.flag not in model.model_fields:
            kind: Any = list[str] if one.many and one.paths is None else str
            fields[one.flag] = (
                kind | None,
                option(None, one.help, group=architecture.title, metavar="PATH"),
            )
    return fields


def _expert_fields(architecture: Architecture, command: Command) -> dict[str, Any]:
    """LoRA files for each denoiser beside the first: `lora_weight_high_noise` for dit_high_noise."""
    fields: dict[str, Any] = {}
    for component in further_denoisers(architecture) if command == "generate" else ():
        ending = expert_ending(architecture, component)
        fields[f"lora_weight{ending}"] = (
            list[str] | None,
            option(None, f"LoRA files for --{component.name}.", group="LoRA", metavar="PATH"),
        )
        fields[f"lora_multiplier{ending}"] = (
            list[float] | None,
            option(
                None,
                "Strength of each LoRA, in the same order; missing ones are 1.0.",
                group="LoRA",
            ),
        )
    return fields


def further_denoisers(architecture: Architecture) -> tuple[Component, ...]:
    """The denoisers beside the first."""
    first = architecture.dit
    return tuple(c for c in architecture.components if c.role == "dit" and c is not first)


def expert_ending(architecture: Architecture, component: Component) -> str:
    """The ending of a denoiser's options and files: "" for the first one."""
    if component.name == architecture.dit.name:
        return ""
    return "_" + component.name.removeprefix(architecture.dit.name).lstrip("_")


def _more_choices(model: type[Options], name: str, more: Iterable[str]) -> Any:
    known = model.model_fields[name]
    return (Literal[(*get_args(known.annotation), *more)], known)  # type: ignore[valid-type]


def _own(model: type[Options], architecture: Architecture, command: Command) -> frozenset[str]:
    """Names of the architecture's own options that a command takes."""
    if command != "plan":
        return frozenset(o.name for o in architecture.options if command in o.commands)
    planned = [o.name for o in architecture.options if _PLANNED & set(o.commands)]
    return frozenset(n for n in planned if n not in model.model_fields)


def paths(config: Options, architecture: Architecture) -> dict[str, Path]:
    """Component name → the file given for it; components without one are absent."""
    given = {c.name: getattr(config, c.option, None) for c in architecture.components}
    return {name: Path(path) for name, path in given.items() if path}


def tokenizers(config: Options, architecture: Architecture) -> dict[str, Path]:
    """Component name → the tokenizer path given for it."""
    given = {c.name: getattr(config, f"{c.name}_tokenizer", None) for c in architecture.components}
    return {name: Path(path) for name, path in given.items() if path}


def spared(config: Options, architecture: Architecture) -> tuple[str, ...]:
    """Patterns of the layers that the architecture's own flags keep from LoRA files."""
    own = own_options(config, architecture)
    return tuple(o.lora_exclude for o in architecture.options if o.lora_exclude and own[o.name])


def own_options(config: Options, architecture: Architecture) -> dict[str, Any]:
    """The architecture's own options, as its runtime takes them.

    An option of another command has its default, also where this command has one of its own by
    that name: `guidance_scale` is embedded in training and classifier-free when generating.
    """
    own = type(config).own
    given = {
        o.name: getattr(config, o.name) if o.name in own else o.default
        for o in architecture.options
    }
    flags = {one.flag for one in architecture.inputs if one.flag is not None}
    return given | {flag: getattr(config, flag, None) for flag in flags if flag in own}
