"""Records → weights. Read `step.py` (one loss), then `loop.py` (a run)."""
