"""Merging into a checkpoint of full size: memory and speed. `python tests/benchmarks/merge.py FOLDER`.

It writes a checkpoint of random numbers in the released layout, a LoRA on all its layers, merges
them in a process of its own, and removes both.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from musubi import registry
from musubi.lora.adapter import Adapters
from musubi.lora.delta import Pair
from musubi.lora.files import write_lora
from musubi.weights.write import stream

GIB = 2**30


def main() -> None:
    """Measure, and say so."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--arch", default="wan")
    parser.add_argument("--variant", default="t2v-1.3B")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        wrote = write_inputs(folder, options)
        size = (folder / "model.safetensors").stat().st_size
        copied = copy(folder / "model.safetensors", folder / "copy.safetensors")
        seconds, most, private = merge(folder, options.arch)
    for what, took in (("write", wrote), ("copy", copied), ("merge", seconds)):
        print(f"{what:6} {size / GIB:.2f} GiB in {took:.1f} s, {size / GIB / took:.2f} GiB/s")
    print(f"largest resident memory {most / 2**20:.0f} MiB, of which {private / 2**20:.0f} MiB own")


def write_inputs(folder: Path, options: argparse.Namespace) -> float:
    """The checkpoint and the LoRA; seconds that the checkpoint took."""
    architecture = registry.find(options.arch)
    component = architecture.dit
    with torch.device("meta"):
        model = component.build(**architecture.variant(options.variant).numbers)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    dtype = getattr(torch, options.dtype)
    noise = torch.randn(max(map(math.prod, shapes.values()))).to(dtype)
    start = time.perf_counter()
    stream(
        folder / "model.safetensors",
        [(name, dtype, shape) for name, shape in shapes.items()],
        lambda name: noise[: math.prod(shapes[name])].reshape(shapes[name]),
    )
    took = time.perf_counter() - start
    assert component.traits.lora is not None
    adapters = Adapters.create(model, component.traits.lora, rank=options.rank)
    pairs = {
        path: Pair(torch.randn(p.down.shape), torch.randn(p.up.shape) * 0.01, p.alpha)
        for path, p in adapters.tensors().items()
    }
    write_lora(folder / "lora.safetensors", pairs, component=component)
    return took


def copy(source: Path, target: Path) -> float:
    """Seconds that reading and writing alone take."""
    start = time.perf_counter()
    with source.open("rb") as reading, target.open("wb") as writing:
        while block := reading.read(1 << 24):
            writing.write(block)
    took = time.perf_counter() - start
    target.unlink()
    return took


def merge(folder: Path, arch: str) -> tuple[float, int, int]:
    """Seconds, largest resident memory, and largest memory that is not of a mapped file."""
    words = ["-m", "musubi", "lora", "merge", "--arch", arch, "--device", "cpu"]
    words += ["--dit", str(folder / "model.safetensors")]
    words += ["--lora_weight", str(folder / "lora.safetensors")]
    words += ["--save_merged_model", str(folder / "merged.safetensors")]
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL)
    found = [0, 0]
    watcher = threading.Thread(target=watch, args=(process, found))
    watcher.start()
    code = process.wait()
    took = time.perf_counter() - start
    watcher.join()
    if code:
        raise SystemExit(code)
    return took, found[0], found[1]


def watch(process: subprocess.Popen, found: list[int]) -> None:
    """Look at the process's memory ten times a second; Linux only."""
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None and status.exists():
        facts = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        for i, key in enumerate(("VmRSS", "RssAnon")):
            if key in facts:
                found[i] = max(found[i], int(facts[key].split()[0]) * 1024)
        time.sleep(0.1)


if __name__ == "__main__":
    main()
