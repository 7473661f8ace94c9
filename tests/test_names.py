"""One meaning a name: no two classes of the package have the same one."""

import ast
from collections import defaultdict
from pathlib import Path

import musubi

ROOT = Path(musubi.__file__).parent


def _classes(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node.name for node in tree.body if isinstance(node, ast.ClassDef)]


def test_no_two_classes_share_a_name():
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted(ROOT.rglob("*.py")):
        file = path.relative_to(ROOT)
        # A network's parts have the names of its paper: each of these rooms counts as one place.
        networks = file.parts[0] in ("architectures", "encoders")
        for name in _classes(path):
            found[name].add("a network" if networks else file.as_posix())
    shared = {name: sorted(places) for name, places in found.items() if len(places) > 1}
    assert not shared
