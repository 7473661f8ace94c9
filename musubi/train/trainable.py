"""The trained weights: adapters on a frozen DiT, or the DiT itself, behind one interface."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from musubi.errors import RunError
from musubi.lora.metadata import DENOISER
from musubi.plugin.traits import named
from musubi.weights.write import save


class Trainable(Protocol):
    """What the loop and the state need from the trained weights."""

    @property
    def title(self) -> str:
        """For the summary: what is trained, and how many parameters it has."""
        ...

    def identity(self) -> dict[str, Any]:
        """What a state must have in common with this run."""
        ...

    def groups(self, lr: float) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer."""
        ...

    def parameters(self) -> list[nn.Parameter]:
        """Everything that is trained, in a fixed order."""
        ...

    def tensors(self) -> dict[str, torch.Tensor]:
        """The trained tensors by name, as they are in memory."""
        ...

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Load what `tensors` returned."""
        ...

    def base(self) -> AbstractContextManager[None]:
        """Inside this context, the network predicts as it did before training."""
        ...

    def mode(self, training: bool) -> None:
        """Turn training mode (dropout) on or off."""
        ...

    def after_step(self) -> Mapping[str, float]:
        """Changes to the weights after each step, such as limiting their norm. Returns figures to log."""
        ...

    def write(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write a checkpoint that other programs can use."""
        ...

    def remarks(self) -> list[str]:
        """What the user should know about the file at the end."""
        ...


class FullModel:
    """The DiT itself.

    Args:
        dit: The network; every floating-point parameter is trained.
        save_dtype: Dtype of the checkpoint.
        fp32: Patterns of names that stay in float32 whatever the dtype of the checkpoint.
    """

    def __init__(
        self, dit: nn.Module, *, save_dtype: torch.dtype, fp32: Iterable[str] = ()
    ) -> None:
        self.dit = dit
        self.save_dtype = save_dtype
        self.fp32 = tuple(fp32)
        for parameter in dit.parameters():
            parameter.requires_grad_(parameter.is_floating_point())

    @property
    def title(self) -> str:
        count = sum(p.numel() for p in self.parameters())
        return f"the whole DiT, {count:,} parameters"

    def identity(self) -> dict[str, Any]:
        return {"kind": "full"}

    def groups(self, lr: float) -> list[dict[str, Any]]:
        return [{"params": self.parameters(), "lr": lr}]

    def parameters(self) -> list[nn.Parameter]:
        return [p for p in self.dit.parameters() if p.requires_grad]

    def tensors(self) -> dict[str, torch.Tensor]:
        return {n: p.detach() for n, p in self.dit.named_parameters() if p.requires_grad}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        _copy(dict(self.dit.named_parameters()), tensors)

    def base(self) -> AbstractContextManager[None]:
        raise TypeError("the whole network is trained, and no base is left")

    def mode(self, training: bool) -> None:
        self.dit.train(training)

    def after_step(self) -> Mapping[str, float]:
        return {}

    def remarks(self) -> list[str]:
        return []

    def write(self, path: Path, metadata: Mapping[str, str]) -> None:
        state = self.dit.state_dict()
        refuse_broken(state, path)
        tensors = {
            name: value.detach().cpu()
            if not value.is_floating_point()
            else value.detach().to(
                "cpu", torch.float32 if named(name, self.fp32) else self.save_dtype
            )
            for name, value in state.items()
        }
        save(path, tensors, dict(metadata))


class Several:
    """Several denoisers that are trained in one run: each writes a file of its own.

    Args:
        parts: Name of the denoiser → its trained weights. The first one writes the file of the
            requested name.
        endings: Name of the denoiser → the ending of its file name.
    """

    def __init__(self, parts: Mapping[str, Trainable], endings: Mapping[str, str]) -> None:
        self.parts = dict(parts)
        self.endings = dict(endings)

    @property
    def title(self) -> str:
        return "; ".join(f"{name}: {part.title}" for name, part in self.parts.items())

    def identity(self) -> dict[str, Any]:
        first = next(iter(self.parts.values()))
        return {**first.identity(), "denoisers": list(self.parts)}

    def groups(self, lr: float) -> list[dict[str, Any]]:
        return [group for part in self.parts.values() for group in part.groups(lr)]

    def parameters(self) -> list[nn.Parameter]:
        return [p for part in self.parts.values() for p in part.parameters()]

    def tensors(self) -> dict[str, torch.Tensor]:
        return {
            f"{name}/{key}": tensor
            for name, part in self.parts.items()
            for key, tensor in part.tensors().items()
        }

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, part in self.parts.items():
            start = f"{name}/"
            part.load({k.removeprefix(start): t for k, t in tensors.items() if k.startswith(start)})

    @contextmanager
    def base(self) -> Iterator[None]:
        with ExitStack() as stack:
            for part in self.parts.values():
                stack.enter_context(part.base())
            yield

    def mode(self, training: bool) -> None:
        for part in self.parts.values():
            part.mode(training)

    def after_step(self) -> Mapping[str, float]:
        figures: dict[str, float] = {}
        for name, part in self.parts.items():
            figures |= {f"{name}/{key}": value for key, value in part.after_step().items()}
        return figures

    def remarks(self) -> list[str]:
        return list(dict.fromkeys(line for part in self.parts.values() for line in part.remarks()))

    def write(self, path: Path, metadata: Mapping[str, str]) -> None:
        for name, part in self.parts.items():
            part.write(beside(path, self.endings[name]), {**metadata, DENOISER: name})


def beside(path: Path, ending: str) -> Path:
    """The file of another denoiser: `cat.safetensors` and "_high_noise" give `cat_high_noise.safetensors`."""
    return path.with_name(f"{path.stem}{ending}{path.suffix}")


def refuse_broken(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Refuse weights that are not finite, before they are written.

    Raises:
        RunError: Naming the first such tensor.
    """
    floating = {n: t for n, t in tensors.items() if t.is_floating_point()}
    if not floating:
        return
    finite = torch.stack([torch.isfinite(t).all().cpu() for t in floating.values()])
    if not bool(finite.all()):
        name = list(floating)[int((~finite).nonzero()[0])]
        raise RunError(
            f"{path} was not written: {name!r} holds values that are not finite.",
            fix="Go on from an earlier state or checkpoint with a lower --learning_rate.",
        )


def _copy(own: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, value in tensors.items():
            own[name].copy_(value)
