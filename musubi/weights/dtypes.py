"""Names of dtypes: as people spell them, as safetensors stores them, as torch has them."""

from __future__ import annotations

import torch

from musubi.errors import ConfigError, did_you_mean

_SPELLINGS: dict[str, torch.dtype] = {
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "float32": torch.float32,
    "float": torch.float32,
    "fp8": torch.float8_e4m3fn,
    "float8": torch.float8_e4m3fn,
}
for _kind in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz"):
    for _stem in ("", "fp8_", "float8_"):
        _SPELLINGS[_stem + _kind] = getattr(torch, f"float8_{_kind}")

FP8 = frozenset(dtype for dtype in _SPELLINGS.values() if dtype.itemsize == 1)

_STORED: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
if hasattr(torch, "float8_e8m0fnu"):  # torch 2.7
    _STORED["F8_E8M0"] = torch.float8_e8m0fnu
_CODES = {dtype: code for code, dtype in _STORED.items()}


def parse_dtype(text: str) -> torch.dtype:
    """The dtype that a person means: `bf16`, `bfloat16`, `torch.float16`, `fp8_e4m3fn`, …

    Raises:
        ConfigError: No dtype is called that.
    """
    name = text.strip().lower().removeprefix("torch.")
    found = _SPELLINGS.get(name)
    if found is None:
        raise ConfigError(f"There is no dtype {text!r}.", fix=did_you_mean(name, _SPELLINGS))
    return found


def dtype_name(dtype: torch.dtype) -> str:
    """Its name in torch, without `torch.`: "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def stored_dtype(code: str) -> torch.dtype | None:
    """The dtype that a safetensors header calls `code`, or None when this torch has none."""
    return _STORED.get(code)


def stored_code(dtype: torch.dtype) -> str:
    """What a safetensors header calls a dtype.

    Raises:
        ValueError: safetensors has no such dtype.
    """
    if dtype not in _CODES:
        raise ValueError(f"safetensors files cannot hold {dtype}")
    return _CODES[dtype]
