"""musubi trains LoRAs for video diffusion transformers on ordinary GPUs, and generates with them."""

__version__ = "0.1.0"
