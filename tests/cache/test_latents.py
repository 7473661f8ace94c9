import os

import numpy as np
import pytest
import torch
import toy_cache
from safetensors.torch import load_file, save_file

from musubi.cache import store
from musubi.errors import ConfigError, DataError, RunError
from musubi.testing import media

IMAGE = "image_cache/red_0_0064x0048_toy.safetensors"
VIDEO = "video_cache/red_0_00000-009_0064x0048_toy.safetensors"


def test_names_are_those_of_the_old_tool(world):
    summary = world.latents()
    assert set(world.records()) == {
        IMAGE,
        "image_cache/green_1_0064x0048_toy.safetensors",
        "video_cache/red_0_00000-001_0064x0048_toy.safetensors",
        VIDEO,
        "video_cache/green_1_00000-001_0064x0048_toy.safetensors",
        "video_cache/green_1_00000-009_0064x0048_toy.safetensors",
    }
    assert summary.encoded == 6 and not summary.failed and not summary.removed
    assert load_file(world.folder / VIDEO)["latents_3x6x8_float32"].shape == (4, 3, 6, 8)
    assert store.read_head(world.folder / VIDEO).metadata["frame_count"] == "9"
    assert "frame_count" not in store.read_head(world.folder / IMAGE).metadata


def test_images_are_named_by_their_own_size_and_videos_by_their_bucket(world):
    world.change("[64, 48]", "[32, 32]")
    world.latents()
    assert (world.folder / IMAGE).exists()
    (name,) = {n.split("_")[-2] for n in world.records() if n.startswith("video")}
    assert name != "0064x0048"
    assert store.read_header(world.folder / IMAGE).bucket != (64, 48)


def test_the_header_says_what_the_record_was_made_of(world):
    world.latents(gain=2.0)
    header = store.read_header(world.folder / VIDEO)
    assert (header.stem, header.source, header.bucket) == ("red_0", "red_0.mp4", (64, 48))
    assert (header.start, header.length, header.clip, header.clips) == (0, 9, 1, 2)
    assert header.fields == ("indices", "latents", "latents_first")
    assert list(header.encoders) == ["vae"] and header.dtypes == {"vae": "float32"}
    assert header.options == {"gain": 2.0}


def test_a_second_run_does_nothing(world):
    world.latents()
    before = {p: p.stat().st_mtime_ns for c in world.caches for p in c.iterdir()}
    summary = world.latents()
    assert not world.encoded() and (summary.encoded, summary.fresh) == (0, 6)
    assert before == {p: p.stat().st_mtime_ns for c in world.caches for p in c.iterdir()}


def test_a_record_depends_on_its_clip_alone(world):
    world.latents()
    assert all(len(names) == 1 for _, names in toy_cache.Runtime.calls)


def test_another_vae_makes_all_of_them_stale(world):
    world.latents()
    other = toy_cache.write_weights(world.folder / "weights", seed=1)
    before = world.records()
    summary = world._replace(weights=other).latents()
    assert summary.encoded == 6 and summary.fresh == 0
    assert not before.items() & world.records().items()


def test_a_weights_file_of_another_name_is_the_same(world):
    world.latents()
    moved = world.weights["vae"].rename(world.folder / "renamed.safetensors")
    assert world._replace(weights={"vae": moved}).latents().encoded == 0


def test_a_changed_resolution_makes_all_of_them_stale(world):
    world.latents()
    world.change("[64, 48]", "[32, 32]")
    summary = world.latents()
    assert summary.encoded == 6 and summary.fresh == 0
    assert len(summary.removed) == 4  # the videos, whose names have another size
    assert len(world.records()) == 6


def test_a_changed_option_that_shapes_records(world):
    world.latents()
    assert world.latents(gain=2.0).encoded == 6
    assert world.latents(gain=2.0).encoded == 0


def test_dtype(world):
    world.latents()
    assert world.latents(vae_dtype="fp16").encoded == 6
    assert load_file(world.folder / IMAGE).keys() >= {"latents_1x6x8_float16"}
    assert world.latents(vae_dtype="float16").encoded == 0


def test_another_target_length_encodes_only_the_new_clips(world):
    world.latents()
    world.change("target_frames = [1, 9]", "target_frames = [1, 5, 9]")
    summary = world.latents()
    assert sorted(world.encoded()) == [
        "green_1.mp4, frames 0 to 4",
        "red_0.mp4, frames 0 to 4",
    ]
    assert (summary.encoded, summary.renewed, summary.fresh) == (2, 4, 2)
    assert world.latents().fresh == 8


def test_a_length_that_is_no_longer_asked_for_is_deleted(world):
    world.latents()
    world.change("target_frames = [1, 9]", "target_frames = [9]")
    summary = world.latents()
    assert not world.encoded() and len(summary.removed) == 2
    assert len(world.records()) == 4


def test_a_touched_file_is_not_encoded_again(world):
    world.latents()
    os.utime(world.folder / "images" / "red_0.png", (1, 1))
    assert world.latents().encoded == 0
    header = store.read_header(world.folder / IMAGE)
    assert "1000000000" in header.signature


def test_a_changed_file_is_encoded_again_and_alone(world):
    world.latents()
    picture = media.frame(64, 48, colour="blue", shape="square", at=0.1)
    media.write_image(world.folder / "images" / "red_0.png", picture)
    summary = world.latents()
    assert world.encoded() == ["red_0.png"] and summary.fresh == 5


def test_leftovers_are_deleted_and_nothing_else(world):
    world.latents()
    cache = world.caches[0]
    lora = cache / "red_wan_toy.safetensors"
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1)}, lora, {"ss_network_dim": "4"})
    (cache / "broken_toy.safetensors").write_bytes(b"123")
    foreign = cache / "old_0064x0048_toy.safetensors"
    tensors = {"latents_1x6x8_float32": torch.zeros(4, 1, 6, 8)}
    save_file(tensors, foreign, {"architecture": "toy", "format_version": "1.0.1"})
    other = cache / "old_0064x0048_wan.safetensors"
    save_file(tensors, other, {"architecture": "wan", "format_version": "1.0.1"})
    (world.folder / "images" / "red_0.png").unlink()
    assert not world.latents(keep_cache=True).removed
    assert {p.name for p in world.latents().removed} == {foreign.name, IMAGE.split("/")[1]}
    assert lora.exists() and other.exists() and (cache / "broken_toy.safetensors").exists()


def test_temporary_files_of_a_killed_run_are_swept(world):
    world.latents()
    old, new = (world.caches[0] / f".musubi-1-{i}.tmp" for i in range(2))
    old.write_bytes(b"half")
    os.utime(old, (1, 1))
    new.write_bytes(b"half")
    world.latents()
    assert not old.exists() and new.exists()


def test_records_of_the_old_tool_are_used_as_they_are(world):
    world.latents()
    path = world.folder / IMAGE
    tensors = load_file(path)
    metadata = {"architecture": "toy", "format_version": "1.0.1", "width": "64", "height": "48"}
    save_file(tensors, path, metadata)
    before = path.read_bytes()
    for skip_existing in (False, True):
        summary = world.latents(skip_existing=skip_existing)
        assert (summary.adopted, summary.fresh) == (1, 5) and not world.encoded()
    assert path.read_bytes() == before, "the file is not touched"
    summary.tell(world.report, "Latents")
    assert any("cannot be checked" in note for note in world.report.notes)


def test_existing_records_are_skipped_whatever_they_were_made_of(world):
    world.latents()
    assert world.latents(gain=3.0, skip_existing=True).encoded == 0
    assert world.latents(gain=3.0).encoded == 6


def test_files_that_cannot_be_used_are_named_and_left_out(world, paint):
    paint(world.folder / "images" / "flat.png").with_suffix(".txt").write_text("flat")
    (world.folder / "images" / "empty.png").write_bytes(b"")
    (world.folder / "images" / "empty.txt").write_text("empty")
    (world.folder / "images" / "alone.png").write_bytes(b"x")
    summary = world.latents()
    assert summary.encoded == 6
    reasons = {p.name: p.reason for p in summary.failed}
    assert reasons.keys() == {"flat.png", "empty.png", "alone.png"}
    assert "not finite" in reasons["flat.png"] and "caption" in reasons["alone.png"]
    assert not list(world.caches[0].glob("flat*"))
    summary.tell(world.report, "Latents")
    assert any("3 left out" in note for note in world.report.notes)
    assert any("flat.png" in note for note in world.report.notes)


def test_strict_stops_at_the_first(world, paint):
    paint(world.folder / "images" / "flat.png").with_suffix(".txt").write_text("flat")
    with pytest.raises(DataError, match=r"flat\.png.*not finite.*--strict"):
        world.latents(strict=True)


def test_one_bad_clip_does_not_spoil_the_others(world, monkeypatch):
    real = toy_cache.Runtime.encode_media

    def refuse(self, nets, clips):
        if any(clip.name == "red_0.png" for clip in clips):
            raise DataError("red_0.png is refused.")
        return real(self, nets, clips)

    monkeypatch.setattr(toy_cache.Runtime, "encode_media", refuse)
    summary = world.latents()
    assert summary.encoded == 5 and [p.name for p in summary.failed] == ["red_0.png"]


def test_nothing_usable_is_an_error(world):
    world.change("[[datasets]]\nvideo_directory", "[[datasets]]\nimage_directory")
    world.change('target_frames = [1, 9]\nframe_extraction = "head"\n', "")
    for path in (world.folder / "images").glob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"green_1\.png.*red_0\.png.*cache check"):
        world.latents()


def test_a_missing_encoder_is_named(world):
    with pytest.raises(ConfigError, match=r"needs --vae.*Add --vae PATH"):
        world._replace(weights={}).latents()


def test_a_full_disk_ends_the_run(world, monkeypatch):
    import errno

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"_toy\.safetensors.*disk is full"):
        world.latents()
    assert not any(c.exists() and any(c.glob("*.safetensors*")) for c in world.caches)


def test_sections_are_numbered_records(world):
    summary = world.latents(task="cut")
    names = [n for n in world.records() if "red_0_00000-009" in n]
    assert names == [
        "video_cache/red_0_00000-009-0000_0064x0048_toy.safetensors",
        "video_cache/red_0_00000-009-0001_0064x0048_toy.safetensors",
    ]
    assert IMAGE in world.records()
    assert "video_cache/red_0_00000-001-0000_0064x0048_toy.safetensors" in world.records()
    assert summary.encoded == 8
    assert [store.read_header(world.folder / n).part for n in names] == [0, 1]
    assert world.latents(task="cut").fresh == 8
    (world.folder / names[1]).unlink()
    assert world.latents(task="cut").encoded == 2
    assert np.array_equal(load_file(world.folder / names[0])["indices_int64"].numpy(), [0, 1])


def test_a_newer_schema_makes_all_of_them_stale(world):
    world.latents()
    assert world.latents(task="later").encoded == 6


def test_an_unknown_device(world):
    with pytest.raises(ConfigError, match="--device gpu"):
        world.latents(device="gpu")


def repaint(path, colour):
    """Other content of the same length in time and space, at the same time of change where possible."""
    was = path.stat()
    pixels = np.random.default_rng(colour).integers(0, 255, (48, 64, 3), np.uint8)
    media.write_image(path, pixels)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


@pytest.mark.parametrize("moment", ["before", "after"])
def test_what_is_recorded_is_what_was_decoded(world, monkeypatch, moment):
    """A picture that changes while it is cached is encoded again, and is fresh afterwards."""
    from musubi.data import clips

    path, real, times = world.folder / "images" / "red_0.png", clips.decode, []

    def decode(source, plans):
        first = source.path == path and not times
        if first and moment == "before":
            times.append(repaint(path, 90))
        yield from real(source, plans)
        if first and moment == "after":
            times.append(repaint(path, 90))

    with monkeypatch.context() as patch:
        patch.setattr(clips, "decode", decode)
        assert not world.latents().failed
    assert times and world.latents().encoded == 0
    made = world.records()
    for name in made:
        (world.folder / name).unlink()
    world.latents()
    again = world.records()
    assert made.keys() == again.keys()
    assert made[IMAGE] == again[IMAGE]


def test_a_picture_that_never_rests_is_left_out(world, monkeypatch):
    from musubi.data import clips

    path, real, colours = world.folder / "images" / "red_0.png", clips.decode, iter(range(60, 99))

    def decode(source, plans):
        yield from real(source, plans)
        if source.path == path:
            repaint(path, next(colours))

    monkeypatch.setattr(clips, "decode", decode)
    summary = world.latents()
    assert [(p.name, p.reason) for p in summary.failed] == [
        ("red_0.png", "it changes while it is read")
    ]
    assert IMAGE not in world.records() and summary.encoded == len(world.records())


@pytest.mark.parametrize("name", [IMAGE, VIDEO, "image_cache/red_0_toy_te.safetensors"])
def test_a_damaged_record_is_named_in_training_and_made_again(cached, name):
    path = cached.folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    found = cached.open()
    with pytest.raises(DataError, match=f"{path.name}.*damaged"):
        [found.load([i]) for i in range(len(found.items))]
    assert (cached.latents().encoded, cached.text().encoded) == (
        (0, 1) if "_te" in name else (1, 0)
    )
    assert path.read_bytes() == whole


def test_a_damaged_record_is_not_passed_over_with_skip_existing(cached):
    path = cached.folder / IMAGE
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert cached.latents(skip_existing=True).encoded == 1
    assert path.read_bytes() == whole
