"""How pictures are resized, masked and laid out in time, each by its formula."""

import numpy as np
import pytest
import torch
from PIL import Image

from musubi.architectures.wan import experts, guidance, hooks, pictures, tasks
from musubi.errors import ConfigError
from musubi.plugin import Recipe


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(40, 24), (96, 160)])
def test_an_image_is_resized_by_plain_bicubic_interpolation(size):
    picture = torch.rand(3, 64, 48) * 2 - 1
    picture[:, 20:40] = 1  # an edge, over which bicubic interpolation shoots
    found = pictures.resized(picture, *size)
    expected = torch.nn.functional.interpolate(picture[None], size, mode="bicubic")[0]
    smooth = torch.nn.functional.interpolate(picture[None], size, mode="bicubic", antialias=True)
    assert torch.equal(found, expected)
    assert found.max() > 1, "it is not clamped"
    if size[0] < 64:
        assert (found - smooth[0]).abs().max() > 0.05
    assert torch.equal(pictures.resized(picture, 64, 48), picture)


def test_an_end_image_of_another_shape_covers_the_size_and_is_cropped():
    picture = torch.rand(3, 30, 90)
    found = pictures.covering(picture, 40, 60)
    wide = torch.nn.functional.interpolate(picture[None], (40, 120), mode="bicubic")[0]
    assert torch.equal(found, wide[:, :, 30:90])


def test_the_image_of_the_5b_model_is_resized_by_lanczos_and_cropped():
    picture = np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)
    found = pictures.covering_smoothly(picture, 64, 64)
    large = Image.fromarray(picture).resize((107, 64), Image.Resampling.LANCZOS)
    expected = np.array(large.crop((21, 0, 85, 64))).astype(np.float32) / 127.5 - 1
    torch.testing.assert_close(found.permute(1, 2, 0), torch.from_numpy(expected))


def test_a_reference_is_shown_whole_on_white():
    picture = torch.zeros(3, 20, 40)
    found = pictures.within(picture, 40, 40)
    assert found.shape == (3, 40, 40)
    assert (found[:, :10] == 1).all() and (found[:, 30:] == 1).all()
    assert (found[:, 10:30] == 0).all()


def test_masks_of_the_first_and_the_last_frame():
    latents = random(16, 3, 2, 2)
    first = pictures.frame_mask(latents)
    assert first[:, :, 0, 0].tolist() == [[1, 0, 0]] * 4
    both = pictures.frame_mask(latents, last=True)
    assert both[:, -1, 0, 0].tolist() == [0, 0, 0, 1]
    assert both[:, 0, 0, 0].tolist() == [1, 1, 1, 1]
    # The official code's way: one mask a frame, the first one repeated, four frames a channel group.
    frames = torch.zeros(9, 2, 2)
    frames[0] = frames[-1] = 1
    grouped = torch.cat([frames[:1].repeat(4, 1, 1), frames[1:]]).view(3, 4, 2, 2).transpose(0, 1)
    assert torch.equal(both, grouped)


def test_a_video_between_two_images_is_grey():
    start, end = random(3, 4, 4), random(3, 4, 4, seed=1)
    video = pictures.filled(start, 5, end)
    assert torch.equal(video[:, 0], start) and torch.equal(video[:, -1], end)
    assert (video[:, 1:-1] == 0).all()
    assert (pictures.filled(start, 5)[:, 1:] == 0).all()


@pytest.mark.parametrize(
    ("controls", "target", "positions", "slot"),
    [([0], 1, (0, 1), 1), ([0, 10], 1, (0, 1, 10), 1), ([20, 5], 0, (0, 5, 20), 0)],
)
def test_one_frame_layouts_are_sorted_in_time(controls, target, positions, slot):
    where = pictures.layout(controls, target)
    assert (where.positions, where.target) == (positions, slot)
    given = [torch.full((16, 1, 1, 1), float(n + 1)) for n in range(len(controls))]
    joined = pictures.interleaved(given, torch.zeros(16, 1, 1, 1), where)
    expected = [float(n + 1) for n in range(len(controls))]  # in the order they were given
    expected.insert(slot, 0.0)
    assert joined[0, :, 0, 0].tolist() == expected
    assert pictures.slot_mask(joined, where)[0, :, 0, 0].tolist() == [
        float(e > 0) for e in expected
    ]


def test_two_pictures_at_one_place_are_refused():
    with pytest.raises(ConfigError, match="no two are alike"):
        pictures.layout([0, 1], 1)


def test_fun_control_joins_the_control_and_the_first_latent_frame():
    control, image = random(1, 16, 3, 2, 2), random(1, 16, 3, 2, 2, seed=1)
    joined = pictures.control_only(control, image)
    assert torch.equal(joined[:, :16], control)
    assert torch.equal(joined[:, 16:, 0], image[:, :, 0])
    assert (joined[:, 16:, 1:] == 0).all()
    assert (pictures.control_only(control, None)[:, 16:] == 0).all()


def test_a_mask_of_pixels_becomes_channels_of_cells():
    mask = (random(9, 16, 24) > 0).float()
    found = pictures.change_mask(mask, (4, 8, 8))
    assert found.shape == (64, 3, 2, 3)
    frames = torch.nn.functional.interpolate(
        torch.arange(9.0).view(1, 1, 9), size=3, mode="nearest-exact"
    ).flatten()
    for cell, frame in enumerate(frames.int().tolist()):
        corner = found[:, cell, 1, 2].view(8, 8)
        assert torch.equal(corner, mask[frame, 8:16, 16:24])


def recipe(**options):
    return Recipe(
        prompt="a", negative_prompt="b", width=832, height=480, frames=1, fps=16, seed=0, steps=4,
        solver="unipc", flow_shift=5, guidance_scale=1, options=options,
    )  # fmt: skip


def test_what_one_frame_inference_says():
    asked = hooks.one_frame("target_index=20,control_index=0;10")
    assert (asked.target, asked.controls) == (20, (0, 10))
    assert hooks.one_frame("") == hooks.OneFrame()
    for wrong in ("target=1", "target_index=a", "control_index=", "target_index=1;2", "no_2x"):
        with pytest.raises(ConfigError, match="one_frame_inference"):
            hooks.one_frame(wrong)


def test_places_in_time_and_control_images_must_be_as_many():
    said = "target_index=5,control_index=0;10"
    hooks.check_one_frame(recipe(one_frame_inference=said, control_image_path=["a", "b"]))
    with pytest.raises(ConfigError, match="2 control_index and there are 1"):
        hooks.check_one_frame(recipe(one_frame_inference=said, control_image_path=["a"]))
    with pytest.raises(ConfigError, match="3 masks for 2"):
        hooks.check_one_frame(
            recipe(
                one_frame_inference=said,
                control_image_path=["a", "b"],
                control_image_mask_path=["m"] * 3,
            )
        )


def test_experts_share_the_noise_levels():
    assert experts.t2v({}) == ((0.0, 0.875), (0.875, 1.0))
    assert experts.i2v({}) == ((0.0, 0.9), (0.9, 1.0))
    assert experts.i2v({"timestep_boundary": 0.8})[0] == (0.0, 0.8)
    assert experts.i2v({"timestep_boundary": 800})[1] == (0.8, 1.0)
    with pytest.raises(ConfigError, match="timestep_boundary"):
        experts.t2v({"timestep_boundary": 0})


def test_the_negative_prompt_is_encoded_where_some_step_reads_it():
    assert set(guidance.texts(recipe())) == {"prompt"}
    assert set(guidance.texts(recipe(guidance_scale_high_noise=3.5))) == {"prompt", "negative"}
    skipping = recipe(slg_layers="9", slg_mode="uncond")
    assert set(guidance.texts(skipping)) == {"prompt", "negative"}
    with pytest.raises(ConfigError, match="without each other"):
        guidance.check(recipe(slg_layers="9"))


@pytest.mark.parametrize("size", [(832, 480), (480, 832), (1280, 720), (624, 640)])
def test_a_video_from_an_image_has_its_proportions_at_the_same_area(size):
    area = size[0] * size[1]
    for width in range(200, 2000, 67):
        for height in (256, 331, 719, 1080):
            ratio = height / width
            rows = round(np.sqrt(area * ratio) // 8 // 2 * 2)
            columns = round(np.sqrt(area / ratio) // 8 // 2 * 2)
            found = tasks.GEOMETRY.same_area(size, of=(width, height))
            assert found == (columns * 8, rows * 8), (width, height)


@pytest.mark.parametrize(
    ("picture", "size"),
    [
        ((1920, 1080), (1248, 704)),
        ((1080, 1920), (704, 1248)),
        ((1000, 1000), (960, 928)),
        ((1024, 768), (1088, 800)),
        ((640, 360), (1248, 704)),
        ((1500, 640), (1440, 608)),
        ((3000, 1999), (1152, 768)),
    ],
)
def test_the_5b_model_keeps_a_pictures_proportions_best_within_the_area(picture, size):
    """Numbers of the official code's rule, for the area of 1280x704."""
    for asked in ((1280, 704), (704, 1280)):
        assert tasks.GEOMETRY_5B.same_area(asked, of=picture) == size


@pytest.mark.parametrize(
    ("name", "steps", "shift", "negative"),
    [
        ("t2v", 50, 5, "色调艳丽"),
        ("t2i", 50, 5, "色调艳丽"),
        ("i2v", 40, 5, "镜头晃动，色调艳丽"),
        ("flf2v", 50, 16, "镜头切换，镜头晃动，色调艳丽"),
        ("t2v-FC", 50, 5, "色调艳丽"),
        ("t2v-2.2", 40, 12, "色调艳丽"),
        ("i2v-2.2", 40, 5, "色调艳丽"),
        ("ti2v", 50, 5, "色调艳丽"),
    ],
)
def test_defaults_by_task(name, steps, shift, negative):
    sampling = next(t for t in tasks.TASKS if t.name == name).sampling
    assert (sampling.steps, sampling.flow_shift) == (steps, shift)
    assert sampling.negative_prompt == negative + tasks.NEGATIVE_PROMPT.removeprefix("色调艳丽")


def test_image_to_video_shifts_less_at_480p():
    (image,) = (t for t in tasks.TASKS if t.name == "i2v")
    for size, shift in (((832, 480), 3.0), ((480, 832), 3.0), ((1280, 720), 5.0)):
        assert image.adjust(image.sampling, *size).flow_shift == shift
