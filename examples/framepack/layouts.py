"""Draw FramePack's frame indices from the code that uses them, as the pictures of docs/framepack.md.

Run `python examples/framepack/layouts.py` to write docs/images/framepack-*.svg anew.
"""

from __future__ import annotations

from pathlib import Path

from musubi.architectures.framepack.layout import (
    WINDOW,
    Layout,
    forward,
    inverted,
    one_frame,
    paddings,
)

IMAGES = Path(__file__).parent.parent.parent / "docs" / "images"
CELL, ROW, LEFT, TOP = 12, 44, 190, 30
COLOURS = {
    "target": ("#2563eb", "made now"),
    "given": ("#16a34a", "start image or control images"),
    "near": ("#ea580c", "history at 1x"),
    "2x": ("#ca8a04", "history at 2x"),
    "4x": ("#6b7280", "history at 4x"),
}


def spans(layout: Layout, given: int) -> list[tuple[str, tuple[int, ...]]]:
    """What a layout holds, by colour; the first `given` of its clean latents were given."""
    parts = {
        "target": layout.target,
        "given": layout.clean[:given],
        "near": layout.clean[given:],
        "2x": layout.clean_2x,
        "4x": layout.clean_4x,
    }
    return [(name, indices) for name, indices in parts.items() if indices]


def drawn(title: str, rows: list[tuple[str, Layout, int]]) -> str:
    """One picture: for each row a label, its layout, and how many clean latents were given."""
    last = max(max(i) for _, layout, given in rows for _, i in spans(layout, given))
    width, height = LEFT + (last + 2) * CELL, TOP + len(rows) * ROW + 62
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
        f"<title>{title}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="8" y="18" font-size="13" font-weight="bold">{title}</text>',
    ]
    for number, (label, layout, given) in enumerate(rows):
        top = TOP + number * ROW
        out.append(f'<text x="8" y="{top + 17}">{label}</text>')
        out.append(
            f'<rect x="{LEFT}" y="{top + 4}" width="{(last + 1) * CELL}" height="18" fill="#f3f4f6"/>'
        )
        for name, indices in spans(layout, given):
            out.extend(
                f'<rect x="{LEFT + index * CELL}" y="{top + 4}" width="{CELL - 1}" height="18" '
                f'fill="{COLOURS[name][0]}"/>'
                for index in indices
            )
            out.extend(
                f'<text x="{LEFT + index * CELL + CELL // 2}" y="{top + 35}" font-size="9" '
                f'text-anchor="middle" fill="#374151">{index}</text>'
                for index in sorted({indices[0], indices[-1]})
            )
    x, y = 8, TOP + len(rows) * ROW + 18
    used = {name for _, layout, given in rows for name, _ in spans(layout, given)}
    for name, (colour, meaning) in COLOURS.items():
        if name in used:
            out.append(f'<rect x="{x}" y="{y}" width="11" height="11" fill="{colour}"/>')
            out.append(f'<text x="{x + 16}" y="{y + 10}">{meaning}</text>')
            x += 34 + 6 * len(meaning)
    out.append(
        f'<text x="8" y="{y + 32}" fill="#374151">Numbers are frame indices, in latent frames: '
        "one stands for 4 frames of the video.</text>"
    )
    return "\n".join([*out, "</svg>", ""])


def pictures() -> dict[str, str]:
    """File name → picture."""
    distances = paddings(4)
    from_the_end = [
        (f"section {3 - i}, made {('first', 'second', 'third', 'last')[i]}", inverted(WINDOW, p), 1)
        for i, p in enumerate(distances)
    ]
    single = [
        ("default", one_frame(WINDOW), 1),
        ("target_index=1", one_frame(WINDOW, target=1), 1),
        ("control_index=0;10", one_frame(WINDOW, target=1, controls=(0, 10)), 2),
        (
            "no_2x,no_4x,no_post",
            one_frame(WINDOW, target=1, controls=(0, 10), post=False, with_2x=False, with_4x=False),
            2,
        ),
    ]
    return {
        "framepack-sections.svg": drawn(
            "FramePack: four sections, the last one first", from_the_end
        ),
        "framepack-f1.svg": drawn(
            "FramePack-F1: every section alike", [("any section", forward(WINDOW), 1)]
        ),
        "framepack-one-frame.svg": drawn("A single frame", single),
    }


if __name__ == "__main__":
    for name, picture in pictures().items():
        (IMAGES / name).write_text(picture, encoding="utf-8")
        print(IMAGES / name)
