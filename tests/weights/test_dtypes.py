import pytest
import torch

from musubi.errors import ConfigError
from musubi.weights.dtypes import dtype_name, parse_dtype, stored_code, stored_dtype


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("bf16", torch.bfloat16),
        ("BFloat16", torch.bfloat16),
        ("fp16", torch.float16),
        ("torch.float16", torch.float16),
        ("float", torch.float32),
        ("fp32", torch.float32),
        ("fp8", torch.float8_e4m3fn),
        ("float8", torch.float8_e4m3fn),
        ("e4m3fn", torch.float8_e4m3fn),
        ("fp8_e4m3fnuz", torch.float8_e4m3fnuz),
        ("float8_e5m2", torch.float8_e5m2),
        ("e5m2fnuz", torch.float8_e5m2fnuz),
    ],
)
def test_every_spelling_is_understood(text, dtype):
    assert parse_dtype(text) is dtype


def test_an_unknown_dtype_names_the_nearest():
    with pytest.raises(ConfigError, match=r"no dtype 'bflot16'\. Did you mean 'bfloat16'"):
        parse_dtype("bflot16")


def test_names_and_codes_go_both_ways():
    assert dtype_name(torch.bfloat16) == "bfloat16"
    for code in ("F8_E4M3", "BF16", "BOOL", "U16"):
        dtype = stored_dtype(code)
        assert dtype is not None
        assert stored_code(dtype) == code
    assert stored_dtype("F4") is None
    with pytest.raises(ValueError, match="cannot hold"):
        stored_code(torch.complex128)
