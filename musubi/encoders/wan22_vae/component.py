"""Wan2.2's autoencoder as a component. Plain data: no torch in this file."""

from musubi.encoders.wan22_vae import keys
from musubi.plugin import Component, Lazy

WAN22_VAE = Component(
    name="vae",
    role="vae",
    help="Wan2.2's video autoencoder: Wan2.2_VAE.pth, wan2.2_vae.safetensors, or a diffusers folder.",
    build=Lazy("musubi.encoders.wan22_vae.network:build"),
    infer=Lazy("musubi.encoders.wan22_vae.network:infer"),
    dialects=keys.WAN22_VAE,
    dtype="bfloat16",
    tiny={"dim": 8, "decoder_dim": 16, "z_dim": 48},
    full={"dim": 160, "decoder_dim": 256, "z_dim": 48},
)
