import pytest
import torch
import toy_cache
from safetensors.torch import load_file, save_file

from musubi.cache import store
from musubi.errors import ConfigError, DataError

RED = "image_cache/red_0_toy_te.safetensors"


def caption(world, name: str, text: str) -> None:
    (world.folder / "images" / f"{name}.txt").write_text(text, encoding="utf-8")


def test_one_record_for_each_source_and_one_for_the_empty_caption(world):
    summary = world.text()
    assert set(world.records()) == {
        RED,
        "image_cache/green_1_toy_te.safetensors",
        "image_cache/empty-caption.toy.safetensors",
        "video_cache/red_0_toy_te.safetensors",
        "video_cache/green_1_toy_te.safetensors",
        "video_cache/empty-caption.toy.safetensors",
    }
    assert summary.encoded == 6 and not summary.failed
    assert set(load_file(world.folder / RED)) == {
        "varlen_words_float32",
        "glyphs_float32",
        "glyphs_mask",
    }
    head = store.read_head(world.folder / RED)
    assert head.metadata["caption1"] == "a red ball moves right"
    assert head.header.encoders.keys() == {"words", "glyphs"}


def test_encoders_run_one_after_the_other(world, monkeypatch):
    from musubi.weights.nets import Nets

    freed = []
    real = Nets.free
    monkeypatch.setattr(Nets, "free", lambda self, name: (freed.append(name), real(self, name)))
    world.text()
    assert [name for name, _ in toy_cache.Runtime.calls] == ["words"] * 6 + ["glyphs"] * 6
    assert all(len(captions) == 1 for _, captions in toy_cache.Runtime.calls)  # see `encoded`
    assert freed == ["words", "glyphs"]


def test_a_second_run_does_nothing(world):
    world.text()
    before = {p: p.stat().st_mtime_ns for c in world.caches for p in c.iterdir()}
    summary = world.text()
    assert not world.encoded() and (summary.encoded, summary.fresh) == (0, 6)
    assert before == {p: p.stat().st_mtime_ns for c in world.caches for p in c.iterdir()}


def test_editing_one_caption_encodes_exactly_one(world):
    world.text()
    before = world.records()
    caption(world, "red_0", "another one")
    assert world.text().encoded == 1
    assert toy_cache.Runtime.calls == [("words", ["another one"]), ("glyphs", ["another one"])]
    after = world.records()
    assert {n for n in after if after[n] != before[n]} == {RED}


def test_another_file_of_one_encoder_runs_that_one_alone(world):
    world.text()
    before = load_file(world.folder / RED)
    other = toy_cache.write_weights(world.folder / "weights", seed=1)
    weights = {**world.weights, "glyphs": other["glyphs"]}
    assert world._replace(weights=weights).text().encoded == 6
    assert {name for name, _ in toy_cache.Runtime.calls} == {"glyphs"}
    after = load_file(world.folder / RED)
    assert torch.equal(before["varlen_words_float32"], after["varlen_words_float32"])
    assert not torch.equal(before["glyphs_float32"], after["glyphs_float32"])


def test_a_run_that_ended_between_two_encoders_goes_on(world, monkeypatch):
    real = toy_cache.Runtime.encode_text

    def interrupted(self, nets, component, captions):
        if component == "glyphs":
            raise KeyboardInterrupt
        return real(self, nets, component, captions)

    with monkeypatch.context() as patch:
        patch.setattr(toy_cache.Runtime, "encode_text", interrupted)
        with pytest.raises(KeyboardInterrupt):
            world.text()
    assert set(load_file(world.folder / RED)) == {"varlen_words_float32"}
    caption(world, "red_0", "changed meanwhile")
    world.text()
    assert [len(c) for n, c in toy_cache.Runtime.calls if n == "words"] == [1]
    assert [len(c) for n, c in toy_cache.Runtime.calls if n == "glyphs"] == [1] * 6
    resumed = world.records()
    for name in resumed:
        (world.folder / name).unlink()
    world.text()
    assert world.records() == resumed


def test_leftovers_are_deleted(world):
    world.text()
    (world.folder / "images" / "red_0.png").unlink()
    assert not world.text(keep_cache=True).removed
    assert [p.name for p in world.text().removed] == ["red_0_toy_te.safetensors"]
    assert (world.folder / "image_cache" / "empty-caption.toy.safetensors").exists()


def test_latents_are_no_leftovers_of_text_nor_the_other_way(world):
    world.latents()
    assert not world.text().removed and not world.latents().removed


def test_records_of_the_old_tool(world):
    world.text()
    path = world.folder / RED
    tensors = load_file(path)
    metadata = {
        "architecture": "toy",
        "format_version": "1.0.1",
        "caption1": "a red ball moves right",
    }
    save_file(tensors, path, metadata)
    assert world.text(skip_existing=True).adopted == 1
    assert store.read_header(path) is None, "the file is not touched"
    summary = world.text()
    assert (summary.adopted, summary.fresh) == (1, 5)
    save_file(tensors, path, {**metadata, "caption1": "something else"})
    assert world.text(skip_existing=True).encoded == 1
    half = {k: v for k, v in tensors.items() if "glyphs" not in k}
    save_file(half, path, metadata)
    assert world.text(skip_existing=True).encoded == 1, "one encoder of two had run"


def test_a_caption_that_gives_nothing_finite_is_named(world, monkeypatch):
    real = toy_cache.Runtime.encode_text

    def broken(self, nets, component, captions):
        return [
            {k: t / 0 if "red ball" in c.text and k == "words" else t for k, t in record.items()}
            for c, record in zip(captions, real(self, nets, component, captions), strict=True)
        ]

    monkeypatch.setattr(toy_cache.Runtime, "encode_text", broken)
    summary = world.text()
    assert {p.name for p in summary.failed} == {
        "the caption of red_0.png",
        "the caption of red_0.mp4",
    }
    assert all("not finite" in p.reason for p in summary.failed)
    assert summary.encoded == 4 and not (world.folder / RED).exists()
    with pytest.raises(DataError, match=r"red_0\.png"):
        world.text(strict=True)


def test_each_missing_encoder_is_named(world):
    with pytest.raises(ConfigError, match="needs --glyphs"):
        world._replace(weights={"words": world.weights["words"]}).text()
