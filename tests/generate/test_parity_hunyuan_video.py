"""A whole generation against diffusers' HunyuanVideoPipeline: same files, same noise, float32, toy sizes."""

import numpy as np
import pytest
import torch

from musubi.architectures.hunyuan_video import ARCHITECTURE
from musubi.architectures.hunyuan_video.runtime import HunyuanVideoRuntime
from musubi.encoders.llama import network as llama
from musubi.generate.pipeline import Pipeline
from musubi.plugin import Conditioning, Recipe
from musubi.testing.twins import fill, write_tokenizer
from musubi.weights.nets import Nets

pytestmark = [
    pytest.mark.parity,
    # diffusers and transformers warn about themselves
    pytest.mark.filterwarnings("ignore"),
]

SHIFT = 7.0
PLACES = {
    "dit": "transformer",
    "vae": "vae",
    "text_encoder1": "text_encoder",
    "text_encoder2": "text_encoder_2",
}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A toy pipeline, and the folder it was saved to."""
    import diffusers
    import transformers

    folder = tmp_path_factory.mktemp("hunyuan")
    tokenizer, tokenizer_2 = (
        transformers.AutoTokenizer.from_pretrained(write_tokenizer(folder / "tokens" / name))
        for name in ("llm", "clip")
    )
    llama = transformers.LlamaConfig(
        vocab_size=320,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=128,
        rope_theta=500000.0,
        rms_norm_eps=1e-5,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
    )
    clip = transformers.CLIPTextConfig(
        vocab_size=320,
        hidden_size=128,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=2,
        eos_token_id=1,
        bos_token_id=2,
        pad_token_id=0,
    )
    dit = diffusers.HunyuanVideoTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=128,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=2,
        text_embed_dim=48,
        pooled_projection_dim=128,
    )
    made = diffusers.HunyuanVideoPipeline(
        text_encoder=fill(transformers.LlamaModel(llama)),
        tokenizer=tokenizer,
        transformer=fill(dit),
        vae=fill(diffusers.AutoencoderKLHunyuanVideo(block_out_channels=(32, 32, 64, 64))),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        text_encoder_2=fill(transformers.CLIPTextModel(clip)),
        tokenizer_2=tokenizer_2,
    )
    made.save_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    return made, folder


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_five_steps_agree(pipeline, guidance_scale):
    theirs, folder = pipeline
    recipe = Recipe(
        prompt="a red ball moves & rests",
        negative_prompt="blurry, " * 40,
        width=48,
        height=32,
        frames=9,
        fps=24.0,
        seed=11,
        steps=5,
        solver="vanilla",
        flow_shift=SHIFT,
        guidance_scale=guidance_scale,
        cpu_noise=True,
        options={"embedded_cfg_scale": 6.0},
    )
    task = ARCHITECTURE.task("t2v")
    cpu = torch.device("cpu")
    runtime = HunyuanVideoRuntime(ARCHITECTURE, task, {})
    noise = next(runtime.rollout(recipe, Conditioning({}), cpu)).noise

    def call(output_type):
        # the template is counted in tokens: the toy has one for each byte
        template = {"template": f"{llama.BEFORE}{{}}{llama.AFTER}", "crop_start": len(llama.BEFORE)}
        return theirs(
            prompt=recipe.prompt,
            negative_prompt=recipe.negative_prompt,
            height=32,
            width=48,
            num_frames=9,
            num_inference_steps=5,
            guidance_scale=6.0,
            true_cfg_scale=guidance_scale,
            latents=noise.clone(),
            prompt_template=template,
            output_type=output_type,
        ).frames

    nets = Nets(
        ARCHITECTURE,
        {name: folder / place for name, place in PLACES.items()},
        device=cpu,
        dtypes=dict.fromkeys(PLACES, torch.float32),
        tokenizers={
            "text_encoder1": folder / "tokens" / "llm",
            "text_encoder2": folder / "tokens" / "clip",
        },
        report=None,
    )
    pipeline = Pipeline(ARCHITECTURE, task, {}, nets, device="cpu")
    latents = pipeline.latents(recipe)
    expected = call("latent")
    assert (latents - expected).norm() / expected.norm() < 1e-5

    frames = torch.from_numpy(np.concatenate(list(pipeline.frames(latents)))).float()
    pictures = torch.from_numpy(call("np")[0]) * 255
    # uint8 on our side: within half a level, and rounding
    assert (frames - pictures).abs().max() <= 0.5 + 0.02


def test_the_template_is_diffusers_own():
    from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video

    theirs = pipeline_hunyuan_video.DEFAULT_PROMPT_TEMPLATE
    assert theirs["template"] == f"{llama.BEFORE}{{}}{llama.AFTER}"
