"""Clips and captions become records on disk, once; training opens them.

`header` and `store` say what a record is, `freshness` when it must be made again, `survey` compares
a dataset with its records, `encode` makes missing records, and `match` opens them for training.
"""
