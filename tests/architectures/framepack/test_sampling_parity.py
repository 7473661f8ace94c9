# ruff: noqa: B023 - the functions are called in the turn of the loop that makes them
"""A whole video against the official loop around diffusers' network, float32, both orders of sections."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from musubi.architectures.framepack import ARCHITECTURE
from musubi.encoders.hunyuan_vae.network import SCALING
from musubi.encoders.siglip.network import pixels
from musubi.generate.pipeline import Pipeline
from musubi.plugin import Prompt, Recipe
from musubi.testing.conformance import Subject

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
W, SECTIONS, STEPS = 2, 3, 4
MU = 1.15


def oracle(subject):
    from diffusers import HunyuanVideoFramepackTransformer3DModel

    numbers = ARCHITECTURE.dit.tiny
    model = HunyuanVideoFramepackTransformer3DModel(
        num_attention_heads=numbers["hidden"] // 128,
        num_layers=numbers["double_depth"],
        num_single_layers=numbers["single_depth"],
        num_refiner_layers=numbers["refiner_depth"],
        text_embed_dim=numbers["text_dim"],
        pooled_projection_dim=numbers["pooled_dim"],
        image_proj_dim=numbers["image_dim"],
        has_image_proj=True,
        has_clean_x_embedder=True,
    )
    model.load_state_dict(subject.dit(ARCHITECTURE.task("i2v")).state_dict())
    return model.eval()


def sampled(predict, x):
    """UniPC as diffusers has it, with the flow's alpha taken as 1, on levels shifted by `MU`."""
    from diffusers import UniPCMultistepScheduler

    class WithoutAlpha(UniPCMultistepScheduler):
        def _sigma_to_alpha_sigma_t(self, sigma):
            return torch.ones_like(sigma), sigma

    line = torch.linspace(1, 0, STEPS + 1)
    k = torch.tensor(MU).exp()
    sigmas = k / (k + (1 / line - 1))
    scheduler = WithoutAlpha(
        prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=min(3, STEPS - 1),
        solver_type="bh1", lower_order_final=False, final_sigmas_type="zero",
    )  # fmt: skip
    scheduler.set_timesteps(STEPS)
    scheduler.sigmas, scheduler.timesteps = sigmas.clone(), sigmas[:-1] * 1000
    scheduler._step_index, scheduler._begin_index = None, 0
    for step in scheduler.timesteps[:-1]:
        x = scheduler.step(predict(x, step), step, x, return_dict=False)[0]
    return x - sigmas[-2] * predict(x, scheduler.timesteps[-1])


def official(model, texts, start, picture, recipe, *, forward):
    """The loop of the official scripts."""
    generator = torch.Generator("cpu").manual_seed(recipe.seed)
    h, w = recipe.height // 8, recipe.width // 8
    guidance = torch.tensor([recipe.options["embedded_cfg_scale"] * 1000.0])
    history = torch.zeros(1, 16, 16 + 2 + 1, h, w)
    if forward:
        history = torch.cat([history, start], dim=2)
    for padding in range(SECTIONS)[::-1]:
        if forward:
            sizes = [1, 16, 2, 1, W]
            first, four, two, one, target = torch.arange(sum(sizes)).split(sizes)
            clean_4x, clean_2x, near = history[:, :, -19:].split([16, 2, 1], dim=2)
        else:
            sizes = [1, padding * W, W, 1, 2, 16]
            first, _, target, one, two, four = torch.arange(sum(sizes)).split(sizes)
            near, clean_2x, clean_4x = history[:, :, :19].split([1, 2, 16], dim=2)

        def predict(x, step):
            def call(text):
                return model(
                    x, step[None], text["llama_vec"], text["llama_attention_mask"].long(),
                    text["clip_l_pooler"], picture, target, guidance=guidance,
                    latents_clean=torch.cat([start, near], dim=2),
                    indices_latents_clean=torch.cat([first, one]),
                    latents_history_2x=clean_2x, indices_latents_history_2x=two,
                    latents_history_4x=clean_4x, indices_latents_history_4x=four,
                ).sample  # fmt: skip

            positive = call(texts[0])
            if recipe.guidance_scale == 1:
                return positive
            negative = call(texts[1])
            guided = negative + recipe.guidance_scale * (positive - negative)
            axes = list(range(1, guided.ndim))
            part = recipe.options["guidance_rescale"]
            scaled = guided * (positive.std(axes, keepdim=True) / guided.std(axes, keepdim=True))
            return part * scaled + (1 - part) * guided

        noise = torch.randn((1, 16, W, h, w), generator=generator)
        made = sampled(predict, noise)
        if not forward and padding == 0:
            made = torch.cat([start, made], dim=2)
        history = torch.cat([history, made] if forward else [made, history], dim=2)
    return history[:, :, 19:] if forward else history[:, :, :-19]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("forward", [False, True])
@torch.no_grad()
def test_a_video(tmp_path, forward, guidance):
    subject = Subject("framepack", tmp_path)
    task = ARCHITECTURE.task("i2v")
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (32, 48, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "start.png")
    recipe = Recipe(
        prompt="a cat", negative_prompt="a dog", width=48, height=32,
        frames=4 * W * SECTIONS + 1, fps=30.0, seed=7, steps=STEPS, solver="unipc",
        flow_shift=float(torch.tensor(MU).exp()), guidance_scale=guidance,
        options={
            "latent_window_size": W, "f1": forward, "embedded_cfg_scale": 10.0,
            "guidance_rescale": 0.7, "image_path": str(tmp_path / "start.png"),
        },
    )  # fmt: skip
    runtime = subject.runtime(task)
    texts = []
    for words in (recipe.prompt, recipe.negative_prompt):
        record = {}
        for component in ("text_encoder1", "text_encoder2"):
            record |= runtime.encode_text(subject.nets, component, [Prompt(text=words)])[0]
        texts.append({name: tensor[None] for name, tensor in record.items()})
    levels = torch.from_numpy(image).permute(2, 0, 1)[None, :, None].float() / 127.5 - 1
    start = subject.nets["vae"].encode(levels) * SCALING
    picture = subject.nets["image_encoder"](pixels(image))
    expected = official(oracle(subject), texts, start, picture, recipe, forward=forward)
    session = Pipeline(ARCHITECTURE, task, subject.options(task), subject.nets, device="cpu")
    found = session.latents(recipe)
    assert found.shape == expected.shape == (1, 16, 1 + W * SECTIONS, 4, 6)
    assert ((found - expected).norm() / expected.norm()).item() < 5e-5
