"""Wan2.1's video autoencoder, which other image and video models share."""
