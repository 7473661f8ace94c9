"""CLIP's text tower."""
