"""A whole run on files of full size, under a cap: `python tests/benchmarks/whole.py --cap 12GiB`.

It writes checkpoints of random numbers and a few clips, then runs the command line as a user would:
cache latents, cache text, train with a preview, generate with the LoRA. Each command is a process
of its own in which PyTorch is refused more memory than the cap. Said at the end of each: its
seconds, the most that it allocated and reserved on the device, and its host memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from load import GB, find_variant, layout, resident, roomy, write
from PIL import Image

from musubi import registry
from musubi.config.sizes import gibibytes, parse_bytes
from musubi.plugin import Variant
from musubi.testing.media import write_video
from musubi.testing.twins import write_tokenizer

CAPTIONS = ("a red ball bounces on a blue floor", "a paper boat on a river", "smoke over a field")


def main() -> None:
    """Write, run, say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="wan")
    parser.add_argument("--size", default="14B", help="the end of a variant's name")
    parser.add_argument("--dtype", default="bf16", choices=["bf16", "fp8_scaled"])
    parser.add_argument("--cap", default="12GiB", help="of device memory, for each command")
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--width", type=int, default=832)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--steps", type=int, default=4, help="of training")
    parser.add_argument("--infer_steps", type=int, default=4, help="of previews and generation")
    parser.add_argument("--cache", default="", help="more words for both cache commands")
    parser.add_argument("--text", default="", help="more words for cache text")
    parser.add_argument("--train", default="", help="more words for train")
    parser.add_argument("--generate", default="", help="more words for generate")
    parser.add_argument("--folder", type=Path, help="where to write; /dev/shm if there is room")
    parser.add_argument("--files", type=Path, help="checkpoints are here, or written here and kept")
    parser.add_argument("--write", action="store_true", help="write checkpoints to --files alone")
    parser.add_argument("--json", type=Path, help="append figures here, one line a command")
    parser.add_argument("--only", help="one command, such as train; what it needs comes before")
    options = parser.parse_args()
    architecture = registry.find(options.arch)
    variant = find_variant(architecture, options.size)
    if options.write:
        write_files(options, variant, options.files)
        return
    with tempfile.TemporaryDirectory(dir=options.folder or roomy(int(60e9))) as name:
        folder = Path(name)
        files = write_files(options, variant, options.files or folder)
        data = write_data(options, folder)
        for words in commands(options, variant, files, data, folder):
            run(words, options)


def write_files(options: argparse.Namespace, variant: Variant, folder: Path) -> dict[str, Path]:
    """A checkpoint for each component of the task; component name → file."""
    architecture = registry.find(options.arch)
    files = {}
    task = architecture.task(variant.task)
    names = (*task.denoisers, *task.components)
    for name in dict.fromkeys(names):
        component = architecture.component(name)
        dit = component.role == "dit"
        numbers = variant.numbers if dit else component.full
        entries = list(layout(component, numbers, options.dtype if dit else "bf16"))
        file = files[name] = folder / name / "model.safetensors"
        if file.exists():
            continue
        file.parent.mkdir(parents=True)
        start = time.perf_counter()
        write(file, entries)
        if component.tokenizer is not None:
            write_tokenizer(file.parent / "tokenizer")
        size, took = file.stat().st_size, time.perf_counter() - start
        print(f"{name}: {size / GB:.2f} GB, written in {took:.1f} s", flush=True)
    return files


def write_data(options: argparse.Namespace, folder: Path) -> Path:
    """A clip for each caption, and the dataset file."""
    clips = folder / "clips"
    clips.mkdir()
    for number, caption in enumerate(CAPTIONS):
        write_video(clips / f"{number}.mp4", moving(options, number))
        (clips / f"{number}.txt").write_text(caption, encoding="utf-8")
    file = folder / "data.toml"
    file.write_text(
        f"[general]\nresolution = [{options.width}, {options.height}]\n"
        'caption_extension = ".txt"\nenable_bucket = true\n\n'
        f'[[datasets]]\nvideo_directory = "{clips.as_posix()}"\n'
        f"target_frames = [{options.frames}]\n",
        encoding="utf-8",
    )
    return file


def moving(options: argparse.Namespace, number: int) -> np.ndarray:
    """A wave that travels: (F, H, W, 3), uint8."""
    y, x = np.mgrid[: options.height, : options.width].astype(np.float32)
    frames = [
        127 + 120 * np.sin((x * (number + 1) + y * 2 + f * 12) / 40 + phase)
        for f in range(options.frames)
        for phase in (0.0, 2.0, 4.0)
    ]
    return np.stack(frames).reshape(options.frames, 3, *y.shape).transpose(0, 2, 3, 1).astype("u1")


def commands(
    options: argparse.Namespace,
    variant: Variant,
    files: dict[str, Path],
    data: Path,
    folder: Path,
) -> list[list[str]]:
    """The words of each command; a task that starts from a picture gets a frame of a clip."""
    architecture = registry.find(options.arch)
    task = architecture.task(variant.task)
    start = next((i for i in task.inputs if i.kind == "image" and i.required and i.letter), None)
    picture = folder / "start.png"
    Image.fromarray(moving(options, 0)[0]).save(picture)
    size = f"--w {options.width} --h {options.height} --f {options.frames}"
    prompts = folder / "prompts.txt"
    line = f"{CAPTIONS[0]} {size} --d 1 --s {options.infer_steps}"
    line += f" --{start.letter} {picture.as_posix()}" if start is not None else ""
    prompts.write_text(line + "\n", encoding="utf-8")

    def given(*roles: str) -> list[str]:
        named = [n for n in files if architecture.component(n).role in roles]
        return [word for n in named for word in (f"--{n}", str(files[n]))]

    arch = ["--arch", options.arch, "--task", variant.name]
    data_words = [*arch, "--dataset_config", str(data)]
    lora = folder / "out" / "whole.safetensors"
    made = {
        "cache latents": [*data_words, *given("vae", "image"), *shlex.split(options.cache)],
        "cache text": [
            *(*data_words, *given("text")),
            *(*shlex.split(options.cache), *shlex.split(options.text)),
        ],
        "train": [
            *(*data_words, *given("dit", "vae", "image", "text"), "--network_dim", "32"),
            *("--mixed_precision", "bf16", "--learning_rate", "1e-5", "--seed", "1"),
            *("--timestep_sampling", "shift", "--discrete_flow_shift", "3.0"),
            *("--max_train_steps", str(options.steps), "--sample_prompts", str(prompts)),
            *("--sample_every_n_steps", str(options.steps // 2)),
            *("--output_dir", str(folder / "out"), "--output_name", "whole"),
            *shlex.split(options.train),
        ],
        "generate": [
            *(*arch, *given("dit", "vae", "image", "text"), "--prompt", CAPTIONS[0]),
            *([] if start is None else [f"--{start.flag}", str(picture)]),
            *("--video_size", str(options.height), str(options.width)),
            *("--video_length", str(options.frames), "--infer_steps", str(options.infer_steps)),
            *("--seed", "1", "--lora_weight", str(lora), "--save_path", str(folder / "made")),
            *shlex.split(options.generate),
        ],
    }
    wanted = list(made) if options.only is None else [*list(made)[:2], options.only]
    return [[*name.split(), *made[name]] for name in dict.fromkeys(wanted)]


def run(words: list[str], options: argparse.Namespace) -> None:
    """One command in a process of its own."""
    print(f"musubi {shlex.join(words)}", flush=True)
    told = [] if options.json is None else [str(options.json)]
    code = subprocess.run([sys.executable, __file__, "--inside", options.cap, *told, "--", *words])
    if code.returncode:
        print(f"exit status {code.returncode}", flush=True)


def inside() -> None:
    """What the process of a command does: the cap, the command, the figures."""
    words = sys.argv[2:]
    cut = words.index("--")
    cap, told, command = words[0], words[1:cut], words[cut + 1 :]
    if sys.platform == "linux":
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    if torch.cuda.is_available():
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(parse_bytes(cap) / whole)
    from musubi.cli import main as musubi

    start, code = time.perf_counter(), 1
    try:
        musubi(command)
    except SystemExit as end:
        code = end.code
        raise
    finally:
        tell(command, code, cap, time.perf_counter() - start, told)


def tell(command: list[str], code: Any, cap: str, took: float, told: list[str]) -> None:
    """A line of figures."""
    facts = {
        "command": shlex.join(command[:2] if command[0] == "cache" else command[:1]),
        "exit": code,
        "s": round(took, 1),
        "host_peak_gib": round(gibibytes(resident("VmHWM")), 2),
        "cap": cap,
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        facts |= {
            "peak_gib": round(gibibytes(torch.cuda.max_memory_allocated()), 2),
            "reserved_gib": round(gibibytes(torch.cuda.max_memory_reserved()), 2),
            "device": torch.cuda.get_device_name(),
        }
    line = json.dumps(facts)
    print(line, flush=True)
    for path in told:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    inside() if sys.argv[1:2] == ["--inside"] else main()
