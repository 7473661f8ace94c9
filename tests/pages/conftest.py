"""A run's folder as training leaves it, made by hand; and a browser, where there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from musubi.generate.write import RECIPE, write_images, write_video
from musubi.pages.account import Account

CLIP = np.random.default_rng(0).integers(0, 255, (5, 48, 64, 3), dtype=np.uint8)
BAD = "</script><img src=x onerror=alert(1)> 'q' \"d\" 猫が走る"


def make_run(folder: Path, name: str = "cat", steps: int = 20, **noted: Any) -> Path:
    """`folder/name` with metrics, notes, settings; checkpoints and samples beside it."""
    own = folder / name
    own.mkdir(parents=True)
    with (own / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for step in range(1, steps + 1):
            line = {"step": step, "epoch": 1 + (step - 1) // 10, "loss/current": 1 / step, "loss/average": 1 / step,
                    "lr/unet": 1e-4, "grad_norm": 0.5, "tokens": 64, "seconds": 2.0, "memory/host": 1.5}  # fmt: skip
            file.write(json.dumps(line) + "\n")
            if step % 10 == 0:
                file.write(
                    json.dumps({"step": step, "epoch": step // 10, "loss/validation": 0.5}) + "\n"
                )
        file.write('{"step": 21, "loss/cur')  # as a killed run leaves it
    account = Account(
        name=name,
        architecture="wan",
        task="t2v",
        trained="a LoRA",
        total=40,
        per_epoch=10,
        device="CPU",
        started=1e9,
        datasets=[
            {"kind": "video", "place": "x", "resolution": [64, 48], "batch": 1, "repeats": 1, "items": 3}
        ],
        buckets=[{"width": 64, "height": 48, "frames": 5, "items": 3}],
        items=[{"name": "a.mp4", "kind": "video", "caption": BAD, "thumb": None}],
    )  # fmt: skip
    replace(account, **noted).write(own)
    (own / "config.toml").write_text(
        'arch = "wan"\nlearning_rate = 0.5\nseed = 1\nsave_every_n_steps = 7\n'
        'huggingface_token = "hf_secret"\n',
        encoding="utf-8",
    )
    tensors = {
        f"lora_unet_blocks_{i}_ffn_0.{kind}.weight": torch.ones(shape) * (i + 1)
        for i in range(2)
        for kind, shape in (("lora_down", (2, 4)), ("lora_up", (4, 2)))
    }
    save_file(tensors, folder / f"{name}-step00000010.safetensors")
    note = {RECIPE: json.dumps({"prompt": BAD, "seed": 3, "width": 64, "height": 48, "frames": 5})}
    sample = folder / "sample"
    write_video(CLIP, sample / f"{name}_000000_00_20260101000000_3.mp4", 8, note)
    write_video(CLIP, sample / f"{name}_e000001_00_20260101000100_3.mp4", 8, note)
    write_images(CLIP[:1], sample, f"{name}_000010_01_20260101000200", note)
    return own


class Checked(HTMLParser):
    """A page whose elements are counted and closed."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []
        self.data = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script" and not self.data:
            self.data = data


@pytest.fixture
def parsed():
    """Text of a page → its data, after checking that it is whole and asks nobody for anything."""

    def parse(text: str) -> dict[str, Any]:
        page = Checked()
        page.feed(text)
        page.close()
        assert not page.open and page.links == ["data:,"]
        addresses = set(re.findall(r"https?://[\w./-]+", text.replace(page.data, "")))
        assert addresses <= {"http://www.w3.org/2000/svg"}  # a name, which nothing fetches
        return json.loads(page.data)

    return parse


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "out [1]")


PROBE = """
<script>addEventListener("load", () => setTimeout(() => {
  const wide = [...document.querySelectorAll("body *")].filter((e) => e.getBoundingClientRect().right
    > innerWidth + 1 && !e.closest(".scroll, .strip, .heat, nav, table, svg"));
  document.documentElement.dataset.wide = wide.map((e) => e.className || e.tagName).join(" ");
}, 400));</script>
"""


@pytest.fixture
def browse(tmp_path: Path):
    """(page, width) → its elements once it is drawn; fails on any message of the console."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)  # fmt: skip
    if chromium is None:
        pytest.skip("needs Chromium")

    def open_page(page: Path, width: int) -> str:
        text = page.read_text(encoding="utf-8").replace("</body>", f"{PROBE}</body>")
        probed = page.with_name("probed.html")
        probed.write_text(text, encoding="utf-8")
        words = [
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
            *("--disable-background-networking", "--disable-component-update"),
            *("--enable-logging=stderr", "--virtual-time-budget=4000", "--dump-dom"),
            *(f"--window-size={width},900", f"--user-data-dir={tmp_path / f'profile{width}'}"),
        ]
        ran = subprocess.run(
            [chromium, *words, probed.as_uri()],
            capture_output=True,
            encoding="utf-8",
            timeout=120,
            check=True,
        )
        said = [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
        assert not said, said
        assert 'data-wide=""' in ran.stdout, re.findall('data-wide="[^"]*"', ran.stdout)
        return ran.stdout

    return open_page
