"""One page: data, the design and what draws it, in a single file that needs nothing else."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from musubi.weights.write import atomic

_SCRIPTS = ("core", "charts", "media", "run", "watch", "gallery", "dataset", "demo", "start")
# A page draws what it carries and speaks to nobody; one that is served asks its own server for more.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data: 'self' file:; media-src data: 'self' file:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'"
)


def page(title: str, data: Mapping[str, Any]) -> str:
    """The text of a page.

    Args:
        title: For the tab.
        data: What is shown; its `view` says how.
    """
    return (
        "<!doctype html>\n"
        "<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        "<meta name='color-scheme' content='light dark'>\n"
        "<meta name='referrer' content='no-referrer'>\n"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        "<link rel='icon' href='data:,'>\n"
        f"<title>{html.escape(title)}</title>\n<style>\n{_asset('page.css')}</style>\n</head>\n"
        "<body>\n<main id='page'><noscript>This page draws its figures with JavaScript; "
        "metrics.jsonl beside it holds the same numbers.</noscript></main>\n"
        f"<script type='application/json' id='data'>{_embedded(data)}</script>\n"
        f"<script>\n{_script()}</script>\n</body>\n</html>\n"
    )


def write(path: Path, title: str, data: Mapping[str, Any]) -> None:
    """Write a page; an older one is replaced only by a whole one.

    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text(page(title, data), encoding="utf-8")


def _embedded(data: Mapping[str, Any]) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


@lru_cache(maxsize=1)
def _script() -> str:
    parts = "\n".join(_asset(f"{name}.js") for name in _SCRIPTS)
    return f'"use strict";\n(() => {{\n{parts}\n}})();\n'


@lru_cache(maxsize=16)
def _asset(name: str) -> str:
    return (files("musubi.pages") / "assets" / name).read_text(encoding="utf-8")
