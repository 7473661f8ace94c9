"""What a LoRA file says about itself: `ss_*`, `modelspec.*`, and the hashes that managers compare."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import torch
from safetensors.torch import save as serialised

from musubi import registry
from musubi.errors import ConfigError
from musubi.plugin import Architecture
from musubi.weights.header import make_header

DENOISER = "musubi_denoiser"
"""The metadata key that says which of a task's denoisers a file was trained for."""

# What --no_metadata keeps.
MINIMUM = tuple(
    f"ss_{n}"
    for n in (
        "base_model_version",
        "network_module",
        "network_dim",
        "network_alpha",
        "network_args",
    )
)


def training_metadata(
    facts: Mapping[str, Any],
    architecture: Architecture,
    *,
    network: Mapping[str, Any],
    minimum: bool = False,
) -> dict[str, str]:
    """`ss_*` keys, every value as text.

    Args:
        facts: Name without `ss_` → value ("learning_rate", "num_epochs", "session_id", …); lists and
            dictionaries are written as JSON.
        architecture: That is trained.
        network: "dim", "alpha", "dropout", "args".
        minimum: Keep only what a loader needs.
    """
    values: dict[str, Any] = {f"ss_{name}": value for name, value in facts.items()}
    values["ss_base_model_version"] = architecture.name
    modules = architecture.network_modules
    values["ss_network_module"] = modules[0] if modules else "networks.lora"
    for name, value in network.items():
        if name != "args" or value:
            values[f"ss_network_{name}"] = value
    if minimum:
        values = {name: value for name, value in values.items() if name in MINIMUM}
    return {name: _text(value) for name, value in values.items()}


def modelspec(
    architecture: Architecture,
    *,
    title: str | None = None,
    timestep_range: tuple[int, int] | None = None,
    resolution: str = "1280x720",
    **given: str | None,
) -> dict[str, str]:
    """`modelspec.*` keys of a LoRA; `given` are author, description, license and tags."""
    name, implementation = architecture.modelspec
    values = {
        "sai_model_spec": "1.0.0",
        "architecture": f"{name or architecture.name}/lora",
        "implementation": implementation,
        "title": title or f"LoRA@{int(time.time())}",
        "resolution": resolution,
        "date": datetime.now().replace(microsecond=0).isoformat(),
        "timestep_range": ",".join(map(str, timestep_range)) if timestep_range else None,
        **given,
    }
    return {f"modelspec.{key}": value for key, value in values.items() if value}


def with_modelspec(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata, with the model-spec keys that it lacks and that follow from it."""
    try:
        architecture = registry.find(metadata["ss_base_model_version"])
    except (KeyError, ConfigError):  # a plugin in development, or nothing known
        return dict(metadata)
    return {**modelspec(architecture, title=metadata.get("ss_output_name")), **metadata}


def with_hashes(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata with `sshs_model_hash` and `sshs_legacy_hash` of these tensors."""
    entries = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    return {**metadata, **hashes(entries, tensors.__getitem__, metadata)}


def hashes(
    entries: Sequence[tuple[str, torch.dtype, Sequence[int]]],
    produce: Callable[[str], torch.Tensor],
    metadata: Mapping[str, str],
) -> dict[str, str]:
    """`sshs_model_hash` and `sshs_legacy_hash`, holding one tensor at a time.

    They are of the bytes that the safetensors library writes for these tensors and the `ss_*` keys:
    of all behind the header, and of 64 KiB at 1 MiB.

    Args:
        entries: Name, dtype and shape of every tensor.
        produce: Gives a tensor.
        metadata: Its `ss_*` keys count.
    """
    training = {name: str(v) for name, v in metadata.items() if name.startswith("ss_")}
    empty = serialised({name: torch.empty(0, dtype=dtype) for name, dtype, _ in entries})
    order = list(json.loads(empty[8 : 8 + int.from_bytes(empty[:8], "little")]))
    by_name = {entry[0]: entry for entry in entries}
    text = make_header([by_name[name] for name in order], training).raw[8:].rstrip(b" ")
    if not training:
        text = b'{"__metadata__":{},' + text[1:]  # which we leave out, and the library writes
    text += b" " * (-len(text) % 8)
    whole, part = hashlib.sha256(), hashlib.sha256()
    place = 0
    for piece in itertools.chain(
        (len(text).to_bytes(8, "little"), text), (_bytes(produce(name)) for name in order)
    ):
        part.update(piece[max(0x100000 - place, 0) : max(0x110000 - place, 0)])
        if place > len(text):
            whole.update(piece)
        place += len(piece)
    return {"sshs_model_hash": whole.hexdigest(), "sshs_legacy_hash": part.hexdigest()[:8]}


def _bytes(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple, dict)):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
