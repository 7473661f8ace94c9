"""Tiny twins: checkpoints with random weights, toy sizes, and the layout of the released files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from musubi.plugin import Architecture, Component, Numbers, Task
from musubi.weights.write import save


def build_twin(component: Component, *, numbers: Numbers | None = None, seed: int = 0) -> nn.Module:
    """The component at its toy size, float32, filled so that every part matters.

    Args:
        component: What to build.
        numbers: Laid over the component's toy size: what a task needs to be otherwise.
        seed: Decides the weights.
    """
    with torch.random.fork_rng(devices=[]):
        module: nn.Module = component.build(**{**component.tiny, **(numbers or {})})
    return fill(module, seed=seed)


def numbers_for(task: Task) -> Numbers:
    """What a toy of the task's denoisers has otherwise than `Component.tiny`."""
    return {**task.requires, **task.tiny}


def fill(module: nn.Module, *, seed: int = 0) -> nn.Module:
    """Give a network, ours or another library's, numbers by which every part matters; frozen.

    Matrices keep the scale of their input, norms are near one, and nothing is zero: a freshly
    initialised network may end in a zero layer, and would then hide any mistake before it.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *_persistent_buffers(module)]:
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim >= 2 and tensor.shape[0] > 1:
                tensor.copy_(noise * (tensor.numel() / tensor.shape[0]) ** -0.5)
            elif name.endswith("bias"):
                tensor.copy_(noise * 0.02)
            elif tensor.ndim == 1 or name.endswith(("gamma", "weight")):
                tensor.copy_(1 + 0.1 * noise)
            else:
                tensor.copy_(noise * 0.1)
    return module.eval().requires_grad_(False)


def write_twin(
    component: Component,
    folder: Path,
    *,
    dialect: str | None = None,
    suffix: str = ".safetensors",
    dtype: torch.dtype = torch.float32,
    numbers: Numbers | None = None,
    seed: int = 0,
) -> Path:
    """Write a twin in one of the component's dialects (the first, unless named).

    Args:
        component: What to write.
        folder: Where; created when absent. A text encoder's tokenizer is put beside the file.
        dialect: Name of the layout.
        suffix: ".safetensors" or ".pth".
        dtype: What the file stores.
        numbers: Laid over the component's toy size.
        seed: Decides the weights.

    Returns:
        The file's path, `{component.name}{suffix}` in the folder.
    """
    layout = next(d for d in component.dialects if dialect in (None, d.name))
    module = build_twin(component, numbers=numbers, seed=seed)
    ours = {
        name: tensor.detach().to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in [*module.named_parameters(), *_persistent_buffers(module)]
    }
    theirs = {name: _made(source, ours) for name, source in layout.writing(ours).items()}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{component.name}{suffix}"
    if suffix == ".safetensors":
        save(path, theirs, {"format": "pt"})
    else:
        torch.save(theirs, path)
    if component.tokenizer is not None:
        write_tokenizer(folder / "tokenizer")
    return path


def write_twins(
    architecture: Architecture, folder: Path, *, task: Task | None = None, seed: int = 0
) -> dict[str, Path]:
    """A twin of every component, or of those of a task; component name → path."""
    numbers = {} if task is None else numbers_for(task)
    used = None if task is None else {*task.components, *task.denoisers}
    return {
        component.name: write_twin(
            component,
            folder / component.name,
            numbers=numbers if component.role == "dit" else None,
            seed=seed + index,
        )
        for index, component in enumerate(architecture.components)
        if used is None or component.name in used
    }


def write_tokenizer(folder: Path) -> Path:
    """A tokenizer with a token for each byte, after padding (0), end (1) and unknown (2)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(str(folder))
    return folder


def _persistent_buffers(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    kept = module.state_dict(keep_vars=True)
    return [(name, buffer) for name, buffer in module.named_buffers() if name in kept]


def _made(source, ours: dict[str, torch.Tensor]) -> torch.Tensor:
    tensor = ours[source.names[0]]
    if source.operation == "swap":
        return torch.cat(tensor.chunk(2)[::-1])
    if source.operation == "unsqueeze":
        ones = (None,) * source.ones
        return tensor[(*ones, ...) if source.leading else (..., *ones)].contiguous()
    if source.operation == "split":
        unit = tensor.shape[0] // sum(source.ratio)
        return tensor.split([unit * r for r in source.ratio])[source.part].contiguous()
    return tensor.contiguous()
