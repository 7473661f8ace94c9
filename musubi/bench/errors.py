"""How far settings move what a network answers: against the same weights, as they are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from musubi.bench.case import BenchCase
from musubi.bench.network import random_network
from musubi.memory.apply import PolicyPlacement
from musubi.plugin import Policy, Report


def tell(
    case: BenchCase,
    numbers: Mapping[str, Any],
    policy: Policy,
    placement: PolicyPlacement,
    dtype: torch.dtype,
    report: Report,
) -> dict[str, float]:
    """Show the relative errors, and return them.

    Args:
        case: What is run.
        numbers: Sizes of the network.
        policy: The settings.
        placement: Made of them.
        dtype: Of the weights as they are loaded.
        report: Shown a table.

    Returns:
        "velocity", "loss" and "gradients": ‖found - expected‖ / ‖expected‖.
    """
    plain = PolicyPlacement(placement.traits, Policy(recompute=policy.recompute), placement.device)
    expected = _answers(case, numbers, plain, dtype)
    found = _answers(case, numbers, placement, dtype)
    errors = {
        name: float((found[name] - expected[name]).norm() / expected[name].norm())
        for name in expected
    }
    report.table(
        "Relative error against the network as it is loaded",
        ("of", "error"),
        [(name, f"{error:.2e}") for name, error in errors.items()],
    )
    return errors


def _answers(
    case: BenchCase, numbers: Mapping[str, Any], placement: PolicyPlacement, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    network = random_network(case.component(), numbers, placement, dtype=dtype)
    velocity = case.prediction(network)().float().cpu()
    lora = case.lora(network)
    generator = torch.Generator(placement.device).manual_seed(2)
    with torch.no_grad():
        for parameter in lora.parameters():  # a fresh one has half of its gradients zero
            parameter.normal_(std=parameter.shape[1] ** -0.5, generator=generator)
    loss = case.loss(network)()
    loss.backward()
    gradients = [p.grad.flatten() for p in lora.parameters() if p.grad is not None]
    return {
        "velocity": velocity,
        "loss": loss.detach().float().cpu()[None],
        "gradients": torch.cat(gradients).float().cpu(),
    }
