"""Trains the tiny denoiser on clips without stars and spins, by the loss of `musubi train --full`.

Latents and captions are encoded once and stay on the device, so that a step is one launch.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from graphs import Followed, Rated, captured, ticks
from make import architecture, save_component, untrained_dit
from torch import nn

from musubi.demo import shapes
from musubi.flow import times
from musubi.plugin import Conditioning, Prompt, Quiet
from musubi.weights.nets import Nets

PEAK, SHIFT, WORDS = 1e-3, 3.0, 512
DROPPED = 0.12
KEPT = 0.998  # of the running mean of the weights, a step
LATENTS = (16, 5, 8, 8)


def train_dit(
    folder: Path,
    *,
    steps: int = 40000,
    batch: int = 128,
    pool: int = 16000,
    seconds: float | None = None,
) -> None:
    """Train on the latents of drawn clips and save `dit.safetensors`, with a few samples.

    Args:
        folder: Where the VAE, the text encoder and its tokenizer are, and the denoiser is put.
        steps: How many at most.
        batch: Clips in a step.
        pool: Different clips.
        seconds: End in this time, the samples not counted; None does all the steps.
    """
    began = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    world = _World(folder, device)
    latents, captions, texts = world.encoded(pool)
    sys.stdout.write(f"latents {latents.mean().item():.3f} ± {latents.std().item():.3f}\n")
    dit = untrained_dit().to(device).train()
    followed = Followed(dit, kept=KEPT)
    rated = Rated(dit.parameters(), peak=PEAK, decay=0.01)
    step, losses = _step(world, dit, followed, rated, (latents, captions, texts), batch)
    replay = captured(step, device)
    left = None if seconds is None else seconds - (time.monotonic() - began)
    number, told = 0, 0.0
    for number, done in ticks(steps, left, device):
        rated.at(done)
        replay()
        if done >= told:
            told += 0.1
            sys.stdout.write(
                f"dit {time.monotonic() - began:.0f}s {number} loss {losses.item():.4f}\n"
            )
            sys.stdout.flush()
            save_component("dit", followed.mean, folder / "dit.safetensors", torch.bfloat16)
    sys.stdout.write(f"dit {number} loss {losses.item():.4f}\n")
    save_component("dit", followed.mean, folder / "dit.safetensors", torch.bfloat16)
    world.samples(followed.mean, texts, folder / "samples.npz")


class _World:
    def __init__(self, folder: Path, device: torch.device) -> None:
        self.device = device
        arch = architecture()
        paths = {name: folder / f"{name}.safetensors" for name in ("vae", "t5")}
        self.nets = Nets(
            arch,
            paths,
            device=device,
            dtypes=dict.fromkeys(paths, torch.float32),
            tokenizers={"t5": folder / "tokenizer"},
            report=Quiet(),
        )
        self.runtime: Any = arch.runtime.load()(arch, arch.tasks[0], {})
        self.negative = arch.tasks[0].sampling.negative_prompt

    @torch.no_grad()
    def encoded(self, pool: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents, the number of each one's caption, and the captions; the last two are without."""
        source = random.Random(4)
        scenes = [shapes.random_scene(source) for _ in range(pool)]
        known = sorted({scene.caption for scene in scenes})
        numbers = torch.tensor([known.index(s.caption) for s in scenes], device=self.device)
        latents = []
        vae: Any = self.nets["vae"]
        for start in range(0, pool, 200):
            clips = shapes.draw(scenes[start : start + 200], self.device)
            with self.half():
                frames = clips.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
                latents.append(vae.encode(frames).to(torch.bfloat16))
        return torch.cat(latents), numbers, self.texts([*known, "", self.negative])

    @torch.no_grad()
    def texts(self, captions: list[str]) -> torch.Tensor:
        """Hidden states, padded to what the denoiser attends to."""
        records = self.runtime.encode_text(self.nets, "t5", [Prompt(text=c) for c in captions])
        states = [next(iter(record.values())) for record in records]
        return torch.stack([F.pad(one, (0, 0, 0, WORDS - len(one))) for one in states])

    def half(self) -> torch.autocast:
        """Autocast, on a GPU."""
        on_gpu = self.device.type == "cuda"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=on_gpu, cache_enabled=False)

    @torch.no_grad()
    def samples(self, dit: nn.Module, texts: torch.Tensor, path: Path, *, count: int = 48) -> None:
        """Clips of scenes drawn evenly, at two strengths of guidance."""
        source = random.Random(5)
        scenes = [shapes.random_scene(source) for _ in range(count)]
        given = self.texts([scene.caption for scene in scenes])
        made = {}
        for scale in (1.0, 4.0):
            torch.manual_seed(1)
            x = torch.randn(count, *LATENTS, device=self.device)
            levels = times.shift(torch.linspace(1, 0, 21, device=self.device), SHIFT)
            without = texts[-1:].expand(count, -1, -1)
            for t, after in pairwise(levels):
                with self.half():
                    moment = t.expand(count)
                    v = self.predict(dit, x, moment, given)
                    if scale != 1:
                        plain = self.predict(dit, x, moment, without)
                        v = plain + scale * (v - plain)
                x = x + (after - t) * v
            vae: Any = self.nets["vae"]
            with self.half():
                frames = torch.cat([vae.decode(one) for one in x.split(16)])
            pictures = frames.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
            made[f"guidance_{scale:g}"] = pictures.permute(0, 2, 3, 4, 1).cpu().numpy()
        np.savez_compressed(path, captions=[s.caption for s in scenes], **made)

    def predict(
        self, dit: nn.Module, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor
    ) -> torch.Tensor:
        """The velocity."""
        return self.runtime.predict(dit, x, t, Conditioning({"t5": text})).float()


def _step(
    world: _World,
    dit: nn.Module,
    followed: Followed,
    rated: Rated,
    data: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    batch: int,
) -> tuple[Callable[[], None], torch.Tensor]:
    latents, captions, texts = data
    device, known = world.device, len(texts) - 2
    losses = torch.zeros((), device=device)

    def step() -> None:
        chosen = torch.randint(len(latents), (batch,), device=device)
        x0 = latents[chosen].float()
        without = known + torch.randint(2, (batch,), device=device)
        drop = torch.rand(batch, device=device) < DROPPED
        text = texts[torch.where(drop, without, captions[chosen])]
        t = times.shift(torch.randn(batch, device=device).sigmoid(), SHIFT)
        noise = torch.randn_like(x0)
        with world.half():
            v = world.predict(dit, times.mix(x0, noise, t), t, text)
        loss = (v - times.velocity(x0, noise)).square().mean()
        rated.take(loss)
        followed.move()
        losses.lerp_(loss.detach(), 0.02)

    return step, losses
