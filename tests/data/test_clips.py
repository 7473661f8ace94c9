"""From real files to clips: which frames, of what size, and what is said when there are none."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from musubi.data import clips
from musubi.data.sources import scan
from musubi.errors import DataError
from musubi.plugin import Lazy


@pytest.fixture
def made(files, wan):
    """A dataset's clips: plans and what they decode to."""

    def call(kind="video", architecture=wan, task=None, **more):
        entry = files.entry(kind, **more)
        out = []
        for source in scan(entry).sources:
            plans = clips.plan(source, entry, architecture, task or architecture.tasks[0], {})
            out += zip(plans, clips.decode(source, plans), strict=True)
        return out

    return call


def spans(found):
    return [(p.start, p.length) for p, _ in found]


def usable(available, options):
    return max(available // 4, 0)


def test_an_image(files, made):
    files.image("a.png", size=(128, 100))
    ((plan, clip),) = made("image")
    assert (plan.cache_stem, plan.size, plan.bucket, plan.length) == ("a", (128, 100), (64, 48), 1)
    assert clip.frames.shape == (1, 48, 64, 3) and clip.length == 1 and clip.target


def test_buckets_hold_for_videos_as_for_images(files, made):
    files.video("a.mp4", np.zeros((2, 96, 64, 3), np.uint8))
    assert made()[0][0].bucket == (64, 48)
    assert made(enable_bucket=True, resolution=(64, 64))[0][0].bucket == (48, 80)
    assert made(enable_bucket=True, bucket_no_upscale=True, resolution=(640, 640))[0][0].bucket == (
        64,
        96,
    )


def test_crops_of_all_lengths_in_one_pass(files, made, numbers):
    files.video("a.mp4", 12)
    found = made(frame_extraction="chunk", target_frames=(1, 5))
    assert spans(found) == sorted([(i, 1) for i in range(12)] + [(0, 5), (5, 5)])
    for plan, clip in found:
        assert numbers(clip.frames) == list(range(plan.start, plan.start + plan.length))
        assert clip.frames.shape[1:] == (48, 64, 3)
    assert found[-1][0].cache_stem == "a_00011-001"


def test_plans_in_another_order_and_some_of_them(files, wan, numbers):
    files.video("a.mp4", 12)
    entry = files.entry("video", frame_extraction="slide", target_frames=(5,))
    (source,) = scan(entry).sources
    plans = clips.plan(source, entry, wan, wan.tasks[0])
    chosen = [plans[6], plans[0], plans[3]]
    out = [numbers(c.frames)[0] for c in clips.decode(source, chosen)]
    assert out == [6, 0, 3]


def test_rates_are_converted_by_time(files, made, numbers):
    files.video("fast.mp4", 16, fps=32)
    files.video("slow.mp4", 3, fps=8)
    files.video("varying.mkv", 5, times=[0, 125, 250, 500, 625])
    found = {p.source.stem: numbers(c.frames) for p, c in made(frame_extraction="full")}
    assert found["fast"] == [0, 2, 4, 6, 8]
    assert found["slow"] == [0, 0, 1, 1, 2]
    assert found["varying"] == [0, 0, 1, 1, 2, 2, 2, 2, 3]


def test_source_fps_is_believed(files, made, numbers):
    files.video("a.mp4", 12, fps=16)
    ((_, clip),) = made(source_fps=32.0, target_frames=(5,))
    assert numbers(clip.frames) == [0, 2, 4, 6, 8]
    ((_, clip),) = made(source_fps=8.0, target_frames=(5,))
    assert numbers(clip.frames) == [0, 0, 1, 1, 2]


def test_conversions_are_told(files, wan):
    files.video("fast.mp4", 9, fps=32)
    files.video("same.mp4", 9)
    files.video("varying.mkv", 5, times=[0, 125, 250, 500, 625])
    entry = files.entry("video")
    plans = [p for s in scan(entry).sources for p in clips.plan(s, entry, wan, wan.tasks[0])]
    said = clips.conversions(plans, entry, 16)
    assert len(said) == 2
    assert said[0].startswith("1 video at 32 fps converted to 16 fps by time stamps.")
    assert "musubi-tuner converts only with source_fps" in said[1]
    assert "varying" in said[1]


def test_videos_that_lose_much_without_buckets_are_told(files, wan):
    files.video("wide.mp4", 9)
    files.video("tall.mp4", np.zeros((9, 64, 48, 3), np.uint8))
    told = []
    for enable in (False, True):
        entry = files.entry("video", enable_bucket=enable)
        plans = [p for s in scan(entry).sources for p in clips.plan(s, entry, wan, wan.tasks[0])]
        told.append(" ".join(clips.conversions(plans, entry, 16)))
    assert "1 video cropped to 64x48" in told[0] and "tall.mp4" in told[0]
    assert "wide.mp4" not in told[0] and "cropped" not in told[1]


def test_a_folder_of_images_as_a_video(files, made, numbers):
    files.folder_of_images("take", 7)
    ((plan, clip),) = made(frame_extraction="full")
    assert numbers(clip.frames) == [0, 1, 2, 3, 4]
    assert plan.cache_stem == "take_00000-005"


def test_too_short_says_what_would_fit(files, made):
    files.video("a.mp4", 6)
    with pytest.raises(DataError, match=r"a\.mp4 has 6 frames.*is 25.*Add 5 to target_frames"):
        made(target_frames=(25, 49))


def test_a_task_may_use_fewer_frames(files, wan, made):
    files.video("a.mp4", 12)
    task = dataclasses.replace(wan.tasks[0], usable_frames=Lazy(f"{__name__}:usable"))
    task = dataclasses.replace(task, usable_frames=usable)
    found = made(task=task, target_frames=(1, 9))
    assert spans(found) == [(0, 9)]
    assert found[0][1].length == 2
    with pytest.raises(DataError, match="long enough for the task"):
        made(task=task, target_frames=(1,))


def test_controls_of_images_keep_transparency_and_get_the_bucket(files, made):
    files.image("a.png")
    (files.folder / "control").mkdir()
    Image.new("RGBA", (200, 100), (9, 9, 9, 0)).save(files.folder / "control" / "a.png")
    ((_, clip),) = made("image", control_directory=files.folder / "control")
    assert [c.shape for c in clip.inputs["control"]] == [(1, 48, 64, 4)]


def test_a_short_control_stands_still_and_a_long_one_is_cut(files, made, numbers):
    files.video("a.mp4", 9)
    files.video("b.mp4", 9)
    files.video("control/a.mp4", 3, caption=None)
    files.video("control/b.mp4", 12, caption=None)
    found = made(
        target_frames=(5,),
        frame_extraction="slide",
        frame_stride=4,
        control_directory=files.folder / "control",
    )
    shown = {(p.source.stem, p.start): numbers(c.inputs["control"][0]) for p, c in found}
    assert shown["a", 0] == [0, 1, 2, 2, 2] and shown["a", 4] == [2] * 5
    assert shown["b", 4] == [4, 5, 6, 7, 8]


def test_decode_all_keeps_the_order_and_hands_errors_over(files, wan):
    for name in "abc":
        files.image(f"{name}.png")
    entry = files.entry()
    plans = [p for s in scan(entry).sources for p in clips.plan(s, entry, wan, wan.tasks[0])]
    (files.folder / "b.png").write_bytes(b"")
    found = list(clips.decode_all(plans, 2))
    assert [p.source.stem for p, _ in found] == ["a", "b", "c"]
    assert [isinstance(c, DataError) for _, c in found] == [False, True, False]
