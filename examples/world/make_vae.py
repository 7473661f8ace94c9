"""Trains the tiny autoencoder on clips that are drawn for it: single frames first, then clips.

A frame costs a hundredth of a clip, and teaches all of space; what the network then knows of frames
is where time begins. Clips are drawn once and stay on the device; a step needs nothing of the host.
"""

from __future__ import annotations

import copy
import math
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from graphs import Followed, Rated, captured, compiled, ticks
from make import VAE, any_scene, architecture, save_component
from torch import nn
from whole_clips import WholeClips

from musubi.demo import shapes
from musubi.demo.detector import SYMMETRY, detect

FRAMES_FIRST = 0.2  # the share of the time that single frames get
FRAME_RATE, CLIP_RATE = 3e-3, 1.5e-3
NOISE, NARROW = 0.1, 1e-3  # on latents, whose spread is kept near one
KEPT = 0.995  # of the running mean of the weights, a step
TELL_EVERY = 30.0


def train_vae(
    folder: Path,
    *,
    seconds: float | None = None,
    steps: tuple[int, int] = (6000, 16000),
    batch: tuple[int, int] = (96, 8),
    pool: int = 12000,
    numbers: dict[str, int] | None = None,
) -> None:
    """Reconstruct clips through noisy latents, and save `vae.safetensors`.

    Args:
        folder: Where it is written, every half minute too.
        seconds: End in this time; None does all the steps.
        steps: How many at most, of frames and of clips.
        batch: Frames, and clips, in a step.
        pool: Different clips.
        numbers: Sizes of the network.
    """
    began = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    vae: Any = architecture().component("vae").build(**(numbers or VAE)).to(device).train()
    _begin(vae)
    few = 64 if pool > 1000 else 8
    clips, _ = _clips(pool, 1, device)
    held_out = _clips(few, 2, device)
    progress = _Progress(vae, folder / "vae.safetensors", clips[: 4 * few], held_out)
    for stage, rate in enumerate((FRAME_RATE, CLIP_RATE)):
        rated = Rated(vae.parameters(), peak=rate, decay=1e-4, matrices=_matrices(vae))
        step = progress.following(_step(vae, rated, clips, batch[stage], frame=stage == 0))
        replay = captured(step, device)
        left = None
        if seconds is not None:
            share = FRAMES_FIRST if stage == 0 else 1.0
            left = max(1.0, seconds * share - (time.monotonic() - began))
        for number, done in ticks(steps[stage], left, device):
            rated.at(done)
            replay()
            progress.tell(f"{'clips' if stage else 'frames'} {number}", now=False)
    progress.tell("end", now=True)


def _begin(vae: Any) -> None:
    """Weights with which every frame is a picture of its own, and twice as many are twice the same."""
    for name, layer in vae.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.Conv3d):
            continue
        weight = layer.weight.data
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
        if name.endswith("time_conv"):
            same = torch.eye(weight.shape[1], device=weight.device)
            weight.zero_()[:, :, -1, 0, 0] = same.repeat(weight.shape[0] // weight.shape[1], 1)
            continue
        now = weight[:, :, -1] if weight.ndim == 5 else weight
        fan = now[0].numel()
        second = ".residual.6" in name or name.endswith("proj")  # the end of a branch
        gain = 0.05 if name.startswith("decoder.head") else 0.25 if second else 1.5
        now = torch.randn_like(now) * math.sqrt(gain / fan)
        weight.zero_()
        if weight.ndim == 5:
            weight[:, :, -1] = now
        else:
            weight.copy_(now)
    for layer in (vae.conv1, vae.conv2):
        nn.init.eye_(layer.weight.data.flatten(1))


def _matrices(vae: Any) -> list[nn.Parameter]:
    """What lies between the pixels, the latents and the pixels: not the layers that touch them."""
    ends = ("conv1.", "conv2.", "encoder.conv1.", "decoder.head.")
    named = vae.named_parameters()
    return [p for n, p in named if p.ndim > 3 and p[0].numel() > 1 and not n.startswith(ends)]


def _step(
    vae: Any, rated: Rated, clips: torch.Tensor, batch: int, *, frame: bool
) -> Callable[[], torch.Tensor]:
    device, whole = clips.device, WholeClips(vae)
    latent = (batch, VAE["z_dim"], 1 if frame else 1 + (shapes.FRAMES - 1) // 4, 8, 8)

    def loss_of(pixels: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        frames = _signed(pixels)
        with torch.autocast(
            device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False
        ):
            mean = whole.encode(frames).float()
            error = whole.decode(mean + NOISE * noise).float() - frames
        # what stands out from the picture's mean counts more than the wall and the floor, and the
        # first frame, which has a latent frame to itself, as much as the four that share one
        middle = frames.mean(dim=(2, 3, 4), keepdim=True)
        weight = 1 + 3 * (frames - middle).abs().amax(1, keepdim=True)
        kinds = weight * (error.abs() + error.square())
        edges = F.pad(error.diff(dim=-1).abs(), (0, 1)) + F.pad(
            error.diff(dim=-2).abs(), (0, 0, 0, 1)
        )
        each = (kinds + 0.5 * edges).mean(dim=(0, 1, 3, 4))
        first, later = each[:1].mean(), each[1:].mean() if len(each) > 1 else each.mean()
        return 0.2 * first + 0.8 * later + NARROW * mean.square().mean()

    loss_fn = loss_of
    if not frame:
        loss_fn = compiled(loss_of, clips[:batch], torch.randn(latent, device=device))

    def step() -> torch.Tensor:
        chosen = torch.randint(len(clips), (batch,), device=device)
        if frame:
            when = torch.randint(shapes.FRAMES, (batch,), device=device)
            pixels = clips[chosen, when][:, None]
        else:
            pixels = clips[chosen]
        loss = loss_fn(pixels, torch.randn(latent, device=device))
        rated.take(loss)
        return loss.detach()

    return step


class _Progress:
    """The running mean of the weights, which is what is looked at and saved.

    Args:
        vae: What is trained.
        path: The file.
        known: Clips by which latents are brought to a spread of one.
        held_out: Clips that are not trained on, and their scenes.
    """

    def __init__(
        self,
        vae: Any,
        path: Path,
        known: torch.Tensor,
        held_out: tuple[torch.Tensor, list[shapes.Scene]],
    ) -> None:
        self.followed = Followed(vae, kept=KEPT)
        self.path, self.known = path, known
        self.held_out, self.scenes = held_out
        self.loss = torch.zeros((), device=known.device)
        self.began = self.told = time.monotonic()

    def following(self, step: Callable[[], torch.Tensor]) -> Callable[[], None]:
        """The step, after which the mean moves."""

        def both() -> None:
            self.loss.lerp_(step(), 0.02)
            self.followed.move()

        return both

    @torch.no_grad()
    def tell(self, what: str, *, now: bool) -> None:
        """Save, and say how held-out clips come back, when it is time."""
        if not now and time.monotonic() - self.told < TELL_EVERY:
            return
        vae = copy.deepcopy(self.followed.mean)
        standardise(vae, self.known)
        save_component("vae", vae, self.path, torch.bfloat16)
        vae.bfloat16().float()  # what is looked at is what was saved
        frames, back, latents = _signed(self.held_out), [], []
        with torch.autocast(frames.device.type, torch.bfloat16, enabled=frames.is_cuda):
            for few in frames.split(16):
                latents.append(vae.encode(few))
                back.append(vae.decode(latents[-1]).float())
        error, latent = torch.cat(back) - frames, torch.cat(latents)
        count = len(back[0]) if not now else len(frames)
        pictures = torch.cat(back)[:count].add(1).mul(127.5).round().clamp(0, 255).byte()
        right = sum(
            _agrees(seen, scene)
            for seen, scene in zip(
                pictures.permute(0, 2, 3, 4, 1).cpu().numpy(), self.scenes[:count], strict=True
            )
        )
        sys.stdout.write(
            f"vae {time.monotonic() - self.began:.0f}s {what} loss {self.loss.item():.4f} "
            f"held-out rmse {error.square().mean().sqrt().item():.4f} "
            f"first frames {error[:, :, 0].square().mean().sqrt().item():.4f} "
            f"read right {right} of {count} "
            f"latents {latent.mean().item():.2f} ± {latent.std().item():.2f}\n"
        )
        sys.stdout.flush()
        self.told = time.monotonic()


@torch.no_grad()
def standardise(vae: Any, clips: torch.Tensor) -> None:
    """Bring latents to what the released normalisation takes to mean zero and spread one.

    Each channel's mean and spread over `clips` (uint8 B F H W 3) goes into the two convolutions that
    stand around the latents, so that frames come back as before.
    """
    whole = WholeClips(vae)
    z = torch.cat([whole.encode(_signed(few)) for few in clips.split(32)])
    mean, spread = z.mean(dim=(0, 2, 3, 4)), z.std(dim=(0, 2, 3, 4))
    spread = spread.clamp(min=0.2 * spread.max().item())
    shift, scale = (numbers.flatten() for numbers in vae._normalisation(z.device))
    ahead, behind, count = vae.conv1, vae.conv2, len(mean)
    gain = scale / spread
    ahead.weight[:count] *= gain[:, None, None, None, None]
    ahead.bias[:count] = (ahead.bias[:count] - mean) * gain + shift
    ahead.weight[count:] = 0
    ahead.bias[count:] = 2 * (NOISE * gain).log()
    behind.bias += behind.weight.flatten(1) @ (mean - shift / gain)
    behind.weight /= gain[:, None, None, None]


def _clips(count: int, seed: int, device: torch.device) -> tuple[torch.Tensor, list[shapes.Scene]]:
    source = random.Random(seed)
    scenes = [any_scene(source) for _ in range(count)]
    some = [scenes[start : start + 250] for start in range(0, count, 250)]
    return torch.cat([shapes.draw(few, device) for few in some]), scenes


def _signed(clips: torch.Tensor) -> torch.Tensor:
    return clips.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def _agrees(frames: np.ndarray, scene: shapes.Scene) -> bool:
    asked = {name: getattr(scene, name) for name in ("colour", "shape", "motion", "floor")}
    if not SYMMETRY[scene.shape] and scene.motion == "spins":
        asked["motion"] = "stays still"  # nobody can tell
    return all(detect(frames).agrees(**asked).values())
