"""What waits in host memory between the forward and the backward pass."""

import pytest
import torch
from torch import nn

from musubi.memory import activations, host, stream
from musubi.memory import packed as packing
from musubi.memory.activations import Lot
from musubi.memory.apply import PolicyPlacement
from musubi.memory.host import host_bytes
from musubi.memory.packed import PACKED
from musubi.plugin import Policy, Quiet, Traits
from musubi.train import offload
from musubi.train.offload import Mirror

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
    memory = host_bytes(12345, CPU, Quiet())
    assert memory.numel() == 12345
    assert memory.data_ptr() % 4096 == 0


CUDA = torch.device("cuda")


def test_memory_that_cannot_be_page_locked_is_said_once(monkeypatch) -> None:
    report, locks = Quiet(), iter((True, False, False))
    monkeypatch.setattr(host, "_lock", lambda memory: next(locks))
    host_bytes(10, CUDA, report)
    assert not report.warnings
    assert host_bytes(10, CUDA, report).tolist() == [0] * 10
    host_bytes(10, CUDA, report)
    (said,) = report.warnings
    assert said.startswith("Host memory cannot be page-locked here:")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def parks(report: Quiet) -> None:
    policy = Policy(offload_activations=True)
    net = PolicyPlacement(Traits(stacks=("blocks",)), policy, CPU, smallest=1, report=report)
    net.finish(Net())(torch.randn(2, 4, requires_grad=True)).sum().backward()


def streams(report: Quiet) -> None:
    placement = PolicyPlacement(
        Traits(stacks=("blocks",)), Policy(streamed=(1,)), CPU, report=report
    )
    placement.prepare(Net(), {})


def mirrors(report: Quiet) -> None:
    Mirror([nn.Parameter(torch.randn(2, 2))], report=report)


@pytest.mark.parametrize(
    ("user", "room"), [(parks, activations), (streams, stream), (mirrors, offload)]
)
def test_each_user_of_host_memory_says_so(user, room, monkeypatch) -> None:
    def unlocked(size: int, device: torch.device, report: Quiet) -> torch.Tensor:
        return host_bytes(size, CUDA, report)  # as if the processor were a device

    monkeypatch.setattr(host, "_lock", lambda memory: False)
    monkeypatch.setattr(room, "host_bytes", unlocked)
    report = Quiet()
    user(report)
    assert len(report.warnings) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_8_bits_each_number_is_off_by_half_a_step_of_its_group(dtype) -> None:
    lot = Lot(CPU, smallest=1, eight=True)
    tensor = (torch.randn(6, 40, 128) * torch.logspace(-3, 2, 40)[:, None]).to(dtype)
    turned = tensor.transpose(0, 1)
    parked = lot.pack(turned, 0, ())
    assert parked is not None and parked.host.numel() == tensor.numel() * PACKED * 2
    back = parked.unpack()
    assert back.dtype is dtype and back.shape == turned.shape and back.stride() == turned.stride()
    step = turned.float().abs().amax(-1, keepdim=True) / 127
    rounding = turned.float().abs() * torch.finfo(dtype).eps
    assert ((back.float() - turned.float()).abs() <= step * 0.51 + rounding).all()
    assert 0.003 < (back.float() - turned.float()).norm() / turned.float().norm() < 0.012


def test_in_8_bits_only_what_has_16_goes() -> None:
    lot = Lot(CPU, smallest=1, eight=True)
    for tensor in (torch.randn(4, 128), torch.randn(5, 100).bfloat16()):
        parked = lot.pack(tensor, 0, ())
        assert parked is not None
        assert torch.equal(parked.unpack(), tensor)


def test_chunks_pack_alike(monkeypatch) -> None:
    flat = torch.randn(128 * 11).bfloat16()
    whole = packing.packed(flat)
    back = packing.unpacked(whole, torch.bfloat16)
    monkeypatch.setattr(packing, "_CHUNK", 4)
    assert torch.equal(packing.packed(flat), whole)
    assert torch.equal(packing.unpacked(whole, torch.bfloat16), back)


def test_gradients_from_8_bits_stay_close_and_losses_equal() -> None:
    found = {}
    for eight in (False, True):
        torch.manual_seed(0)
        module = Wide().to(torch.bfloat16)
        policy = Policy(recompute="blocks", offload_activations=True, offload_8bit=eight)
        PolicyPlacement(Traits(stacks=("blocks",)), policy, CPU, smallest=1).finish(module)
        loss = module(torch.randn(64, 128).bfloat16()).float().square().mean()
        loss.backward()
        gradients = [p.grad.float().flatten() for p in module.parameters()]
        found[eight] = loss.detach(), torch.cat(gradients)
    assert torch.equal(found[True][0], found[False][0])
    error = (found[True][1] - found[False][1]).norm() / found[False][1].norm()
    assert 1e-4 < error < 0.02


class Wide(nn.Module):
    """Blocks wide enough for groups."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(128, 128), nn.Tanh()) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x
