"""The options that decide where weights and activations are kept, for every command that runs a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator
from typing_extensions import Self

from musubi.config.options import Options, option
from musubi.config.sizes import parse_bytes
from musubi.errors import ConfigError
from musubi.plugin import Architecture, Component, Policy
from musubi.plugin.policy import Recompute, Storage

_MEMORY = "Memory and speed"
# What only a network that stays as it is can have.
_FROZEN_ONLY = (
    "fp8_base",
    "fp8_scaled",
    "fp8_fast",
    "int8",
    "int8_fast",
    "blocks_to_swap",
    "offload_inactive_dit",
)
_SIZE = "A size such as 12GiB, 12000MiB or 12 (GiB)"


def lowered(value: Any) -> Any:
    """Text in lower case: older tools wrote the names of compilers in capitals."""
    return value.lower() if isinstance(value, str) else value


def _amount(name: str, *words: str) -> Callable[[Any], Any]:
    """Refuses what is no amount of memory, by the option's name; a TOML file may give a number."""

    def read(value: Any) -> Any:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = f"{value}"
        if isinstance(value, str) and value.strip().lower() not in words:
            try:
                parse_bytes(value)
            except ConfigError as error:
                fix = f"Write {', or '.join(['12GiB, say', *words])}."
                raise ConfigError(f"--{name}: {error.what}", fix=fix) from error
        return value

    return read


class CompileOptions(Options):
    """Compilation of the blocks."""

    compile: bool | None = option(
        None,
        "Compile the DiT's blocks: faster and less memory, after about a minute at the start. "
        "Off by default; with --vram, the planner may turn it on, unless you set it to false.",
        group=_MEMORY,
    )
    compile_args: tuple[str, str, str, str] | None = option(
        None,
        "Four values for compilation: backend, mode, dynamic (true, false, auto) and fullgraph "
        "(true, false). When not given: inductor default auto false.",
        group=_MEMORY,
        metavar="BACKEND MODE DYNAMIC FULLGRAPH",
    )


class NetworkMemoryOptions(CompileOptions):
    """Where the DiT's weights are kept."""

    fp8_scaled: bool = option(
        False,
        "Store the DiT's large matrices in 8-bit floats with a scale for each row: half the "
        "memory.",
        group=_MEMORY,
    )
    fp8_fast: bool = option(
        False,
        "With fp8 storage: multiply in fp8 too, if the card supports it (Ada, Hopper and later).",
        group=_MEMORY,
    )
    int8: bool = option(
        False,
        "Store the DiT's large matrices as 8-bit integers with a scale for each row: half the "
        "memory, and less error than --fp8_scaled.",
        group=_MEMORY,
    )
    int8_fast: bool = option(
        False,
        "Like --int8, and also multiply in 8-bit integers. Works on cards since Turing (RTX 20 "
        "and later).",
        group=_MEMORY,
    )
    blocks_to_swap: int | None = option(
        None,
        "How many blocks of the DiT stay in host memory; each is copied to the device when it "
        "runs.",
        group=_MEMORY,
        ge=0,
    )
    text_encoder_swap: int | None = option(
        None,
        (
            "How many blocks of each text encoder stay in host memory; each is copied to the "
            "device when it runs."
        ),
        group=_MEMORY,
        ge=0,
    )
    offload_inactive_dit: bool = option(
        False,
        "For models with several denoisers: keep those that are not in use in host memory. Without "
        "it, `generate` reads them from their files again, and `train` keeps all on the device.",
        group=_MEMORY,
    )


class RoomOptions(Options):
    """How much memory there is, so that the planner can choose the memory options that were not given."""

    vram: Annotated[str | None, BeforeValidator(_amount("vram", "auto"))] = option(
        None,
        f"Choose the fastest settings that fit this much device memory. {_SIZE}, or auto for "
        "all free memory. Memory options that you give are kept.",
        group=_MEMORY,
        metavar="SIZE",
    )
    ram: Annotated[str | None, BeforeValidator(_amount("ram"))] = option(
        None,
        f"With --vram: how much host memory to use. {_SIZE}; all that is free when not given.",
        group=_MEMORY,
        metavar="SIZE",
    )

    @model_validator(mode="after")
    def _check_room(self) -> Self:
        if self.ram is not None and self.vram is None:
            raise ConfigError(
                "--ram limits what --vram chooses, and there is no --vram.",
                fix="Add --vram auto, or a size such as --vram 12GiB; or leave out --ram.",
            )
        return self


class TrainMemoryOptions(NetworkMemoryOptions):
    """Memory options for training."""

    fp8_base: bool = option(
        False,
        "Store the DiT's large matrices in 8-bit floats without scales; --fp8_scaled is more "
        "exact.",
        group=_MEMORY,
    )
    recompute: Recompute | None = option(
        None,
        "What the backward pass recomputes, to save memory: nothing; everything in a block "
        "except attention over the video; or whole blocks. --gradient_checkpointing means "
        "blocks.",
        group=_MEMORY,
    )
    gradient_checkpointing_cpu_offload: bool = option(
        False,
        "Keep activations for the backward pass in host memory.",
        group=_MEMORY,
        aliases=("offload_activations",),
    )
    offload_8bit: bool = option(
        False,
        "Keep the offloaded activations in 8 bits with a scale for each 128 numbers: half the "
        "host memory, slightly different gradients.",
        group=_MEMORY,
    )
    ffn_slices: int = option(
        1,
        "Compute feed-forward layers in this many slices of the tokens: less memory for long "
        "videos.",
        group=_MEMORY,
        ge=1,
    )
    attention_slices: int = option(
        1,
        "Split the heads into this many parts in the backward pass of attention: less memory for "
        "long videos.",
        group=_MEMORY,
        ge=1,
    )
    optimizer_offload: bool = option(
        False, "Keep the optimizer and its states in host memory.", group=_MEMORY
    )
    dynamo_backend: Annotated[
        Literal["no", "eager", "aot_eager", "inductor"], BeforeValidator(lowered)
    ] = option(
        "no", "The backend of torch.compile; inductor is the same as --compile.", group=_MEMORY
    )
    dynamo_mode: Literal["default", "reduce-overhead", "max-autotune"] = option(
        "default",
        (
            "With --dynamo_backend: the mode of torch.compile, which decides how long it "
            "searches for fast kernels."
        ),
        group=_MEMORY,
    )
    dynamo_fullgraph: bool = option(
        False,
        "With --dynamo_backend: fail if a block cannot be compiled as one graph.",
        group=_MEMORY,
    )
    dynamo_dynamic: bool = option(
        False, "With --dynamo_backend: compile once for all sizes.", group=_MEMORY
    )


class GenerateMemoryOptions(NetworkMemoryOptions):
    """Memory options for generation."""

    fp8: bool = option(
        False,
        "Store the DiT's large matrices in 8-bit floats without scales; --fp8_scaled is more "
        "exact.",
        group=_MEMORY,
    )


class EncoderMemoryOptions(Options):
    """Memory options of text encoders."""

    text_encoder_swap: int | None = option(
        None,
        "How many blocks of each text encoder stay in host memory; each is copied to the device "
        "when it runs.",
        group=_MEMORY,
        ge=0,
    )


def dit_policy(config: NetworkMemoryOptions, dit: Component) -> Policy:
    """The DiT's memory policy from the options.

    Raises:
        ConfigError: They contradict each other or the network.
    """
    plain = "fp8_base" if getattr(config, "fp8_base", False) else "fp8"
    storage: Storage = "fp8" if getattr(config, plain, False) else "native"
    storage = "fp8_scaled" if config.fp8_scaled else storage
    if config.int8 or config.int8_fast:
        named = next(
            (n for n in ("fp8_scaled", "fp8_fast", plain) if getattr(config, n, False)), ""
        )
        if named:
            raise ConfigError(
                f"--{named} stores the DiT in fp8, and --{'int8' if config.int8 else 'int8_fast'} "
                "in int8.",
                fix="Leave out one of them.",
            )
        storage = "int8"
    if config.fp8_fast and storage == "native":
        raise ConfigError(
            "--fp8_fast multiplies weights that are stored in fp8, and they are not.",
            fix="Add --fp8_scaled.",
        )
    recompute: Recompute = "blocks" if getattr(config, "gradient_checkpointing", False) else "none"
    offload = bool(getattr(config, "gradient_checkpointing_cpu_offload", False))
    recompute = getattr(config, "recompute", None) or ("blocks" if offload else recompute)
    eight = bool(getattr(config, "offload_8bit", False))
    if eight and not offload:
        raise ConfigError(
            "--offload_8bit is about what waits in host memory, and nothing does.",
            fix="Add --gradient_checkpointing_cpu_offload.",
        )
    return Policy(
        storage=storage,
        quantized_matmul=config.fp8_fast or config.int8_fast,
        streamed=streamed(config.blocks_to_swap or 0, dit),
        recompute=recompute,
        offload_activations=offload,
        offload_8bit=eight,
        ffn_chunks=getattr(config, "ffn_slices", 1),
        attention_chunks=getattr(config, "attention_slices", 1),
        compile=compiles(config),
    )


def check_full(config: Any, *names: str) -> None:
    """Refuse beside `--full` what only a network that stays as it is can have.

    Args:
        config: The options of a command that trains.
        names: Options that mean nothing either, once they are given.

    Raises:
        ConfigError: One of them is given.
    """
    mixed = [name for name in names if getattr(config, name) is not None]
    mixed += [name for name in _FROZEN_ONLY if getattr(config, name)]
    if mixed:
        raise ConfigError(
            f"--full trains the DiT itself, so --{mixed[0]} means nothing.",
            fix=f"Leave out --full or --{mixed[0]}.",
        )


def encoder_policies(config: Any, architecture: Architecture) -> dict[str, Policy]:
    """What the options say of the other networks: component name → policy, where there is one."""
    found = {}
    for component in architecture.components:
        if component.role == "dit":
            continue
        eight = component.fp8 is not None and bool(getattr(config, component.fp8, False))
        swap = (getattr(config, "text_encoder_swap", None) or 0) if component.role == "text" else 0
        if eight or (swap and component.traits.stacks):
            found[component.name] = Policy(
                storage="fp8_scaled" if eight else "native", streamed=streamed(swap, component)
            )
    return found


def streamed(count: int, component: Component) -> tuple[int, ...]:
    """How many blocks of each stack are meant by a number of blocks."""
    if not count:
        return ()
    swap = component.traits.swap
    return (count,) if swap is None else swap(count)


def compiles(config: Any) -> bool:
    """Whether blocks are to be compiled."""
    return bool(config.compile or getattr(config, "dynamo_backend", "no") != "no")


def compiler_words(config: Any) -> dict[str, Any]:
    """The arguments of `torch.compile`: backend, mode, dynamic, fullgraph.

    Raises:
        ConfigError: A word is neither true nor false.
    """
    backend = getattr(config, "dynamo_backend", "no")
    words: dict[str, Any] = {"backend": "inductor"}
    if backend != "no":
        words = {
            "backend": backend,
            "mode": config.dynamo_mode,
            "dynamic": True if config.dynamo_dynamic else None,
            "fullgraph": config.dynamo_fullgraph,
        }
    if config.compile_args is not None:
        backend, mode, dynamic, fullgraph = config.compile_args
        words = {
            "backend": backend,
            "mode": mode,
            "dynamic": None if dynamic.lower() in ("auto", "none") else _truth(dynamic),
            "fullgraph": _truth(fullgraph),
        }
    return words


def _truth(word: str) -> bool:
    truths = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if word.lower() not in truths:
        raise ConfigError(
            f"--compile_args: {word!r} is neither true nor false.",
            fix="Write `--compile_args inductor default auto false`.",
        )
    return truths[word.lower()]
