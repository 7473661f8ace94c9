"""A LoRA as the loop trains it: adapters on a frozen DiT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from musubi.config.train import TrainConfig
from musubi.errors import ConfigError, counted
from musubi.lora.adapter import Adapters
from musubi.lora.files import LoraFile, laid_out, read_lora, write_lora
from musubi.lora.forward import Drops
from musubi.lora.merge import Merging, merging_transform
from musubi.lora.options import Asked, asked
from musubi.lora.verify import best_form, judge, summary
from musubi.memory.apply import at_home
from musubi.plugin import Architecture, Component, Report
from musubi.train.trainable import refuse_broken
from musubi.weights.contents import inspect

_TITLES = {
    "lora": "LoRA",
    "loha": "LoHa",
    "lokr": "LoKr",
    "dora": "DoRA",
    "oft": "OFT",
    "full": "full difference",
}


class Lora:
    """The adapters of a run, as a `Trainable`.

    Args:
        adapters: Attached to the DiT.
        architecture: The architecture; the dialects of its DiT give the names in files.
        kind: The kind of adapter: "lora", "loha", and so on.
        rank: `--network_dim`; None if the rank was taken from a file.
        alpha: `--network_alpha`; None if alpha was taken from a file.
        form: The naming scheme of the file that is written.
        save_dtype: Dtype of the tensors in the file.
        plus: Learning rate of the up matrices divided by that of the down matrices; None: both are
            equal.
        max_norm: `--scale_weight_norms`.
    """

    def __init__(  # noqa: PLR0913 - what a checkpoint needs
        self,
        adapters: Adapters,
        architecture: Architecture,
        *,
        kind: str,
        rank: int | None,
        alpha: float | None,
        form: str,
        save_dtype: torch.dtype,
        plus: float | None,
        max_norm: float | None,
    ) -> None:
        self.adapters = adapters
        self.architecture = architecture
        self.kind = kind
        self.rank, self.alpha = rank, alpha
        self.form, self.save_dtype = form, save_dtype
        self.plus, self.max_norm = plus, max_norm

    @property
    def title(self) -> str:
        count = sum(p.numel() for p in self.parameters())
        modules = len(self.adapters.modules_by_path)
        rank = "of its file" if self.rank is None else str(self.rank)
        what = _TITLES.get(self.kind, self.kind)
        size = "" if self.kind == "full" else f" of rank {rank}"
        return f"a {what}{size} on {counted(modules, 'module')}, {count:,} parameters"

    def identity(self) -> dict[str, Any]:
        kind = "difference" if self.kind == "full" else self.kind  # the whole DiT is called full
        return {"kind": kind, "rank": self.rank, "alpha": self.alpha}

    def remarks(self) -> list[str]:
        """What other programs would leave out of the file that was written."""
        shapes = {
            name: delta.mapped(lambda t: torch.empty(t.shape, device="meta"))
            for name, delta in self.adapters.tensors().items()
        }
        names = list(laid_out(shapes, self.form, self.architecture.dit))
        verdicts = judge(self.architecture, names)
        lines = [
            f"In another program: {line}" for v in verdicts if (line := summary(v)) is not None
        ]
        best = best_form(self.architecture, shapes, ("comfy", "diffusers", "kohya"))
        if lines and best[0] != self.form and best[1] == 1:
            lines.append(
                f"The form {best[0]} loads everywhere: `musubi lora convert --target {best[0]}`."
            )
        return lines

    def groups(self, lr: float) -> list[dict[str, Any]]:
        return list(self.adapters.param_groups(lr, self.plus))

    def parameters(self) -> list[nn.Parameter]:
        return list(self.adapters.parameters())

    def tensors(self) -> dict[str, torch.Tensor]:
        found = (*self.adapters.named_parameters(), *self.adapters.named_buffers())
        return {name: tensor.detach() for name, tensor in found}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        own = self.tensors()
        with torch.no_grad():
            for name, value in tensors.items():
                own[name].copy_(value)

    def base(self) -> AbstractContextManager[None]:
        return self.adapters.set_aside()

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
            component=self.architecture.dit,
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
    """Make the adapters that the options ask for, and attach them to the DiT.

    Raises:
        ConfigError: No module matches, or an argument cannot be used.
        CheckpointError: `--network_weights` is no LoRA of this architecture.
    """
    component = component or architecture.dit
    if component.traits.lora is None:
        raise ConfigError(
            f"{architecture.title} names no layers that take a LoRA.", fix="Train it with --full."
        )
    wanted = asked(config)
    for line in wanted.notes:
        report.note(line)
    file = None
    if config.network_weights is not None:
        file = read_lora(Path(config.network_weights), architecture, _shapes(dit))
        for line in filter(None, (file.complaint(), *file.notes)):
            report.warn(line)
    if config.dim_from_weights and file is not None:
        made = _of_file(dit, file, wanted, report)
    else:
        made = wanted.create(dit, component.traits.lora, at_home(dit))
        if file is not None:
            fresh = made.load(file.deltas)
            if fresh:
                report.note(
                    f"Not in {file.path}: {counted(len(fresh), 'module')}, which start at zero."
                )
    for line in made.notes:
        report.note(line)
    dit.requires_grad_(False)
    made.attach()
    from_file = config.dim_from_weights and file is not None
    return Lora(
        made,
        architecture,
        kind=wanted.kind.name if file is None or not from_file else ", ".join(file.kinds),
        rank=None if from_file else wanted.rank,
        alpha=None if from_file else wanted.kind.alpha(wanted.alpha, wanted.rank),
        form=config.lora_format or best_form(architecture, made.tensors())[0],
        save_dtype=save_dtype,
        plus=wanted.plus,
        max_norm=config.scale_weight_norms,
    )


def _of_file(dit: nn.Module, file: LoraFile, wanted: Asked, report: Report) -> Adapters:
    """Make adapters with the kinds, layers and ranks of a file."""
    layers = {n for n, m in dit.named_modules() if isinstance(m, nn.Linear)}
    fit = {n: d for n, d in file.deltas.items() if n.rpartition(".")[0] in layers}
    if len(fit) < len(file.deltas):
        other = next(n for n in file.deltas if n not in fit)
        report.warn(
            f"Left out {counted(len(file.deltas) - len(fit), 'change')} of {file.path} to layers that are not "
            f"linear, such as {other!r}. To keep such changes, give the file to --base_weights as well."
        )
    drops = Drops(wanted.dropout or 0.0, wanted.rank_dropout or 0.0, wanted.module_dropout or 0.0)
    return Adapters.from_deltas(dit, fit, drops=drops)


def _shapes(dit: nn.Module) -> dict[str, tuple[int, ...] | None]:
    """Name of each parameter → its shape; None if its weights are not in memory."""
    linear = {
        f"{name}.weight": (layer.out_features, layer.in_features)
        for name, layer in dit.named_modules()
        if isinstance(layer, nn.Linear)
    }
    return {
        name: linear.get(name, tuple(p.shape) if p.numel() else None)
        for name, p in dit.named_parameters()
    }


def base_weights(
    files: Sequence[str],
    multipliers: Sequence[float],
    architecture: Architecture,
    dit: Path | None = None,
) -> Merging:
    """Make the function that merges `--base_weights` into the DiT while the DiT is loaded.

    Args:
        files: LoRA files, in any naming scheme.
        multipliers: One strength for each file, in the same order; missing ones are 1.0.
        architecture: The architecture that the files are for.
        dit: The DiT's checkpoint. LoRA files for a DiT of another size are refused before the DiT
            is loaded.
    """
    shapes = None if dit is None else inspect(architecture.dit, dit).shapes
    padded = [*multipliers, *[1.0] * (len(files) - len(multipliers))]
    read = [
        (read_lora(Path(path), architecture, shapes), multiplier)
        for path, multiplier in zip(files, padded, strict=True)
    ]
    return merging_transform(read)
