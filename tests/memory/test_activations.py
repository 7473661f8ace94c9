"""What waits in host memory between the forward and the backward pass."""

import torch

from musubi.memory.activations import Lot
from musubi.memory.host import host_bytes

CPU = torch.device("cpu")


def test_a_tensor_comes_back_as_it_was_whatever_its_strides() -> None:
    lot = Lot(CPU, smallest=1)
    for tensor in (
        torch.randn(3, 5),
        torch.randn(4, 6, 2).transpose(0, 2),
        torch.randn(10, 4)[3:7],
        torch.randn(2, 3).to(torch.bfloat16),
        torch.randn(2, 16).to(torch.float8_e4m3fn),
    ):
        parked = lot.pack(tensor, 0, ())
        assert parked is not None
        expected = tensor.clone()
        tensor.zero_()
        back = parked.unpack()
        assert torch.equal(back.float(), expected.float())
        assert back.stride() == expected.stride() if expected.is_contiguous() else True
        assert back.dtype == expected.dtype


def test_small_kept_and_gapped_tensors_stay() -> None:
    lot = Lot(CPU, smallest=64)
    assert lot.pack(torch.zeros(15), 0, ()) is None
    kept = torch.zeros(16)
    assert lot.pack(kept, 0, {kept.untyped_storage().data_ptr()}) is None
    assert lot.pack(torch.zeros(8, 8)[:, :4], 0, ()) is None
    assert lot.pack(torch.zeros(16), 0, ()) is not None


def test_buffers_are_used_again() -> None:
    lot = Lot(CPU, smallest=1)
    addresses = set()
    for _ in range(5):
        parked = lot.pack(torch.randn(100), 3, ())
        assert parked is not None
        addresses.add(parked.host.data_ptr())
        lot.send(3)
        parked.unpack()
    assert len(addresses) == 1


def test_host_memory_is_as_large_as_asked_and_starts_a_page() -> None:
    memory, locked = host_bytes(12345, CPU)
    assert memory.numel() == 12345
    assert memory.data_ptr() % 4096 == 0
    assert not locked
