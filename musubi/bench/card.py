"""`musubi bench --calibrate`: the rates of the card in this computer."""

from __future__ import annotations

import torch

from musubi.errors import ConfigError
from musubi.estimate import calibrate
from musubi.plugin import Report


def tell(device: torch.device, report: Report) -> None:
    """Measure the card, show its rates, and keep them for plans.

    Raises:
        ConfigError: There is no card.
        RunError: What was found cannot be kept.
    """
    if device.type != "cuda":
        raise ConfigError(
            "--calibrate measures a CUDA card, and there is none here.",
            fix="Run it on the computer with the card; or name a card: `musubi plan --card`.",
        )
    name = torch.cuda.get_device_name(device)
    found = calibrate.measure(name, device)
    card = found.card
    eight = "none" if card.product8 is None else f"{card.product8 / 1e12:.0f}"
    report.table(
        f"{name}, PyTorch {torch.__version__}",
        ("what", "rate", "unit"),
        [
            ("products in 16 bits", f"{card.product / 1e12:.0f}", "10^12 operations/s"),
            ("products in fp8, a scale for each row", eight, "10^12 operations/s"),
            ("products in int8, likewise", f"{card.integers / 1e12:.0f}", "10^12 operations/s"),
            ("attention, forward", f"{card.attention / 1e12:.0f}", "10^12 operations/s"),
            ("attention, backward", f"{card.attention_backward / 1e12:.0f}", "10^12 operations/s"),
            ("memory, element-wise", f"{card.memory / 1e9:.0f}", "GB/s"),
            ("link, page-locked", f"{card.link / 1e9:.1f}", "GB/s"),
            ("link, not page-locked", f"{found.pageable / 1e9:.1f}", "GB/s"),
        ],
    )
    report.note(f"Kept in {calibrate.remember(card)}; plans take it. {_faster(card)}")


def _faster(card: calibrate.Card) -> str:
    """Which products are worth asking for."""
    best = max((card.product8 or 0.0, "--fp8_fast"), (card.integers, "--int8_fast"))
    if best[0] <= card.product:
        return "Products in 8 bits are no faster here."
    return f"{best[1]} is {best[0] / card.product:.1f} times as fast as 16 bits for its products."
