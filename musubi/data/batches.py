"""Which items make which batch: a pure function of seed, epoch and what there is to train on.

Order comes from BLAKE2 of names and numbers, so it is the same on every machine, in every version
of Python, and whatever order the items are listed in. An epoch's batches are listed for all
processes together; `musubi.train.loader` deals them out in turn, so that processes make the batches that
one process would make, and no batch is dropped or made twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from typing import Protocol

Batch = tuple[int, ...]


class Item(Protocol):
    """What the order needs to know; `musubi.cache.match.TrainingItem` is one."""

    @property
    def key(self) -> str:
        """Unique, and the same on every machine."""
        ...

    @property
    def dataset(self) -> int:
        """Number of its dataset."""
        ...

    @property
    def bucket(self) -> Hashable:
        """Items of one dataset with equal buckets can be stacked."""
        ...

    @property
    def batch_size(self) -> int:
        """Most items of a batch, the same for all of a dataset."""
        ...

    @property
    def repeats(self) -> int:
        """How often an epoch visits it."""
        ...


def dataset_digest(items: Sequence[Item]) -> str:
    """Of all that the order depends on; another digest means another order."""
    digest = hashlib.blake2b(digest_size=16)
    for row in sorted(repr((i.key, i.dataset, i.bucket, i.batch_size, i.repeats)) for i in items):
        digest.update(row.encode("utf-8") + b"\0")
    return digest.hexdigest()


def epoch_order(
    items: Sequence[Item], *, seed: int, epoch: int, digest: str | None = None
) -> list[Batch]:
    """The batches of an epoch, each a tuple of indices into `items`.

    Each item occurs as often as its `repeats` say. A batch holds items of one dataset and one bucket;
    the last of a bucket may be short. Copies of an item meet in one batch only where the bucket has
    fewer items than a batch. The order of batches is shuffled over all datasets.

    Args:
        items: What there is to train on.
        seed: Of the run.
        epoch: Number of the epoch.
        digest: `dataset_digest(items)`, when it is known already.
    """
    digest = dataset_digest(items) if digest is None else digest
    salt = f"{seed}\0{epoch}\0{digest}\0"
    groups: dict[tuple[int, Hashable, int], list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault((item.dataset, item.bucket, item.batch_size), []).append(index)
    ranked: list[tuple[bytes, Batch]] = []
    for group, members in groups.items():
        for number, batch in enumerate(_cut(items, members, group[2], salt)):
            ranked.append((_rank(f"{salt}batch\0{group!r}\0{number}"), batch))
    return [batch for _, batch in sorted(ranked)]


def _cut(items: Sequence[Item], members: Sequence[int], size: int, salt: str) -> list[Batch]:
    """Rounds over a bucket, one after the other, cut into batches."""
    out: list[Batch] = []
    begun: list[int] = []
    for round_ in range(max(items[i].repeats for i in members)):
        left = sorted(
            (i for i in members if items[i].repeats > round_),
            key=lambda i: _rank(f"{salt}{round_}\0{items[i].key}"),
        )
        if begun:  # a batch that the round before began is filled with others than it has
            others = [i for i in left if i not in begun][: size - len(begun)]
            left = others + [i for i in left if i not in set(others)]
        for index in left:
            begun.append(index)
            if len(begun) == size:
                out.append(tuple(begun))
                begun = []
    return [*out, tuple(begun)] if begun else out


def _rank(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()
