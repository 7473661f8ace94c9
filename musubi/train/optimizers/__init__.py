"""Optimizers that no package on every computer has: a class each, by its paper."""
