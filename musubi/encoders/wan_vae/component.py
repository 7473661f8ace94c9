"""Wan2.1's autoencoder as a component. Plain data: no torch in this file."""

from musubi.encoders.wan_vae import keys
from musubi.plugin import Component, Lazy

VAE = Component(
    name="vae",
    role="vae",
    help="The video autoencoder: Wan2.1_VAE.pth, wan_2.1_vae.safetensors, or a diffusers folder.",
    build=Lazy("musubi.encoders.wan_vae.network:WanVAE"),
    infer=Lazy("musubi.encoders.wan_vae.network:infer"),
    dialects=keys.VAE,
    dtype="bfloat16",
    tiny={"dim": 8, "z_dim": 16},
    full={"dim": 96, "z_dim": 16},
)
