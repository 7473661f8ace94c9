"""Wan2.2's video autoencoder: 48 channels, one cell for 4 frames of 16x16 pixels."""
