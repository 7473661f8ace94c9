"""Loading a checkpoint of full size: `python tests/benchmarks/load.py --arch wan --size 14B --dtype bf16`.

It writes a checkpoint of random numbers in the layout that the architecture's own names give, loads
it several times in a process of its own, says how long that took beside what the link to the device
moves, and removes it. With `--plain`, the safetensors library loads it too.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from musubi import registry
from musubi.plugin import Component, Variant
from musubi.plugin.architecture import Architecture
from musubi.weights.header import make_header
from musubi.weights.load import load

GB, GIB = 1e9, 2**30
FP8 = torch.float8_e4m3fn
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
NOISE = 2**26  # bytes of random numbers, written over and over


def main() -> None:
    """Write, load, say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="wan")
    parser.add_argument("--size", default="14B", help="the end of a variant's name")
    parser.add_argument("--dtype", default="bf16", choices=[*DTYPES, "fp8", "fp8_scaled"])
    parser.add_argument("--folder", type=Path, help="where to write; /dev/shm if there is room")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--plain", action="store_true", help="also by the safetensors library")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load is not None:
        measure(options)
        return
    architecture = registry.find(options.arch)
    variant = find_variant(architecture, options.size)
    entries = list(layout(architecture.dit, variant.numbers, options.dtype))
    size = sum(dtype.itemsize * math.prod(shape) for _, dtype, shape in entries)
    with tempfile.TemporaryDirectory(dir=options.folder or roomy(size)) as name:
        file = Path(name) / "model.safetensors"
        start = time.perf_counter()
        write(file, entries)
        took = time.perf_counter() - start
        print(
            f"{variant.name} in {options.dtype}: {size / GB:.2f} GB, written in {took:.1f} s, {file}"
        )
        words = [sys.executable, __file__, *sys.argv[1:], "--load", str(file)]
        for plain in [[], ["--plain"]] if options.plain else [[]]:
            own = [word for word in words if word != "--plain"]
            subprocess.run([*own, *plain], check=True)


def find_variant(architecture: Architecture, size: str) -> Variant:
    """The first variant whose name is the size or ends with it."""
    for variant in architecture.variants:
        if variant.name == size or variant.name.endswith(f"-{size}"):
            return variant
    names = ", ".join(variant.name for variant in architecture.variants)
    raise SystemExit(f"{architecture.name} has no variant {size!r}; it has {names}.")


def layout(
    component: Component, numbers: Mapping[str, Any], kind: str
) -> Iterator[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Name, dtype and shape of all that the file holds, in the names of the first dialect.

    Scaled files hold matrices of the blocks in 8 bits, and a float32 scale for each.
    """
    with torch.device("meta"):
        state = component.build(**numbers).state_dict()
    dialect = component.dialects[0]
    for theirs, source in dialect.writing(state).items():
        shape = tuple(state[source.names[0]].shape)
        if source.operation == "split":
            whole = sum(source.ratio)
            shape = (shape[0] * source.ratio[source.part] // whole, *shape[1:])
        elif source.operation == "unsqueeze":
            ones = (1,) * source.ones
            shape = (*ones, *shape) if source.leading else (*shape, *ones)
        if kind in DTYPES:
            yield theirs, DTYPES[kind], shape
        elif len(shape) == 2 and any(
            source.names[0].startswith(s) for s in component.traits.stacks
        ):
            yield theirs, FP8, shape
            if kind == "fp8_scaled" and theirs.endswith(".weight"):
                yield theirs.removesuffix("weight") + "scale_weight", torch.float32, ()
        else:
            yield theirs, torch.bfloat16, shape


def write(file: Path, entries: list[tuple[str, torch.dtype, tuple[int, ...]]]) -> None:
    """The same finite random numbers over and over."""
    header = make_header(entries, {})
    noise = {
        dtype: (torch.randn(NOISE // dtype.itemsize) * 0.02).to(dtype).view(torch.uint8).numpy()
        for dtype in {dtype for _, dtype, _ in entries}
    }
    with file.open("wb") as out:
        out.write(header.raw)
        for entry in header.entries.values():
            assert entry.dtype is not None
            left = entry.end - entry.start
            while left:
                left -= out.write(noise[entry.dtype][:left].data)


def roomy(size: int) -> str | None:
    """Memory-backed, if there is such a place with room for the file; else any temporary folder."""
    shared = Path("/dev/shm")
    return str(shared) if shared.is_dir() and shutil.disk_usage(shared).free > size * 1.1 else None


def measure(options: argparse.Namespace) -> None:
    """Load the file several times in this process, and say how it went."""
    architecture = registry.find(options.arch)
    device = torch.device(options.device)
    size = options.load.stat().st_size
    if device.type == "cuda":
        torch.zeros(1, device=device)
        rate = link(device)
        print(f"floor by the link: {size / rate:.2f} s at {rate / GB:.1f} GB/s, pinned")
    before = resident("VmRSS")
    for turn in range(options.times):
        start = time.perf_counter()
        if options.plain:
            module = plainly(architecture, options, device)
        else:
            module = load(architecture.dit, options.load, device=device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took = time.perf_counter() - start
        facts = {
            "by": "safetensors" if options.plain else "musubi",
            "turn": turn + 1,
            "seconds": round(took, 3),
            "gb_per_s": round(size / took / GB, 2),
            "threads_left": threading.active_count() - 1,
            "host_peak_mib": resident("VmHWM") >> 20,
            "host_before_mib": before >> 20,
        }
        if device.type == "cuda":
            facts["device_peak_gib"] = round(torch.cuda.max_memory_allocated(device) / GIB, 2)
            facts["device_gib"] = round(torch.cuda.memory_allocated(device) / GIB, 2)
        print(json.dumps(facts), flush=True)
        del module


def plainly(
    architecture: Architecture, options: argparse.Namespace, device: torch.device
) -> nn.Module:
    """The same by the safetensors library: no checks, 8-bit weights as they are, scales unused."""
    from safetensors.torch import load_file

    variant = find_variant(architecture, options.size)
    with torch.device("meta"):
        module: nn.Module = architecture.dit.build(**variant.numbers)
    state = load_file(options.load, device=str(device))
    missing = module.load_state_dict(state, strict=False, assign=True).missing_keys
    if missing:
        raise SystemExit(f"--plain needs a layout in our own names; {missing[0]} is another here.")
    return module


def link(device: torch.device) -> float:
    """Bytes a second of a pinned copy to the device."""
    host = torch.empty(GIB // 4, dtype=torch.uint8, pin_memory=True)
    there = torch.empty_like(host, device=device)
    best = math.inf
    for _ in range(5):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        there.copy_(host, non_blocking=True)
        torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return host.nbytes / best


def resident(key: str) -> int:
    """Bytes of this process's memory; 0 where the system does not say."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    facts = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(facts[key].split()[0]) * 1024 if key in facts else 0


if __name__ == "__main__":
    main()
