"""A LoRA as the loop trains it: adapters on a frozen DiT."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from musubi.config.train import TrainConfig
from musubi.errors import ConfigError, did_you_mean
from musubi.lora.adapter import Adapters
from musubi.lora.files import read_lora, write_lora
from musubi.lora.merge import Merging, merging_transform
from musubi.plugin import Architecture, Component, Report
from musubi.train.trainee import refuse_broken

DEFAULT_RANK = 4
_NUMBERS = ("loraplus_lr_ratio", "rank_dropout", "module_dropout")
_LISTS = ("include_patterns", "exclude_patterns", "groups")
# Arguments of old networks that change nothing here: no target is a convolution.
_IDLE = ("conv_dim", "conv_alpha", "verbose")


class Lora:
    """Adapters, trained.

    Args:
        adapters: Attached to the DiT.
        component: The DiT's, for the names in files.
        rank: As asked for; None when it was taken from a file.
        alpha: Likewise.
        form: Of the names in the file.
        save_dtype: Of the file.
        plus: Learning rate of the up matrices over that of the down ones, or None.
        max_norm: `--scale_weight_norms`.
    """

    def __init__(
        self,
        adapters: Adapters,
        component: Component,
        *,
        rank: int | None,
        alpha: float | None,
        form: str,
        save_dtype: torch.dtype,
        plus: float | None,
        max_norm: float | None,
    ) -> None:
        self.adapters = adapters
        self.component = component
        self.rank, self.alpha = rank, alpha
        self.form, self.save_dtype = form, save_dtype
        self.plus, self.max_norm = plus, max_norm

    @property
    def title(self) -> str:
        count = sum(p.numel() for p in self.parameters())
        modules = len(self.adapters.tensors())
        rank = "of its file" if self.rank is None else str(self.rank)
        return f"a LoRA of rank {rank} on {modules} modules, {count:,} parameters"

    def identity(self) -> dict[str, Any]:
        return {"kind": "lora", "rank": self.rank, "alpha": self.alpha}

    def groups(self, lr: float) -> list[dict[str, Any]]:
        return list(self.adapters.param_groups(lr, self.plus))

    def parameters(self) -> list[nn.Parameter]:
        return list(self.adapters.parameters())

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: p.detach() for name, p in self.adapters.named_parameters()}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        own = dict(self.adapters.named_parameters())
        with torch.no_grad():
            for name, value in tensors.items():
                own[name].copy_(value)

    def mode(self, training: bool) -> None:
        self.adapters.train(training)

    def after_step(self) -> Mapping[str, float]:
        if self.max_norm is None:
            return {}
        count, mean, most = self.adapters.limit_norms(self.max_norm)
        return {
            "max_norm/keys_scaled": float(count),
            "max_norm/average_key_norm": float(mean),
            "max_norm/max_key_norm": float(most),
        }

    def write(self, path: Path, metadata: Mapping[str, str]) -> None:
        refuse_broken(self.tensors(), path)
        write_lora(
            path,
            self.adapters.tensors(),
            form=self.form,
            dtype=self.save_dtype,
            metadata=dict(metadata),
            component=self.component,
        )


def create(
    dit: nn.Module,
    config: TrainConfig,
    architecture: Architecture,
    *,
    component: Component | None = None,
    save_dtype: torch.dtype,
    report: Report,
) -> Lora:
    """Adapters for the DiT, as asked for.

    Raises:
        ConfigError: No module matches, or an argument cannot be used.
        CheckpointError: `--network_weights` is no LoRA of this architecture.
    """
    component = component or architecture.dit
    if component.traits.lora is None:
        raise ConfigError(
            f"{architecture.title} names no layers that take a LoRA.", fix="Train it with --full."
        )
    given = arguments(config.network_args)
    for key in given.pop("idle", ()):
        report.note(f"--network_args {key} does nothing: LoRA here is on linear layers only.")
    rank: int | None = config.network_dim or DEFAULT_RANK
    alpha: float | None = config.network_alpha or float(rank)
    file = None
    if config.network_weights is not None:
        names = [name for name, _ in dit.named_modules()]
        file = read_lora(Path(config.network_weights), architecture, names)
    if config.dim_from_weights and file is not None:
        made = Adapters.from_pairs(dit, file.pairs)
        rank = alpha = None
    else:
        made = Adapters.create(
            dit,
            component.traits.lora,
            rank=rank,
            alpha=alpha,
            dropout=config.network_dropout,
            rank_dropout=given.get("rank_dropout"),
            module_dropout=given.get("module_dropout"),
            include=given.get("include_patterns", ()),
            exclude=given.get("exclude_patterns", ()),
            groups=given.get("groups", ()),
        )
        if file is not None:
            fresh = made.load(file.pairs)
            if fresh:
                report.note(f"{len(fresh)} modules are not in {file.path} and start fresh.")
    if file is not None and file.unknown:
        report.warn(
            f"{len(file.unknown)} entries of {file.path} mean no layer here, such as {file.unknown[0]!r}."
        )
    for line in made.notes:
        report.note(line)
    dit.requires_grad_(False)
    made.attach()
    return Lora(
        made,
        component,
        rank=rank,
        alpha=alpha,
        form=config.lora_format,
        save_dtype=save_dtype,
        plus=given.get("loraplus_lr_ratio"),
        max_norm=config.scale_weight_norms,
    )


def arguments(pairs: Sequence[str] | None) -> dict[str, Any]:
    """`--network_args`, each value as what it means.

    Raises:
        ConfigError: An unknown key, or a value that is not what the key takes.
    """
    found: dict[str, Any] = {}
    known = (*_NUMBERS, *_LISTS, *_IDLE)
    for pair in pairs or ():
        key, equals, text = pair.partition("=")
        key = key.strip()
        if not equals:
            raise ConfigError(
                f"--network_args was given {pair!r}, which has no '='.", fix="Write key=value."
            )
        if key not in known:
            raise ConfigError(
                f"--network_args has {key!r}, which is not known.", fix=did_you_mean(key, known)
            )
        if key in _NUMBERS:
            found[key] = _number(key, text)
        elif key in _LISTS:
            found[key] = _list(key, text)
        elif key != "verbose":
            found.setdefault("idle", []).append(key)
    return found


def base_weights(
    files: Sequence[str], multipliers: Sequence[float], architecture: Architecture
) -> Merging:
    """What merges `--base_weights` into the DiT while it is loaded."""
    padded = [*multipliers, *[1.0] * (len(files) - len(multipliers))]
    read = [
        (read_lora(Path(path), architecture), multiplier)
        for path, multiplier in zip(files, padded, strict=True)
    ]
    return merging_transform(read)


def _number(key: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if number < 0 or (key != "loraplus_lr_ratio" and number >= 1):
        raise ConfigError(
            f"--network_args {key}={text} is not a number that it takes.",
            fix=f"Write {key}={'16' if key == 'loraplus_lr_ratio' else '0.1'}, say.",
        )
    return number


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
