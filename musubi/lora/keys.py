"""The words behind a layer's name in adapter files, and the change that the tensors of a layer make.

`blocks.0.ffn.0.lora_down.weight` is the field "down" of the stem `blocks.0.ffn.0`; what a stem's
fields make together is one change of its weight, and sometimes one of its bias.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch

from musubi.errors import CheckpointError
from musubi.lora.delta import Delta, Difference, Pair, Replacement
from musubi.lora.kinds import Decomposed, Hada, InputRotation, Kron, Rotation
from musubi.lora.peft import PeftConfig

Fields = Mapping[str, str]
"""Field → its name in the file."""

_HADA = ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")
_KRON = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
_DEFAULT = r"(?:\.default)?"
_FIELDS: tuple[tuple[str, str], ...] = (
    ("down", rf"\.lora_(?:down|A){_DEFAULT}(?:\.weight)?|[._]lora\.down\.weight"),
    ("up", rf"\.lora_(?:up|B){_DEFAULT}(?:\.weight)?|[._]lora\.up\.weight"),
    ("down", r"\.lora_linear_layer\.down\.weight"),
    ("up", r"\.lora_linear_layer\.up\.weight"),
    ("mid", r"\.lora_mid\.weight"),
    ("up_bias", rf"\.lora_(?:up|B){_DEFAULT}\.bias"),
    ("magnitude", rf"\.dora_scale|\.lora_magnitude_vector{_DEFAULT}(?:\.weight)?"),
    *((f"hada_{f}", rf"\.hada_{f}{_DEFAULT}") for f in _HADA),
    *((f"lokr_{f}", rf"\.lokr_{f}{_DEFAULT}") for f in _KRON),
    ("blocks", r"\.oft_blocks"),
    ("rescale", r"\.rescale"),
    ("generator", rf"\.oft_R{_DEFAULT}\.weight"),
    *((f, rf"\.{f}") for f in ("diff", "diff_b", "diff_m", "w_norm", "b_norm", "set_weight")),
    ("alpha", r"\.alpha"),
)
_ENDINGS = [(field, re.compile(rf"(?P<stem>.+?)(?:{ending})")) for field, ending in _FIELDS]
# Kinds that are named in the refusal, for nobody trains them on these networks.
_REFUSED = {
    "(IA)³": r".*\.(on_input|ia3_l.*)",
    "GLoRA": r".*\.(a1|a2|b1|b2)\.weight",
    "VeRA": r".*vera_lambda.*",
    "BOFT of peft": r".*\.boft_[RS].*",
    "AdaLoRA": r".*\.lora_E(\..*)?",
    "LoRA that pads its layers": r".*\.reshape_weight",
    "LoRA of layers in parts": r".*\.lora_(down|up)\.\d+\.weight",
}
_KINDS: tuple[tuple[str, str], ...] = (
    ("hada_w1_a", "LoHa"),
    ("lokr_", "LoKr"),
    ("blocks", "OFT"),
    ("generator", "OFT"),
    ("magnitude", "DoRA"),
    ("down", "LoRA"),
)
_SHOWN = 3


def parsed(name: str) -> tuple[str, str] | None:
    """(stem, field) of a tensor's name; None when it has no known ending.

    >>> parsed("blocks.0.attn.to_q_lora.down.weight")
    ('blocks.0.attn.to_q', 'down')
    """
    for field, ending in _ENDINGS:
        found = ending.fullmatch(name)
        if found:
            return found["stem"], field
    return None


def grouped(path: Path, names: Iterable[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Stem → its names by field; and the names that have no field or stand alone.

    Raises:
        CheckpointError: It is no adapter, of a kind that is not read, or a part is missing.
    """
    names = list(names)
    for kind, pattern in _REFUSED.items():
        hit = next((n for n in names if re.fullmatch(pattern, n)), None)
        if hit is not None:
            raise CheckpointError(
                f"{path} is a {kind} ({hit!r}), which is not read here.",
                fix="Give a LoRA, LoHa, LoKr, DoRA or OFT, or a checkpoint it was merged into.",
            )
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    stray: list[str] = []
    for name in names:
        found = parsed(name)
        if found is None:
            stray.append(name)
        else:
            groups[found[0]][found[1]] = name
    for stem in [stem for stem, fields in groups.items() if set(fields) <= {"alpha", "rescale"}]:
        stray += groups.pop(stem).values()
    if not groups:
        raise CheckpointError(
            f"{path} is not a LoRA: none of its tensors is called lora_down, lora_A or the like"
            + (f"; they are called {', '.join(stray[:_SHOWN])}." if stray else "."),
            fix="Give a LoRA file.",
        )
    for stem, fields in groups.items():
        _complete(path, stem, fields)
    return dict(groups), stray


def kind_of(fields: Iterable[str]) -> str:
    """What a stem's fields are called together."""
    fields = list(fields)
    for start, kind in _KINDS:
        if any(f.startswith(start) for f in fields):
            return kind
    return "difference"


def _complete(path: Path, stem: str, fields: Fields) -> None:
    needed: tuple[tuple[str, ...], ...] = ()
    if any(f.startswith("hada_") for f in fields):
        needed = tuple((f"hada_{f}",) for f in _HADA[:4])
        if "hada_t1" in fields or "hada_t2" in fields:
            needed += (("hada_t1",), ("hada_t2",))
    elif any(f.startswith("lokr_") for f in fields):
        needed = (("lokr_w1", "lokr_w1_a"), ("lokr_w2", "lokr_w2_a"))
        needed += tuple((f"lokr_{n}_b",) for n in ("w1", "w2") if f"lokr_{n}" not in fields)
    elif {"down", "up", "mid", "magnitude", "up_bias"} & set(fields):
        needed = (("down",), ("up",))
    missing = next((names for names in needed if not set(names) & set(fields)), None)
    if missing is None:
        return
    if "down" in fields or "up" in fields:
        raise CheckpointError(
            f"{path} has only one of the two matrices of {stem!r}.",
            fix="The file is incomplete; download or train it again.",
        )
    raise CheckpointError(
        f"{path} lacks {' or '.join(missing)} of {stem!r}.",
        fix="The file is incomplete; download or train it again.",
    )


def assembled(
    stem: str,
    fields: Fields,
    read: Callable[[str], torch.Tensor],
    config: PeftConfig,
) -> Iterator[tuple[str, Delta]]:
    """The changes that a stem's tensors make: ("weight", "bias" or "modulation", change).

    Args:
        stem: Of the names.
        fields: The names.
        read: Gives a tensor of the file.
        config: What peft wrote beside the file, or what stands for it.
    """

    def at(field: str) -> torch.Tensor | None:
        return read(fields[field]) if field in fields else None

    def there(field: str) -> torch.Tensor:
        return read(fields[field])

    alpha = _number(there("alpha")) if "alpha" in fields else None
    main: Delta | None = None
    if "down" in fields:
        pair = Pair(there("down"), there("up"), alpha, at("mid"))
        if alpha is None:
            pair.alpha = config.alpha(stem, pair.rank)
        main = pair
        if "up_bias" in fields:
            yield "bias", Difference(there("up_bias").float() * pair.scale)
    elif "hada_w1_a" in fields:
        hada = Hada(
            there("hada_w1_a"),
            there("hada_w1_b"),
            there("hada_w2_a"),
            there("hada_w2_b"),
            alpha,
            at("hada_t1"),
            at("hada_t2"),
        )
        if alpha is None:
            hada.alpha = config.alpha(stem, hada.rank)
        main = hada
    elif any(f.startswith("lokr_") for f in fields):
        main = _kron(stem, {f: at(f"lokr_{f}") for f in _KRON}, alpha, config)
    elif "blocks" in fields:
        # A kohya file of the first versions writes the bound under alpha, as LyCORIS does.
        main = Rotation(there("blocks"), at("rescale"), alpha or 0.0)
    elif "generator" in fields:
        generator = there("generator")
        block = round((1 + (1 + 8 * generator.shape[1]) ** 0.5) / 2)
        shared = config.block_share or generator.shape[0] == 1
        main = InputRotation(generator, block, config.neumann_terms, shared)
    if main is not None:
        magnitude = at("magnitude")
        yield "weight", main if magnitude is None else Decomposed(main, magnitude)
    for field, place in (
        ("diff", "weight"),
        ("w_norm", "weight"),
        ("diff_b", "bias"),
        ("b_norm", "bias"),
        ("diff_m", "modulation"),
    ):
        if field in fields:
            yield place, Difference(there(field))
    if "set_weight" in fields:
        yield "weight", Replacement(there("set_weight"))


def _number(tensor: torch.Tensor) -> float:
    if tensor.numel() != 1:
        raise ValueError(f"its alpha is not one number but {tensor.numel()}")
    return float(tensor.float().reshape(()))


def _kron(
    stem: str, found: Mapping[str, torch.Tensor | None], alpha: float | None, config: PeftConfig
) -> Kron:
    # A whole matrix counts, whatever stands beside it.
    kept = {f: t for f, t in found.items() if not (f[2:] and found.get(f[:2]) is not None)}
    kron = Kron(**kept, alpha=alpha)
    if alpha is None:
        rank = kron.rank
        kron.alpha = None if rank is None else config.alpha(stem, rank)
        if rank is None and kron.w1 is not None and config.given:
            kron.w1 = kron.w1.float() * config.plain_scale(stem)
    return kron


def written(place: str, delta: Delta) -> dict[str, torch.Tensor]:
    """The tensors of a change behind its stem, in the kohya and LyCORIS words, alpha kept.

    Args:
        place: "weight", "bias" or "tensor", which is neither.
        delta: Not one of parts.

    Raises:
        TypeError: That kind has no words of its own.
    """
    if isinstance(delta, Decomposed):
        magnitude = delta.magnitude
        if magnitude.ndim == 1:
            magnitude = magnitude.reshape(-1, 1)
        return {**written(place, delta.inner), "dora_scale": magnitude}
    if isinstance(delta, Pair):
        mid = {} if delta.mid is None else {"lora_mid.weight": delta.mid}
        return {
            "lora_down.weight": delta.down,
            "lora_up.weight": delta.up,
            **mid,
            "alpha": _alpha(delta.alpha, delta.rank),
        }
    if isinstance(delta, Hada):
        tensors = {f"hada_{n}": t for n, t in delta.tensors().items()}
        return {"alpha": _alpha(delta.alpha, delta.rank), **tensors}
    if isinstance(delta, Kron):
        tensors = {f"lokr_{n}": t for n, t in delta.tensors().items()}
        return {"alpha": _alpha(delta.alpha, delta.rank or 1), **tensors}
    if isinstance(delta, Rotation):
        rescale = {} if delta.rescale is None else {"rescale": delta.rescale}
        return {"oft_blocks": delta.blocks, **rescale, "alpha": torch.tensor(delta.constraint)}
    if isinstance(delta, InputRotation):
        return {"oft_R.weight": delta.generator}
    if isinstance(delta, Difference):
        return {"diff_b" if place == "bias" else "diff": delta.value}
    if isinstance(delta, Replacement) and place == "weight":
        return {"set_weight": delta.value}
    raise TypeError(f"a {delta.title} has no names of its own")


def _alpha(alpha: float | None, rank: int) -> torch.Tensor:
    return torch.tensor(float(rank if alpha is None else alpha))
