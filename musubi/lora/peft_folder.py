"""Adapters as peft keeps them: a folder with `adapter_model.safetensors` and `adapter_config.json`."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from musubi.errors import ConfigError, RunError
from musubi.lora.delta import Delta, Pair
from musubi.lora.fresh import factors
from musubi.lora.kinds import Decomposed, Hada, InputRotation, Kron
from musubi.lora.layout import NoWordsError
from musubi.lora.names import WEIGHT
from musubi.lora.peft import CONFIG
from musubi.weights.write import atomic, save

_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."


def write_peft(path: Path, deltas: Mapping[str, Delta], dtype: torch.dtype) -> None:
    """Write the folder, with the layers called as in the official code.

    Args:
        path: The folder; made when absent.
        deltas: Our name of a weight → its change; all of one of peft's kinds.
        dtype: Of the tensors.

    Raises:
        NoWordsError: peft has no words for a change, or none for all of them together.
        RunError: The folder cannot be written.
    """
    if path.suffix == ".safetensors":
        raise ConfigError(
            f"{path} is a file, and peft keeps an adapter in a folder.",
            fix="Give a folder as --output.",
        )
    tensors, config = peft_tensors(deltas)
    cast = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
    save(path / _FILE, cast, {"format": "pt"})
    try:
        with atomic(path / CONFIG) as temporary:
            temporary.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    except OSError as error:
        raise RunError(
            f"{path / CONFIG} cannot be written: {error.strerror or error}.",
            fix="Check that the folder may be written.",
        ) from error


def peft_tensors(deltas: Mapping[str, Delta]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors by peft's names, and the words of `adapter_config.json`.

    Raises:
        NoWordsError: peft has no words for a change, or none for all of them together.
    """
    tensors: dict[str, torch.Tensor] = {}
    kinds: set[str] = set()
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for name, delta in deltas.items():
        layer = name.removesuffix(WEIGHT)
        kind, rank, alpha, words = _words(name, delta)
        kinds.add(kind)
        ranks[layer], alphas[layer] = rank, alpha
        tensors |= {f"{_PREFIX}{layer}.{word}": tensor.clone() for word, tensor in words.items()}
    if len(kinds) != 1:
        raise NoWordsError(
            f"The file holds {' and '.join(sorted(kinds)) or 'nothing'}, and a folder of peft holds one.",
            fix="Make pairs of it first: `musubi lora resize`.",
        )
    (kind,) = kinds
    config = _config(kind, list(ranks), ranks, alphas)
    if kind == "LoKr":
        config |= _kronecker([d for d in deltas.values() if isinstance(d, Kron)])
    return tensors, config


def _words(name: str, delta: Delta) -> tuple[str, int, float, dict[str, torch.Tensor]]:
    """Kind, rank, alpha, and the tensors behind the layer's name."""
    inner = delta.inner if isinstance(delta, Decomposed) else delta
    if isinstance(inner, Pair) and name.endswith(WEIGHT) and inner.mid is None:
        words = {"lora_A.weight": inner.down, "lora_B.weight": inner.up}
        if isinstance(delta, Decomposed) and not delta.by_column:
            words["lora_magnitude_vector"] = delta.magnitude.flatten()
            return "DoRA", inner.rank, inner.scale * inner.rank, words
        if inner is delta:
            return "LoRA", inner.rank, inner.scale * inner.rank, words
    if isinstance(delta, Hada) and delta.t1 is None:
        words = {f"hada_{n}": t for n, t in delta.tensors().items()}
        return "LoHa", delta.rank, delta.scale * delta.rank, words
    if isinstance(delta, Kron) and delta.t2 is None:
        words = {f"lokr_{n}": t for n, t in delta.tensors().items()}
        rank = delta.rank or max(int(t.shape[0]) for t in delta.tensors().values())
        return "LoKr", rank, delta.scale * rank, words
    if isinstance(delta, InputRotation):
        terms = f"OFT of {delta.terms} terms, blocks of {delta.block}"
        shared = ", shared" if delta.shared else ""
        return f"{terms}{shared}", delta.block, 0.0, {"oft_R.weight": delta.generator}
    raise NoWordsError(
        f"{name!r} is changed by a {delta.title}, and peft has no words for that.",
        fix="Give another --target, or make pairs of it: `musubi lora resize`.",
    )


def _config(
    kind: str, layers: list[str], ranks: Mapping[str, int], alphas: Mapping[str, float]
) -> dict[str, Any]:
    """What `adapter_config.json` says; odd layers have patterns of their own."""
    rank, _ = Counter(ranks.values()).most_common(1)[0]
    alpha, _ = Counter(alphas.values()).most_common(1)[0]
    config: dict[str, Any] = {
        "peft_type": "OFT" if kind.startswith("OFT") else kind.upper().replace("DORA", "LORA"),
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "target_modules": layers,
    }
    if kind.startswith("OFT"):
        terms = int(kind.split()[2])
        return config | {
            "r": 0,
            "oft_block_size": rank,
            "use_cayley_neumann": bool(terms),
            "num_cayley_neumann_terms": terms or 5,
            "block_share": kind.endswith("shared"),
        }
    config |= {
        "r": rank,
        "rank_pattern": {n: r for n, r in ranks.items() if r != rank},
        "alpha_pattern": {
            n: a for n, a in alphas.items() if not math.isclose(a, alpha, rel_tol=1e-9)
        },
    }
    if kind in ("LoRA", "DoRA"):
        return config | {"lora_alpha": alpha, "use_dora": kind == "DoRA", "bias": "none"}
    return config | {"alpha": alpha}


def _kronecker(krons: list[Kron]) -> dict[str, Any]:
    """The factor by which peft cuts its layers as these are cut.

    Raises:
        NoWordsError: No one factor does.
    """
    cuts = [(*kron.sides(), *kron.first().shape) for kron in krons]
    for factor in (-1, *sorted({n for cut in cuts for n in cut[2:]})):
        if all(
            factors(rows, factor)[0] == small_rows and factors(columns, factor)[0] == small_columns
            for rows, columns, small_rows, small_columns in cuts
        ):
            both = any(kron.w1 is None for kron in krons)
            return {"decompose_factor": factor, "decompose_both": both}
    raise NoWordsError(
        "Its LoKr matrices are cut in a way for which peft has no words.",
        fix="Give another --target, or make pairs of it: `musubi lora resize`.",
    )
