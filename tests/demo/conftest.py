"""The scripts that made the world are no part of the package; tests find them here."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "examples" / "world"))
