"""FramePack's records through the command line, against other libraries' networks and written-out indices."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from musubi import registry
from musubi.cli import main
from musubi.demo.pictures import read_clip
from musubi.encoders.llama.network import AFTER, BEFORE
from musubi.testing import media, twins
from tests.encoders.hunyuan_vae.test_parity import diffusers_vae
from tests.encoders.llama.test_parity import llama
from tests.encoders.siglip.test_parity import released, tower

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
SCALING = 0.476986
W = 2


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


def near(found, expected, bound=1e-5):
    assert found.shape == expected.shape
    assert ((found - expected).norm() / expected.norm()).item() < bound


class World:
    """The oracles, their files, and a folder."""

    def __init__(self, folder):
        self.folder = folder
        self.vae, self.siglip, self.llama = diffusers_vae(), tower(), llama()
        self.vae.use_framewise_encoding = False  # whole, not in pieces of 16 frames
        self.paths = {}
        for name, state in (
            ("vae", self.vae.state_dict()),
            ("image_encoder", released(self.siglip.state_dict())),
            ("text_encoder1", self.llama.state_dict()),
        ):
            self.paths[name] = folder / f"{name}.safetensors"
            save_file({k: t.contiguous() for k, t in state.items()}, self.paths[name])
        architecture = registry.find("framepack")
        self.paths["text_encoder2"] = twins.write_twin(
            architecture.component("text_encoder2"), folder / "clip"
        )
        sizes = {"text_dim": 48, "image_dim": 144}
        self.dit = twins.write_twin(architecture.dit, folder / "dit", numbers=sizes)
        self.tokenizer = twins.write_tokenizer(folder / "tokenizer")

    def latents(self, frames):
        """Of uint8 F H W 3, on the model's scale: 16 f h w."""
        video = torch.from_numpy(frames.copy()).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        return (self.vae.encode(video).latent_dist.mode() * SCALING)[0]

    def tokens(self, picture):
        """SigLIP's of a picture at its target size: Pillow's bicubic interpolation, then the last norm."""
        small = Image.fromarray(picture).resize((384, 384), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].float() / 255
        return self.siglip((pixels - 0.5) / 0.5).last_hidden_state[0]

    def cached(self, name, dataset, *more):
        """The records' tensors, by file in order."""
        toml, cache = self.folder / f"{name}.toml", self.folder / f"cache of {name}"
        toml.write_text(
            "[general]\nresolution = [48, 32]\ncaption_extension = '.txt'\n[[datasets]]\n"
            f"cache_directory = '{cache.as_posix()}'\n{dataset}\n",
            encoding="utf-8",
        )
        words = ["cache", "latents", "--arch", "framepack", "--dataset_config", toml]
        words += ["--vae", self.paths["vae"], "--vae_dtype", "float32", *more]
        words += ["--image_encoder", self.paths["image_encoder"]]
        run([*words, "--image_encoder_dtype", "float32"])
        found = []
        for path in sorted(cache.glob("*_fp.safetensors")):
            record = {}
            for key, tensor in load_file(path).items():
                kind = key.rsplit("_", 1)[0]
                head, _, size = kind.rpartition("_")
                record[head if "x" in size and size[:1].isdigit() else kind] = tensor
            found.append(record)
        return toml, found

    def loss(self, name, toml, *more):
        """Of the first step of training, with the text cached."""
        words = ["cache", "text", "--arch", "framepack", "--dataset_config", toml]
        for encoder in ("text_encoder1", "text_encoder2"):
            words += [f"--{encoder}", self.paths[encoder]]
            words += [f"--{encoder}_tokenizer", self.tokenizer]
        run(words)
        words = ["train", "--arch", "framepack", "--one_frame", "--dit", self.dit]
        words += ["--dataset_config", toml, "--max_train_steps", 1, "--learning_rate", 1e-4]
        words += ["--seed", 1, "--mixed_precision", "no", "--output_dir", self.folder / "out"]
        out = f"{name} {len(more)}".replace(" ", "_")
        run([*words, "--output_name", out, *more])
        lines = (self.folder / "out" / out / "metrics.jsonl").read_text(encoding="utf-8")
        return next(
            told["loss/current"]
            for told in map(json.loads, lines.splitlines())
            if "loss/current" in told
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("framepack"))


@pytest.fixture(scope="module")
def video(world):
    folder = world.folder / "videos"
    pixels = media.clip(48, 32, 4 * 3 * W + 1, colour="red")
    media.write_video(folder / "a.mp4", pixels, fps=30)
    (folder / "a.txt").write_text("a ball", encoding="utf-8")
    return (
        f"video_directory = '{folder.as_posix()}'\nframe_extraction = 'full'\n"
        f"fp_latent_window_size = {W}",
        read_clip(folder / "a.mp4"),
    )


def span(first, last):
    return list(range(first, last + 1))


INDICES = (
    "latent_indices", "clean_latent_indices", "clean_latent_2x_indices", "clean_latent_4x_indices",
)  # fmt: skip


@pytest.mark.parametrize("forward", [False, True])
@torch.no_grad()
def test_sections_of_a_video(world, video, forward):
    dataset, frames = video
    _, records = world.cached(f"f1 {forward}", dataset, *(["--f1"] if forward else []))
    latents, picture = world.latents(frames), world.tokens(frames[0])
    assert len(records) == 3
    for number, record in enumerate(records):
        first = 1 + number * W
        near(record["image_embeddings"].float(), picture)
        near(record["latents"], latents[:, first : first + W])
        if forward:
            indices = [span(20, 19 + W), [0, 19], [17, 18], span(1, 16)]
            empty = torch.zeros(16, 19, 4, 6)
            known = torch.cat([empty, latents[:, :first]], dim=1)[:, -19:]
            far, middle, one = known.split([16, 2, 1], dim=1)
        else:
            q = 1 + number * W  # nothing stands between the first one and the start
            indices = [span(q, q + W - 1), [0, q + W], [q + W + 1, q + W + 2]]
            indices.append(span(q + W + 3, q + W + 18))
            known = torch.cat([latents[:, first + W :], torch.zeros(16, 19, 4, 6)], dim=1)
            one, middle, far = known[:, :19].split([1, 2, 16], dim=1)
        assert [record[name].tolist() for name in INDICES] == indices
        near(record["latents_clean"], torch.cat([latents[:, :1], one], dim=1))
        torch.testing.assert_close(record["latents_clean_2x"], middle, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(record["latents_clean_4x"], far, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def single(world):
    """Words of a dataset of one picture, with a control picture of another shape, partly transparent."""
    random = np.random.default_rng(0)
    target = random.integers(0, 256, (32, 48, 4), np.uint8)
    control = random.integers(0, 256, (96, 48, 4), np.uint8)
    target[..., 3] = 255
    target[:, :16, 3] = 0
    control[..., 3] = 0
    control[40:, :, 3] = 255
    for name, pixels in (("images", target), ("controls", control)):
        (world.folder / name).mkdir()
        Image.fromarray(pixels).save(world.folder / name / "a.png")
    (world.folder / "images" / "a.txt").write_text("a ball", encoding="utf-8")
    return (
        f"image_directory = '{(world.folder / 'images').as_posix()}'\n"
        f"control_directory = '{(world.folder / 'controls').as_posix()}'\n"
        "fp_1f_clean_indices = [0]\nfp_1f_target_index = 5\nfp_1f_no_post = false",
        target,
        control,
    )


@torch.no_grad()
def test_a_single_frame_and_what_is_transparent_of_its_control(world, single):
    dataset, _, control = single
    _, (record,) = world.cached("single", dataset, "--one_frame", "--latent_window_size", W)
    # The mask is cropped as its picture is: 48 by 96 covers 48 by 32, and the middle is kept.
    shown = control[32:64]
    weight = Image.fromarray(shown[..., 3]).resize((6, 4), Image.Resampling.LANCZOS)
    seen = world.latents(shown[None, ..., :3]) * (torch.from_numpy(np.array(weight)).float() / 255)
    near(record["latents_clean"][:, :1], seen)
    assert not record["latents_clean"][:, 1:].any()
    assert record["latent_indices"].tolist() == [5]
    assert record["clean_latent_indices"].tolist() == [0, W + 1]
    near(record["image_embeddings"].float(), world.tokens(np.ascontiguousarray(shown[..., :3])))


@torch.no_grad()
def test_hidden_states_of_a_text(world, video):
    """Of the real tokens, behind the instruction, two layers before the last; then zeros."""
    toml, _ = world.cached("text", video[0])
    words = ["cache", "text", "--arch", "framepack", "--dataset_config", toml]
    for name in ("text_encoder1", "text_encoder2"):
        words += [f"--{name}", world.paths[name], f"--{name}_tokenizer", world.tokenizer]
    run([*words, "--text_encoder_dtype", "float32"])
    (path,) = (world.folder / "cache of text").glob("*_fp_te.safetensors")
    record = load_file(path)
    tokenizer = AutoTokenizer.from_pretrained(world.tokenizer)
    # The toy's tokenizer puts an end behind each text.
    start = len(tokenizer(BEFORE)["input_ids"]) - 1
    ids = torch.tensor([tokenizer(BEFORE + "a ball" + AFTER)["input_ids"]])
    hidden = second_last(world.llama, ids)[start:]
    found, mask = record["llama_vec_float32"], record["llama_attention_mask"]
    assert found.shape == (512, 48) and mask.sum() == len(hidden)
    assert mask[: len(hidden)].all()
    near(found[: len(hidden)], hidden)
    assert not found[len(hidden) :].any()


def second_last(model, ids):
    return model.model(ids, output_hidden_states=True).hidden_states[-3][0]


# what of it counts in the loss


def test_a_single_frame_is_learned_only_where_its_mask_says(world, single):
    """Transparency of the frame itself, or masks in a directory: a weight of each latent cell."""
    dataset, target, _ = single
    masks = world.folder / "masks"
    masks.mkdir()
    Image.fromarray(target[..., 3]).save(masks / "a.png")
    losses = {}
    for name, said in (
        ("without", ""),
        ("alpha", "alpha_mask = true"),
        ("directory", f"mask_directory = '{masks.as_posix()}'"),
    ):
        toml, (record,) = world.cached(name, f"{dataset}\n{said}", "--one_frame")
        losses[name] = world.loss(name, toml)
        if name == "without":
            assert "loss_weight" not in record
            continue
        assert record["loss_weight"].shape == (1, 4, 6)
        assert record["loss_weight"][0, 0].tolist() == [0, 0, 1, 1, 1, 1]
        assert world.loss(name, toml, "--unmasked_weight", 1.0) == pytest.approx(losses["without"])
    assert losses["alpha"] == losses["directory"] != pytest.approx(losses["without"], rel=1e-3)
