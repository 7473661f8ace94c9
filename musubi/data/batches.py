"""Which items form which batch: a pure function of the seed, the epoch and the items.

Order comes from BLAKE2 of names and numbers, so it is the same on every machine, in every version
of Python, and whatever order the items are listed in. An epoch's batches are listed for all
processes together; `musubi.train.loader` deals them out in turn, so that processes make the batches that
one process would make, and no batch is dropped or made twice.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol

Batch = tuple[int, ...]


class Item(Protocol):
    """What the order depends on; `musubi.cache.match.TrainingItem` is one."""

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
        """How often an epoch uses the item."""
        ...


class Shared(Protocol):
    """How often a dataset is used; `musubi.config.dataset.DatasetEntry` is one."""

    @property
    def index(self) -> int:
        """Its number."""
        ...

    @property
    def weight(self) -> float | None:
        """Its part of all weights."""
        ...

    @property
    def is_reg(self) -> bool:
        """Whether this is a regularization dataset, which shows what the model should keep."""
        ...

    @property
    def reg_ratio(self) -> float:
        """For a regularization dataset: its visits divided by the visits of the other datasets."""
        ...


def dataset_digest(items: Sequence[Item]) -> str:
    """Digest of everything that the order depends on; another digest means another order."""
    digest = hashlib.blake2b(digest_size=16)
    for row in sorted(repr((i.key, i.dataset, i.bucket, i.batch_size, i.repeats)) for i in items):
        digest.update(row.encode("utf-8") + b"\0")
    return digest.hexdigest()


def visits_of(items: Sequence[Item], entries: Sequence[Shared]) -> dict[int, int]:
    """How often an epoch uses items of each dataset; empty if that follows from items and repeats
    alone.

    Where datasets have weights, they share the visits of all by these. Datasets of regularization
    share what the others have, times their ratio, by their own size.

    Args:
        items: What there is to train on.
        entries: The datasets.
    """
    own = Counter[int]()
    for item in items:
        own[item.dataset] += item.repeats
    plain = [e for e in entries if not e.is_reg and own[e.index]]
    found: dict[int, int] = {}
    total = sum(own[e.index] for e in plain)
    weights = sum(e.weight or 0.0 for e in plain)
    if weights:
        found = {e.index: max(1, round(total * (e.weight or 0.0) / weights)) for e in plain}
    beside = [e for e in entries if e.is_reg and own[e.index]]
    size = sum(own[e.index] for e in beside)
    return found | {
        e.index: max(1, round(total * e.reg_ratio * own[e.index] / size)) for e in beside
    }


def epoch_order(
    items: Sequence[Item],
    *,
    seed: int,
    epoch: int,
    digest: str | None = None,
    visits: Mapping[int, int] | None = None,
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
        visits: Visits of datasets that do not follow from the repeats: see `visits_of`.
    """
    digest = dataset_digest(items) if digest is None else digest
    salt = f"{seed}\0{epoch}\0{digest}\0"
    groups: dict[tuple[int, Hashable, int], list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault((item.dataset, item.bucket, item.batch_size), []).append(index)
    repeats = [item.repeats for item in items]
    for dataset, count in (visits or {}).items():
        _share(items, dataset, count, f"{seed}\0{digest}\0", epoch, repeats)
    ranked: list[tuple[bytes, Batch]] = []
    for group, members in groups.items():
        for number, batch in enumerate(_cut(items, members, group[2], salt, repeats)):
            ranked.append((_rank(f"{salt}batch\0{group!r}\0{number}"), batch))
    return [batch for _, batch in sorted(ranked)]


def _share(
    items: Sequence[Item], dataset: int, count: int, salt: str, epoch: int, repeats: list[int]
) -> None:
    """Distribute a number of visits over the items of a dataset; items left out in one epoch come
    in the next.
    """
    slots = [
        (_rank(f"{salt}share\0{item.key}\0{copy}"), i)
        for i, item in enumerate(items)
        if item.dataset == dataset
        for copy in range(item.repeats)
    ]
    slots.sort()
    each, more = divmod(count, len(slots))
    start = (epoch - 1) * more
    taken = {(start + n) % len(slots) for n in range(more)}
    for i in {i for _, i in slots}:
        repeats[i] = 0
    for n, (_, i) in enumerate(slots):
        repeats[i] += each + (n in taken)


def _cut(
    items: Sequence[Item], members: Sequence[int], size: int, salt: str, repeats: Sequence[int]
) -> list[Batch]:
    """Rounds over a bucket, one after the other, cut into batches."""
    out: list[Batch] = []
    begun: list[int] = []
    for round_ in range(max(repeats[i] for i in members)):
        left = sorted(
            (i for i in members if repeats[i] > round_),
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
