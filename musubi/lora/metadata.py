"""What a LoRA file says about itself: `ss_*`, `modelspec.*`, and the hashes that managers compare."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import torch
from safetensors.torch import save as serialised

from musubi import registry
from musubi.errors import ConfigError
from musubi.spec import Architecture

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
    training = {name: str(v) for name, v in metadata.items() if name.startswith("ss_")}
    blob = serialised(dict(tensors), training)
    start = 8 + int.from_bytes(blob[:8], "little")
    return {
        **metadata,
        "sshs_model_hash": hashlib.sha256(memoryview(blob)[start:]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(blob[0x100000:0x110000]).hexdigest()[:8],
    }


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple, dict)):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
