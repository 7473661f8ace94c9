"""What the `--network_*` options of `train` ask for, in their own words and in those of older tools."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from musubi.errors import ConfigError, did_you_mean
from musubi.lora.adapter import Adapters, Homes
from musubi.lora.fresh import INNER, Kind
from musubi.plugin import LoraTargets

DEFAULT_RANK = 4
# Arguments by what their value is.
_NUMBERS = (
    "loraplus_lr_ratio",
    "dropout",
    "rank_dropout",
    "module_dropout",
    "conv_alpha",
    "constraint",
)
_WHOLE = ("conv_dim", "factor")
_LISTS = ("include_patterns", "exclude_patterns", "groups")
_FLAGS = (
    "decompose_both",
    "full_matrix",
    "unbalanced_factorization",
    "use_tucker",
    "use_cp",
    "use_conv_cp",
    "dora_wd",
    "wd_on_output",
    "rs_lora",
    "rescaled",
)
# These change nothing in what is trained, or how it is computed.
_IDLE = ("verbose", "bypass_mode", "preset", "block_size", "rank_dropout_scale")
_WORDS = ("algo", "network_reg_dims")
KNOWN = (*_NUMBERS, *_WHOLE, *_LISTS, *_FLAGS, *_IDLE, *_WORDS)
_ALGORITHMS = {
    "lora": "lora",
    "locon": "lora",
    "loha": "loha",
    "lokr": "lokr",
    "dora": "dora",
    "diag-oft": "oft",
    "oft": "oft",
    "full": "full",
}
_MODULES = {"loha": "loha", "lokr": "lokr", "oft": "oft"}
# Options of one kind, by the kind.
_OF_KIND = {
    "factor": "lokr",
    "decompose_both": "lokr",
    "full_matrix": "lokr",
    "unbalanced_factorization": "lokr",
    "constraint": "oft",
    "rescaled": "oft",
    "wd_on_output": "dora",
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The adapters that a run asks for.

    Args:
        kind: What is made.
        rank: Rank of every adapter.
        alpha: The scale is alpha / rank.
        dropout: Dropout of single numbers.
        rank_dropout: Dropout of whole ranks.
        module_dropout: Dropout of whole adapters.
        include: Patterns of layers to keep.
        exclude: Patterns of layers to leave out.
        groups: Only these groups of the architecture.
        ranks: (pattern, rank, alpha) of layers that differ.
        convolutions: (rank, alpha) of convolutions, or None.
        plus: Learning rate of the up matrices divided by that of the other ones, or None.
        notes: What was given and does nothing.
    """

    kind: Kind = field(default_factory=Kind)
    rank: int = DEFAULT_RANK
    alpha: float = 1.0
    dropout: float | None = None
    rank_dropout: float | None = None
    module_dropout: float | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    ranks: tuple[tuple[str, int, float | None], ...] = ()
    convolutions: tuple[int, float | None] | None = None
    plus: float | None = None
    notes: tuple[str, ...] = field(default=())

    def create(
        self, model: nn.Module, targets: LoraTargets, homes: Homes | None = None
    ) -> Adapters:
        """Fresh adapters for a network, not attached yet; `homes` as of `Adapters.create`.

        Raises:
            ConfigError: No layer matches.
        """
        return Adapters.create(
            model,
            targets,
            rank=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            rank_dropout=self.rank_dropout,
            module_dropout=self.module_dropout,
            include=self.include,
            exclude=self.exclude,
            groups=self.groups,
            kind=self.kind,
            ranks=self.ranks,
            convolutions=self.convolutions,
            homes=homes,
        )


def asked(config: Any) -> Asked:
    """What the options of a run ask for; an option that the configuration lacks has its default.

    Raises:
        ConfigError: An unknown argument, a value that cannot be, or two that contradict each other.
    """
    given = arguments(getattr(config, "network_args", None))
    module = getattr(config, "network_module", None)
    name, direction = _name(getattr(config, "network_type", None), module, given)
    _check_kind(name, direction, given)
    rank = int(getattr(config, "network_dim", None) or DEFAULT_RANK)
    stated = getattr(config, "network_alpha", 1.0)
    reg_dims = [
        *(getattr(config, "network_reg_dims", None) or ()),
        *given.get("network_reg_dims", ()),
    ]
    init = getattr(config, "network_init", "default")
    if init != "default" and name != "lora":
        raise ConfigError(
            f"--network_init {init} is for the type lora, and --network_type is {name}.",
            fix="Leave one of them out.",
        )
    plus = given.get("loraplus_lr_ratio")
    if plus is not None and direction != "lora":
        raise ConfigError(
            f"loraplus_lr_ratio is about the up matrices of a LoRA, and a {name} has none.",
            fix="Leave it out of --network_args.",
        )
    kind = Kind(
        name=name,
        direction=direction,
        rank_stabilized=bool(getattr(config, "rank_stabilized", False) or given.get("rs_lora")),
        factor=given.get("factor", -1),
        decompose_both=given.get("decompose_both", False),
        full_matrix=given.get("full_matrix", False),
        unbalanced=given.get("unbalanced_factorization", False),
        tucker=any(given.get(n, False) for n in ("use_tucker", "use_cp", "use_conv_cp")),
        by_column=not given.get("wd_on_output", True),
        constraint=given.get("constraint", 0.0),
        rescaled=given.get("rescaled", False),
        init=init,
    )
    convolutions = None
    if "conv_dim" in given:
        convolutions = (given["conv_dim"], given.get("conv_alpha", stated or None))
    dropout = getattr(config, "network_dropout", None)
    return Asked(
        kind=kind,
        rank=rank,
        alpha=float(stated or rank),
        dropout=given.get("dropout") if dropout is None else dropout,
        rank_dropout=given.get("rank_dropout"),
        module_dropout=given.get("module_dropout"),
        include=tuple(given.get("include_patterns", ())),
        exclude=tuple(given.get("exclude_patterns", ())),
        groups=tuple(given.get("groups", ())),
        ranks=tuple(_reg_dim(text) for text in reg_dims),
        convolutions=convolutions,
        plus=plus,
        notes=tuple(f"--network_args {key} changes nothing here." for key in given.get("idle", ())),
    )


def _name(stated: str | None, module: str | None, given: dict[str, Any]) -> tuple[str, str]:
    """The kind and, of DoRA, its direction."""
    said = {f"--network_type {stated}": stated} if stated else {}
    if "algo" in given:
        algo = given["algo"]
        if algo not in _ALGORITHMS:
            raise ConfigError(
                f"--network_args algo={algo} is not trained here.",
                fix=did_you_mean(algo, _ALGORITHMS),
            )
        said[f"--network_args algo={algo}"] = _ALGORITHMS[algo]
    if module:
        last = module.rpartition(".")[2]
        if module != "lycoris.kohya" and not (last in _MODULES or last.startswith("lora")):
            raise ConfigError(
                f"--network_module {module} is not known.",
                fix="Give --network_type lora, loha, lokr, dora, oft or full.",
            )
        if last in _MODULES:
            said[f"--network_module {module}"] = _MODULES[last]
    if len(set(said.values())) > 1:
        first, second, *_ = said
        raise ConfigError(f"{first} and {second} contradict each other.", fix="Give one of them.")
    name = next(iter(said.values()), "lora")
    if given.get("dora_wd"):
        if name not in (*INNER, "dora"):
            raise ConfigError(
                f"dora_wd has no meaning for {name}.", fix="Leave it out of --network_args."
            )
        return "dora", "lora" if name == "dora" else name
    return name, "lora" if name == "dora" else name


def _check_kind(name: str, direction: str, given: dict[str, Any]) -> None:
    for key, kind in _OF_KIND.items():
        if key in given and kind not in (name, direction):
            raise ConfigError(
                f"--network_args {key} is for the type {kind}, and this is {name}.",
                fix=f"Give --network_type {kind}, or leave {key} out.",
            )
    if "conv_alpha" in given and "conv_dim" not in given:
        raise ConfigError(
            "--network_args conv_alpha is about convolutions, which take part with conv_dim.",
            fix="Add conv_dim=4, say.",
        )


def arguments(pairs: Sequence[str] | None) -> dict[str, Any]:
    """`--network_args`, each value as what it means.

    Raises:
        ConfigError: An unknown key, or a value that is not what the key takes.
    """
    found: dict[str, Any] = {}
    for pair in pairs or ():
        key, equals, text = pair.partition("=")
        key = key.strip()
        if not equals:
            raise ConfigError(
                f"--network_args was given {pair!r}, which has no '='.", fix="Write key=value."
            )
        if key not in KNOWN:
            raise ConfigError(
                f"--network_args has {key!r}, which is not known.", fix=did_you_mean(key, KNOWN)
            )
        if key in _NUMBERS:
            found[key] = _number(key, text)
        elif key in _WHOLE:
            found[key] = _whole(key, text)
        elif key in _LISTS:
            found[key] = _list(key, text)
        elif key in _FLAGS:
            found[key] = _flag(key, text)
        elif key == "algo":
            found[key] = text.strip().lower()
        elif key == "network_reg_dims":
            found[key] = [part for part in text.split(",") if part.strip()]
        elif key != "verbose":
            found.setdefault("idle", []).append(key)
    return found


def _reg_dim(text: str) -> tuple[str, int, float | None]:
    """`PATTERN=RANK` or `PATTERN=RANK:ALPHA`."""
    pattern, equals, size = text.strip().rpartition("=")
    rank, colon, alpha = size.partition(":")
    try:
        if not equals or not pattern or int(rank) < 1:
            raise ValueError
        return pattern, int(rank), float(alpha) if colon else None
    except ValueError:
        raise ConfigError(
            f"--network_reg_dims {text!r} is not a pattern and a rank.",
            fix=r"Write 'blocks\.\d+\.ffn\..*=16', or =16:8 to give alpha as well.",
        ) from None


def _number(key: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if number < 0 or ("dropout" in key and number >= 1):
        raise ConfigError(
            f"--network_args {key}={text} is not a number that it takes.",
            fix=f"Write {key}={'16' if key == 'loraplus_lr_ratio' else '0.1'}, say.",
        )
    return number


def _whole(key: str, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1 and not (key == "factor" and number == -1):
        raise ConfigError(
            f"--network_args {key}={text} is not a number that it takes.",
            fix=f"Write {key}=8, say.",
        )
    return number


def _flag(key: str, text: str) -> bool:
    word = text.strip().lower()
    if word not in ("true", "false", "1", "0", "yes", "no"):
        raise ConfigError(
            f"--network_args {key}={text} is neither true nor false.", fix=f"Write {key}=True."
        )
    return word in ("true", "1", "yes")


def _list(key: str, text: str) -> list[str]:
    """A Python list of texts; a bare word is a list of one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about '\\.', which patterns are full of
            value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        value = None if text.strip()[:1] in ("[", "(") else [w.strip() for w in text.split(",")]
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
        raise ConfigError(
            f"--network_args {key}={text} is not a list of texts.",
            fix=f"Write \"{key}=['blocks.*']\", say.",
        )
    return list(value)
