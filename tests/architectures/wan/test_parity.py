"""Wan's networks against diffusers and transformers, float32, toy sizes, through the real key maps."""

import contextlib

import pytest
import torch

from musubi.architectures.wan import ARCHITECTURE, keys
from musubi.architectures.wan.dit import sinusoid

pytestmark = pytest.mark.parity

DIT, VAE, T5 = (ARCHITECTURE.component(name) for name in ("dit", "vae", "t5"))


def dialect(dialects, name):
    return next(d for d in dialects if d.name == name)


def filled(module, seed=0):
    """The module with values that let every part matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim >= 2 and p.shape[0] > 1 and "gamma" not in name:
                p.copy_(noise * (p.numel() / p.shape[0]) ** -0.5)
            elif name.endswith("bias") or "table" in name or "pos_embed" in name:
                p.copy_(noise * 0.1)
            else:
                p.copy_(1 + 0.1 * noise)
    return module.eval().requires_grad_(False)


def through(component, layout, theirs):
    """Ours, built and filled from another's state dict through a key map alone."""
    reading = layout.reading(theirs)
    assert all(s.operation == "copy" for s in reading.values())
    ours = {name: theirs[source.names[0]] for name, source in reading.items()}
    numbers = component.infer({name: tuple(t.shape) for name, t in ours.items()})
    with torch.device("meta"):
        module = component.build(**numbers)
    missing, unexpected = module.load_state_dict(ours, strict=False, assign=True)
    assert not missing and not unexpected
    return module.eval().requires_grad_(False)


def error(ours, theirs):
    assert ours.shape == theirs.shape
    return ((ours - theirs).norm() / theirs.norm()).item()


class ExactTime(torch.nn.Module):
    """Stands in for diffusers' `Timesteps`, whose sinusoid is float32; the official is float64."""

    def forward(self, timestep):
        return sinusoid(timestep / 1000, 256)


def diffusers_dit(**more):
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 128, "num_layers": 2, "ffn_dim": 192}
    oracle = filled(WanTransformer3DModel(text_dim=48, **sizes, **more))
    oracle.condition_embedder.timesteps_proj = ExactTime()
    return oracle


@pytest.mark.parametrize("size", [(1, 4, 6), (3, 6, 4), (2, 2, 8)])
def test_dit(size):
    oracle = diffusers_dit()
    ours = through(DIT, dialect(keys.DIT, "diffusers"), oracle.state_dict())
    x = torch.randn(2, 16, *size)
    t = torch.tensor([0.999, 0.25], dtype=torch.float64)
    text = [torch.randn(7, 48), torch.randn(12, 48)]
    padded = torch.stack([torch.nn.functional.pad(one, (0, 0, 0, 512 - len(one))) for one in text])
    expected = oracle(x, t * 1000, padded).sample
    assert error(ours(x, t, text), expected) < 1e-5
    assert error(ours(x, t.float(), padded), expected) < 1e-5


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_vae(frames):
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    oracle = filled(AutoencoderKLWan(base_dim=8, z_dim=16))
    ours = through(VAE, dialect(keys.VAE, "diffusers"), oracle.state_dict())
    mean = torch.tensor(oracle.config.latents_mean).view(1, 16, 1, 1, 1)
    std = torch.tensor(oracle.config.latents_std).view(1, 16, 1, 1, 1)
    x = torch.rand(2, 3, frames, 48, 32) * 2 - 1
    expected = (oracle.encode(x).latent_dist.mode() - mean) / std
    found = ours.encode(x)
    assert found.shape == (2, 16, (frames - 1) // 4 + 1, 6, 4)
    assert error(found, expected) < 1e-5
    z = torch.randn(found.shape)
    decoded = ours.decode(z)
    assert decoded.shape == x.shape
    assert error(decoded, oracle.decode(z * std + mean).sample) < 1e-5
