"""The order of batches: complete, repeatable, and without copies side by side."""

from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from musubi.data.batches import dataset_digest, epoch_order


@dataclass(frozen=True)
class Item:
    key: str
    dataset: int = 0
    bucket: tuple[int, ...] = (64, 48, 1)
    batch_size: int = 2
    repeats: int = 1


@st.composite
def sets(draw):
    items = []
    for dataset in range(draw(st.integers(1, 3))):
        size, repeats = draw(st.integers(1, 4)), draw(st.integers(1, 4))
        for i, bucket in enumerate(draw(st.lists(st.integers(0, 2), max_size=9))):
            items.append(Item(f"{dataset}/{i}", dataset, (bucket,), size, repeats))
    return items


@given(sets(), st.integers(0, 2**32), st.integers(0, 50))
def test_everything_once_for_each_repeat_in_batches_that_stack(items, seed, epoch):
    batches = epoch_order(items, seed=seed, epoch=epoch)
    assert Counter(i for b in batches for i in b) == {i: t.repeats for i, t in enumerate(items)}
    groups = Counter()
    for batch in batches:
        kinds = {(items[i].dataset, items[i].bucket, items[i].batch_size) for i in batch}
        assert len(kinds) == 1
        (kind,) = kinds
        assert 0 < len(batch) <= kind[2]
        members = sum((t.dataset, t.bucket, t.batch_size) == kind for t in items)
        if members >= kind[2]:
            assert len(set(batch)) == len(batch)
        groups[kind] += 1
    for kind, count in groups.items():
        visits = sum(t.repeats for t in items if (t.dataset, t.bucket, t.batch_size) == kind)
        assert count == -(-visits // kind[2])


@given(sets(), st.randoms(use_true_random=False))
def test_the_order_of_listing_does_not_matter(items, random):
    shuffled = list(items)
    random.shuffle(shuffled)
    one = [[items[i].key for i in b] for b in epoch_order(items, seed=1, epoch=1)]
    other = [[shuffled[i].key for i in b] for b in epoch_order(shuffled, seed=1, epoch=1)]
    assert one == other
    assert dataset_digest(items) == dataset_digest(shuffled)


def test_seed_epoch_and_data_change_it():
    items = [Item(str(i)) for i in range(20)]
    first = epoch_order(items, seed=1, epoch=1)
    assert first == epoch_order(items, seed=1, epoch=1, digest=dataset_digest(items))
    assert first != epoch_order(items, seed=2, epoch=1)
    assert first != epoch_order(items, seed=1, epoch=2)
    assert first != epoch_order(items, seed=1, epoch=1, digest="other")


def test_it_is_the_same_on_every_machine():
    items = [Item(str(i), bucket=(i % 2,)) for i in range(7)]
    assert epoch_order(items, seed=42, epoch=1) == [(2, 4), (3,), (5, 1), (0, 6)]
