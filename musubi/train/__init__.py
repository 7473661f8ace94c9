"""Training: from cache records to weights. Read `step.py` (the loss), then `train_loop.py` (a run)."""
