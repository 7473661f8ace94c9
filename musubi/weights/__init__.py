"""Checkpoints in, our names out; and every file written so that a crash leaves the old one whole."""
