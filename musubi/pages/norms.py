"""How much a LoRA changes each block of its network, from the checkpoints of a run."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from musubi.lora.files import read_lora
from musubi.lora.names import KOHYA, PREFIXES

_BLOCK = re.compile(r"^(.*?)[._](\d+)[._](.*)$")
_MOST = 12
"""Checkpoints whose norms are read: the newest, and others evenly between."""


@dataclass
class Norms:
    """Norms of checkpoints that were read already: a file is read once."""

    _known: dict[tuple[Path, int], dict[str, float] | None] = field(
        default_factory=dict[tuple[Path, int], "dict[str, float] | None"]
    )

    def of(self, checkpoints: Sequence[tuple[str, Path]]) -> dict[str, Any] | None:
        """The newest one's norms by block and layer, and the whole change of each checkpoint.

        Args:
            checkpoints: (what it is, path), the oldest first.

        Returns:
            {"rows": layers, "columns": blocks, "values": [row][column] or None where there is no
            such layer, "total": [(what, norm)]}, or None when no checkpoint is a LoRA.
        """
        step = max(1, -(-len(checkpoints) // _MOST))
        taken = list(reversed(list(reversed(checkpoints))[::step]))
        read = [(what, norms) for what, path in taken if (norms := self._read(path))]
        if not read:
            return None
        return {**_table(read[-1][1]), "of": read[-1][0], "total": [
            (what, _whole(norms)) for what, norms in read
        ]}  # fmt: skip

    def _read(self, path: Path) -> dict[str, float] | None:
        key = path, path.stat().st_mtime_ns
        if key not in self._known:
            try:
                pairs = read_lora(path, None, finite=False).pairs
                self._known[key] = {name: pair.norm() for name, pair in pairs.items()}
            except Exception:  # a whole model, another program's file, one that is being replaced
                self._known[key] = None
        return self._known[key]


def _whole(norms: dict[str, float]) -> float:
    return float(f"{math.sqrt(math.fsum(n * n for n in norms.values() if math.isfinite(n))):.5g}")


def _table(norms: dict[str, float]) -> dict[str, Any]:
    cells: dict[str, dict[str, float]] = defaultdict(dict)
    blocks: dict[str, tuple[str, int]] = {}
    for name, norm in norms.items():
        for prefix in (*PREFIXES, KOHYA):
            name = name.removeprefix(prefix)
        match = _BLOCK.match(name)
        stack, number, layer = (match[1], int(match[2]), match[3]) if match else ("", -1, name)
        block = f"{stack} {number}" if match else "outside"
        blocks[block] = stack, number
        cells[layer][block] = float(f"{norm:.4g}") if math.isfinite(norm) else -1.0
    columns = sorted(blocks, key=lambda b: blocks[b])
    return {
        "rows": list(cells),
        "columns": columns,
        "values": [[cells[row].get(column) for column in columns] for row in cells],
    }
