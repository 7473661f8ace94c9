"""How fast a card is at each kind of work, for estimates of seconds: figures that steps reach, not peaks."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from musubi.errors import ConfigError, did_you_mean
from musubi.estimate.figures import Work
from musubi.estimate.trace import Kind

_T = 1e12
_G = 1e9
# Convolutions in three dimensions reach this part of what products do.
_CONVOLUTION = 0.25
# Seconds in which the host starts one operation that is not compiled, whatever the card.
_START = 8e-6
# The part of its maker's ratio that a product in int8 reaches, its scales included; measured on one H100.
_INTEGERS = 0.8


@dataclass(frozen=True, kw_only=True)
class Card:
    """Rates of a device.

    Args:
        name: For people.
        product: Products in 16 bits, in operations a second.
        product8: Products in fp8; None: it has none.
        integers: Products in int8.
        attention: Attention, forward.
        attention_backward: And backward.
        memory: Bytes a second that element-wise kernels move.
        link: Bytes a second between page-locked host memory and the device.
    """

    name: str
    product: float
    product8: float | None
    integers: float
    attention: float
    attention_backward: float
    memory: float
    link: float

    def seconds(self, work: Work) -> float:
        """For operations and traffic one after the other."""
        rates: Mapping[Kind, float] = {
            "product": self.product,
            "product8": self.product8 or self.product,
            "product int8": self.integers,
            "convolution": _CONVOLUTION * self.product,
            "attention": self.attention,
            "attention backward": self.attention_backward,
        }
        busy = sum(work.flops.get(kind, 0.0) / rate for kind, rate in rates.items())
        return busy + work.traffic / self.memory


def started(work: Work) -> float:
    """Seconds that the host takes to start the operations one by one: the device waits for it."""
    return _START * work.kernels


def _card(
    name: str,
    product: float,
    product8: float | None,
    memory: float,
    link: float,
    *,
    integers: float = 2,
) -> Card:
    """TFLOP/s of products, GB/s of memory as its maker says, GB/s of the link as measured.

    Integers are that many times as fast as 16 bits with sums in float32: twice, and four times on
    cards for games, whose sums in float32 take twice as long.
    """
    return Card(
        name=name,
        product=product * _T,
        product8=None if product8 is None else product8 * _T,
        integers=_INTEGERS * integers * product * _T,
        attention=0.78 * product * _T,
        attention_backward=0.68 * product * _T,
        memory=0.75 * memory * _G,
        link=link * _G,
    )


# The others are scaled from these by what makers say of products that sum in float32.
MEASURED = ("H200", "H100")
CARDS = (
    _card("H200", 760, 1400, 4800, 55),
    _card("H100 PCIe", 480, 900, 2000, 55),
    _card("H100 NVL", 640, 1200, 3900, 55),
    _card("H100", 720, 1300, 3350, 55),
    _card("B200", 1600, 3000, 8000, 55),
    _card("A100", 245, None, 1900, 25),
    _card("L40S", 260, 500, 864, 25),
    _card("L40", 150, 290, 864, 25),
    _card("RTX 6000 Ada", 260, 500, 960, 25),
    _card("RTX PRO 6000", 350, 680, 1790, 50),
    _card("RTX A6000", 120, None, 768, 25),
    _card("A40", 120, None, 696, 25),
    _card("A10", 95, None, 600, 25),
    _card("L4", 60, 115, 300, 25),
    _card("RTX 5090", 200, 390, 1790, 50, integers=4),
    _card("RTX 5080", 108, 210, 960, 50, integers=4),
    _card("RTX 5070 Ti", 84, 165, 896, 50, integers=4),
    _card("RTX 5060 Ti", 45, 90, 448, 25, integers=4),
    _card("RTX 4090", 155, 300, 1008, 25, integers=4),
    _card("RTX 4080", 92, 180, 717, 25, integers=4),
    _card("RTX 4070 Ti", 76, 150, 504, 25, integers=4),
    _card("RTX 4070", 56, 110, 504, 25, integers=4),
    _card("RTX 4060 Ti", 42, 82, 288, 12, integers=4),
    _card("RTX 3090", 68, None, 936, 25, integers=4),
    _card("RTX 3080", 57, None, 760, 25, integers=4),
    _card("RTX 3060", 25, None, 360, 25, integers=4),
)


def named(name: str) -> Card:
    """The card of that name: a part of it is enough.

    Raises:
        ConfigError: There is no such card.
    """
    asked = _words(name)
    parts = [card for card in CARDS if asked and asked <= _words(card.name)]
    found = _find(name) or min(parts, key=lambda card: len(card.name), default=None)
    if found is None:
        raise ConfigError(
            f"No speed is known for a card {name!r}.",
            fix=did_you_mean(name, [c.name for c in CARDS]),
        )
    return found


@functools.cache
def of_device(index: int = 0) -> Card | None:
    """The card in this computer: as it was measured, or as the table says; None: no CUDA.

    Rows that this project measured are taken as they are. Any other card is measured for some
    seconds, once: see `musubi.estimate.calibrate`.
    """
    if not torch.cuda.is_available():
        return None
    from musubi.estimate import calibrate

    name = torch.cuda.get_device_name(index)
    row = _find(name)
    if row is not None and row.name in MEASURED:
        return calibrate.remembered(name) or row
    return calibrate.of_this_computer(index) or row


def _find(name: str) -> Card | None:
    return next((card for card in CARDS if _words(card.name) <= _words(name)), None)


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z]*[0-9]*[a-z]*", name.lower())) - {""}
