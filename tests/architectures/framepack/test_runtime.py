"""FramePack's verbs: records of sections and single frames, rollouts in both orders, texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from musubi.architectures.framepack import ARCHITECTURE
from musubi.architectures.framepack.caching import cell_mask, section_records
from musubi.architectures.framepack.runtime import FramePackRuntime
from musubi.encoders.hunyuan_vae.network import SCALING
from musubi.encoders.siglip.network import pixels
from musubi.errors import ConfigError, DataError, MusubiError
from musubi.plugin import Clip, Conditioning, Recipe
from musubi.testing import twins

CPU = torch.device("cpu")
PATHS = {"start": 3, "other": 5, "end": 9}


def runtime(task="i2v", **options):
    return FramePackRuntime(ARCHITECTURE, ARCHITECTURE.task(task), options)


class Toys:
    """The toy autoencoder and picture encoder."""

    device = CPU

    def __init__(self):
        self.found = {
            n: twins.build_twin(ARCHITECTURE.component(n)) for n in ("vae", "image_encoder")
        }

    def __getitem__(self, name):
        return self.found[name]

    def __contains__(self, name):
        return name in self.found

    def latents(self, frames):
        levels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        return self["vae"].encode(levels)[0] * SCALING

    def tokens(self, picture):
        return self["image_encoder"](pixels(picture))[0]


@pytest.fixture(scope="module")
def nets():
    return Toys()


def video(frames, seed=0, channels=3):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (frames, 32, 48, channels), np.uint8)


def clip(frames, **more):
    return Clip(**{"name": "a clip", "frames": frames, "length": len(frames), **more})


def encoded(nets, one, task="i2v", **options):
    with torch.no_grad():
        (records,) = runtime(task, **options).encode_media(nets, [one])
    return records


def near(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# --- what is cached -----------------------------------------------------------------------------


def test_a_video_becomes_its_sections(nets):
    frames = video(4 * 2 * 2 + 1 + 3)  # three more than it uses
    records = encoded(nets, clip(frames, options={"fp_latent_window_size": 2}))
    latents = nets.latents(frames[:17])
    expected = section_records(latents, 2, forward=False)
    tokens = nets.tokens(frames[0])
    assert len(records) == 2
    for record, wanted in zip(records, expected, strict=True):
        near(record.pop("image_embeddings"), tokens)
        assert list(record) == list(wanted)
        for name, tensor in record.items():
            near(tensor, wanted[name])
    forward = encoded(nets, clip(frames), f1=True, latent_window_size=4)
    near(forward[0]["latents_clean_4x"], torch.zeros(16, 16, 4, 6))
    assert forward[0]["clean_latent_2x_indices"].tolist() == [17, 18]


def random_latents(count):
    return torch.randn(16, count, 4, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("window", "sections"), [(2, 3), (2, 6), (9, 1), (9, 4)])
def test_sections_from_the_end(window, sections):
    latents = random_latents(1 + window * sections)
    distances = [3, *[2] * (sections - 3), 1, 0] if sections > 4 else range(sections)[::-1]
    records = section_records(latents, window, forward=False)
    assert len(records) == sections
    for made, padding in enumerate(distances):
        number = sections - 1 - made
        record = records[number]
        # As the official sampler splits one line of indices.
        sizes = [1, padding * window, window, 1, 2, 16]
        start, _, target, post, middle, far = torch.arange(sum(sizes)).split(sizes)
        first = 1 + number * window
        behind = torch.cat([latents[:, first + window :], torch.zeros(16, 19, 4, 6)], dim=1)
        assert torch.equal(record["latents"], latents[:, first : first + window])
        assert torch.equal(
            record["latents_clean"], torch.cat([latents[:, :1], behind[:, :1]], dim=1)
        )
        assert torch.equal(record["latents_clean_2x"], behind[:, 1:3])
        assert torch.equal(record["latents_clean_4x"], behind[:, 3:19])
        assert record["latent_indices"].tolist() == target.tolist()
        assert record["clean_latent_indices"].tolist() == [*start.tolist(), *post.tolist()]
        assert record["clean_latent_2x_indices"].tolist() == middle.tolist()
        assert record["clean_latent_4x_indices"].tolist() == far.tolist()
        assert all(t.dtype == torch.int64 for n, t in record.items() if n.endswith("indices"))


@pytest.mark.parametrize(("window", "sections"), [(2, 3), (9, 4)])
def test_sections_in_the_order_of_time(window, sections):
    latents = random_latents(1 + window * sections)
    records = section_records(latents, window, forward=True)
    assert len(records) == sections
    for number, record in enumerate(records):
        first = 1 + window * number
        before = torch.cat([torch.zeros(16, 19, 4, 6), latents[:, :first]], dim=1)[:, -19:]
        assert torch.equal(record["latents"], latents[:, first : first + window])
        assert torch.equal(
            record["latents_clean"], torch.cat([latents[:, :1], before[:, 18:]], dim=1)
        )
        assert torch.equal(record["latents_clean_2x"], before[:, 16:18])
        assert torch.equal(record["latents_clean_4x"], before[:, :16])
        assert record["latent_indices"].tolist() == list(range(20, 20 + window))
        assert record["clean_latent_indices"].tolist() == [0, 19]
        assert record["clean_latent_2x_indices"].tolist() == [17, 18]
        assert record["clean_latent_4x_indices"].tolist() == list(range(1, 17))


def test_a_clip_that_holds_no_section_is_refused(nets):
    with pytest.raises(DataError, match="takes 37"):
        encoded(nets, clip(video(33)))
    usable = ARCHITECTURE.task("i2v").usable_frames
    assert [usable(n, {}) for n in (36, 37, 80)] == [0, 37, 73]
    assert usable(80, {"fp_latent_window_size": 4, "latent_window_size": 9}) == 65


def single(nets, controls=(), frames=None, *, options=None, inputs=None, **more):
    one = clip(
        video(1, 7) if frames is None else frames,
        inputs={"control": controls, **(inputs or {})} if controls else (inputs or {}),
        options=options or {},
    )
    (record,) = encoded(nets, one, "one_frame", **more)
    return record


def test_a_single_frame(nets):
    control, target = video(1, 1), video(1, 7)
    record = single(nets, (control,))
    near(record["latents"], nets.latents(target))
    near(record["latents_clean"][:, :1], nets.latents(control))
    assert not record["latents_clean"][:, 1:].any()
    assert record["latents_clean"].shape == (16, 2, 4, 6)
    assert record["latent_indices"].tolist() == [9]
    assert record["clean_latent_indices"].tolist() == [0, 10]
    assert record["clean_latent_2x_indices"].tolist() == [11, 12]
    assert record["clean_latent_4x_indices"].tolist() == list(range(13, 29))
    near(record["image_embeddings"], nets.tokens(control[0]))
    assert "latents_clean_2x" not in record


def test_the_posterior_can_be_sampled(nets):
    first, again = (single(nets, vae_sample_seed=3)["latents"] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, nets.latents(video(1, 7)))


def test_a_single_frame_from_several_controls_with_all_said(nets):
    controls = (video(1, 1), video(1, 2))
    record = single(
        nets,
        controls,
        options={
            "fp_latent_window_size": 4,
            "fp_1f_clean_indices": [0, 10],
            "fp_1f_target_index": 1,
            "fp_1f_no_post": True,
        },
        one_frame_no_2x=True,
        one_frame_no_4x=True,
    )
    near(record["latents_clean"], torch.cat([nets.latents(c) for c in controls], dim=1))
    assert record["latent_indices"].tolist() == [1]
    assert record["clean_latent_indices"].tolist() == [0, 10]
    assert not {"clean_latent_2x_indices", "clean_latent_4x_indices"} & set(record)


def test_controls_and_indices_must_fit(nets):
    two = (video(1, 1), video(1, 2))
    with pytest.raises(DataError, match="fp_1f_clean_indices"):
        single(nets, two)
    with pytest.raises(DataError, match="names 3"):
        single(nets, two, options={"fp_1f_clean_indices": [0, 1, 2]})
    record = single(nets, two, options={"fp_1f_clean_indices": [5]})
    near(record["latents_clean"][:, :1], nets.latents(two[0]))
    assert record["clean_latent_indices"].tolist() == [5, 10]
    without = single(nets)
    assert not without["latents_clean"].any()
    near(without["image_embeddings"], nets.tokens(np.zeros((32, 48, 3), np.uint8)))


def test_transparency_and_masks_hide(nets):
    control = video(1, 1, channels=4)
    record = single(nets, (control,))
    small = Image.fromarray(control[0, ..., 3]).resize((6, 4), Image.Resampling.LANCZOS)
    weight = torch.from_numpy(np.asarray(small).copy()).float() / 255
    near(record["latents_clean"][:, :1], nets.latents(control[..., :3]) * weight)
    mask = np.zeros((1, 32, 48, 1), np.uint8)
    mask[:, :, 24:] = 255
    hidden = single(nets, (control,), inputs={"control_mask": (mask,)})
    expected = nets.latents(control[..., :3]) * cell_mask(mask[0, ..., 0], 6, 4)
    near(hidden["latents_clean"][:, :1], expected)


def test_what_a_video_starts_from(nets):
    blank = np.zeros((0, 32, 48, 3), np.uint8)
    images, end = (video(1, 3), video(1, 5)), video(1, 9)
    (record,) = encoded(
        nets, clip(blank, target=False, inputs={"image": images, "end_image": (end,)})
    )
    for i, image in enumerate(images):
        near(record[f"latents_start_{i}"], nets.latents(image))
        near(record[f"picture_embeddings_{i}"], nets.tokens(image[0]))
    near(record["latents_end"], nets.latents(end))
    (nothing,) = encoded(nets, clip(blank, target=False))
    assert "latents_end" not in nothing
    with torch.no_grad():
        near(
            nothing["latents_start_0"],
            nets["vae"].encode(torch.zeros(1, 3, 1, 32, 48))[0] * SCALING,
        )
    near(nothing["picture_embeddings_0"], nets.tokens(np.zeros((32, 48, 3), np.uint8)))


# --- what is solved -----------------------------------------------------------------------------


def recipe(sections=3, window=2, task="i2v", **options):
    frames = 4 * window * sections + 1
    return Recipe(
        prompt=options.pop("prompt", "a cat"), negative_prompt="", width=48, height=32,
        frames=1 if task == "one_frame" else frames, fps=30.0, seed=7, steps=2, solver="unipc",
        flow_shift=None, guidance_scale=options.pop("guidance_scale", 1.0),
        options={"latent_window_size": window, **options},
    )  # fmt: skip


def starting(*seeds, end=None):
    def one(seed):
        return torch.randn(1, 16, 1, 4, 6, generator=torch.Generator().manual_seed(seed))

    return Conditioning(
        {
            "starts": [one(s) for s in seeds],
            "pictures": [torch.full((1, 7, 5), float(s)) for s in seeds],
            "end": None if end is None else one(end),
        }
    )


def played(asked, given, task="i2v"):
    """The sections that a rollout asks for, and what it returns when each answer is its noise + 1."""
    run = runtime(task).rollout(asked, given, CPU)
    sections = []
    try:
        section = next(run)
        while True:
            sections.append(section)
            section = run.send(section.noise + 1)
    except StopIteration as finished:
        return sections, finished.value


def draws(count, window):
    generator = torch.Generator("cpu").manual_seed(7)
    return [torch.randn((1, 16, window, 4, 6), generator=generator) for _ in range(count)]


@pytest.mark.parametrize("end", [None, 9])
@pytest.mark.parametrize("count", [1, 3, 6])
def test_a_video_is_made_from_its_end(count, end):
    window = 2
    given = starting(3, end=end)
    start = given.inputs["starts"][0]
    sections, whole = played(recipe(count, window), given)
    history = torch.zeros(1, 16, 19, 4, 6)
    if end is not None:
        history[:, :, :1] = given.inputs["end"]
    distances = [3, *[2] * (count - 3), 1, 0] if count > 4 else list(range(count))[::-1]
    assert len(sections) == count
    for section, padding, noise in zip(sections, distances, draws(count, window), strict=True):
        assert torch.equal(section.noise, noise)
        sizes = [1, padding * window, window, 1, 2, 16]
        first, _, target, post, middle, far = torch.arange(sum(sizes)).split(sizes)
        inputs = section.inputs
        assert torch.equal(inputs["indices"][0], target)
        assert torch.equal(inputs["clean"][1][0], torch.cat([first, post]))
        assert torch.equal(inputs["clean_2x"][1][0], middle)
        assert torch.equal(inputs["clean_4x"][1][0], far)
        assert torch.equal(inputs["clean"][0], torch.cat([start, history[:, :, :1]], dim=2))
        assert torch.equal(inputs["clean_2x"][0], history[:, :, 1:3])
        assert torch.equal(inputs["clean_4x"][0], history[:, :, 3:19])
        assert torch.equal(inputs["image"], given.inputs["pictures"][0])
        history = torch.cat([noise + 1, history], dim=2)
    made = history[:, :, : count * window]
    assert torch.equal(whole, torch.cat([start, made], dim=2))
    for i, section in enumerate(sections):
        expected = None if i == 0 else made[:, :, (count - i) * window :]
        assert expected is section.so_far is None or torch.equal(section.so_far, expected)


def test_a_video_is_made_from_its_beginning():
    window, count = 2, 3
    given = starting(3)
    start = given.inputs["starts"][0]
    sections, whole = played(recipe(count, window, f1=True), given)
    history = torch.cat([torch.zeros(1, 16, 19, 4, 6), start], dim=2)
    for i, (section, noise) in enumerate(zip(sections, draws(count, window), strict=True)):
        far, middle, near_ = history[:, :, -19:].split([16, 2, 1], dim=2)
        inputs = section.inputs
        assert torch.equal(inputs["clean"][0], torch.cat([start, near_], dim=2))
        assert torch.equal(inputs["clean_2x"][0], middle)
        assert torch.equal(inputs["clean_4x"][0], far)
        assert inputs["indices"].tolist() == [[20, 21]]
        assert inputs["clean"][1].tolist() == [[0, 19]]
        if i:
            assert torch.equal(section.so_far, history[:, :, 19:])
        history = torch.cat([history, noise + 1], dim=2)
    assert torch.equal(whole, history[:, :, 19:])


@pytest.mark.parametrize("f1", [False, True])
def test_sections_have_their_own_texts_and_pictures(f1):
    asked = recipe(
        4,
        f1=f1,
        prompt="0:a cat;;;2:it runs;;;-1:it sleeps",
        image_path="a.png;;;2:b.png;;;-4:c.png",
    )
    sections, whole = played(asked, starting(3, 5, 8))
    by_time = sections if f1 else sections[::-1]
    assert [s.text for s in by_time] == ["prompt", "prompt", "section 2", "section -1"]
    assert [s.inputs["image"].unique().tolist() for s in by_time] == [[8], [3], [5], [3]]
    texts = ARCHITECTURE.task("i2v").texts(asked)
    assert texts == {"prompt": "a cat", "section 2": "it runs", "section -1": "it sleeps"}
    # The video begins with the image of the section that it begins with.
    assert torch.equal(whole[:, :, :1], starting(8).inputs["starts"][0])


def test_the_negative_text_is_encoded_when_it_is_used():
    texts = ARCHITECTURE.task("i2v").texts(recipe(guidance_scale=2.0))
    assert texts == {"prompt": "a cat", "negative": ""}


def test_paddings_shorter_than_the_sections():
    sections, _ = played(recipe(4, latent_paddings="1,1"), starting(3))
    assert [s.inputs["indices"][0, 0].item() for s in sections] == [3, 3, 3, 1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"latent_paddings": "x"}, "latent_paddings"),
        ({"f1": True, "latent_paddings": "1"}, "means nothing with --f1"),
        ({"f1": True, "end_image_path": "e.png"}, "means nothing with --f1"),
        ({"one_frame_inference": "default"}, "one command"),
        ({"prompt": "0:a;;;7:b"}, "section 7"),
        ({"image_path": "a.png;;;-4:b.png"}, "section -4"),
        ({"rope_scaling_factor": 0.0}, "rope_scaling_factor"),
        ({"latent_window_size": 0}, "latent_window_size"),
    ],
)
def test_what_cannot_be_made_is_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        ARCHITECTURE.task("i2v").check(recipe(**{"window": 2, **options}))


@pytest.mark.parametrize(
    "options",
    [
        {"one_frame_inference": "target_index=x"},
        {"one_frame_inference": "control_index=0;1", "control_image_path": ["a.png"]},
        {"control_image_mask_path": ["m.png"]},
    ],
)
def test_what_no_single_frame_can_be_made_of_is_refused(options):
    with pytest.raises(MusubiError):
        ARCHITECTURE.task("one_frame").check(recipe(task="one_frame", **options))


def test_lengths():
    frames = ARCHITECTURE.task("i2v").frames
    assert frames({}) == 145  # 5 seconds
    assert frames({"video_seconds": 1.0}) == 37
    assert frames({"video_sections": 7, "video_seconds": 1.0}) == 253
    assert frames({"frames": 1}) == 37
    assert frames({"frames": 73}) == 73
    assert frames({"video_sections": 2, "latent_window_size": 4}) == 33
    for wrong in ({"video_seconds": 0.0}, {"video_sections": 0}, {"video_seconds": float("nan")}):
        with pytest.raises(ConfigError):
            frames(wrong)


# --- what the network is told -------------------------------------------------------------------


class Ear(torch.nn.Module):
    """A denoiser that keeps what it was told."""

    def forward(self, x, timestep, *told, **more):
        self.timestep, self.told, self.more = timestep, told, more
        return x


def batch(**more):
    return {
        "llama_vec": torch.randn(2, 512, 32),
        "llama_attention_mask": torch.arange(512).expand(2, -1) < 5,
        "clip_l_pooler": torch.randn(2, 16),
        "image_embeddings": torch.randn(2, 729, 16),
        "latents": torch.randn(2, 16, 1, 4, 6),
        "latents_clean": torch.randn(2, 16, 2, 4, 6),
        "latent_indices": torch.tensor([[9], [1]]),
        "clean_latent_indices": torch.tensor([[0, 10], [0, 10]]),
        **more,
    }


def test_history_without_latents_is_told_as_zeros_and_absent_history_not_at_all():
    given = runtime("one_frame").condition(
        batch(clean_latent_2x_indices=torch.tensor([[11, 12], [11, 12]]))
    )
    ear = Ear()
    runtime("one_frame").predict(ear, given.latents, torch.tensor([0.5, 0.25]), given)
    assert ear.more["clean_2x"][0] is None
    assert "clean_4x" not in ear.more
    assert ear.timestep.tolist() == [500.0, 250.0]


def test_guidance_is_told_a_thousandfold_in_training_as_in_sampling():
    ear = Ear()
    for scale in (None, 10.0):
        made = runtime(guidance_scale=scale)
        given = made.condition(batch())
        made.predict(ear, given.latents, torch.tensor([0.5, 0.25]), given)
        assert ear.more["guidance"].tolist() == [1000.0 * (scale or 1.0)] * 2
    with torch.autocast("cpu", torch.bfloat16):
        made.predict(ear, given.latents, torch.tensor([0.9009, 0.25]), given)
    assert ear.timestep.tolist() == [900.0, 250.0]  # as bfloat16 has it
    assert ear.more["guidance"].tolist() == [9984.0] * 2


def test_positions_are_scaled_at_high_noise():
    sections, _ = played(recipe(1, rope_scaling_timestep_threshold=800), starting(3))
    given = runtime().condition(batch()).plus(**sections[0].inputs)
    ear, made = Ear(), runtime()
    for t, scale in ((0.9, 0.5), (0.8, 0.5), (0.79, 1.0)):
        made.predict(ear, given.latents, torch.tensor([t, t]), given)
        assert ear.more["rope_scale"] == scale
