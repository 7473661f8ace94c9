"""A font of the system for text in pictures: Pillow's own knows Latin letters only."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
# Fonts with Japanese, Chinese or Korean, as systems name their files; the better ones first.
_NAMES = (
    "NotoSansCJK-Regular.ttc", "NotoSansCJKjp-Regular.otf", "NotoSansJP-Regular.otf", "NotoSansJP-VF.ttf",
    "SourceHanSans.ttc", "ipaexg.ttf", "ipag.ttf", "TakaoGothic.ttf", "VL-Gothic-Regular.ttf",
    "wqy-zenhei.ttc", "wqy-microhei.ttc", "DroidSansFallbackFull.ttf", "DroidSansFallback.ttf", "NanumGothic.ttf",
    "YuGothM.ttc", "meiryo.ttc", "msgothic.ttc", "msyh.ttc", "simhei.ttf", "malgun.ttf",
    "ヒラギノ角ゴシック W3.ttc", "Hiragino Sans GB.ttc", "PingFang.ttc", "STHeiti Light.ttc", "AppleSDGothicNeo.ttc",
    "Arial Unicode.ttf", "DejaVuSans.ttf",
)  # fmt: skip
_MOST = 20_000  # files that are looked at: some systems keep whole collections


def for_text(text: str, size: int) -> Font | None:
    """A font that has every letter of `text`; Pillow's own where that has them.

    Args:
        text: What will be drawn.
        size: In pixels.

    Returns:
        None when no font of this system has all letters.
    """
    if text.isascii():
        return _own(size)
    for path in _installed():
        font = _opened(path, size)
        if font is not None and all(_has(font, c) for c in set(text) if not c.isspace()):
            return font
    return None


def drawable(text: str) -> str:
    """The text with "?" for what Pillow's own font lacks."""
    return text.encode("ascii", "replace").decode("ascii")


def _own(size: int) -> Font:
    return ImageFont.load_default(size)


def _has(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Whether a font draws a letter otherwise than one that it surely lacks."""
    return _drawn(font, letter) != _drawn(font, "\U0010ffff")


@lru_cache(maxsize=4096)
def _drawn(font: ImageFont.FreeTypeFont, letter: str) -> bytes:
    image = Image.new("L", (48, 48))
    ImageDraw.Draw(image).text((4, 4), letter, fill=255, font=font)
    return image.tobytes()


@lru_cache(maxsize=16)
def _opened(path: Path, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(str(path), size)
    except OSError:
        return None


@lru_cache(maxsize=1)
def _installed() -> tuple[Path, ...]:
    """The known fonts that this system has, in the order of `_NAMES`."""
    found: dict[str, Path] = {}
    count = 0
    for folder in _folders():
        for place, _, files in os.walk(folder):
            count += len(files)
            for name in files:
                if name in _NAMES:
                    found.setdefault(name, Path(place) / name)
            if count > _MOST:
                break
    return tuple(found[name] for name in _NAMES if name in found)


def _folders() -> Iterator[Path]:
    home = Path.home()
    if sys.platform == "win32":
        yield Path(os.environ.get("WINDIR", r"C:\Windows")) / "Fonts"
        yield home / "AppData/Local/Microsoft/Windows/Fonts"
    elif sys.platform == "darwin":
        yield from (Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts")
    else:
        data = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
        yield from (Path(part) / "fonts" for part in data.split(":"))
        yield from (home / ".local/share/fonts", home / ".fonts")
