"""Whole generations against diffusers' pipelines: the same files and noise, float32, toy sizes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from musubi.architectures.wan import ARCHITECTURE
from musubi.architectures.wan.dit import sinusoid
from musubi.encoders.wan22_vae import network as vae22
from musubi.flow import schedules
from musubi.generate.pipeline import Pipeline
from musubi.plugin import Recipe
from musubi.testing.twins import fill, write_tokenizer
from musubi.weights.nets import Nets

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore"),  # diffusers and transformers warn about themselves
]
ONE_STEP, TEN_STEPS = 2e-5, 5e-5


class ExactTime(torch.nn.Module):
    """diffusers' own sinusoid is float32, the official one float64."""

    def forward(self, timestep):
        return sinusoid(timestep / 1000, 256)


def official(scheduler):
    """The scheduler on the official levels, where diffusers places its own otherwise."""

    class Official(scheduler):
        levels = None

        def set_timesteps(self, steps, device=None, **more):
            super().set_timesteps(steps, device=device)
            self.sigmas = self.levels.float()
            self.timesteps = schedules.timesteps("unipc", self.levels).long()

    Official.__name__ = scheduler.__name__
    return Official


def denoiser(seed=0, **more):
    import diffusers

    sizes = {"num_attention_heads": 2, "attention_head_dim": 128, "num_layers": 2, "ffn_dim": 192}
    return fill(diffusers.WanTransformer3DModel(text_dim=32, **sizes, **more), seed=seed)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Text encoder, autoencoder, image encoder and a picture, and where they are on disk."""
    import diffusers
    import transformers

    folder = tmp_path_factory.mktemp("wan")
    text = transformers.UMT5Config(
        vocab_size=320, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    look = transformers.CLIPVisionConfig(
        hidden_size=80, intermediate_size=96, num_hidden_layers=3, num_attention_heads=1,
        image_size=224, patch_size=14, hidden_act="gelu",
    )  # fmt: skip
    wide = {
        "base_dim": 8, "decoder_base_dim": 16, "z_dim": 48, "in_channels": 12, "out_channels": 12,
        "patch_size": 2, "is_residual": True, "scale_factor_spatial": 16,
        "temperal_downsample": [False, True, True],
        "latents_mean": list(vae22.MEAN), "latents_std": list(vae22.STD),
    }  # fmt: skip
    made = SimpleNamespace(
        folder=folder,
        tokenizer=transformers.AutoTokenizer.from_pretrained(write_tokenizer(folder / "tokenizer")),
        text_encoder=fill(transformers.UMT5EncoderModel(text)),
        vae=fill(diffusers.AutoencoderKLWan(base_dim=8, z_dim=16)),
        vae22=fill(diffusers.AutoencoderKLWan(**wide)),
        image_encoder=fill(transformers.CLIPVisionModel(look)),
    )
    for name in ("text_encoder", "vae", "vae22", "image_encoder"):
        getattr(made, name).save_pretrained(folder / name)
    random = np.random.default_rng(0)
    made.pictures = []
    for number, size in enumerate(((20, 30), (40, 60))):
        bytes_ = random.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(bytes_).save(folder / f"{number}.png")
        made.pictures.append(torch.from_numpy(bytes_).permute(2, 0, 1)[None].float() / 127.5 - 1)
    return made


def features(parts, picture):
    """Of a picture at its own size, as the official code prepares it."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    small = torch.nn.functional.interpolate(picture, (224, 224), mode="bicubic")
    pixels = (small / 2 + 0.5 - mean) / std
    return parts.image_encoder(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]


def scheduler(shift, steps):
    import diffusers

    made = official(diffusers.UniPCMultistepScheduler)(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    made.levels = schedules.sigmas("unipc", steps, shift)
    return made


def compare(
    parts, task, dits, call, *, size=(48, 32), channels=(16, 3, 4, 6), vae="vae", **changes
):
    """Relative difference of our latents from what the pipeline makes of the same noise."""
    steps = changes.pop("steps", 10)
    shift = changes.pop("flow_shift", 5.0)
    guidance = changes.pop("guidance_scale", 5.0)
    folder = parts.folder / task
    for name, dit in dits.items():
        dit.save_pretrained(folder / name)
        dit.condition_embedder.timesteps_proj = ExactTime()
    text = {"prompt": "a red ball", "negative_prompt": "静态"}
    recipe = Recipe(
        **text, width=size[0], height=size[1], frames=9, fps=16, seed=11, steps=steps,
        solver="unipc", flow_shift=shift, guidance_scale=guidance, cpu_noise=True, options=changes,
    )  # fmt: skip
    noise = torch.randn(channels, generator=torch.Generator().manual_seed(11))[None]
    shared = {
        **text, "width": size[0], "height": size[1], "num_frames": 9, "num_inference_steps": steps,
        "latents": noise, "output_type": "latent",
    }  # fmt: skip
    expected = call(scheduler(shift, steps), shared)
    paths = {name: folder / name for name in dits}
    paths |= {"t5": parts.folder / "text_encoder", vae: parts.folder / vae}
    paths["clip"] = parts.folder / "image_encoder"
    nets = Nets(
        ARCHITECTURE,
        paths,
        device=torch.device("cpu"),
        dtypes=dict.fromkeys(paths, torch.float32),
        tokenizers={"t5": parts.folder / "tokenizer"},
        report=None,
    )
    options = {o.name: o.default for o in ARCHITECTURE.options}
    session = Pipeline(ARCHITECTURE, ARCHITECTURE.task(task), options, nets, device="cpu")
    found = session.latents(recipe)
    assert found.shape == expected.shape
    return ((found - expected).norm() / expected.norm()).item()


def pipeline(parts, kind, scheduler, vae=None, seen=(), **more):
    import diffusers

    made = getattr(diffusers, kind)(
        tokenizer=parts.tokenizer,
        text_encoder=parts.text_encoder,
        vae=vae or parts.vae,
        scheduler=scheduler,
        **more,
    )
    made.set_progress_bar_config(disable=True)
    # It prepares pictures by the stock processor, which is 0.05 off in features.
    made.encode_image = lambda *_: torch.cat([features(parts, one) for one in seen])
    return made


def resized(picture, height=32, width=48):
    return torch.nn.functional.interpolate(picture, (height, width), mode="bicubic")


@pytest.mark.parametrize(("steps", "bound"), [(1, ONE_STEP), (10, TEN_STEPS)])
def test_image_to_video(parts, steps, bound):
    dit = denoiser(in_channels=36, image_dim=80, added_kv_proj_dim=256)

    def call(scheduler, shared):
        made = pipeline(
            parts, "WanImageToVideoPipeline", scheduler, transformer=dit,
            image_processor=None, image_encoder=None, seen=parts.pictures[:1],
        )  # fmt: skip
        return made(
            image=resized(parts.pictures[0]), guidance_scale=5.0, **shared,
        ).frames  # fmt: skip

    path = str(parts.folder / "0.png")
    found = compare(parts, "i2v", {"dit": dit}, call, steps=steps, image_path=path)
    assert found < bound, found


def test_first_and_last_frame_to_video(parts):
    dit = denoiser(in_channels=36, image_dim=80, added_kv_proj_dim=256, pos_embed_seq_len=514)

    def call(scheduler, shared):
        made = pipeline(
            parts, "WanImageToVideoPipeline", scheduler, transformer=dit,
            image_processor=None, image_encoder=None, seen=parts.pictures,
        )  # fmt: skip
        return made(
            image=resized(parts.pictures[0]), last_image=resized(parts.pictures[1]),
            guidance_scale=5.0, **shared,
        ).frames  # fmt: skip

    paths = {"image_path": str(parts.folder / "0.png")}
    paths["end_image_path"] = str(parts.folder / "1.png")
    found = compare(parts, "flf2v", {"dit": dit}, call, flow_shift=16.0, **paths)
    assert found < TEN_STEPS, found


def test_two_experts_for_text(parts):
    high, low = denoiser(1), denoiser(2)

    def call(scheduler, shared):
        made = pipeline(
            parts, "WanPipeline", scheduler, transformer=high, transformer_2=low,
            boundary_ratio=0.875,
        )  # fmt: skip
        return made(guidance_scale=4.0, guidance_scale_2=3.0, **shared).frames

    dits = {"dit": low, "dit_high_noise": high}
    given = {"flow_shift": 12.0, "guidance_scale": 3.0, "guidance_scale_high_noise": 4.0}
    found = compare(parts, "t2v-2.2", dits, call, **given)
    assert found < TEN_STEPS, found
    # Each expert, the guidance of each and the boundary matter.
    for other in (
        {"guidance_scale_high_noise": 3.0},
        {"guidance_scale": 4.0},
        {"timestep_boundary": 0.95},
    ):
        assert compare(parts, "t2v-2.2", dits, call, **{**given, **other}) > 1e-3


def test_two_experts_for_images(parts):
    high, low = denoiser(1, in_channels=36), denoiser(2, in_channels=36)

    def call(scheduler, shared):
        made = pipeline(
            parts, "WanImageToVideoPipeline", scheduler, transformer=high, transformer_2=low,
            boundary_ratio=0.9, image_processor=None, image_encoder=None,
        )  # fmt: skip
        return made(
            image=resized(parts.pictures[0]), guidance_scale=3.5, guidance_scale_2=3.5, **shared
        ).frames

    dits = {"dit": low, "dit_high_noise": high}
    path = str(parts.folder / "0.png")
    found = compare(parts, "i2v-2.2", dits, call, guidance_scale=3.5, image_path=path)
    assert found < TEN_STEPS, found


@pytest.mark.parametrize("given", [False, True])
def test_the_5b_model_with_and_without_an_image(parts, given):
    from musubi.architectures.wan.pictures import covering_smoothly

    dit = denoiser(in_channels=48, out_channels=48)

    def call(scheduler, shared):
        if not given:
            made = pipeline(
                parts, "WanPipeline", scheduler, parts.vae22, transformer=dit,
                expand_timesteps=True,
            )  # fmt: skip
            return made(guidance_scale=5.0, **shared).frames
        made = pipeline(
            parts, "WanImageToVideoPipeline", scheduler, parts.vae22, transformer=dit,
            expand_timesteps=True, image_processor=None, image_encoder=None,
        )  # fmt: skip
        bytes_ = np.array(Image.open(parts.folder / "0.png"))
        return made(
            image=covering_smoothly(bytes_, 64, 96)[None], guidance_scale=5.0, **shared
        ).frames

    path = {"image_path": str(parts.folder / "0.png")} if given else {}
    found = compare(
        parts,
        "ti2v",
        {"dit": dit},
        call,
        size=(96, 64),
        channels=(48, 3, 4, 6),
        vae="vae22",
        **path,
    )
    assert found < TEN_STEPS, found


@pytest.fixture(scope="module")
def drawn(parts):
    """A control video, a mask for it and two references: where they lie, and as pictures."""
    random = np.random.default_rng(3)
    made = {}
    for name, shape in (
        ("control", (9, 32, 48, 3)),
        ("mask", (9, 32, 48)),
        ("refs", (2, 40, 24, 3)),
    ):
        pixels = random.integers(0, 256, shape, np.uint8)
        (parts.folder / name).mkdir()
        made[name] = [Image.fromarray(one) for one in pixels]
        for number, one in enumerate(made[name]):
            one.save(parts.folder / name / f"{number}.png")
    return made


@pytest.mark.parametrize("references", [0, 2])
@pytest.mark.parametrize(("steps", "bound"), [(1, ONE_STEP), (10, TEN_STEPS)])
def test_control_masks_and_references(parts, drawn, steps, bound, references):
    import diffusers

    torch.manual_seed(0)
    dit = fill(
        diffusers.WanVACETransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=128,
            num_layers=4,
            ffn_dim=192,
            text_dim=32,
            vace_layers=[0, 2],
            vace_in_channels=96,
        )
    )

    def call(scheduler, shared):
        made = pipeline(parts, "WanVACEPipeline", scheduler, transformer=dit)
        latents = made(
            video=drawn["control"], mask=drawn["mask"], guidance_scale=5.0, conditioning_scale=0.8,
            reference_images=drawn["refs"][:references][::-1] or None,  # it turns their order round
            **shared,
        ).frames  # fmt: skip
        return latents[:, :, references:]

    given = {"control_scale": 0.8}
    given |= {f"{name}_path": str(parts.folder / name) for name in ("control", "mask")}
    paths = [str(parts.folder / "refs" / f"{number}.png") for number in range(references)]
    found = compare(
        parts, "vace", {"dit": dit}, call, steps=steps, flow_shift=16.0,
        channels=(16, 3 + references, 4, 6), reference_image_path=paths, **given,
    )  # fmt: skip
    assert found < bound, found
