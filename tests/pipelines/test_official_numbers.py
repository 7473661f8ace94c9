"""Wan through the command line, against other libraries' networks fed as the official code feeds them."""

from __future__ import annotations

from itertools import pairwise

import ftfy
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from musubi.architectures.wan.dit import WanDiT
from musubi.cli import main
from musubi.demo.pictures import read_clip
from musubi.testing import media
from tests.architectures.wan.test_generation import (  # the oracles, and their files
    ExactTime,
    denoiser,
    features,
    resized,
)
from tests.architectures.wan.test_generation import parts as _parts

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
parts = _parts
RECORD, SAMPLE = 1e-5, 5e-5
SEED = 5
COMMON = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，"
    "手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("empty hub")))
        yield


def run(words):
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert (end.value.code or 0) == 0, words


def error(found, expected):
    assert found.shape == expected.shape
    return ((found - expected).norm() / expected.norm()).item()


def encoded(parts, video):
    """Latents of 1 3 F H W by diffusers' autoencoder, on the model's scale."""
    stated = parts.vae.config
    mean, std = (
        torch.tensor(n).view(1, 16, 1, 1, 1) for n in (stated.latents_mean, stated.latents_std)
    )
    return (parts.vae.encode(video).latent_dist.mode() - mean) / std


def between(start, frames, end=None):
    """A video that is grey but for its ends."""
    video = torch.zeros(1, 3, frames, *start.shape[-2:])
    video[:, :, 0] = start
    if end is not None:
        video[:, :, -1] = end
    return video


def words_of(parts, text):
    """What umT5 makes of a text that is cleaned first, and zeros up to 512 tokens."""
    ids = parts.tokenizer([ftfy.fix_text(text).strip()], return_tensors="pt").input_ids
    hidden = parts.text_encoder(ids, torch.ones_like(ids)).last_hidden_state
    return torch.nn.functional.pad(hidden, (0, 0, 0, 512 - hidden.shape[1]))


def levels_of(steps, shift):
    line = np.linspace(1, 0, steps + 1)
    return (shift * line / (1 + (shift - 1) * line)).tolist()


@pytest.fixture(scope="module")
def files(parts):
    """Words that name the files of everything but the denoiser, and what the commands read."""
    folder = parts.folder
    return {
        "t5": ["--t5", folder / "text_encoder", "--t5_tokenizer", folder / "tokenizer"],
        "vae": ["--vae", folder / "vae", "--vae_dtype", "float32"],
        "clip": ["--clip", folder / "image_encoder", "--image_encoder_dtype", "float32"],
    }


def unipc(steps, shift):
    """Timesteps, as the official UniPC cuts them."""
    line = np.linspace(np.float32(0.999).item(), 0, steps + 1)[:steps]
    return (shift * line / (1 + (shift - 1) * line) * 1000).astype(np.int64).tolist()


# what is cached


@pytest.fixture(scope="module")
def video(parts):
    """A dataset of one video of nine frames, and its pixels 1 3 F H W from -1 to 1."""
    folder = parts.folder / "data"
    media.write_video(folder / "a.mp4", media.clip(48, 32, 9, colour="red"), fps=16)
    (folder / "a.txt").write_text("a ball", encoding="utf-8")
    frames = torch.from_numpy(read_clip(folder / "a.mp4").copy())
    return folder, frames.permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def cached(files, folder, task, *, clip=True):
    toml, cache = folder / f"{task}.toml", folder / f"cache of {task}"
    toml.write_text(
        "[general]\nresolution = [48, 32]\ncaption_extension = '.txt'\n[[datasets]]\n"
        f"video_directory = '{folder.as_posix()}'\ncache_directory = '{cache.as_posix()}'\n"
        "target_frames = [9]\n",
        encoding="utf-8",
    )
    words = ["cache", "latents", "--arch", "wan", "--task", task, "--dataset_config", toml]
    run([*words, *files["vae"], *(files["clip"] if clip else ())])
    (path,) = cache.glob("*_wan.safetensors")
    # Keys end with the size and the type.
    return {name: t.float() for name, t in load_file(path).items()}


def field(record, name):
    (found,) = (t for key, t in record.items() if key.rsplit("_", 1)[0].startswith(name))
    return found


@torch.no_grad()
def test_a_record_for_image_to_video(parts, files, video):
    folder, pixels = video
    record = cached(files, folder, "i2v-14B")
    first = pixels[:, :, 0]
    assert error(latents_of(record), encoded(parts, pixels)[0]) < RECORD
    joined = field(record, "latents_image")
    assert joined[:4, :, 0, 0].tolist() == [[1, 0, 0]] * 4
    assert error(joined[4:], encoded(parts, between(first, 9))[0]) < RECORD
    assert error(field(record, "clip"), features(parts, first)[0]) < RECORD


def latents_of(record):
    (found,) = (t for key, t in record.items() if key.startswith("latents_3x"))
    return found


@torch.no_grad()
def test_a_record_of_both_ends(parts, files, video):
    folder, pixels = video
    record = cached(files, folder, "flf2v-14B")
    first, last = pixels[:, :, 0], pixels[:, :, -1]
    joined = field(record, "latents_ends")
    assert joined[:4, :, 0, 0].tolist() == [[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 1]]
    assert error(joined[4:], encoded(parts, between(first, 9, last))[0]) < RECORD
    both = torch.cat([features(parts, one) for one in (first, last)])
    assert error(field(record, "clip_ends"), both) < RECORD


@torch.no_grad()
def test_a_record_of_two_experts_has_no_clip_features(parts, files, video):
    folder, pixels = video
    record = cached(files, folder, "i2v-A14B", clip=False)
    joined = field(record, "latents_image")
    assert error(joined[4:], encoded(parts, between(pixels[:, :, 0], 9))[0]) < RECORD
    assert not [name for name in record if name.startswith("clip")]


# what is made


def made(parts, files, task, dit, more, *, clip=True):
    """The latents that `musubi generate` writes."""
    place = parts.folder / f"made {len(list(parts.folder.iterdir()))}"
    words = ["generate", "--arch", "wan", "--task", task, *dit, *files["vae"], *files["t5"]]
    words += ["--text_encoder_dtype", "float32", *(files["clip"] if clip else ())]
    words += ["--video_size", 32, 48, "--cpu_noise", "--seed", SEED, "--save_path", place]
    run([*words, "--output_type", "latent", *more])
    (path,) = place.glob("*.safetensors")
    return path


def saved(parts, name, model):
    """The file's words; the oracle is given the official code's exact times afterwards."""
    model.save_pretrained(parts.folder / name)
    model.condition_embedder.timesteps_proj = ExactTime()
    return ["--dit", parts.folder / name]


@torch.no_grad()
def euler(model, x, levels, texts, guidance, *, joined, image=None):
    for s, t in pairwise(levels):
        called = [
            model(
                torch.cat([x, joined], dim=1),
                torch.tensor([1000 * s], dtype=torch.float64),
                text,
                encoder_hidden_states_image=image,
            ).sample
            for text in texts
        ]
        x = x + (t - s) * (called[1] + guidance * (called[0] - called[1]))
    return x


SAMPLING = ["--sample_solver", "vanilla", "--infer_steps", 3, "--flow_shift", 5.0]
SAMPLING += ["--guidance_scale", 4.0, "--prompt", "红球，跳", "--negative_prompt", "静态"]


@pytest.fixture(scope="module")
def texts(parts):
    with torch.no_grad():
        return [words_of(parts, text) for text in ("红球，跳", "静态")]


def noise(frames):
    return torch.randn((16, frames, 4, 6), generator=torch.Generator().manual_seed(SEED))[None]


@pytest.fixture(scope="module")
def controlled(parts):
    """A Fun-Control network, its words, and a control video as a folder and as latents."""
    model = denoiser(in_channels=48, image_dim=80, added_kv_proj_dim=256)
    words = saved(parts, "fun control", model)
    folder = parts.folder / "poses"
    folder.mkdir()
    frames = np.random.default_rng(4).integers(0, 256, (9, 32, 48, 3), np.uint8)
    for number, one in enumerate(frames):
        Image.fromarray(one).save(folder / f"{number}.png")
    pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    with torch.no_grad():
        return model, [*words, "--control_path", folder], encoded(parts, pixels)


def test_fun_control_from_text_reads_features_of_zeros(parts, files, texts, controlled):
    model, dit, control = controlled
    path = made(parts, files, "t2v-1.3B-FC", dit, ["--video_length", 9, *SAMPLING], clip=False)
    found = load_file(path)["latent"][None]
    joined = torch.cat([control, torch.zeros_like(control)], dim=1)
    given = (model, noise(3), levels_of(3, 5.0), texts, 4.0)
    expected = euler(*given, joined=joined, image=torch.zeros(1, 257, 80))
    assert error(found, expected) < SAMPLE
    assert error(found, euler(*given, joined=joined)) > 1e-2, "leaving them out is not the same"


@torch.no_grad()
def test_fun_control_from_an_image(parts, files, texts, controlled):
    model, dit, control = controlled
    more = ["--video_length", 9, "--image_path", parts.folder / "0.png", *SAMPLING]
    found = load_file(made(parts, files, "i2v-14B-FC", dit, more))["latent"][None]
    picture = parts.pictures[0]
    image = torch.zeros_like(control)
    image[:, :, :1] = encoded(parts, resized(picture)[:, :, None])
    joined = torch.cat([control, image], dim=1)
    given = (model, noise(3), levels_of(3, 5.0), texts, 4.0)
    expected = euler(*given, joined=joined, image=features(parts, picture))
    assert error(found, expected) < SAMPLE


class Placed(torch.nn.Module):
    """diffusers' rotary positions, of the latent frames that are named."""

    def __init__(self, inner, places):
        super().__init__()
        self.inner, self.places = inner, places

    def forward(self, x):
        long = x.new_zeros(*x.shape[:2], max(self.places) + 1, *x.shape[3:])
        cells = x.shape[3] // 2 * (x.shape[4] // 2)
        return tuple(
            table.unflatten(1, (-1, cells))[:, self.places].flatten(1, 2)
            for table in self.inner(long)
        )


@pytest.fixture(scope="module")
def at_size(parts):
    """Two control images as large as the frame."""
    (parts.folder / "controls").mkdir()
    made = []
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 48, 3), np.uint8)
        Image.fromarray(pixels).save(parts.folder / "controls" / f"{number}.png")
        made.append(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1)
    return made


@pytest.mark.parametrize(
    ("task", "controls", "places", "target"),
    [("i2v-14B", [0], [0, 5], 1), ("flf2v-14B", [0, 10], [0, 4, 10], 1)],
)
@torch.no_grad()
def test_one_frame(parts, files, texts, at_size, task, controls, places, target):
    two = len(controls) == 2
    sizes = {"pos_embed_seq_len": 514} if two else {}
    model = denoiser(in_channels=36, image_dim=80, added_kv_proj_dim=256, **sizes)
    dit = saved(parts, f"one frame {task}", model)
    model.rope = Placed(model.rope, places)
    shown = [f"{n}.png" for n in range(len(controls))]
    images, ends = [parts.folder / "controls" / n for n in shown], [parts.folder / n for n in shown]
    said = f"target_index={places[target]},control_index={';'.join(map(str, controls))}"
    more = ["--video_length", 1, "--one_frame_inference", said, "--control_image_path", *images]
    more += ["--image_path", ends[0], *(["--end_image_path", ends[1]] if two else [])]
    found = load_file(made(parts, files, task, dit, [*more, *SAMPLING]))["latent"][None]
    slots = [encoded(parts, p[:, :, None]) for p in at_size[: len(controls)]]
    slots.insert(target, encoded(parts, torch.zeros(1, 3, 1, 32, 48)))
    mask = torch.ones(1, 4, len(places), 4, 6)
    mask[:, :, target] = 0
    joined = torch.cat([mask, torch.cat(slots, dim=2)], dim=1)
    seen = [features(parts, p) for p in parts.pictures[: len(controls)]]
    image = torch.cat(seen)
    x = euler(model, noise(len(places)), levels_of(3, 5.0), texts, 4.0, joined=joined, image=image)
    assert error(found, x[:, :, target : target + 1]) < SAMPLE


# what is asked for when nothing is said


def timesteps_told(parts, files, task, more, *, clip=False, dit=None):
    """The timesteps of a run's calls, each with the number of the network that was called; the file.

    The velocity is one for the text and zero for the negative text: the guided one is the scale.
    """
    told, networks = [], []
    forward = WanDiT.forward

    def heard(self, x, t, *args, **kwargs):
        if self not in networks:
            networks.append(self)
        told.append((round(t.flatten()[-1].item() * 1000, 3), networks.index(self)))
        return torch.full_like(x, len(told) % 2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WanDiT, "forward", heard)
        path = made(parts, files, task, dit, ["--prompt", "a", *more], clip=clip)
    assert WanDiT.forward is forward
    with safe_open(str(path), "pt") as file:
        return told, file.metadata(), load_file(path)["latent"]


@pytest.fixture(scope="module")
def text_only(parts):
    return saved(parts, "text only", denoiser())


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
@pytest.mark.parametrize(("steps", "shift"), [(10, 3.0), (40, 5.0)])
def test_timesteps_are_cut_before_levels_are_rounded(
    parts,
    files,
    text_only,
    solver,
    steps,
    shift,
):
    more = ["--video_length", 1, "--sample_solver", solver, "--infer_steps", steps]
    more += ["--flow_shift", shift, "--guidance_scale", 1.0]
    told, *_ = timesteps_told(parts, files, "t2v-1.3B", more, dit=text_only)
    expected = unipc(steps, shift)
    if solver == "dpm++":
        expected = [int(1000 * level) for level in levels_of(steps, shift)[:-1]]
    assert [t for t, _ in told] == expected


@pytest.mark.parametrize(
    ("task", "in_channels", "boundary", "shift", "guidance"),
    [("t2v-A14B", 16, 875, 12.0, (3.0, 4.0)), ("i2v-A14B", 36, 900, 5.0, (3.5, 3.5))],
)
def test_experts_meet_at_their_boundary(
    parts,
    files,
    task,
    in_channels,
    boundary,
    shift,
    guidance,
):
    dit = []
    for seed, name in enumerate(("dit", "dit_high_noise")):
        model = denoiser(seed, in_channels=in_channels)
        dit += [f"--{name}", saved(parts, f"{task} {name}", model)[1]]
    more = ["--video_length", 1]
    if in_channels == 36:
        more += ["--image_path", parts.folder / "0.png"]
    told, facts, _ = timesteps_told(parts, files, task, more, dit=dit)
    # Two calls a step: with the text, and with the negative one.
    assert told == [(t, int(t < boundary)) for t in unipc(40, shift) for _ in range(2)]
    assert facts["negative_prompt"] == COMMON
    euler = [*more, "--sample_solver", "vanilla"]
    *_, found = timesteps_told(parts, files, task, euler, dit=dit)
    moved = sum((s - t) * guidance[1000 * s >= boundary] for s, t in pairwise(levels_of(40, shift)))
    torch.testing.assert_close(found, noise(1)[0] - moved, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("task", "dit", "given", "steps", "shift", "negative"),
    [
        ("t2v-14B", {}, (), 50, 5.0, ""),
        ("t2i-14B", {}, (), 50, 5.0, ""),
        ("i2v-14B", {"in_channels": 36}, ("image",), 40, 5.0, "镜头晃动，"),
        (
            "flf2v-14B", {"in_channels": 36, "pos_embed_seq_len": 514}, ("image", "end_image"),
            50, 16.0, "镜头切换，镜头晃动，",
        ),
        ("t2v-14B-FC", {"in_channels": 48}, ("control",), 50, 5.0, ""),
    ],
)  # fmt: skip
def test_what_a_task_takes_when_nothing_is_said(
    parts,
    files,
    controlled,
    task,
    dit,
    given,
    steps,
    shift,
    negative,
):
    image = {"image_dim": 80, "added_kv_proj_dim": 256} if dit else {}
    words = saved(parts, f"defaults {task}", denoiser(**dit, **image))
    paths = {"image": parts.folder / "0.png", "end_image": parts.folder / "1.png"}
    paths["control"] = parts.folder / "poses"
    more = ["--video_length", 1 if task == "t2i-14B" else 5]
    more += [word for name in given for word in (f"--{name}_path", paths[name])]
    told, facts, _ = timesteps_told(parts, files, task, more, clip="image" in given, dit=words)
    assert [t for t, _ in told] == [t for t in unipc(steps, shift) for _ in range(2)]
    assert float(facts["guidance_scale"]) == 5.0
    assert facts["negative_prompt"] == negative + COMMON
