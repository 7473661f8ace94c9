"""Sizes as they have always been, and resizing as OpenCV does it."""

import doctest

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from musubi.data import buckets
from musubi.data.buckets import bucket_list, choose, resize_and_crop, shrink

sides = st.integers(1, 130)


@pytest.mark.parametrize(
    ("resolution", "count"),
    [((960, 544), 47), ((640, 640), 41), ((512, 512), 33), ((1280, 720), 61)],
)
def test_counts_are_those_of_existing_caches(resolution, count):
    found = bucket_list(resolution, 16)
    assert len(found) == count
    assert list(found) == sorted(set(found))


def test_the_list_of_the_default_resolution():
    found = bucket_list((960, 544), 16)
    assert (found[0], found[-1]) == ((352, 1472), (1472, 352))
    assert (960, 544) in found


def test_examples_in_the_docstrings():
    assert doctest.testmod(buckets).failed == 0


@given(st.tuples(st.integers(16, 2000), st.integers(16, 2000)), st.sampled_from([8, 16, 32]))
def test_buckets_keep_to_the_area_and_the_grid(resolution, step):
    area = resolution[0] * resolution[1]
    for width, height in bucket_list(resolution, step):
        assert width % step == height % step == 0
        assert 0 < width * height <= area
        assert (height, width) in bucket_list(resolution, step)


@given(st.tuples(st.integers(1, 5000), st.integers(1, 5000)))
def test_the_chosen_bucket_has_the_nearest_aspect(size):
    chosen = choose(size, (960, 544), 16, enable=True, no_upscale=False)
    aspect = size[0] / size[1]
    best = min(abs(w / h - aspect) for w, h in bucket_list((960, 544), 16))
    assert abs(chosen[0] / chosen[1] - aspect) == best


def test_without_buckets_there_is_one_size():
    assert choose((10, 500), (960, 544), 16, enable=False, no_upscale=True) == (960, 544)


def test_small_pictures_keep_their_size_when_asked():
    assert choose((333, 250), (960, 544), 16, enable=True, no_upscale=True) == (320, 240)
    assert choose((3330, 2500), (960, 544), 16, enable=True, no_upscale=True) == (832, 624)
    assert min(choose((300, 9), (960, 544), 16, enable=True, no_upscale=True)) > 0


@given(sides, sides, sides, sides, st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_shrinking_is_inter_area(height, width, new_height, new_width, seed):
    new_height, new_width = min(height, new_height), min(width, new_width)
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = cv2.resize(picture, (new_width, new_height), interpolation=cv2.INTER_AREA)
    difference = np.abs(shrink(picture, (new_width, new_height)).astype(int) - expected)
    assert difference.max() <= 1


@pytest.mark.parametrize("new", [(240, 320), (160, 200), (100, 171), (479, 639)])
def test_shrinking_real_sizes_is_equal(new):
    picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    expected = cv2.resize(picture, new[::-1], interpolation=cv2.INTER_AREA)
    assert (shrink(picture, new[::-1]) != expected).mean() < 1e-4


@given(sides, sides, st.sampled_from([(16, 16), (48, 32), (32, 64)]), st.sampled_from([3, 4]))
@settings(max_examples=100, deadline=None)
def test_any_picture_fills_its_bucket(height, width, bucket, channels):
    frames = np.full((2, height, width, channels), 77, np.uint8)
    frames[..., 3:] = 255
    out = resize_and_crop(frames, bucket)
    assert out.shape == (2, bucket[1], bucket[0], channels)
    assert (out[..., :3] == 77).all()


def test_enlarging_is_lanczos_and_the_crop_is_central():
    picture = np.random.default_rng(0).integers(0, 256, (10, 20, 3), dtype=np.uint8)
    whole = np.asarray(Image.fromarray(picture).resize((64, 32), Image.Resampling.LANCZOS))
    out = resize_and_crop(picture[None], (32, 32))[0]
    assert np.array_equal(out, whole[:, 16:48])


def test_what_fits_is_not_touched():
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)
    assert resize_and_crop(frames, (48, 32)) is frames
