"""Optimizers that torch does not have: one class each, written from its paper."""
