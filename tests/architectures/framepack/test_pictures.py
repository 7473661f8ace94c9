"""The pictures in the docs show the indices that the code uses."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_the_pictures_are_current():
    path = ROOT / "examples" / "framepack" / "layouts.py"
    spec = importlib.util.spec_from_file_location("framepack_layouts", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, picture in module.pictures().items():
        found = (ROOT / "docs" / "images" / name).read_text(encoding="utf-8")
        assert found == picture, f"Run `python examples/framepack/layouts.py`: {name} is old."
