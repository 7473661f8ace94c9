"""Variants of captions, shares of datasets, lists in JSON, the longest length that fits."""

import json
from types import SimpleNamespace

from musubi.config.dataset_entry import CaptionRules
from musubi.data.batches import epoch_order, visits_of
from musubi.data.captions import of_class, variants
from musubi.data.frames import windows
from musubi.data.sources import scan


def test_variants_keep_the_first_tags_and_follow_from_the_caption_alone() -> None:
    rules = CaptionRules(shuffle=True, keep=1, variants=20)
    found = variants(["zyx, a, b, c"], rules)
    assert found == variants(["zyx, a, b, c"], rules)
    assert len(found) == len(set(found)) == 6  # all orders of three tags
    assert all(
        text.startswith("zyx, ") and sorted(text[5:].split(", ")) == ["a", "b", "c"]
        for text in found
    )


def test_dropped_tags_leave_something() -> None:
    found = variants(["a b c"], CaptionRules(separator=" ", tag_dropout=0.9, variants=50))
    assert all(found) and min(map(len, found)) == 1 and len(found) > 2


def test_several_captions_with_words_around_them() -> None:
    rules = CaptionRules(prefix="photo of", suffix="outside")
    assert variants(["a cat", "a dog"], rules) == (
        "photo of a cat outside",
        "photo of a dog outside",
    )


def test_the_class_word_stands_for_the_whole_trigger_word_only() -> None:
    rules = CaptionRules(trigger="zyx", instead=r"do\g")
    assert of_class("zyx and zyxes", rules) == r"do\g and zyxes"
    assert of_class("a cat", rules) is None


def item(name: str, dataset: int, repeats: int = 1) -> SimpleNamespace:
    return SimpleNamespace(key=name, dataset=dataset, bucket=(1,), batch_size=2, repeats=repeats)


def entry(index: int, **more) -> SimpleNamespace:
    return SimpleNamespace(
        **{"index": index, "weight": None, "is_reg": False, "reg_ratio": 1.0, **more}
    )


def test_shares_are_kept_in_each_epoch_and_all_items_have_their_turn() -> None:
    items = [item(f"a{i}", 0) for i in range(9)] + [item(f"b{i}", 1) for i in range(3)]
    visits = visits_of(items, [entry(0, weight=1.0), entry(1, weight=2.0)])
    assert visits == {0: 4, 1: 8}
    seen = []
    for epoch in range(1, 10):
        made = [i for b in epoch_order(items, seed=1, epoch=epoch, visits=visits) for i in b]
        assert sum(i < 9 for i in made) == 4 and sum(i >= 9 for i in made) == 8
        seen += made
    assert all(seen.count(i) == 4 for i in range(9)) and all(
        seen.count(i) == 24 for i in range(9, 12)
    )


def test_regularization_is_visited_by_its_ratio() -> None:
    items = [item("a", 0, 10), item("b", 1, 3), item("c", 2)]
    entries = [entry(0), entry(1, is_reg=True), entry(2, is_reg=True, reg_ratio=2.0)]
    assert visits_of(items, entries) == {1: 8, 2: 5}
    assert visits_of(items[:1], entries[:1]) == {}


def test_json_lists_are_arrays_or_objects(files) -> None:
    paths = [files.image("a.png", caption=None), files.image("b.png", caption=None)]
    rows = [{"image_path": str(p), "caption": ["one", "two"]} for p in paths]
    by_path = {str(paths[0]): "one", str(paths[1]): {"caption": ["one", "two"]}}
    for content, counts in ((rows, [2, 2]), (by_path, [1, 2])):
        listing = files.folder / "list.json"
        listing.write_text(json.dumps(content), encoding="utf-8")
        found = scan(files.entry(jsonl_file=listing))
        assert [len(source.captions) for source in found.sources] == counts


def test_longest_takes_the_longest_that_fits() -> None:
    asked = SimpleNamespace(frame_extraction="longest", target_frames=(5, 9, 17))
    assert windows(12, asked) == [(0, 9)] and windows(40, asked) == [(0, 17)]
    assert windows(4, asked) == []
