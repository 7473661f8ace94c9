"""What peft keeps beside an adapter's tensors: `adapter_config.json`, or the same in the header."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from musubi.errors import CheckpointError
from musubi.untrusted import TextError, parse_json, read_text, reason

CONFIG = "adapter_config.json"
HEADER = "lora_adapter_metadata"
"""Where diffusers puts the same words: as JSON in the header, behind the name of the network."""
_FILE = "adapter_model"
_PREFIXES = ("transformer.", "unet.")
_TERMS = "num_cayley_neumann_terms"
_MOST = 1_000_000
_DEFAULT_TERMS = 5  # of peft and OneTrainer


@dataclass(frozen=True, kw_only=True)
class PeftConfig:
    """The strength of each layer, as peft says it.

    Args:
        given: The words; empty when nobody said anything.
    """

    given: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def alpha(self, stem: str, rank: int) -> float | None:
        """Alpha of a layer, so that alpha / rank is its scale; None when nothing is said."""
        value = self._of(
            "alpha_pattern", stem, self.given.get("lora_alpha", self.given.get("alpha"))
        )
        if value is None:
            return None
        return float(value) * (math.sqrt(rank) if self.given.get("use_rslora") else 1.0)

    def plain_scale(self, stem: str) -> float:
        """The scale of a layer whose tensors do not show a rank."""
        rank = self._of("rank_pattern", stem, self.given.get("r"))
        alpha = self._of("alpha_pattern", stem, self.given.get("alpha"))
        return 1.0 if not rank or alpha is None else float(alpha) / float(rank)

    @property
    def neumann_terms(self) -> int:
        """Of OFT: terms of the series that stands for the inverse; 0 means the inverse."""
        if not self.given.get("use_cayley_neumann", True):
            return 0
        said = self.given.get(_TERMS)
        return int(_DEFAULT_TERMS if said is None else said)

    @property
    def block_share(self) -> bool:
        """Of OFT: whether one block serves all."""
        return bool(self.given.get("block_share", False))

    def _of(self, patterns: str, stem: str, otherwise: Any) -> Any:
        """The value of the first pattern that ends the name, at a dot, as peft looks it up."""
        for pattern, value in (self.given.get(patterns) or {}).items():
            with contextlib.suppress(re.error, RecursionError):
                if _quick(pattern) and re.search(rf"(^|\.)(?:{pattern.removeprefix('^')})$", stem):
                    return value
        return otherwise


def config_of(path: Path, names: tuple[str, ...], header: Mapping[str, str]) -> PeftConfig:
    """What is said about a file: in its folder when it is peft's own, else in its header.

    Args:
        path: The file or folder.
        names: Names of its tensors.
        header: Its metadata.

    Raises:
        CheckpointError: The file beside it is no JSON.
    """
    folder = path if path.is_dir() else path.parent
    own = path.is_dir() or path.stem.startswith(_FILE)
    if own or any(name.startswith("base_model.model.") for name in names):
        beside = folder / CONFIG
        if beside.is_file():
            try:
                return PeftConfig(given=_checked(parse_json(read_text(beside))))
            except (ValueError, OSError) as error:
                raise CheckpointError(
                    f"{beside} cannot be read: {reason(error)}.",
                    fix="It says how strong the LoRA is; download it again.",
                ) from error
    given: dict[str, Any] = {}
    try:
        said = parse_json(header.get(HEADER, "{}"))
        for name, value in said.items() if isinstance(said, dict) else ():
            for prefix in _PREFIXES:
                name = name.removeprefix(prefix)
            given[name] = value
        return PeftConfig(given=_checked(given))
    except ValueError as error:
        raise CheckpointError(
            f"{path}: {HEADER} in its header cannot be read: {reason(error)}.",
            fix="It says how strong the LoRA is; download it again.",
        ) from error


def _checked(given: Any) -> dict[str, Any]:
    """The words whose kinds are what they should be.

    Raises:
        TextError: They are not.
    """
    if not isinstance(given, dict):
        raise TextError("it is no table")
    for key, most in (("r", _MOST), ("lora_alpha", None), ("alpha", None), (_TERMS, 1000)):
        value = given.get(key)
        if value is not None and not _is_number(value, most):
            raise TextError(f"{key} is {value!r:.40}")
    for key in ("alpha_pattern", "rank_pattern"):
        table = given.get(key) or {}
        if not isinstance(table, dict):
            raise TextError(f"{key} is no table")
        for name, value in table.items():
            if not _is_number(value, None):
                raise TextError(f"{key} gives {name!r:.40} the value {value!r:.40}")
    return given


def _is_number(value: object, most: int | None) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) and (0 if most else -1e30) <= value <= (most or 1e30)


def _quick(pattern: str) -> bool:
    """Whether looking for a pattern ends soon: a file may hold one that takes years."""
    return (
        len(pattern) <= 300
        and len(re.findall(r"[*+{]", pattern)) <= 3
        and re.search(r"\)[*+{]", pattern) is None
    )
