"""Fonts for the contact sheets: one that has the letters, or a word that there is none."""

import pytest
from PIL import ImageFont

from musubi.data import fonts


def test_latin_needs_no_font_of_the_system(monkeypatch):
    monkeypatch.setattr(fonts, "_installed", lambda: ())
    assert fonts.for_text("a red ball", 12) is not None
    assert fonts.for_text("赤い玉", 12) is None
    assert fonts.drawable("赤い玉 é") == "??? ?"


def test_a_letter_that_a_font_lacks_is_noticed():
    own = ImageFont.load_default(12)
    if not isinstance(own, ImageFont.FreeTypeFont):
        pytest.skip("Pillow was built without FreeType")
    assert fonts._has(own, "a") and not fonts._has(own, "赤")


def test_the_fonts_of_the_system_draw_what_they_claim():
    font = fonts.for_text("赤い玉 红色的球", 12)
    if font is None:
        pytest.skip("this system has no font with Japanese and Chinese")
    assert font.getlength("赤い") > 12
