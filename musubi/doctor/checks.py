"""Each thing that is looked at: what was found, whether it will do, and the command that mends it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch

from musubi.nn import attention

State = Literal["good", "absent", "poor", "bad"]
"""good; absent: optional, and not here; poor: it works with a loss; bad: something will fail."""

CUDA = "https://download.pytorch.org/whl/cu128"
_GIB = 2**30
_PACKAGES = {
    "flash2": "musubi-diffusion[flash]",
    "sage": "musubi-diffusion[sage]",
    "xformers": "musubi-diffusion[xformers]",
}


@dataclass(frozen=True)
class Check:
    """One finding.

    Args:
        name: What was looked at.
        state: How it is.
        found: In a few words; no path of the user's.
        fix: What to type or do; empty where nothing is amiss.
    """

    name: str
    state: State
    found: str
    fix: str = ""


def all_checks(disk: Path) -> Iterator[Check]:
    """Every finding, in an order that builds up: the language, torch, the card, memory, disk, extras."""
    yield python()
    yield _tried("torch", torch_build)
    yield from _packages()
    yield _tried("card", card)
    yield _tried("bfloat16", bfloat16)
    yield _tried("8-bit products", eight_bit_products)
    yield _tried("compiled blocks", compiled)
    for backend in attention.BACKENDS:
        yield _tried(f"attention {backend}", lambda name=backend: attention_backend(name))
    yield _tried("host memory", host_memory)
    if sys.platform == "win32":
        yield _tried("page file", page_file)
    if torch.cuda.is_available():
        yield _tried("pinned memory", pinned)
    yield _tried("disk", lambda: disk_speed(disk))
    yield _tried("video", video)


def _tried(name: str, check: Callable[[], Check]) -> Check:
    """A check whose failure is a finding too."""
    try:
        return check()
    except Exception as error:
        first = (str(error) or repr(error)).splitlines()[0]
        return Check(name, "bad", f"fails: {type(error).__name__}: {first[:200]}")


def python() -> Check:
    """The interpreter and the system."""
    version = platform.python_version()
    found = f"{version}, {platform.system()} {platform.release()}, {platform.machine()}"
    if (3, 10) <= sys.version_info[:2] <= (3, 13):
        return Check("python", "good", found)
    return Check("python", "bad", found, "Use Python 3.10 to 3.13.")


def torch_build() -> Check:
    """PyTorch, and what it was built for."""
    kind = f"CUDA {torch.version.cuda}" if torch.version.cuda else (
        f"ROCm {torch.version.hip}" if torch.version.hip else "CPU only"
    )  # fmt: skip
    found = f"{torch.__version__}, {kind}"
    if tuple(int(n) for n in torch.__version__.split("+")[0].split(".")[:2]) < (2, 6):
        return Check("torch", "bad", found, "pip install --upgrade torch")
    if kind == "CPU only" and shutil.which("nvidia-smi"):
        return Check(
            "torch", "bad", f"{found}; there is an NVIDIA driver",
            f"pip install --force-reinstall torch --index-url {CUDA}",
        )  # fmt: skip
    return Check("torch", "good", found)


def _packages() -> Iterator[Check]:
    for name in ("transformers", "accelerate", "safetensors", "av", "bitsandbytes"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            state: State = "poor" if name == "bitsandbytes" else "bad"
            yield Check(name, state, "not installed", f"pip install {name}")
            continue
        if importlib.util.find_spec(name) is None:
            yield Check(name, "bad", f"{version}, and cannot be imported", f"pip install --force-reinstall {name}")  # fmt: skip
        else:
            yield Check(name, "good", version)


def card() -> Check:
    """The card and what of its memory is free."""
    if not torch.cuda.is_available():
        if torch.version.cuda is None and torch.version.hip is None:
            return Check(
                "card", "poor", "none that this PyTorch can use; a CPU will do for the demo"
            )
        return Check(
            "card", "bad", "none is seen", "Install or update the driver, and look at `nvidia-smi`."
        )
    names, used = [], 0.0
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        major, minor = torch.cuda.get_device_capability(index)
        names.append(
            f"{torch.cuda.get_device_name(index)}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free, "
            f"capability {major}.{minor}"
        )
        used = max(used, 1 - free / total)
    state: State = "poor" if used > 0.15 else "good"
    fix = "Other programs hold some of its memory: close them, or see `nvidia-smi`." if used > 0.15 else ""  # fmt: skip
    return Check("card", state, "; ".join(names), fix)


def bfloat16() -> Check:
    """A product in bfloat16 on the device that would be trained on."""
    device = _device()
    if device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return Check(
            "bfloat16", "poor", "not by this card", "Add --mixed_precision fp16 to `musubi train`."
        )
    a = torch.randn(64, 64, device=device, dtype=torch.bfloat16)
    exact = (a.float() @ a.float()).to(torch.bfloat16).float()
    off = ((a @ a).float() - exact).abs().max().item() / exact.abs().max().item()
    return Check("bfloat16", "good" if off < 0.05 else "bad", "works" if off < 0.05 else f"is off by {off:.2g}")  # fmt: skip


def eight_bit_products() -> Check:
    """A product of 8-bit floats, as `--fp8_fast` makes it."""
    if not torch.cuda.is_available():
        return Check("8-bit products", "absent", "needs a card")
    if torch.cuda.get_device_capability() < (8, 9):
        return Check(
            "8-bit products", "absent", "this card has none; 8-bit weights work all the same"
        )
    a = torch.randn(32, 64, device="cuda").to(torch.float8_e4m3fn)
    b = torch.randn(48, 64, device="cuda").to(torch.float8_e4m3fn)
    one = torch.ones((), device="cuda")
    made = torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)  # type: ignore[attr-defined]
    off = (made.float() - a.float() @ b.float().t()).abs().max().item()
    return Check("8-bit products", "good" if off < 1 else "bad", "work" if off < 1 else "are wrong")


def compiled() -> Check:
    """A function compiled and run, as `--compile` does to blocks."""
    name = "compiled blocks"
    if not torch.cuda.is_available():
        return Check(name, "absent", "needs a card")
    if importlib.util.find_spec("triton") is None:
        package = "triton-windows" if sys.platform == "win32" else "triton"
        return Check(name, "poor", "triton is not installed", f"pip install {package}")
    x = torch.randn(64, 64, device="cuda")
    made = torch.compile(lambda t: torch.nn.functional.silu(t) * 2)(x)
    off = (made - torch.nn.functional.silu(x) * 2).abs().max().item()
    return Check(name, "good" if off < 1e-4 else "bad", "work" if off < 1e-4 else f"are off by {off:.2g}")  # fmt: skip


def attention_backend(backend: str) -> Check:
    """One back end, really run, and compared with the plain formula."""
    name = f"attention {backend}"
    device = _device()
    if device == "cpu" and backend != "sdpa":
        return Check(name, "absent", "needs a card")
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    q, k, v = (torch.randn(1, 128, 4, 64, device=device, dtype=dtype) for _ in range(3))
    try:
        with attention.use(backend), torch.no_grad():
            made = attention.attention(q, k, v).float()
    except Exception as error:
        if importlib.util.find_spec(_MODULES.get(backend, "torch")) is None:
            package = _PACKAGES.get(backend)
            how = (
                f"pip install {package}" if package else "See docs/training.md; sdpa needs nothing."
            )
            return Check(name, "absent", "not installed", how)
        first = str(error).splitlines()[0][:160]
        return Check(name, "poor", f"fails: {first}", "Leave its flag out: sdpa works without it.")
    weights = torch.softmax(torch.einsum("blhd,bmhd->bhlm", q.float(), k.float()) / 8, -1)
    exact = torch.einsum("bhlm,bmhd->blhd", weights, v.float())
    off = (made - exact).abs().max().item()
    good = off < (0.2 if backend == "sage" else 0.05)
    return Check(name, "good" if good else "bad", "works" if good else f"is off by {off:.2g}")


_MODULES = {"flash2": "flash_attn", "flash3": "flash_attn_interface", "sage": "sageattention", "xformers": "xformers"}  # fmt: skip


def host_memory() -> Check:
    """What of the host's memory can be used."""
    memory = psutil.virtual_memory()
    found = f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB can be used"
    if memory.total < 15 * _GIB:
        return Check(
            "host memory", "poor", found,
            "Use 8-bit files of large text encoders: they are read through host memory.",
        )  # fmt: skip
    return Check("host memory", "good", found)


def page_file() -> Check:
    """On Windows memory is promised against the page file: a small one stops large loads."""
    swap = psutil.swap_memory()
    found = f"{swap.total / _GIB:.1f} GiB"
    if swap.total < 16 * _GIB:
        return Check(
            "page file", "poor", found,
            "Let Windows manage its size: System > About > Advanced system settings > Performance > "
            "Advanced > Virtual memory.",
        )  # fmt: skip
    return Check("page file", "good", found)


def pinned() -> Check:
    """Page-locked memory, which streamed blocks are copied from, and how fast."""
    size = 256 << 20
    host = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    device = torch.empty(size, dtype=torch.uint8, device="cuda")
    device.copy_(host, non_blocking=True)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(4):
        device.copy_(host, non_blocking=True)
    torch.cuda.synchronize()
    rate = 4 * size / (time.perf_counter() - began) / 1e9
    state: State = "good" if rate > 8 else "poor"
    fix = "" if rate > 8 else "The card may sit in a slow slot; streamed blocks wait for this link."
    return Check("pinned memory", state, f"copied at {rate:.1f} GB/s", fix)


def disk_speed(folder: Path) -> Check:
    """Writing and reading back 128 MB, and the room that is left."""
    size, part = 128 << 20, os.urandom(1 << 20)
    with tempfile.TemporaryFile(dir=folder) as file:
        began = time.perf_counter()
        for _ in range(size >> 20):
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
        writing = size / (time.perf_counter() - began) / 1e6
    free = shutil.disk_usage(folder).free
    found = f"written at {writing:,.0f} MB/s, {free / 1e9:,.0f} GB free"
    if free < 40e9:
        return Check("disk", "poor", found, "A 14B model and its records want 40 to 100 GB.")
    if writing < 50:
        return Check("disk", "poor", found, "Put models and records on a faster disk.")
    return Check("disk", "good", found)


def video() -> Check:
    """A clip written as H.264, and read again."""
    import io

    import av
    import numpy as np

    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        track = container.add_stream("libx264", rate=8)
        track.width = track.height = 64
        track.pix_fmt = "yuv420p"
        for number in range(3):
            picture = np.full((64, 64, 3), number * 60, np.uint8)
            container.mux(track.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(track.encode())
    stream.seek(0)
    with av.open(stream) as container:
        count = sum(1 for _ in container.decode(video=0))
    good = count == 3
    return Check("video", "good" if good else "bad", "H.264 is written and read" if good else f"{count} of 3 frames came back")  # fmt: skip


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
