"""Opening a dataset of many cached items: `python tests/benchmarks/dataset.py FOLDER [--items 10000]`.

It writes small images with captions and records of the real layout, opens the training set three
times, each in a process of its own, and removes what it wrote.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from musubi import registry
from musubi.cli import main as musubi
from musubi.testing import media, twins

OPEN = """
import sys, time
from pathlib import Path
from musubi import registry
from musubi.config.dataset import read_dataset_config
from musubi.plugin import Quiet
import torch
from musubi.cache.match import open_training_set
architecture = registry.find("wan")
start = time.perf_counter()
file = read_dataset_config(Path(sys.argv[1]), architecture)
found = open_training_set(file, architecture, architecture.tasks[0], report=Quiet())
print(len(found.items), time.perf_counter() - start)
"""


def main() -> None:
    """Write, open, say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--items", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        data = write(Path(name), options.items)
        for _ in range(3):
            done = subprocess.run(
                [sys.executable, "-c", OPEN, str(data)], capture_output=True, text=True, check=True
            )
            count, seconds = done.stdout.split()
            print(f"opened {count} items in {float(seconds):.2f} s")


def write(folder: Path, items: int) -> Path:
    """The dataset, cached; its file."""
    paths = twins.write_twins(
        registry.find("wan"), folder / "models", task=registry.find("wan").task("t2v")
    )
    picture = media.frame(32, 32, colour="red", shape="ball", at=0.5)
    place = folder / "images"
    first = media.write_image(place / "0.png", picture).read_bytes()
    for i in range(items):
        (place / f"{i}.png").write_bytes(first)
        (place / f"{i}.txt").write_text(f"picture number {i}", encoding="utf-8")
    data = folder / "data.toml"
    data.write_text(
        f"[general]\nresolution = [32, 32]\ncaption_extension = '.txt'\n[[datasets]]\n"
        f"image_directory = '{place.as_posix()}'\ncache_directory = '{(folder / 'c').as_posix()}'\n",
        encoding="utf-8",
    )
    words = ["--arch", "wan", "--dataset_config", str(data)]
    for command in (("latents", "--vae", paths["vae"]), ("text", "--t5", paths["t5"])):
        start = time.perf_counter()
        try:
            musubi(["cache", command[0], *words, command[1], str(command[2])])
        except SystemExit as end:
            if end.code:
                raise
        print(f"cached {command[0]} in {time.perf_counter() - start:.0f} s")
    return data


if __name__ == "__main__":
    main()
