"""Adapters on the linear layers of a network, added by forward hooks: nothing is renamed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from musubi.errors import CheckpointError, ConfigError
from musubi.lora import patterns
from musubi.lora.pair import Pair
from musubi.plugin import LoraTargets

_SHOWN = 5


class Adapter(nn.Module):
    """The pair of one linear layer, in float32.

    Args:
        layer: Its weight gives sizes and device; it is not kept.
        rank: Rows of `down`.
        alpha: The scale is alpha / rank; None or 0 means alpha = rank.
        dropout: Of single numbers, between the two matrices.
        rank_dropout: Of whole ranks, for each item of the batch.
        module_dropout: Of this adapter as a whole, for each call.
    """

    def __init__(
        self,
        layer: nn.Linear,
        *,
        rank: int,
        alpha: float | None = None,
        dropout: float | None = None,
        rank_dropout: float | None = None,
        module_dropout: float | None = None,
    ) -> None:
        super().__init__()
        device = layer.weight.device
        self.down = nn.Parameter(torch.empty(rank, layer.in_features, device=device))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank, device=device))
        self.alpha = float(alpha or rank)
        self.dropout = dropout or 0.0
        self.rank_dropout = rank_dropout or 0.0
        self.module_dropout = module_dropout or 0.0
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    @property
    def pair(self) -> Pair:
        """The two matrices without their history, and alpha."""
        return Pair(self.down.detach(), self.up.detach(), self.alpha)

    def forward(
        self, x: torch.Tensor, output: torch.Tensor, multiplier: float = 1.0
    ) -> torch.Tensor:
        """The layer's output with this adapter's change added, rounded once.

        The scale is on the small matrix: on the change it would cost the backward pass another
        tensor as large as the output.
        """
        scale = multiplier * self.alpha / self.down.shape[0]
        hidden = F.linear(x, self.down.to(x.dtype))
        if self.training and self.dropout:
            hidden = F.dropout(hidden, self.dropout)
        if self.training and self.rank_dropout:
            shape = (hidden.shape[0], *(1,) * (hidden.ndim - 2), hidden.shape[-1])
            hidden = hidden * (torch.rand(shape, device=x.device) >= self.rank_dropout)
            scale /= 1.0 - self.rank_dropout
        if self.training and self.module_dropout:
            # A factor, not a branch: it can be compiled, and a recomputed block draws the same.
            hidden = hidden * (torch.rand((), device=x.device) >= self.module_dropout)
        up = (self.up * scale).to(hidden.dtype)
        return (output + F.linear(hidden, up)).to(output.dtype)


class Adapters(nn.Module):
    """A LoRA: adapters on some linear layers of a network.

    Args:
        model: The network; it is not registered as a submodule.
        adapters: Dotted name of a layer → its adapter.
        notes: Lines that the user should see.
    """

    def __init__(
        self, model: nn.Module, adapters: Mapping[str, Adapter], notes: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.multiplier = 1.0
        self.notes = tuple(notes)
        self.modules_by_path: dict[str, Adapter] = dict(adapters)
        self._layers = {path: model.get_submodule(path) for path in adapters}
        self._handles: list[Any] = []
        # The prefix keeps a layer's name from being one of ModuleDict's own, such as "keys".
        names = {path: "lora_" + path.replace(".", "_") for path in adapters}
        if len(set(names.values())) < len(names):
            raise ValueError("two layers have the same name once dots are underscores")
        self.pairs = nn.ModuleDict({names[path]: adapter for path, adapter in adapters.items()})

    @classmethod
    def create(
        cls,
        model: nn.Module,
        targets: LoraTargets,
        *,
        rank: int,
        alpha: float | None = None,
        dropout: float | None = None,
        rank_dropout: float | None = None,
        module_dropout: float | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        groups: Sequence[str] = (),
    ) -> Adapters:
        """Fresh adapters, which change nothing until they are trained.

        Args:
            model: The network.
            targets: Which of its layers can take one.
            rank: Of every pair.
            alpha: The scale is alpha / rank; None or 0 means alpha = rank.
            dropout: Of single numbers, between the two matrices.
            rank_dropout: Of whole ranks, for each item of the batch.
            module_dropout: Of whole adapters, for each call.
            include: Patterns of layers to keep whatever excludes them.
            exclude: Patterns of layers to leave out.
            groups: Only these groups of the architecture.

        Raises:
            ConfigError: No layer matches, or a pattern or group cannot be used.
        """
        linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
        chosen, notes = patterns.choose(
            list(linear), targets, include=include, exclude=exclude, groups=groups
        )
        if not chosen:
            some = list(linear)[:: max(1, len(linear) // _SHOWN)][:_SHOWN]
            raise ConfigError(
                f"No layer is left to take a LoRA: none of {len(linear)} linear layers matches. "
                f"Layers are called {', '.join(some)}.",
                fix="Change include_patterns, exclude_patterns or groups in --network_args.",
            )
        return cls(
            model,
            {
                path: Adapter(
                    linear[path],
                    rank=rank,
                    alpha=alpha,
                    dropout=dropout,
                    rank_dropout=rank_dropout,
                    module_dropout=module_dropout,
                )
                for path in chosen
            },
            notes,
        )

    @classmethod
    def from_pairs(cls, model: nn.Module, pairs: Mapping[str, Pair]) -> Adapters:
        """Adapters with the layers, ranks, alphas and weights of a file.

        Raises:
            CheckpointError: A pair is for a layer that the network lacks, or of another size.
        """
        layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
        unknown = [path for path in pairs if path not in layers]
        if unknown or not pairs:
            raise _no_layers(unknown)
        made = cls(
            model,
            {p: Adapter(layers[p], rank=pair.rank, alpha=pair.alpha) for p, pair in pairs.items()},
        )
        made.load(pairs)
        return made

    def attach(self) -> None:
        """Start changing the outputs of the network's layers."""
        if self._handles:
            return
        for path, adapter in self.modules_by_path.items():

            def add(
                _: nn.Module, args: tuple, output: torch.Tensor, adapter: Adapter = adapter
            ) -> torch.Tensor:
                return adapter(args[0], output, self.multiplier)

            self._handles.append(self._layers[path].register_forward_hook(add))

    def detach(self) -> None:
        """Stop; the network is as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def param_groups(
        self, lr: float, loraplus_lr_ratio: float | None = None
    ) -> list[dict[str, Any]]:
        """What an optimizer takes; with a ratio, the up matrices are a group of their own."""
        adapters = self.modules_by_path.values()
        if loraplus_lr_ratio is None:
            return [{"params": list(self.parameters()), "lr": lr, "name": "lora"}]
        return [
            {"params": [a.down for a in adapters], "lr": lr, "name": "lora"},
            {"params": [a.up for a in adapters], "lr": lr * loraplus_lr_ratio, "name": "lora_up"},
        ]

    @torch.no_grad()
    def limit_norms(self, maximum: float) -> tuple[int, float, float]:
        """Scale down each pair whose product has a norm above `maximum`.

        Returns:
            How many were scaled, and the mean and the largest norm afterwards.
        """
        scaled, norms = 0, []
        for adapter in self.modules_by_path.values():
            norm = adapter.pair.norm()
            if norm > maximum:
                root = math.sqrt(maximum / norm)
                adapter.down.mul_(root)
                adapter.up.mul_(root)
                scaled += 1
            norms.append(min(norm, maximum))
        return scaled, sum(norms) / len(norms), max(norms)

    def tensors(self) -> dict[str, Pair]:
        """Dotted name of a layer → its pair, as `write_lora` takes it."""
        return {path: adapter.pair for path, adapter in self.modules_by_path.items()}

    @torch.no_grad()
    def load(self, pairs: Mapping[str, Pair]) -> list[str]:
        """Take weights over, so that the change is that of `pairs` whatever alpha is here.

        Returns:
            Names of layers that `pairs` lacks; these are left as they are.

        Raises:
            CheckpointError: A pair is for a layer without adapter here, or of another size.
        """
        unknown = [path for path in pairs if path not in self.modules_by_path]
        if unknown:
            raise _no_layers(unknown)
        for path, pair in pairs.items():
            adapter = self.modules_by_path[path]
            if adapter.down.shape != pair.down.shape or adapter.up.shape != pair.up.shape:
                raise CheckpointError(
                    f"The LoRA's pair for {path!r} is {tuple(pair.down.shape)} and "
                    f"{tuple(pair.up.shape)}, where {tuple(adapter.down.shape)} and "
                    f"{tuple(adapter.up.shape)} are needed.",
                    fix="Give the rank of the file, or --dim_from_weights.",
                )
            adapter.down.copy_(pair.down)
            adapter.up.copy_(pair.up.to(adapter.up) * (pair.scale / adapter.pair.scale))
        return [path for path in self.modules_by_path if path not in pairs]


def _no_layers(unknown: Sequence[str]) -> CheckpointError:
    if not unknown:
        return CheckpointError("The LoRA holds no pair.", fix="Give another file.")
    return CheckpointError(
        f"The LoRA has {len(unknown)} pairs for layers that take none here, such as {unknown[0]!r}.",
        fix="Give a LoRA of this model, or include these layers.",
    )
