"""`index.html`: the commands, the loss, the samples by step, and the clips before and after."""

from __future__ import annotations

import html
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from musubi.demo.pictures import moving

WIDTH, HEIGHT, MARGIN = 640, 200, 34
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff }
pre { background: #f4f4f6; padding: .7rem 1rem; white-space: pre-wrap; overflow-wrap: anywhere }
figure { display: inline-block; margin: 0 .6rem .8rem 0; width: 128px; vertical-align: top }
figcaption { font-size: .8rem; color: #555 } svg { width: 100% }
.yes { color: #176b2c } .no { color: #8a1c1c }
"""


@dataclass
class Story:
    """What happened.

    Args:
        title: What was taught.
        commands: As typed, in order, without the program's name.
        losses: Of each step.
        by_step: Step → the clip drawn then.
        before: Clips of the base.
        after: Clips with the LoRA, of the same prompts and seeds.
        prompts: Of those clips.
        found: How many of `before`, and of `after`, show what was taught.
    """

    title: str
    commands: list[Sequence[str]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    by_step: Mapping[int, np.ndarray] = field(default_factory=dict)
    before: Sequence[np.ndarray] = ()
    after: Sequence[np.ndarray] = ()
    prompts: Sequence[str] = ()
    found: tuple[int, int] = (0, 0)


def write_page(story: Story, path: Path) -> None:
    """Write the page; everything is inside it."""
    total = len(story.after)
    parts = [
        f"<h1>musubi taught a tiny model {html.escape(story.title)}</h1>",
        f"<p>A detector finds it in <b class='no'>{story.found[0]} of {total}</b> clips of the base, "
        f"and in <b class='yes'>{story.found[1]} of {total}</b> with the LoRA.</p>",
        "<h2>Before and after, same prompts, same seeds</h2>",
        *(
            _clip(before, f"before: {prompt}") + _clip(after, "after") + "<br>"
            for before, after, prompt in zip(story.before, story.after, story.prompts, strict=True)
        ),
        "<h2>One seed while it learns</h2>",
        *(_clip(frames, f"step {step}") for step, frames in sorted(story.by_step.items())),
        "<h2>Loss</h2>",
        curve(story.losses),
        "<h2>The commands</h2>",
        *(f"<pre>musubi {html.escape(shlex.join(words))}</pre>" for words in story.commands),
    ]
    path.write_text(
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<link rel='icon' href='data:,'>"
        f"<title>musubi demo</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n",
        encoding="utf-8",
    )


def curve(losses: Sequence[float]) -> str:
    """The losses as an SVG: each as a point, and their running mean as a line."""
    if not losses:
        return "<p>No step was logged.</p>"
    top = max(losses) * 1.05 or 1.0
    means = [float(np.mean(losses[max(0, i - 9) : i + 1])) for i in range(len(losses))]

    def place(i: int, loss: float) -> tuple[float, float]:
        x = MARGIN + (WIDTH - 2 * MARGIN) * i / max(1, len(losses) - 1)
        return round(x, 1), round(HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * loss / top, 1)

    points = " ".join("{},{}".format(*place(i, mean)) for i, mean in enumerate(means))
    dots = "".join(
        "<circle cx='{}' cy='{}' r='1.6' fill='#aac'/>".format(*place(i, loss))
        for i, loss in enumerate(losses)
    )
    floor = HEIGHT - MARGIN
    return (
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='loss by step'>"
        f"<path d='M{MARGIN} {MARGIN}V{floor}H{WIDTH - MARGIN}' fill='none' stroke='#888'/>{dots}"
        f"<polyline points='{points}' fill='none' stroke='#24a' stroke-width='2'/>"
        f"<text x='4' y='{MARGIN}' font-size='11'>{top:.3f}</text>"
        f"<text x='4' y='{floor}' font-size='11'>0</text>"
        f"<text x='{WIDTH - MARGIN}' y='{HEIGHT - 14}' font-size='11' text-anchor='end'>"
        f"step {len(losses)}</text></svg>"
    )


def _clip(frames: np.ndarray, caption: str) -> str:
    text = html.escape(caption)
    return (
        f"<figure><img src='{moving(frames)}' width='128' height='128' alt='{text}'>"
        f"<figcaption>{text}</figcaption></figure>"
    )
