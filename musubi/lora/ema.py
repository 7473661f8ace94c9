"""`musubi lora ema`: the average of what a run saved, made afterwards, one tensor at a time."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence

import torch

from musubi.config.lora import LoraEmaConfig
from musubi.errors import CheckpointError, counted
from musubi.lora.files import keep_apart
from musubi.lora.metadata import hashes
from musubi.plugin import Report
from musubi.weights.files import Weights, open_weights
from musubi.weights.write import stream


def run(config: LoraEmaConfig, report: Report) -> None:
    """Average the files; memory holds a few tensors, whatever their number.

    Raises:
        CheckpointError: A file cannot be read, or is of another run.
        ConfigError: The output is one of the files.
    """
    target = keep_apart(config.output_file, config.files)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open_weights(path)) for path in config.files]
        if not config.no_sort:
            files.sort(key=lambda f: f.path.stat().st_mtime_ns)
        _agree(files)
        kept = betas(config, len(files) - 1)
        shares = zip(files, weights_of(kept), strict=True)
        rows = [(f.path, f"{share:.2%}") for f, share in shares]
        report.table("Averaged, in this order", ("file", "share"), rows)
        first, last = files[0], files[-1]
        entries = [(n, first.dtypes[n], first.shapes[n]) for n in first.names]
        with report.progress("Averaging", 2 * len(entries), unit="tensors") as bar:

            def produce(name: str) -> torch.Tensor:
                made = average(name, files, kept)
                bar.advance()
                return made

            # The hashes stand before the tensors they are of, so these are made twice.
            metadata = last.metadata | hashes(entries, produce, last.metadata)
            stream(target, entries, produce, metadata)
    report.note(f"Averaged {counted(len(files), 'file')} into {target}.")


def betas(config: LoraEmaConfig, count: int) -> list[float]:
    """What each of `count` files after the first leaves of the average before it."""
    if config.sigma_rel is not None:
        power = gamma(config.sigma_rel) + 1
        return [(1 - 1 / t) ** power for t in range(1, count + 1)]
    end = config.beta if config.beta2 is None else config.beta2
    step = (end - config.beta) / max(count - 1, 1)
    return [config.beta + step * i for i in range(count)]


def gamma(sigma_rel: float) -> float:
    """The exponent of the power function whose relative width is `sigma_rel`.

    It is the root of g^3 + 7 g^2 + (16 - s) g + (12 - s) with s = sigma_rel^-2 that is not negative
    (Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", eq. 4).

    >>> round(gamma(0.1), 3)
    6.937
    """
    low, high = 0.0, min(1 / sigma_rel, 1e300)
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return middle
        # The same equation, as the width of an exponent: it falls from 1/sqrt(12) to 0.
        if (middle + 1) ** 0.5 / (middle + 2) / (middle + 3) ** 0.5 > sigma_rel:
            low = middle
        else:
            high = middle


def weights_of(kept: Sequence[float]) -> list[float]:
    """The share of each file in the average, the first included.

    >>> weights_of([0.5, 0.5])
    [0.25, 0.25, 0.5]
    """
    shares = [1.0]
    for beta in kept:
        shares = [share * beta for share in shares] + [1 - beta]
    return shares


def average(name: str, files: Sequence[Weights], kept: Sequence[float]) -> torch.Tensor:
    """One tensor of the average, computed in float32; what is no float is that of the first file.

    Raises:
        CheckpointError: A number is not finite.
    """
    stored = files[0].read(name)
    if not stored.is_floating_point():
        return stored
    total = stored.float()
    for file, beta in zip(files[1:], kept, strict=True):
        total.mul_(beta).add_(file.read(name).float(), alpha=1 - beta)
    if not torch.isfinite(total).all():
        broken = next(f for f in files if not torch.isfinite(f.read(name).float()).all())
        raise CheckpointError(
            f"{broken.path}: {name!r} holds a number that is not finite.",
            fix="Leave that file out.",
        )
    return total.to(stored.dtype)


def _agree(files: Sequence[Weights]) -> None:
    """Refuse files that do not hold the same tensors at the same strength, naming the odd one."""
    layouts = [{n: f.shapes[n] for n in f.names} for f in files]
    usual, _ = Counter(frozenset(layout.items()) for layout in layouts).most_common(1)[0]
    for file, layout in zip(files, layouts, strict=True):
        other = dict(usual)
        name = min(dict(usual ^ frozenset(layout.items())), default=None)
        if name is None:
            continue
        like = next(f for f, one in zip(files, layouts, strict=True) if one == other)
        has, lacks = layout.get(name, "not there"), other.get(name, "not there")
        raise CheckpointError(
            f"{file.path} is unlike {like.path}: {name!r} is {has} in the one and {lacks} in the other.",
            fix="Give files of one run.",
        )
    first = files[0]
    for name in first.names:
        if not name.endswith(".alpha"):
            continue
        wanted = float(first.read(name))
        for file in files[1:]:
            if float(file.read(name)) != wanted:
                raise CheckpointError(
                    f"{name!r} is {float(file.read(name)):g} in {file.path} and {wanted:g} in "
                    f"{first.path}.",
                    fix="Give files of one run, which have one alpha.",
                )
