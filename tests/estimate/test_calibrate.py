"""What is measured of a card, and that plans take it."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from musubi.bench.card import tell
from musubi.errors import ConfigError
from musubi.estimate import calibrate, cards
from musubi.plugin import Quiet

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "musubi" / "cards.json"


def made(name: str = "RTX 3060") -> cards.Card:
    return replace(cards.named("RTX 3060"), name=name, product=1.5e13)


def test_every_rate_is_a_number_above_zero() -> None:
    found = calibrate.measure("a processor", CPU, side=64, tokens=32, size=1 << 12)
    card = found.card
    assert card.product8 is None and card.integers == card.product  # it multiplies no 8 bits
    rates = (card.product, card.attention, card.attention_backward, card.memory, card.link)
    assert all(rate > 0 for rate in (*rates, found.pageable))


def test_what_was_measured_is_kept_by_card_and_by_torch(cache, monkeypatch) -> None:
    assert calibrate.remembered("RTX 3060") is None
    assert calibrate.remember(made()) == cache
    calibrate.remember(made("another"))
    assert calibrate.remembered("RTX 3060") == made()
    assert len(json.loads(cache.read_text())) == 2
    monkeypatch.setattr(torch, "__version__", "99")
    assert calibrate.remembered("RTX 3060") is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"RTX 3060, torch VERSION": {"name": 1}}'])
def test_a_damaged_file_is_as_none(cache, text) -> None:
    cache.parent.mkdir()
    cache.write_text(text.replace("VERSION", torch.__version__))
    assert calibrate.remembered("RTX 3060") is None
    calibrate.remember(made())
    assert calibrate.remembered("RTX 3060") == made()


def test_windows_keeps_it_where_programs_do(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "Local"))
    assert calibrate.cache_file() == tmp_path / "Local" / "musubi" / "cards.json"


@pytest.mark.parametrize(
    ("name", "measured"),
    [("NVIDIA H100 80GB HBM3", False), ("NVIDIA GeForce RTX 3060", True), ("A new card", True)],
)
def test_a_card_is_measured_once_unless_this_project_did(monkeypatch, name, measured) -> None:
    asked = []

    def measure(name: str, device: torch.device) -> calibrate.Calibration:
        asked.append(name)
        return calibrate.Calibration(made(name), 1.0)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: name)
    monkeypatch.setattr(calibrate, "measure", measure)
    for _ in range(2):
        found = cards.of_device.__wrapped__()
        assert found == (made(name) if measured else cards.named("H100"))
    assert asked == ([name] if measured else [])
    calibrate.remember(made(name))
    assert cards.of_device.__wrapped__() == made(name)


def test_a_card_without_room_is_taken_from_the_table(monkeypatch) -> None:
    def measure(name: str, device: torch.device) -> calibrate.Calibration:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA GeForce RTX 3060")
    monkeypatch.setattr(calibrate, "measure", measure)
    assert cards.of_device.__wrapped__() == cards.named("RTX 3060")


def test_without_a_card_nothing_is_measured() -> None:
    with pytest.raises(ConfigError, match="there is none here"):
        tell(CPU, Quiet())


def test_what_is_said_of_a_card(monkeypatch, cache) -> None:
    class Told(Quiet):
        def __init__(self) -> None:
            super().__init__()
            self.said: list[str] = []
            self.rows: list[tuple[str, ...]] = []

        def note(self, text: str) -> None:
            self.said.append(text)

        def table(self, title, columns, rows) -> None:
            self.rows = list(rows)

    card = replace(made(), product8=None, integers=4.5e13)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "RTX 3060")
    monkeypatch.setattr(calibrate, "measure", lambda name, device: calibrate.Calibration(card, 5e9))
    told = Told()
    tell(torch.device("cuda"), told)
    assert {row[0]: row[1] for row in told.rows}["link, not page-locked"] == "5.0"
    assert "--int8_fast is 3.0 times as fast as 16 bits" in told.said[0]
    assert calibrate.remembered("RTX 3060") == card
