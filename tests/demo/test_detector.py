"""The detector tells drawn scenes right, and does not see what is not there."""

import random
from itertools import product

import numpy as np
import pytest
import torch

from musubi.demo import lesson, shapes
from musubi.demo.detector import detect


def _drawn(**words):
    source = random.Random(str(sorted(words.items())))
    scene = shapes.random_scene(source, **words)
    return scene, shapes.draw([scene])[0].numpy()


@pytest.mark.parametrize(("shape", "motion"), list(product(shapes.SHAPES, shapes.MOTIONS)))
def test_every_shape_and_motion_is_told(shape, motion):
    scene, frames = _drawn(shape=shape, motion=motion)
    seen = detect(frames)
    assert (seen.colour, seen.shape, seen.motion, seen.floor) == (
        *(scene.colour, shape, motion, scene.floor),
    )


@pytest.mark.parametrize("colour", shapes.COLOURS)
def test_every_colour_is_told(colour):
    _, frames = _drawn(colour=colour, shape="ball", motion="rises")
    assert detect(frames).colour == colour


@pytest.mark.parametrize("motion", ["spins", "swings"])
def test_what_the_base_never_saw_is_told(motion):
    for shape in ("star", "square"):
        _, frames = _drawn(shape=shape, motion=motion, colour="green")
        seen = detect(frames)
        assert (seen.shape, seen.motion) == (shape, motion)


def test_noise_and_an_empty_room_are_no_shape():
    noise = torch.randint(0, 255, (17, 64, 64, 3), generator=torch.Generator().manual_seed(0))
    assert detect(noise.to(torch.uint8).numpy()).shape is None
    _, frames = _drawn(floor="grey")
    room = np.broadcast_to(frames[:, :, :1], frames.shape)
    assert detect(np.ascontiguousarray(room)).colour is None or not lesson.shows(room)


def test_the_lesson_is_found_in_its_own_clips_and_in_no_others():
    shown = lesson.scenes(3, 4)
    assert lesson.learned(list(shapes.draw(shown).numpy())) == 4
    known = {"colour": lesson.WORDS["colour"], "shape": "ball"}
    others = [shapes.random_scene(random.Random(i), **known) for i in range(6)]
    assert lesson.learned(list(shapes.draw(others).numpy())) == 0


def test_a_shape_that_is_flat_in_one_frame_is_not_whole():
    scene, frames = _drawn(colour="red", shape="ball", motion="bounces")
    assert detect(frames).whole
    flat = frames.copy()
    rows = np.flatnonzero((flat[8] != flat[8, :, :1]).any((1, 2)))
    flat[8, rows[: len(rows) // 2 + 4]] = frames[8, 0, 0]  # a dish is left
    seen = detect(flat)
    assert (seen.shape, seen.motion) == ("ball", "bounces") and not seen.whole
    assert lesson.kept([scene], [frames]) == 1 and lesson.kept([scene], [flat]) == 0
