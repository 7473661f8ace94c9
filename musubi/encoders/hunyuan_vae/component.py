"""HunyuanVideo's autoencoder as a component. Plain data: no torch in this file."""

from musubi.encoders.hunyuan_vae import keys
from musubi.plugin import Component, Lazy

VAE = Component(
    name="vae",
    role="vae",
    help="The video autoencoder: the official pytorch_model.pt, a safetensors file, or a diffusers folder.",
    build=Lazy("musubi.encoders.hunyuan_vae.network:HunyuanVideoVAE"),
    infer=Lazy("musubi.encoders.hunyuan_vae.network:infer"),
    dialects=keys.VAE,
    dtype="float16",
    tiny={"widths": (32, 32, 32, 32), "z_dim": 16},
    full={"widths": (128, 256, 512, 512), "z_dim": 16},
)
