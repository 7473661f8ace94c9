"""Trains the tiny autoencoder on clips that are drawn for it.

Clips are drawn once and stay on the device; a step picks some, and needs nothing of the host.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from musubi.demo import shapes
from musubi.demo.graphs import Rated, captured, ticks
from musubi.demo.make import VAE, any_scene, architecture, save_component
from musubi.nn.causal_conv import Stream

PEAK, KL = 3e-3, 2e-3


def train_vae(
    folder: Path,
    *,
    steps: int = 20000,
    batch: int = 24,
    pool: int = 12000,
    seconds: float | None = None,
) -> None:
    """Reconstruct clips through latents that are near a unit Gaussian, and save `vae.safetensors`.

    Args:
        folder: Where it is written, every so often too.
        steps: How many at most.
        batch: Clips in a step.
        pool: Different clips.
        seconds: End the schedule in this time; None does all the steps.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    vae: Any = architecture().component("vae").build(**VAE).to(device).train()
    clips, held_out = _clips(pool, 1, device), _clips(64 if pool > 100 else 1, 2, device)
    rated = Rated(vae.parameters(), peak=PEAK, decay=1e-4)
    step, losses = _step(vae, rated, clips, batch)
    replay = captured(step, device)
    number, told = 0, 0.0
    for number, done in ticks(steps, seconds, device):
        rated.at(done)
        replay()
        if done >= told:
            told += 0.1
            _tell(vae, number, losses, held_out)
            save_component("vae", vae, folder / "vae.safetensors", torch.bfloat16)
    _tell(vae, number, losses, held_out)
    save_component("vae", vae, folder / "vae.safetensors", torch.bfloat16)


def _step(
    vae: Any, rated: Rated, clips: torch.Tensor, batch: int
) -> tuple[Callable[[], None], torch.Tensor]:
    device = clips.device
    losses = torch.zeros(3, device=device)
    shift, scale = vae._normalisation(device)

    def step() -> None:
        chosen = torch.randint(len(clips), (batch,), device=device)
        frames = _signed(clips[chosen])
        with torch.autocast(
            device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False
        ):
            mean, logvar = _posterior(vae, frames)
            mean, logvar = mean.float(), logvar.float().clamp(-12, 4)
            z = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
            out = _reconstruct(vae, z).float()
        unit, spread = (mean - shift) / scale, logvar.exp() / scale**2
        kl = 0.5 * (unit.square() + spread - spread.log() - 1).mean()
        # what stands out from the picture's mean counts more than the wall and the floor
        middle = frames.mean(dim=(2, 3, 4), keepdim=True)
        weight = 1 + 3 * (frames - middle).abs().amax(1, keepdim=True)
        error = out - frames
        loss = (weight * (error.abs() + error.square())).mean() + 0.5 * _edges(error) + KL * kl
        rated.take(loss)
        losses.copy_(torch.stack([loss, error.square().mean().sqrt(), kl]).detach())

    return step, losses


def _posterior(vae: Any, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # The first frame alone, then all others at once: causal layers give what groups of four give.
    stream, chunks = Stream(), []
    for chunk in frames.split([1, frames.shape[2] - 1], dim=2):
        chunks.append(vae.encoder(chunk, stream))
        stream.first = False
    mean, logvar = vae.conv1(torch.cat(chunks, dim=2)).chunk(2, dim=1)
    return mean, logvar


def _reconstruct(vae: Any, z: torch.Tensor) -> torch.Tensor:
    stream, chunks = Stream(), []
    for chunk in vae.conv2(z).split([1, z.shape[2] - 1], dim=2):
        chunks.append(vae.decoder(chunk, stream))
        stream.first = False
    return torch.cat(chunks, dim=2)


def _edges(error: torch.Tensor) -> torch.Tensor:
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def _clips(count: int, seed: int, device: torch.device) -> torch.Tensor:
    source = random.Random(seed)
    made = []
    for start in range(0, count, 250):
        scenes = [any_scene(source) for _ in range(min(250, count - start))]
        made.append(shapes.draw(scenes, device))
    return torch.cat(made)


def _signed(clips: torch.Tensor) -> torch.Tensor:
    return clips.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


@torch.no_grad()
def _tell(vae: Any, number: int, losses: torch.Tensor, held_out: torch.Tensor) -> None:
    frames = _signed(held_out)
    with torch.autocast(frames.device.type, torch.bfloat16, enabled=frames.is_cuda):
        latents = vae.encode(frames)
        error = (vae.decode(latents) - frames).square().mean().sqrt().item()
    loss, _, kl = losses.tolist()
    sys.stdout.write(
        f"vae {number} loss {loss:.4f} kl {kl:.3f} held-out rmse {error:.4f} "
        f"latents {latents.mean().item():.2f} ± {latents.std().item():.2f}\n"
    )
    sys.stdout.flush()
