"""Pages to look at: a run, a dataset, generated clips. One design, one file each, nothing from the net.

Whoever has data shows it through `document.write`; what is drawn is decided in `assets/`.
"""
