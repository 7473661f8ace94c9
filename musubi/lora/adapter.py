"""Adapters on the layers of a network, added by forward hooks: nothing is renamed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from musubi.errors import CheckpointError, ConfigError, counted
from musubi.lora import patterns
from musubi.lora.delta import Delta, Difference, Pair
from musubi.lora.forward import NONE, Drops, added, on_bias, summed, weight_of
from musubi.lora.fresh import Kind, fresh, principal
from musubi.lora.kinds import Decomposed, Hada, Kron, Rotation
from musubi.lora.layout import by_parameter
from musubi.lora.names import WEIGHT
from musubi.nn.fusing import fusing
from musubi.plugin import LoraTargets

_SHOWN = 5
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Homes = Mapping[tuple[int, str], torch.Tensor]


class Adapter(nn.Module):
    """The change of one layer, its tensors as parameters in float32.

    Args:
        delta: Change of the weight, or None.
        bias: Change of the bias, or None.
        drops: Dropout while training.
        start: A pair that is subtracted: what `delta` was at first, when that was not nothing.
        strength: A factor of the change.
    """

    def __init__(
        self,
        delta: Delta | None,
        bias: Difference | None = None,
        *,
        drops: Drops = NONE,
        start: Pair | None = None,
        strength: float = 1.0,
    ) -> None:
        super().__init__()
        self.drops = drops
        self.strength = strength
        # The same objects as the parameters: what an optimizer changes is changed here too.
        self.live = None if delta is None else self._registered(delta)
        self.live_bias = None if bias is None else Difference(self._parameter("bias", bias.value))
        self.start: Pair | None = None
        if start is not None:
            self.start = Pair(start.down.clone(), start.up.clone(), start.alpha)
            self.register_buffer("start_down", self.start.down)
            self.register_buffer("start_up", self.start.up)

    def _registered(self, delta: Delta) -> Delta:
        made: dict[int, nn.Parameter] = {}
        for name, tensor in delta.tensors().items():
            made[id(tensor)] = self._parameter(
                name.removeprefix("inner.").replace(".", "_"), tensor
            )
        return delta.mapped(lambda tensor: made[id(tensor)])

    def _parameter(self, name: str, tensor: torch.Tensor) -> nn.Parameter:
        parameter = nn.Parameter(tensor.detach().float().clone())
        self.register_parameter(name, parameter)
        return parameter

    @property
    def delta(self) -> Delta | None:
        """The change of the weight without its history."""
        if self.live is None:
            return None
        found = self.live.mapped(lambda tensor: tensor.detach())
        if self.start is None:
            return found
        now, first = cast(Pair, found).folded(), self.start.folded()
        return Pair(torch.cat([now.down, first.down]), torch.cat([now.up, -first.up], 1))

    @property
    def bias_delta(self) -> Difference | None:
        """The change of the bias without its history."""
        return None if self.live_bias is None else Difference(self.live_bias.value.detach())

    def forward(
        self, layer: nn.Module, x: torch.Tensor, output: torch.Tensor, multiplier: float = 1.0
    ) -> torch.Tensor:
        """The layer's output with this adapter's change added, rounded once."""
        drops = self.drops if self.training else NONE
        multiplier *= self.strength
        new = output
        if self._summed(layer, x, drops):
            new = summed(cast(Pair, self.live), x, output, multiplier, drops)
        elif self.live is not None:
            change = added(self.live, layer, x, output, multiplier, drops)
            if self.start is not None:
                change = change - added(self.start, layer, x, output, multiplier)
            new = new + change
        if self.live_bias is not None:
            new = new + multiplier * on_bias(self.live_bias, layer, output)
        return new.to(output.dtype)

    def _summed(self, layer: nn.Module, x: torch.Tensor, drops: Drops) -> bool:
        """Whether the change can be summed up with the output."""
        plain = isinstance(self.live, Pair) and self.live.mid is None and self.start is None
        return plain and isinstance(layer, nn.Linear) and not drops.module and fusing()

    @torch.no_grad()
    def shrink(self, ratio: float) -> None:
        """Multiply the change by a number below one."""
        live = self.live.inner if isinstance(self.live, Decomposed) else self.live
        if isinstance(live, Pair):
            live.down.mul_(math.sqrt(ratio))
            live.up.mul_(math.sqrt(ratio))
        elif isinstance(live, Hada):
            live.w1_a.mul_(ratio)
        elif isinstance(live, Kron):
            (live.w1 if live.w1 is not None else cast(torch.Tensor, live.w1_a)).mul_(ratio)
        elif isinstance(live, Rotation):
            live.blocks.mul_(ratio)
        elif isinstance(live, Difference):
            live.value.mul_(ratio)

    def norm(self) -> float:
        """Of the change; of a DoRA that of its direction, of an OFT that of its generator."""
        found = self.delta
        found = found.inner if isinstance(found, Decomposed) else found
        if isinstance(found, Rotation):
            return float(found.blocks.double().norm())
        norm = None if found is None else found.norm()
        return 0.0 if norm is None else norm


class Adapters(nn.Module):
    """Adapters on some layers of a network.

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
    def create(  # noqa: PLR0913 - each is an option of the user
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
        kind: Kind | None = None,
        ranks: Sequence[tuple[str, int, float | None]] = (),
        convolutions: tuple[int, float | None] | None = None,
        homes: Homes | None = None,
    ) -> Adapters:
        """Fresh adapters, which change nothing until they are trained.

        Args:
            model: The network.
            targets: Which layers can take an adapter.
            rank: Rank of every adapter.
            alpha: The scale is alpha / rank; None or 0 means alpha = rank.
            dropout: Dropout of single numbers, between the two matrices.
            rank_dropout: Dropout of whole ranks, for each item of the batch.
            module_dropout: Dropout of whole adapters, for each call.
            include: Patterns of layers to keep whatever excludes them.
            exclude: Patterns of layers to leave out.
            groups: Only these groups of the architecture.
            kind: What is made; LoRA when not given.
            ranks: (pattern, rank, alpha) of layers that differ; the first that matches counts.
            convolutions: (rank, alpha) of convolutions, which take part then.
            homes: Where tensors are of layers that are away, as `musubi.memory.apply.at_home` says.

        Raises:
            ConfigError: No layer matches, or a pattern or group cannot be used.
        """
        kind = kind or Kind()
        kinds = (nn.Linear, *_CONVOLUTIONS) if convolutions is not None else (nn.Linear,)
        layers = {n: m for n, m in model.named_modules() if isinstance(m, kinds)}
        chosen, notes = patterns.choose(
            list(layers),
            targets,
            include=include,
            exclude=exclude,
            groups=groups,
            extra={n for n, m in layers.items() if not isinstance(m, nn.Linear)},
        )
        if not chosen:
            raise _nothing_chosen(list(layers))
        found = patterns.compiled(p for p, _, _ in ranks)
        special = [(p, r, a) for p, (_, r, a) in zip(found, ranks, strict=True)]
        notes += [
            f"The pattern {p.pattern!r} of --network_reg_dims matches no layer that is trained."
            for p, _, _ in special
            if not any(p.fullmatch(n) for n in chosen)
        ]
        drops = Drops(dropout or 0.0, rank_dropout or 0.0, module_dropout or 0.0)
        made = {}
        for path in chosen:
            layer = layers[path]
            convolution = isinstance(layer, _CONVOLUTIONS) and convolutions is not None
            size, share = (rank, alpha) if not convolution else cast(tuple, convolutions)
            hit = next(((r, a) for p, r, a in special if p.fullmatch(path)), None)
            if hit is not None:
                size, share = hit[0], share if hit[1] is None else hit[1]
            made[path] = _fresh(kind, layer, size, share, drops, homes)
        return cls(model, made, notes)

    @classmethod
    def from_deltas(
        cls,
        model: nn.Module,
        deltas: Mapping[str, Delta],
        *,
        drops: Drops = NONE,
        strengths: Mapping[str, float] | None = None,
    ) -> Adapters:
        """Adapters with the layers, ranks, alphas and numbers of a file.

        Args:
            model: The network.
            deltas: Our name of a weight or bias, or of the layer, → its change.
            drops: Dropout while training.
            strengths: Name of a parameter → a factor of its change.

        Raises:
            CheckpointError: One is for a layer that the network lacks, or of another size.
        """
        layers = {
            n: m for n, m in model.named_modules() if isinstance(m, (nn.Linear, *_CONVOLUTIONS))
        }
        by_layer: dict[str, dict[str, Delta]] = {}
        named = by_parameter(deltas)
        unknown = [name for name in named if name.rpartition(".")[0] not in layers]
        if unknown or not named:
            raise _no_layers(unknown)
        for name, delta in named.items():
            path, _, leaf = name.rpartition(".")
            shape = _shape(layers[path], leaf)
            if not delta.fits(shape):
                raise CheckpointError(
                    f"The LoRA's {delta.title} of {path!r} is for {delta.size()}, and the layer has "
                    f"{shape}.",
                    fix="Give a LoRA of this model's size.",
                )
            by_layer.setdefault(path, {})[leaf] = delta.to(layers[path].weight.device)
        return cls(
            model,
            {
                path: Adapter(
                    of.get("weight"),
                    cast("Difference | None", of.get("bias")),
                    drops=drops,
                    strength=(strengths or {}).get(f"{path}{WEIGHT}", 1.0),
                )
                for path, of in by_layer.items()
            },
        )

    from_pairs = from_deltas

    def attach(self) -> None:
        """Start changing the outputs of the network's layers."""
        if self._handles:
            return
        for path, adapter in self.modules_by_path.items():

            def add(
                layer: nn.Module, args: tuple, output: torch.Tensor, adapter: Adapter = adapter
            ) -> torch.Tensor:
                if self.multiplier == 0:  # nothing is multiplied, and nothing is drawn
                    return output
                return adapter(layer, args[0], output, self.multiplier)

            self._handles.append(self._layers[path].register_forward_hook(add))

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Inside, the network is as it was, with the hooks in place."""
        kept, self.multiplier = self.multiplier, 0.0
        try:
            yield
        finally:
            self.multiplier = kept

    def detach(self) -> None:
        """Stop; the network is as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def param_groups(
        self, lr: float, loraplus_lr_ratio: float | None = None
    ) -> list[dict[str, Any]]:
        """What an optimizer takes; with a ratio, the up matrices are a group of their own."""
        if loraplus_lr_ratio is None:
            return [{"params": list(self.parameters()), "lr": lr, "name": "lora"}]
        named = list(self.named_parameters())
        ups = [p for n, p in named if n.endswith(".up")]
        rest = [p for n, p in named if not n.endswith(".up")]
        return [
            {"params": rest, "lr": lr, "name": "lora"},
            {"params": ups, "lr": lr * loraplus_lr_ratio, "name": "lora_up"},
        ]

    @torch.no_grad()
    def limit_norms(self, maximum: float) -> tuple[int, float, float]:
        """Scale down each adapter whose change has a norm above `maximum`.

        Returns:
            How many were scaled, and the mean and the largest norm afterwards.
        """
        scaled, norms = 0, []
        for adapter in self.modules_by_path.values():
            norm = adapter.norm()
            if norm > maximum:
                adapter.shrink(maximum / norm)
                scaled += 1
            norms.append(min(norm, maximum))
        return scaled, sum(norms) / len(norms), max(norms)

    def tensors(self) -> dict[str, Delta]:
        """Our name of a weight or bias → its change, as `write_lora` takes it."""
        found: dict[str, Delta] = {}
        for path, adapter in self.modules_by_path.items():
            if (delta := adapter.delta) is not None:
                found[f"{path}{WEIGHT}"] = delta
            if (bias := adapter.bias_delta) is not None:
                found[f"{path}.bias"] = bias
        return found

    @torch.no_grad()
    def load(self, deltas: Mapping[str, Delta]) -> list[str]:
        """Take numbers over, so that the change is that of `deltas` whatever alpha is here.

        Returns:
            Names of layers that `deltas` lacks; these are left as they are.

        Raises:
            CheckpointError: One is for a layer without adapter here, or of another kind or size.
        """
        named = by_parameter(deltas)
        unknown = [n for n in named if n.rpartition(".")[0] not in self.modules_by_path]
        if unknown:
            raise _no_layers(unknown)
        for name, delta in named.items():
            path, _, leaf = name.rpartition(".")
            adapter = self.modules_by_path[path]
            live = adapter.live_bias if leaf == "bias" else adapter.live
            own = {} if live is None else live.tensors()
            given = delta.tensors()
            if type(live) is not type(delta) or {n: t.shape for n, t in own.items()} != {
                n: t.shape for n, t in given.items()
            }:
                raise _other_shape(path, delta, given, own, live)
            for field, tensor in own.items():
                tensor.copy_(given[field].to(tensor))
            _take_scale(cast(Delta, live), delta)
        found = {n.rpartition(".")[0] for n in named}
        return [path for path in self.modules_by_path if path not in found]


def _fresh(
    kind: Kind,
    layer: nn.Module,
    rank: int,
    alpha: float | None,
    drops: Drops,
    homes: Homes | None,
) -> Adapter:
    weight = torch.empty(_shape(layer, "weight"), device="meta")
    device = cast(torch.Tensor, layer.weight).device
    if kind.name == "dora" or kind.init == "pissa":
        weight = weight_of(layer, homes).to(device)
    else:
        weight = torch.empty((), device=device).expand(weight.shape)
    delta = fresh(kind, layer, weight, rank=rank, alpha=alpha)
    if kind.init == "pissa" and isinstance(delta, Pair):
        down, up = principal(weight, min(rank, *weight.shape[:2]), delta.scale)
        delta = Pair(down, up, delta.alpha)
        return Adapter(delta, drops=drops, start=delta)
    bias = None
    if kind.name == "full" and layer.bias is not None:
        bias = Difference(torch.zeros(weight.shape[0], device=device))
    return Adapter(delta, bias, drops=drops)


def _shape(layer: nn.Module, leaf: str) -> tuple[int, ...]:
    """Of a layer's weight or bias, also while that is away."""
    if isinstance(layer, nn.Linear):
        whole = (layer.out_features, layer.in_features)
    else:
        whole = tuple(cast(torch.Tensor, layer.weight).shape)
    return whole if leaf == "weight" else whole[:1]


def _take_scale(live: Delta, delta: Delta) -> None:
    """Put the difference of the two scales into one of the tensors."""
    if isinstance(live, Decomposed) and isinstance(delta, Decomposed):
        live, delta = live.inner, delta.inner
    if isinstance(live, Pair) and isinstance(delta, Pair):
        live.up.mul_(delta.scale / live.scale)
    elif isinstance(live, Hada) and isinstance(delta, Hada):
        live.w1_a.mul_(delta.scale / live.scale)
    elif isinstance(live, Kron) and isinstance(delta, Kron):
        small = live.w1 if live.w1 is not None else live.w1_a
        cast(torch.Tensor, small).mul_(delta.scale / live.scale)


def _other_shape(
    path: str,
    delta: Delta,
    given: Mapping[str, torch.Tensor],
    own: Mapping[str, torch.Tensor],
    live: Delta | None,
) -> CheckpointError:
    there = " and ".join(str(tuple(t.shape)) for t in given.values())
    needed = " and ".join(str(tuple(t.shape)) for t in own.values())
    if type(live) is not type(delta):
        return CheckpointError(
            f"{path!r} has a {delta.title} in the file, and a {live.title if live else 'bias'} is "
            "trained.",
            fix="Give the --network_type of the file, or --dim_from_weights.",
        )
    what = "pair" if isinstance(delta, Pair) else delta.title
    return CheckpointError(
        f"The LoRA's {what} for {path!r} is {there}, where {needed} are needed.",
        fix="Give the rank of the file, or --dim_from_weights.",
    )


def _nothing_chosen(layers: Sequence[str]) -> ConfigError:
    some = layers[:: max(1, len(layers) // _SHOWN)][:_SHOWN]
    return ConfigError(
        f"No layer is left to take a LoRA: none of {counted(len(layers), 'linear layer')} matches. "
        f"Layers are called {', '.join(some)}.",
        fix="Change include_patterns, exclude_patterns or groups in --network_args.",
    )


def _no_layers(unknown: Sequence[str]) -> CheckpointError:
    if not unknown:
        return CheckpointError("The LoRA holds no pair.", fix="Give another file.")
    return CheckpointError(
        f"The LoRA has {counted(len(unknown), 'pair')} for layers that take none here, such as "
        f"{unknown[0]!r}.",
        fix="Give a LoRA of this model, or include these layers.",
    )
