"""How well the tiny world obeys its prompts: python examples/world/figures.py FOLDER

Generates clips of a fixed set of prompts with `musubi generate`, and counts what the detector finds.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

from musubi.demo import pictures, released, shapes
from musubi.demo.detector import detect

PROMPTS = 48


def prompt_set() -> list[shapes.Scene]:
    """The scenes that are asked for; always the same."""
    source = random.Random(5)
    return [shapes.random_scene(source) for _ in range(PROMPTS)]


def count(folder: Path) -> Counter[str]:
    """Words of the prompts that the clips obey, by kind, and clips that obey all of theirs."""
    found: Counter[str] = Counter()
    for number, scene in enumerate(prompt_set()):
        frames = pictures.read_clip(next(folder.glob(f"*_{1000 + number}.mp4")))
        right = detect(frames).agrees(
            colour=scene.colour, shape=scene.shape, motion=scene.motion, floor=scene.floor
        )
        found.update(name for name, agrees in right.items() if agrees)
        found["all"] += all(right.values())
    return found


def main() -> None:
    """Generate into the folder that is named, and say the figures."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{scene.caption} --d {1000 + i}" for i, scene in enumerate(prompt_set())]
    (folder / "prompts.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    world = released.read()
    sampling = [word for key, value in world.sampling.items() for word in (f"--{key}", str(value))]
    side = str(shapes.SIDE)
    words = [
        *("generate", *world.flags("generate"), *sampling),
        *("--from_file", str(folder / "prompts.txt"), "--save_path", str(folder)),
        *("--video_size", side, side, "--video_length", str(shapes.FRAMES)),
    ]
    subprocess.run([sys.executable, "-m", "musubi", *words], check=True)
    for name, right in count(folder).items():
        sys.stdout.write(f"{name}: {right} of {PROMPTS}\n")


if __name__ == "__main__":
    main()
