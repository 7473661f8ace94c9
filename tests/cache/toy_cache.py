"""An architecture of a few numbers: one VAE, two text encoders, one task cut into sections.

As a script it runs a caching command, so that a test can kill it or start several: `toy_cache.py
latents|text …`. It prints what it encodes.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import save_file
from torch import nn

from musubi.errors import CheckpointError
from musubi.plugin import (
    Architecture,
    Component,
    Field,
    Geometry,
    KeyMap,
    Lazy,
    Option,
    Sampling,
    Schema,
    Task,
)

SAMPLING = Sampling(
    steps=1,
    flow_shift=1.0,
    guidance_scale=1.0,
    frames=5,
    solver="vanilla",
    solvers=("vanilla",),
)
TEXT = (
    Field(name="words", dims="LD", varlen=True),
    Field(name="glyphs", dims="D"),
    Field(name="glyphs_mask", dims="L", sizes=(("L", 4),)),
)
MEDIA = (
    Field(name="latents", dims="CFHW", sizes=(("C", 4),)),
    Field(name="latents_first", dims="CFHW"),
    Field(name="indices", dims="N"),
)


class Vae(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(4, 3))


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(256, 8))


def infer_vae(shapes):
    if "scale" not in shapes:
        raise CheckpointError("No toy VAE.")
    return {}


def infer_table(shapes):
    if "table" not in shapes:
        raise CheckpointError("No toy table.")
    return {}


def component(name: str, role, kind: str, marker: str) -> Component:
    return Component(
        name=name,
        role=role,
        help=f"The toy {name}.",
        build=Lazy(f"toy_cache:{kind}"),
        infer=Lazy(f"toy_cache:infer_{kind.lower()}"),
        dialects=(KeyMap(name="official", marker=(marker,)),),
        dtype="float32",
    )


def task(name: str, **schema) -> Task:
    return Task(
        name=name,
        title=name,
        requires={},
        components=("vae", "words", "glyphs"),
        schema=Schema(media=MEDIA, text=TEXT, **schema),
        sampling=SAMPLING,
    )


ARCHITECTURE = Architecture(
    name="toy",
    title="Toy",
    components=(
        component("dit", "dit", "Vae", "scale"),
        component("vae", "vae", "Vae", "scale"),
        component("words", "text", "Table", "table"),
        component("glyphs", "text", "Table", "table"),
    ),
    tasks=(task("t2v"), task("cut", sectioned=True), task("later", version=2)),
    variants=(),
    runtime=Lazy("toy_cache:Runtime"),
    suffix="toy",
    geometry=Geometry(channels=4, stride=(4, 8, 8), frame_rate=16.0),
    options=(
        Option(
            name="gain",
            type=float,
            default=1.0,
            help="Multiplies latents.",
            commands=("cache latents",),
            affects_cache=True,
        ),
    ),
)


class Runtime:
    """Counts what it is asked for in `calls`."""

    calls: ClassVar[list[tuple[str, list[str]]]] = []

    def __init__(self, architecture, task, options):
        self.task = task
        self.gain = options.get("gain", 1.0)

    def called(self, kind, names):
        self.calls.append((kind, list(names)))
        if __name__ == "__main__":
            sys.stdout.write("".join(f"{kind} {name}\n" for name in names))
            sys.stdout.flush()

    def encode_media(self, nets, clips):
        assert len({clip.frames.shape for clip in clips}) == 1
        self.called("media", [clip.name for clip in clips])
        time.sleep(float(os.environ.get("TOY_PAUSE", "0")))
        return [self._one(nets, clip) for clip in clips]

    def _one(self, nets, clip):
        scale = nets["vae"].scale
        frames = torch.from_numpy(clip.frames[::4].copy()).to(scale) / 127.5 - 1
        small = frames[:, ::8, ::8]
        latents = torch.einsum("fhwc,dc->dfhw", small, scale) * self.gain
        if clip.frames.min() == clip.frames.max():
            latents = latents / 0
        records = [
            {
                "latents": part,
                "latents_first": latents[:, :1],
                "indices": torch.arange(part.shape[1]),
            }
            for part in (latents.split(2, dim=1) if self.task.name == "cut" else [latents])
        ]
        return tuple(records)

    def encode_text(self, nets, component, prompts):
        captions = [prompt.text for prompt in prompts]
        self.called(component, captions)
        time.sleep(float(os.environ.get("TOY_PAUSE", "0")))
        table = nets[component].table
        rows = [table[torch.tensor([*caption.encode()[:16], 0])] for caption in captions]
        if component == "words":
            return [{"words": row} for row in rows]
        mask = torch.tensor([1, 1, 0, 0])
        return [{"glyphs": row.mean(0), "glyphs_mask": mask.clone()} for row in rows]


def write_weights(folder: Path, seed: int = 0) -> dict[str, Path]:
    """A file for each encoder."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    paths = {name: folder / f"{name}-{seed}.safetensors" for name in ("vae", "words", "glyphs")}
    save_file({"scale": torch.randn(4, 3, generator=generator)}, paths["vae"])
    for name in ("words", "glyphs"):
        save_file({"table": torch.randn(256, 8, generator=generator)}, paths[name])
    return paths


def config(command: str, data: Path, weights: dict[str, Path], **more):
    """The options of a caching command."""
    from musubi.config.cache import CacheLatentsConfig, CacheTextConfig
    from musubi.config.options import for_architecture

    model = CacheLatentsConfig if command == "latents" else CacheTextConfig
    roles = ("vae",) if command == "latents" else ("words", "glyphs")
    files = {name: str(path) for name, path in weights.items() if name in roles}
    full = for_architecture(model, ARCHITECTURE, f"cache {command}")
    values = {"device": "cpu", "num_workers": 2, **files, **more}
    return full(dataset_config=str(data), **values)


if __name__ == "__main__":
    from musubi.cache import encode
    from musubi.plugin import Quiet

    torch.set_num_threads(1)
    sys.modules["toy_cache"] = sys.modules["__main__"]
    command, data, folder = sys.argv[1:4]
    run = {"latents": encode.run_latents, "text": encode.run_text}[command]
    run(
        config(command, Path(data), write_weights(Path(folder))),
        ARCHITECTURE,
        Quiet(),
    )
