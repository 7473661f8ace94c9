"""Adapters block by block: how much each changes, as words and a picture; and strengths by block."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from musubi.config.lora import LoraBlocksConfig
from musubi.errors import ConfigError, counted, did_you_mean
from musubi.lora.files import LoraFile, architecture_of, layer_of, read_lora
from musubi.plugin import Architecture, Report
from musubi.weights.write import atomic

_BAR = 30
_REST = "elsewhere"
_ONE = re.compile(
    r"(?P<stack>[A-Za-z_][\w.]*?)(\.(?P<first>\d+)(?P<to>-(?P<last>\d*))?)?=(?P<value>[^=]+)"
)


def run(config: LoraBlocksConfig, report: Report) -> None:
    """Show the norm of what each block's layers change, and draw it when asked to.

    Raises:
        CheckpointError: A file is no adapter.
        ConfigError: The picture cannot be written.
    """
    drawn = []
    for path in config.files:
        architecture = architecture_of(path, config.arch)
        file = read_lora(path, architecture)
        norms, unknown = norms_by_block(file, architecture)
        most = max(norms.values(), default=0.0)
        rows = [
            (block, f"{norm:.4g}", "█" * round(_BAR * norm / most) if most else "")
            for block, norm in norms.items()
        ]
        report.table(path, ("block", "norm of the change", ""), rows)
        if unknown:
            report.warn(
                f"{counted(unknown, 'change')} of {path} not counted, which only the weights tell (DoRA, OFT). "
                f"`musubi lora resize {path} --base PATH` makes plain pairs."
            )
        drawn.append((Path(path).name, norms))
    if config.picture is not None:
        _draw(Path(config.picture), drawn)
        report.note(f"Drew {config.picture}.")


def norms_by_block(file: LoraFile, architecture: Architecture) -> tuple[dict[str, float], int]:
    """The Frobenius norm of all that changes in each block, in their order; and what is not known.

    Args:
        file: Read with the architecture.
        architecture: Its stacks are blocks.
    """
    squares: dict[tuple[int, int, str], float] = defaultdict(float)
    unknown = 0
    stacks = architecture.dit.traits.stacks
    for name, delta in file.deltas.items():
        norm = delta.norm()
        if norm is None:
            unknown += 1
        else:
            squares[_place(name, stacks)] += norm * norm
    return {place[2]: value**0.5 for place, value in sorted(squares.items())}, unknown


def weighted(
    file: LoraFile, words: str | None, architecture: Architecture, shapes: Iterable[str] = ()
) -> LoraFile:
    """A file whose changes have other strengths in some blocks.

    Args:
        file: Read with the architecture.
        words: `STACK.N=VALUE`, `STACK.N-M=VALUE` or `STACK=VALUE`, several with commas between; or a
            number for each block of all stacks. None changes nothing.
        architecture: Its stacks are blocks.
        shapes: Names of the network's parameters, which tell how many blocks it has.

    Raises:
        ConfigError: A word means nothing, or there are not as many numbers as blocks.
    """
    if not words:
        return file
    stacks = architecture.dit.traits.stacks
    strengths = _strengths(words, stacks, _counts((*shapes, *file.deltas), stacks))
    found = {}
    for name in file.deltas:
        stack, number, _ = _place(name, stacks)
        if stack < len(stacks):
            found[name] = strengths.get((stack, number), 1.0)
    kept = {n: d for n, d in file.deltas.items() if found.get(n, 1.0) != 0.0}
    return replace(file, deltas=kept, strengths=found)


def _place(name: str, stacks: Sequence[str]) -> tuple[int, int, str]:
    """(which stack, which block, what it is called) of a parameter; behind all when in none."""
    for index, stack in enumerate(stacks):
        found = re.match(re.escape(stack) + r"\.(\d+)\.", f"{layer_of(name)}.")
        if found:
            return index, int(found[1]), f"{stack}.{found[1]}"
    return len(stacks), 0, _REST


def _counts(names: Iterable[str], stacks: Sequence[str]) -> list[int]:
    """How many blocks each stack has, as far as these names tell."""
    counts = [0] * len(stacks)
    for name in names:
        stack, number, _ = _place(name, stacks)
        if stack < len(stacks):
            counts[stack] = max(counts[stack], number + 1)
    return counts


def _strengths(
    words: str, stacks: Sequence[str], counts: Sequence[int]
) -> dict[tuple[int, int], float]:
    """(stack, block) → strength."""
    parts = [part.strip() for part in words.split(",") if part.strip()]
    blocks = [(i, n) for i, count in enumerate(counts) for n in range(count)]
    if all("=" not in part for part in parts):
        if len(parts) != len(blocks):
            raise ConfigError(
                f"--lora_block_weights has {counted(len(parts), 'number')}, and the network has "
                f"{counted(len(blocks), 'block')}.",
                fix=f"Give a number for each, or write {stacks[0] if stacks else 'blocks'}.0-9=0.5.",
            )
        return dict(zip(blocks, (_number(part, part) for part in parts), strict=True))
    found: dict[tuple[int, int], float] = {}
    for part in parts:
        match = _ONE.fullmatch(part)
        if match is None:
            raise ConfigError(
                f"--lora_block_weights {part!r} is not a block and a strength.",
                fix=f"Write {stacks[0] if stacks else 'blocks'}.0-9=0.5.",
            )
        if match["stack"] not in stacks:
            raise ConfigError(
                f"--lora_block_weights names {match['stack']!r}, which is no stack of blocks.",
                fix=did_you_mean(match["stack"], stacks),
            )
        stack = list(stacks).index(match["stack"])
        first = int(match["first"] or 0)
        last = counts[stack] - 1
        if match["first"] is not None and match["to"] is None:
            last = first
        elif match["last"]:
            last = int(match["last"])
        if first > last or last >= counts[stack]:
            raise ConfigError(
                f"--lora_block_weights {part!r}: {match['stack']} has the blocks 0 to "
                f"{counts[stack] - 1}.",
                fix="Give blocks that are there, the first one first.",
            )
        found |= dict.fromkeys(
            ((stack, n) for n in range(first, last + 1)), _number(match["value"], part)
        )
    return found


def _number(text: str, part: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(
            f"--lora_block_weights {part!r}: {text!r} is not a number.", fix="Write 0.5, say."
        ) from None


def _draw(path: Path, drawn: Sequence[tuple[str, Mapping[str, float]]]) -> None:
    """A row of bars for each file, one bar a block."""
    from PIL import Image, ImageDraw

    bar, gap, height, margin, label = 14, 4, 160, 12, 18
    width = max(len(norms) for _, norms in drawn) * (bar + gap) + 2 * margin
    picture = Image.new("RGB", (max(width, 420), len(drawn) * (height + 3 * label)), "white")
    draw = ImageDraw.Draw(picture)
    most = max((max(n.values(), default=0.0) for _, n in drawn), default=0.0) or 1.0
    for row, (name, norms) in enumerate(drawn):
        top = row * (height + 3 * label)
        plain = name.encode("ascii", "replace").decode()  # Pillow's own font knows no more
        largest = max(norms.values(), default=0.0)
        draw.text((margin, top + 2), f"{plain}: largest {largest:.4g}", fill="black")
        floor = top + label + height
        for i, (block, norm) in enumerate(norms.items()):
            left = margin + i * (bar + gap)
            draw.rectangle(
                (left, floor - round(height * norm / most), left + bar, floor), fill="#3060a0"
            )
            number = block.rpartition(".")[2]
            draw.text((left, floor + 2), number if number.isdigit() else "+", fill="black")
    try:
        with atomic(path) as temporary:
            picture.save(temporary, format="PNG")
    except OSError as error:
        raise ConfigError(
            f"The picture {path} cannot be written: {error.strerror or error}.",
            fix="Give another --picture.",
        ) from error
