"""What each task's records hold and what reaches the network, in training as when generating."""

import numpy as np
import pytest
import torch

from musubi.architectures.wan import ARCHITECTURE
from musubi.architectures.wan.pictures import frame_mask
from musubi.cache.batch import batch_of
from musubi.encoders.clip_vision.network import encode as encode_pictures
from musubi.errors import CheckpointError, ConfigError, DataError
from musubi.plugin import Clip, Recipe
from musubi.plugin.record import declared, lacking
from musubi.testing.twins import build_twin, fill

TASKS = {task.name: task for task in ARCHITECTURE.tasks}
IMAGE_TASKS = ("i2v", "flf2v", "i2v-FC", "one_frame", "one_frame_flf2v")


class Nets(dict):
    device = torch.device("cpu")


@pytest.fixture(scope="module")
def nets():
    components = ("vae", "vae22", "clip")
    return Nets({name: build_twin(ARCHITECTURE.component(name)) for name in components})


def denoiser(name):
    task = TASKS[name]
    numbers = {**ARCHITECTURE.dit.tiny, **task.requires, **task.tiny}
    return fill(ARCHITECTURE.dit.build(**numbers))


def runtime(name):
    options = {o.name: o.default for o in ARCHITECTURE.options}
    return ARCHITECTURE.runtime(ARCHITECTURE, TASKS[name], options)


def bytes_of(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def clip(name, *, seed=0, frames=5, target=True, options=None, **inputs):
    frames = 1 if name.startswith("one_frame") else frames
    height, width = size_of(name)
    given = {
        "t2v-FC": ("control",),
        "i2v-FC": ("control",),
        "one_frame": ("control_images",),
        "one_frame_flf2v": ("control_images",),
        "vace": ("control", "mask"),
    }
    shown = {n: (bytes_of(frames, 32, 48, 3, seed=seed + 7),) for n in given.get(name, ())}
    if "mask" in shown:
        shown["mask"] = (bytes_of(frames, 32, 48, 1, seed=seed + 3),)
    if name == "one_frame_flf2v":
        shown["control_images"] *= 2
    if not target and "image" not in inputs and TASKS[name].input("image"):
        inputs["image"] = (bytes_of(1, 20, 50, 3, seed=seed + 1),)
    if not target and name in ("flf2v", "one_frame_flf2v"):
        inputs["end_image"] = (bytes_of(1, 20, 50, 3, seed=seed + 2),)
    places = {"fp_1f_clean_indices": [0, 9] if "flf2v" in name else [0], "fp_1f_target_index": 5}
    said = "target_index=5,control_index=" + ("0;9" if "flf2v" in name else "0")
    return Clip(
        name="a clip",
        frames=bytes_of(frames, height, width, 3, seed=seed)
        if target
        else np.zeros((0, height, width, 3), np.uint8),
        length=frames,
        inputs={**shown, **inputs},
        target=target,
        options={**(places if target else {"one_frame_inference": said}), **(options or {})},
    )


def size_of(name):
    """Height and width: four by six latent cells."""
    return (64, 96) if name.startswith("ti2v") else (32, 48)


def record_of(nets, name, one):
    ((record,),) = runtime(name).encode_media(nets, [one])
    return record


def conditioned(name, *records):
    words = [
        {"t5": torch.randn(4 + n, 32, generator=torch.Generator().manual_seed(n))}
        for n in range(len(records))
    ]
    joined = [{**record, **word} for record, word in zip(records, words, strict=True)]
    return runtime(name).condition(batch_of(joined, TASKS[name].schema))


class Spy(torch.nn.Module):
    """Keeps what the denoiser was called with."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.img_emb = getattr(inner, "img_emb", None)

    def forward(self, *args, **kwargs):
        self.told = kwargs
        self.args = args
        return self.inner(*args, **kwargs)


def recipe(name, **options):
    height, width = size_of(name)
    return Recipe(
        prompt="a", negative_prompt="", width=width, height=height,
        frames=1 if name.startswith("one_frame") else 5, fps=16, seed=0, steps=1, solver="vanilla",
        flow_shift=1, guidance_scale=1, options=options,
    )  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_records_fit_the_schema_and_the_network(name, nets):
    records = [record_of(nets, name, clip(name, seed=n)) for n in (0, 50)]
    fields = TASKS[name].schema.media
    for record in records:
        assert not lacking(fields, record)
        for field, tensor in record.items():
            declaration = declared(fields, field)
            assert declaration is not None, field
            assert tensor.ndim == len(declaration.dims)
            sizes = dict(zip(declaration.dims, tensor.shape, strict=True))
            assert all(sizes[axis] == size for axis, size in declaration.sizes)
    given = conditioned(name, *records)
    t = torch.tensor([0.3, 0.8])
    network = denoiser(name)
    both = runtime(name).predict(network, given.latents, t, given)
    assert both.shape == given.latents.shape and both.isfinite().all()
    for n, record in enumerate(records):
        alone = conditioned(name, *[record] * 2)  # of one length of text each
        one = runtime(name).predict(network, alone.latents, t, alone)
        if n == 0:
            torch.testing.assert_close(both[0], one[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_generating_gives_the_network_what_training_gave_it(name, nets):
    record = record_of(nets, name, clip(name, target=False))
    assert "latents" not in record
    given = conditioned(name, record)
    rollout = runtime(name).rollout(recipe(name), given, torch.device("cpu"))
    section = next(rollout)
    spy = Spy(denoiser(name))
    told = given.plus(**section.inputs)
    x = runtime(name).predict(spy, section.noise, torch.tensor([0.5]), told)
    trained = conditioned(name, record_of(nets, name, clip(name)))
    assert trained.latents.shape == section.noise.shape
    here = {key: getattr(value, "shape", value) for key, value in spy.told.items()}
    runtime(name).predict(spy, trained.latents, torch.tensor([0.5]), trained)
    there = {key: getattr(value, "shape", value) for key, value in spy.told.items()}
    assert here == there
    with pytest.raises(StopIteration) as end:
        rollout.send(x)
    frames = end.value.value
    assert frames.shape[2] == (1 if name.startswith("one_frame") else 2)
    assert torch.cat(list(runtime(name).decode(nets, frames)), 2).shape[2] in (1, 5)


def test_the_first_frame_is_given_as_latents_and_as_features(nets):
    one = clip("i2v", frames=9)
    record = record_of(nets, "i2v", one)
    image = torch.from_numpy(one.frames[0]).permute(2, 0, 1).float() / 127.5 - 1
    still = nets["vae"].encode(image[None, :, None])[0]
    grey = torch.cat([image[None, :, None], torch.zeros(1, 3, 8, 32, 48)], 2)
    latents = record["latents_image"][4:]
    assert torch.equal(record["latents_image"][:4], frame_mask(latents))
    torch.testing.assert_close(latents[:, :1], still, atol=1e-5, rtol=1e-5)
    assert torch.equal(latents, nets["vae"].encode(grey)[0])
    assert latents[:, 1:].abs().mean() > 0.1, "the later ones are of grey frames, not zeros"
    assert torch.equal(record["clip"], encode_pictures(nets["clip"], [image])[0])


def test_the_image_is_seen_whole_and_at_its_own_size_by_clip(nets):
    given = bytes_of(1, 20, 50, 3, seed=9)
    record = record_of(nets, "i2v", clip("i2v", target=False, image=(given,)))
    picture = torch.from_numpy(given[0]).permute(2, 0, 1).float() / 127.5 - 1
    assert torch.equal(record["clip"], encode_pictures(nets["clip"], [picture])[0])
    small = torch.nn.functional.interpolate(picture[None], (32, 48), mode="bicubic")
    video = torch.cat([small[:, :, None], torch.zeros(1, 3, 4, 32, 48)], 2)
    assert torch.equal(record["latents_image"][4:], nets["vae"].encode(video)[0])


def test_an_end_image_of_an_image_to_video_model_has_a_latent_frame_of_its_own(nets):
    end = bytes_of(1, 64, 48, 3, seed=4)
    one = clip("i2v", target=False, end_image=(end,))
    record = record_of(nets, "i2v", one)
    assert record["latents_image"].shape == (20, 3, 4, 6)
    given = conditioned("i2v", record)
    section = next(runtime("i2v").rollout(recipe("i2v"), given, torch.device("cpu")))
    assert section.noise.shape == (1, 16, 3, 4, 6)
    assert record["latents_image"][:4, :, 0, 0].tolist() == [[1, 0, 1]] * 4


def test_both_ends_of_an_ordinary_video_reach_training(nets):
    one = clip("flf2v")
    record = record_of(nets, "flf2v", one)
    assert record["clip_ends"].shape == (2, 257, 80)
    assert record["latents_ends"][:4, -1, 0, 0].tolist() == [0, 0, 0, 1]
    frames = one.frames.copy()
    frames[-1] = 255 - frames[-1]
    other = record_of(
        nets, "flf2v", Clip(name="b", frames=frames, length=5, inputs={}, target=True, options={})
    )
    assert torch.equal(record["clip_ends"][0], other["clip_ends"][0])
    assert not torch.equal(record["clip_ends"][1], other["clip_ends"][1])
    assert not torch.equal(record["latents_ends"][4:, -1], other["latents_ends"][4:, -1])
    assert torch.equal(record["latents_ends"][4:, 0], other["latents_ends"][4:, 0])
    with pytest.raises(DataError, match="one frame"):
        record_of(nets, "flf2v", clip("flf2v", frames=1))


def test_two_images_are_told_apart_by_their_number_not_by_257(nets):
    network = denoiser("flf2v")
    given = conditioned("flf2v", record_of(nets, "flf2v", clip("flf2v")))
    assert given.inputs["clip"].shape == (1, 514, 80)
    t = torch.tensor([0.5])
    whole = runtime("flf2v").predict(network, given.latents, t, given)
    swapped = given.plus(clip=given.inputs["clip"].roll(257, 1))
    assert not torch.allclose(whole, runtime("flf2v").predict(network, given.latents, t, swapped))
    half = given.plus(clip=given.inputs["clip"][:, :257])
    with pytest.raises(ConfigError, match="reads two images, and 1"):
        runtime("flf2v").predict(network, given.latents, t, half)


def test_fun_control_from_text_sees_features_of_zeros(nets):
    spy = Spy(denoiser("t2v-FC"))
    record = record_of(nets, "t2v-FC", clip("t2v-FC"))
    given = conditioned("t2v-FC", record)
    assert torch.equal(given.inputs["joined"][0, :16], record["latents_control"])
    assert (given.inputs["joined"][:, 16:] == 0).all()
    t = torch.tensor([0.5])
    found = runtime("t2v-FC").predict(spy, given.latents, t, given)
    assert spy.told["clip"].shape == (1, 257, 80) and (spy.told["clip"] == 0).all()
    without = spy.inner(given.latents, t, given.inputs["t5"], joined=given.inputs["joined"])
    assert (found - without).norm() > 0.05 * without.norm()


def test_fun_control_from_an_image_has_no_mask_and_nothing_behind_the_first_frame(nets):
    one = clip("i2v-FC")
    record = record_of(nets, "i2v-FC", one)
    joined = conditioned("i2v-FC", record).inputs["joined"]
    assert joined.shape == (1, 32, 2, 4, 6)
    image = torch.from_numpy(one.frames[0]).permute(2, 0, 1).float() / 127.5 - 1
    still = nets["vae"].encode(image[None, :, None])[0]
    torch.testing.assert_close(joined[0, 16:, :1], still, atol=1e-5, rtol=1e-5)
    assert (joined[0, 16:, 1:] == 0).all()


def test_a_reference_comes_before_the_video_and_is_what_clip_sees(nets):
    reference = bytes_of(1, 32, 48, 3, seed=21)
    one = clip("i2v-FC", target=False, reference=(reference,), image=())
    record = record_of(nets, "i2v-FC", one)
    picture = torch.from_numpy(reference[0]).permute(2, 0, 1).float() / 127.5 - 1
    assert torch.equal(record["clip"], encode_pictures(nets["clip"], [picture])[0])
    given = conditioned("i2v-FC", record)
    numbers = {**ARCHITECTURE.dit.tiny, **TASKS["i2v-FC"].requires, "image_dim": 80}
    x, t = torch.randn(1, 16, 2, 4, 6), torch.tensor([0.5])
    network = fill(ARCHITECTURE.dit.build(**{**numbers, "reference": True}))
    assert runtime("i2v-FC").predict(network, x, t, given).shape == x.shape
    older = fill(ARCHITECTURE.dit.build(**numbers))
    with pytest.raises(CheckpointError, match=r"no 'ref_conv.weight'"):
        runtime("i2v-FC").predict(older, x, t, given)


def test_places_in_time_reach_the_network_in_training_too(nets):
    spy = Spy(denoiser("one_frame"))
    record = record_of(nets, "one_frame", clip("one_frame"))
    given = conditioned("one_frame", record)
    runtime("one_frame").predict(spy, given.latents, torch.tensor([0.5]), given)
    assert spy.told["frame_positions"] == [0, 5]
    moved = clip("one_frame", options={"fp_1f_target_index": 2})
    other = conditioned("one_frame", record_of(nets, "one_frame", moved))
    runtime("one_frame").predict(spy, other.latents, torch.tensor([0.5]), other)
    assert spy.told["frame_positions"] == [0, 2]
    with pytest.raises(ConfigError, match=r"\[0, 5\] and \[0, 2\]"):
        conditioned("one_frame", record, record_of(nets, "one_frame", moved))


def test_the_target_of_one_frame_is_grey_and_kept_alone(nets):
    one = clip(
        "one_frame", target=False, options={"one_frame_inference": "target_index=0,control_index=3"}
    )
    record = record_of(nets, "one_frame", one)
    grey = nets["vae"].encode(torch.zeros(1, 3, 1, 32, 48))[0]
    assert record["f_indices"].tolist() == [0, 3]
    assert record["latents_image"][:4, :, 0, 0].tolist() == [[0, 1]] * 4
    assert torch.equal(record["latents_image"][4:, :1], grey)
    given = conditioned("one_frame", record)
    rollout = runtime("one_frame").rollout(recipe("one_frame"), given, torch.device("cpu"))
    noise = next(rollout).noise
    with pytest.raises(StopIteration) as end:
        rollout.send(noise)
    assert torch.equal(end.value.value, noise[:, :, :1])


def test_transparent_parts_of_a_control_image_do_not_count_in_the_loss(nets):
    control = bytes_of(1, 32, 48, 4)
    control[..., 3] = 255
    control[:, :, :24, 3] = 0
    one = clip("one_frame", control_images=(control,))
    given = conditioned("one_frame", record_of(nets, "one_frame", one))
    assert given.weight.shape == (1, 1, 2, 4, 6)
    assert given.weight[0, 0, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert (given.weight[0, 0, 1] == 1).all()


def test_one_frame_without_its_place_in_time_is_refused(nets):
    for options, words in (
        ({"fp_1f_target_index": None}, "which place in time"),
        ({"fp_1f_clean_indices": [0, 1]}, "names 2 places"),
    ):
        with pytest.raises((DataError, ConfigError), match=words):
            record_of(nets, "one_frame", clip("one_frame", options=options))


def test_the_given_frame_of_the_5b_model_is_clean_and_is_not_learned(nets):
    spy = Spy(denoiser("ti2v-image"))
    record = record_of(nets, "ti2v-image", clip("ti2v-image"))
    given = conditioned("ti2v-image", record)
    assert given.weight[0, 0, :, 0, 0].tolist() == [0, 1]
    x = torch.randn(given.latents.shape)
    found = runtime("ti2v-image").predict(spy, x, torch.tensor([0.7]), given)
    assert torch.equal(spy.args[0][:, :, :1], given.latents[:, :, :1])
    assert spy.args[1].tolist() == [[0, pytest.approx(0.7)]]
    assert (found[:, :, 0] == 0).all()
    plain = conditioned("ti2v", record)
    runtime("ti2v").predict(spy, x, torch.tensor([0.7]), plain)
    assert plain.weight is None and spy.args[1].shape == (1,)


def test_vace_reads_what_is_kept_what_is_new_and_where(nets):
    one = clip("vace", target=False, references=(bytes_of(1, 40, 20, 3),))
    record = record_of(nets, "vace", one)["latents_vace"]
    video = torch.from_numpy(one.inputs["control"][0]).permute(3, 0, 1, 2).float() / 127.5 - 1
    given = torch.from_numpy(one.inputs["mask"][0][..., 0]).float() / 255
    new = (given > 0.5).float()
    vae = nets["vae"]
    assert record.shape == (96, 3, 4, 6)
    assert torch.equal(record[:16, 1:], vae.encode((video * (1 - new))[None])[0])
    assert torch.equal(record[16:32, 1:], vae.encode((video * new)[None])[0])
    frames = torch.nn.functional.interpolate(
        torch.arange(5.0).view(1, 1, 5), size=2, mode="nearest-exact"
    )
    for cell, frame in enumerate(frames.flatten().int().tolist()):
        pixels = record[32:, 1 + cell, 2, 3].view(8, 8)
        assert torch.equal(pixels, given[frame, 16:24, 24:32])  # greys as they are
    assert (record[16:, 0] == 0).all() and (record[:16, 0] != 0).any()
    told = conditioned("vace", {"latents_vace": record})
    rollout = runtime("vace").rollout(recipe("vace"), told, torch.device("cpu"))
    noise = next(rollout).noise
    assert noise.shape[2] == 3
    with pytest.raises(StopIteration) as end:
        rollout.send(noise)
    assert torch.equal(end.value.value, noise[:, :, 1:])
