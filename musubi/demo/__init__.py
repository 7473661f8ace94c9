"""A tiny world of coloured shapes, and the demonstration that a LoRA teaches it something new.

`shapes` draws it, `detector` tells what a clip shows, `make` trains the checkpoint in `world/`.
"""
