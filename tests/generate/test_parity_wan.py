"""A whole generation against diffusers' WanPipeline: same files, same noise, float32, toy sizes."""

import numpy as np
import pytest
import torch

from musubi.architectures.wan import ARCHITECTURE
from musubi.architectures.wan.dit import sinusoid
from musubi.flow import schedules
from musubi.generate.pipeline import Pipeline
from musubi.plugin import Recipe
from musubi.testing.twins import fill, write_tokenizer
from musubi.weights.nets import Nets

pytestmark = [
    pytest.mark.parity,
    # diffusers and transformers warn about themselves
    pytest.mark.filterwarnings("ignore"),
]


class ExactTime(torch.nn.Module):
    """diffusers' own sinusoid is float32, the official one float64."""

    def forward(self, timestep):
        return sinusoid(timestep / 1000, 256)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A toy pipeline, and the folder it was saved to."""
    import diffusers
    import transformers

    folder = tmp_path_factory.mktemp("wan")
    tokenizer = transformers.AutoTokenizer.from_pretrained(write_tokenizer(folder / "tokenizer"))
    text = transformers.UMT5Config(
        vocab_size=320,
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    dit = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=128, num_layers=2, ffn_dim=192, text_dim=32
    )
    made = diffusers.WanPipeline(
        tokenizer=tokenizer,
        text_encoder=fill(transformers.UMT5EncoderModel(text)),
        transformer=fill(dit),
        vae=fill(diffusers.AutoencoderKLWan(base_dim=8, z_dim=16)),
        scheduler=official(diffusers.UniPCMultistepScheduler)(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
        ),
    )
    made.save_pretrained(folder)
    made.transformer.condition_embedder.timesteps_proj = ExactTime()
    made.set_progress_bar_config(disable=True)
    return made, folder


def official(scheduler):
    """The scheduler on the official levels, where diffusers places its own otherwise."""

    class Official(scheduler):
        levels = None

        def set_timesteps(self, steps, device=None, **more):
            super().set_timesteps(steps, device=device)
            self.sigmas = self.levels.clone()
            self.timesteps = schedules.timesteps("unipc", self.levels).long()

    Official.__name__ = scheduler.__name__
    return Official


def test_ten_steps_agree(pipeline):
    theirs, folder = pipeline
    recipe = Recipe(
        prompt="a red ball  moves &amp; rests",
        negative_prompt="静态",
        width=48,
        height=32,
        frames=9,
        fps=16,
        seed=11,
        steps=10,
        solver="unipc",
        flow_shift=5.0,
        guidance_scale=5.0,
        cpu_noise=True,
    )
    noise = torch.randn(16, 3, 4, 6, generator=torch.Generator().manual_seed(11))[None]
    theirs.scheduler.levels = schedules.sigmas("unipc", 10, 5.0)

    def call(output_type):
        return theirs(
            prompt=recipe.prompt,
            negative_prompt=recipe.negative_prompt,
            height=32,
            width=48,
            num_frames=9,
            num_inference_steps=10,
            guidance_scale=5.0,
            latents=noise.clone(),
            output_type=output_type,
        ).frames

    places = {"dit": "transformer", "vae": "vae", "t5": "text_encoder"}
    nets = Nets(
        ARCHITECTURE,
        {name: folder / place for name, place in places.items()},
        device=torch.device("cpu"),
        dtypes=dict.fromkeys(places, torch.float32),
        tokenizers={"t5": folder / "tokenizer"},
        report=None,
    )
    pipeline = Pipeline(ARCHITECTURE, ARCHITECTURE.task("t2v"), {}, nets, device="cpu")
    latents = pipeline.latents(recipe)
    expected = call("latent")
    assert (latents - expected).norm() / expected.norm() < 1e-4

    frames = torch.from_numpy(np.concatenate(list(pipeline.frames(latents)))).float()
    pictures = torch.from_numpy(call("np")[0]) * 255
    # uint8 on our side: within half a level, and rounding
    assert (frames - pictures).abs().max() <= 0.5 + 0.02
