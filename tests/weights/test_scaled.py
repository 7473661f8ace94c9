import pytest
import torch

from musubi.errors import CheckpointError
from musubi.weights import scaled
from musubi.weights.dtypes import FP8
from musubi.weights.scaled import expand

KINDS = sorted(FP8, key=str)
FP8_KIND = torch.float8_e4m3fn


@pytest.fixture(autouse=True, params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", [*KINDS, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [None, torch.tensor(0.3), torch.rand(10), torch.rand(10, 1)])
@pytest.mark.parametrize("shape", [(10, 7), (10,), (10, 3, 2), (10, 0)])
@pytest.mark.parametrize("block", [4, 30, 10_000])
def test_blocks_and_tables_change_no_bit(monkeypatch, kind, scale, shape, block):
    monkeypatch.setattr(scaled, "_BLOCK_HOST", block)
    weight = torch.randn(shape).to(kind)
    factor = 1 if scale is None else scale.reshape(-1, *(1,) * (len(shape) - 1))
    if scale is not None and not scale.ndim:
        factor = scale
    exact = weight.float() * factor
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn):
        found = expand("x", weight, scale, dtype)
        if scale is None and kind not in FP8:
            assert found is weight
        else:
            assert found.dtype is dtype
            assert torch.equal(found.double(), exact.to(dtype).double())


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_byte_stands_for_what_torch_says(kind):
    weight = torch.arange(256, dtype=torch.uint8).view(kind)
    found = expand("x", weight, torch.tensor(1.5))
    assert torch.equal(found.view(torch.int32), (weight.float() * 1.5).view(torch.int32))


def test_single_numbers_and_slices():
    assert expand("x", torch.tensor(2.0).to(torch.float8_e4m3fn), torch.tensor(3.0)) == 6
    assert expand("x", torch.tensor(2.0).to(torch.float8_e4m3fn), None) == 2
    weight = torch.randn(6, 8).to(torch.float8_e4m3fn)
    assert torch.equal(expand("x", weight.T, None), weight.float().T)
    with pytest.raises(CheckpointError, match="scale of 'x' has the shape"):
        expand("x", torch.tensor(2.0).to(torch.float8_e4m3fn), torch.ones(2))


@pytest.mark.parametrize("scale", [torch.tensor(0.3), torch.rand(10), torch.rand(10, 1)])
def test_integers_stand_for_their_multiples_of_a_scale(scale):
    weight = torch.randint(-127, 128, (10, 7), dtype=torch.int8)
    exact = weight.float() * (scale.reshape(-1, 1) if scale.ndim else scale)
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(expand("x", weight, scale, dtype), exact.to(dtype))


def test_integers_of_other_widths_are_refused():
    with pytest.raises(CheckpointError, match=r"quantised as torch\.int16"):
        expand("x", torch.ones(2, 2, dtype=torch.int16), torch.ones(2))


def test_integers_are_kept_only_with_scales():
    shapes = {"a": (4, 4), "b": (4, 4), "sa": (4, 1), "sb": ()}
    dtypes = {"a": torch.int8, "b": torch.int8}
    assert scaled.joinable(["a", "b"], shapes, dtypes, {"a": "sa", "b": "sb"})
    assert not scaled.joinable(["a", "b"], shapes, dtypes, {"a": "sa"})
    assert not scaled.joinable(
        ["a", "b"], shapes, {**dtypes, "b": FP8_KIND}, {"a": "sa", "b": "sb"}
    )
