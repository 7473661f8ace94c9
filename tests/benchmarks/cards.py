"""Steps of full-size models, one case after the other on one card: `python tests/benchmarks/cards.py`.

Each case is `musubi bench` in a process of its own, with random weights; no file is needed. The
table names settings, seconds of a step, and what PyTorch allocated and reserved at most. Cases that
belong together stand together, so that a few of them can be compared in one run on one card.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

_AWAY = "--gradient_checkpointing_cpu_offload --blocks_to_swap 40 --compile --int8_fast"
CASES = {
    # 16 bits, and both kinds of 8
    "bf16": "--frames 17 --recompute attention --compile",
    "fp8": "--frames 17 --recompute attention --compile --fp8_scaled --fp8_fast",
    "int8": "--frames 17 --recompute attention --compile --int8_fast",
    "fp8-error": "--frames 17 --recompute attention --phase error --fp8_scaled --fp8_fast",
    "int8-error": "--frames 17 --recompute attention --phase error --int8_fast",
    # without a compiler
    "eager": "--frames 17 --gradient_checkpointing",
    "eager-attention": "--frames 17 --recompute attention",
    # small cards
    "17-frames-4gib": f"--frames 17 {_AWAY} --recompute attention --optimizer_offload",
    "81-frames-8gib": f"--frames 81 {_AWAY} --recompute attention --optimizer_offload "
    "--offload_8bit --ffn_slices 4 --attention_slices 4 --steps 2",
    "81-frames-host": f"--frames 81 {_AWAY} --recompute blocks --optimizer_offload --offload_8bit "
    "--ffn_slices 4 --attention_slices 4 --steps 2",
    "720p": f"--width 1280 --height 720 --frames 81 {_AWAY} --recompute attention "
    "--optimizer_offload --offload_8bit --ffn_slices 8 --attention_slices 8 --steps 1",
    # other networks, with --arch and --size
    "61-frames-960": f"--width 960 --height 544 --frames 61 {_AWAY} --recompute attention "
    "--offload_8bit --ffn_slices 4 --attention_slices 4 --steps 2",
    "640": "--width 640 --height 640 --frames 33 --recompute attention --compile --steps 3",
    "640-away": f"--width 640 --height 640 --frames 33 {_AWAY} --recompute attention --steps 3",
    "denoise": "--frames 81 --phase sample --int8_fast --blocks_to_swap 38 --compile --steps 2",
    "decode": "--frames 81 --phase decode --steps 2",
    "encode": "--frames 81 --phase encode --steps 2",
}


def main() -> None:
    """Run the cases, and show a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="wan")
    parser.add_argument("--size", default="14B")
    parser.add_argument("--only", nargs="+", choices=list(CASES), help="these cases")
    parser.add_argument("--more", default="", help="words for each case, such as --profile")
    parser.add_argument("--json", type=Path, help="append the figures here, one line a case")
    parser.add_argument("--limit", type=float, default=300, help="seconds for one case")
    options = parser.parse_args()
    if sys.platform == "linux":
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    rows = []
    for name in options.only or CASES:
        found = measure(name, options)
        if found is not None:
            rows.append((name, found))
            if options.json is not None:
                with options.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"case": name, **found}) + "\n")
    print(
        "| case | settings | s | GiB allocated | reserved | first two steps s |\n"
        + "|---" * 6
        + "|"
    )
    for name, found in rows:
        figures = (found[k] for k in ("s", "peak_gib", "reserved_gib", "warm_s"))
        print(f"| {name} | `{CASES[name]}` | " + " | ".join(map(str, figures)) + " |")


def measure(name: str, options: argparse.Namespace) -> dict | None:
    """One case; None where it gave no figures: errors of settings are printed as they come."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.jsonl"
        words = ["bench", "--arch", options.arch, "--size", options.size, "--json", str(file)]
        words += [*shlex.split(CASES[name]), *shlex.split(options.more)]
        print(f"== {name}: musubi {shlex.join(words)}", flush=True)
        try:
            subprocess.run(
                [sys.executable, "-m", "musubi", *words], timeout=options.limit, check=False
            )
        except subprocess.TimeoutExpired:
            print(f"stopped after {options.limit:.0f} s", flush=True)
        return json.loads(file.read_text()) if file.exists() else None


if __name__ == "__main__":
    main()
