"""HunyuanVideo's autoencoder and text encoders against diffusers and transformers, float32, toy sizes."""

import pytest
import torch

from musubi.architectures.hunyuan_video import ARCHITECTURE, text
from musubi.architectures.hunyuan_video.vae import Pieces
from musubi.testing import twins
from musubi.testing.twins import fill
from musubi.weights.tokenizer import load_tokenizer

pytestmark = pytest.mark.parity

VAE, LLM, CLIP = (ARCHITECTURE.component(n) for n in ("vae", "text_encoder1", "text_encoder2"))


def error(ours, theirs):
    assert ours.shape == theirs.shape
    return ((ours - theirs).norm() / theirs.norm()).item()


def diffusers_vae():
    from diffusers import AutoencoderKLHunyuanVideo

    torch.manual_seed(0)
    return fill(AutoencoderKLHunyuanVideo(block_out_channels=(32, 64, 64, 96)))


@pytest.mark.parametrize(("prefix", "suffix"), [("", ".safetensors"), ("vae.", ".pt")])
def test_vae_files(prefix, suffix, loaded):
    oracle = diffusers_vae()
    state = {prefix + name: tensor for name, tensor in oracle.state_dict().items()}
    ours = loaded(VAE, state, suffix)
    assert ours.musubi_numbers == {"widths": (32, 64, 64, 96), "z_dim": 16}


@pytest.mark.parametrize("columns", [None, 8])
@pytest.mark.parametrize("frames", [1, 5, 9])
def test_vae(frames, columns, loaded):
    oracle = diffusers_vae()
    ours = loaded(VAE, oracle.state_dict())
    x = torch.rand(2, 3, frames, 48, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    expected = oracle.encode(x).latent_dist
    found = ours.encode(x, pieces=Pieces(columns=columns))
    assert found.shape == (2, 16, (frames - 1) // 4 + 1, 6, 4)
    assert error(found, expected.mode()) < 1e-5
    drawn = ours.encode(x, generator=torch.Generator().manual_seed(2))
    assert error(drawn, expected.sample(torch.Generator().manual_seed(2))) < 1e-5
    z = torch.randn(found.shape, generator=torch.Generator().manual_seed(3))
    decoded = ours.decode(z, pieces=Pieces(columns=columns))
    expected = oracle.decode(z).sample
    assert (expected.abs() < 1).float().mean() > 0.5, "clamping must not hide differences"
    assert error(decoded, expected.clamp(-1, 1)) < 1e-5


def test_windows_in_time_are_blended_as_by_diffusers(loaded):
    oracle = diffusers_vae()
    ours = loaded(VAE, oracle.state_dict())
    pieces = Pieces(window=16)
    x = torch.rand(1, 3, 29, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    # diffusers adds a window whose frames the one before it covers; ours ends there
    oracle.tile_sample_min_num_frames, oracle.tile_sample_stride_num_frames = 16, 12
    found, expected = ours.encode(x, pieces=pieces), oracle.encode(x).latent_dist.mode()
    assert found.shape == expected.shape
    assert error(found[:, :, :7], expected[:, :, :7]) < 1e-5
    z = torch.randn(found.shape, generator=torch.Generator().manual_seed(3))
    decoded, expected = ours.decode(z, pieces=pieces), oracle.decode(z).sample.clamp(-1, 1)
    assert decoded.shape == expected.shape == x.shape
    assert error(decoded[:, :, :25], expected[:, :, :25]) < 1e-5


def test_tiles_come_near_the_whole(loaded):
    ours = loaded(VAE, diffusers_vae().state_dict())
    x = torch.rand(1, 3, 5, 96, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    whole = ours.encode(x)
    tiled = ours.encode(x, pieces=Pieces(tile=64))
    assert tiled.shape == whole.shape
    assert not torch.equal(tiled, whole)
    assert ours.decode(whole, pieces=Pieces(tile=64)).shape == x.shape


def test_full_size_vae_has_the_released_names_and_shapes():
    from diffusers import AutoencoderKLHunyuanVideo

    with torch.device("meta"):
        ours = VAE.build(widths=(128, 256, 512, 512), z_dim=16).state_dict()
        oracle = AutoencoderKLHunyuanVideo().state_dict()
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in oracle.items()}


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return fill(
        LlamaForCausalLM(
            LlamaConfig(
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
        )
    )


CAPTIONS = ["a cat", "a dog runs over the grass, " * 20]


@pytest.mark.parametrize("layout", ["transformers", "headless", "llava", "comfyui"])
def test_llm(layout, loaded, tmp_path):
    oracle = llama()
    state = oracle.state_dict()
    if layout == "headless":
        state = oracle.model.state_dict()
    elif layout == "llava":
        state = {f"language_model.{name}": tensor for name, tensor in state.items()}
        state["vision_tower.patch.weight"] = torch.zeros(3)
    elif layout == "comfyui":
        state["tokenizer"] = torch.zeros(10, dtype=torch.uint8)
    ours = loaded(LLM, state)
    tokenizer = load_tokenizer(LLM, twins.write_tokenizer(tmp_path / "tokenizer"), None)
    start = text.template_length(tokenizer)
    tokens = tokenizer(
        [text.BEFORE + caption + text.AFTER for caption in CAPTIONS],
        padding="max_length",
        max_length=start + 256,
        truncation=True,
        return_tensors="pt",
    )
    expected = oracle.model(**tokens, output_hidden_states=True).hidden_states[-3][:, start:]
    for i, (hidden, mask) in enumerate(text.encode_llm(ours, tokenizer, CAPTIONS)):
        assert hidden.shape == (256, 48) and mask.shape == (256,) and mask.dtype == torch.int64
        assert torch.equal(mask, tokens["attention_mask"][i, start:])
        assert error(hidden, expected[i]) < 1e-5
    assert mask.all()  # the second caption fills it


def test_layers_that_do_not_speak_are_not_loaded(loaded):
    oracle = llama()
    state = {name: tensor.clone() for name, tensor in oracle.state_dict().items()}
    for name, tensor in state.items():  # NaN is refused in what is read
        if name.startswith(("model.layers.2.", "model.layers.3.", "model.norm.")):
            tensor.fill_(float("nan"))
    ours = loaded(LLM, state)
    assert ours.musubi_numbers["num_layers"] == 4
    assert not [n for n in ours.state_dict() if n.startswith(("model.layers.2.", "model.norm."))]
    ids = torch.arange(12)[None] % 7
    mask = torch.ones_like(ids)
    expected = oracle.model(ids, mask, output_hidden_states=True).hidden_states[-3]
    assert error(ours(ids, mask), expected) < 1e-5


@pytest.mark.parametrize("layout", ["text_model", "bare", "whole"])
def test_clip(layout, loaded, tmp_path):
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=320,
        hidden_size=128,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=2,
        eos_token_id=1,
        bos_token_id=2,
        pad_token_id=0,
    )
    oracle = fill(CLIPTextModel(config))
    bare = {n.removeprefix("text_model."): t for n, t in oracle.state_dict().items()}
    state = bare if layout == "bare" else {f"text_model.{n}": t for n, t in bare.items()}
    if layout == "whole":
        state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
        state["text_projection.weight"] = torch.zeros(4, 128)
        state["logit_scale"] = torch.zeros(())
        state["vision_model.post_layernorm.weight"] = torch.zeros(4)
    ours = loaded(CLIP, state)
    tokenizer = load_tokenizer(CLIP, twins.write_tokenizer(tmp_path / "tokenizer"), None)
    tokens = tokenizer(
        CAPTIONS, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    expected = oracle(**tokens).pooler_output
    for i, (pooled, mask) in enumerate(text.encode_clip(ours, tokenizer, CAPTIONS)):
        assert torch.equal(mask, tokens["attention_mask"][i])
        assert error(pooled, expected[i]) < 1e-5


def test_the_template_is_counted_by_the_tokenizer(tmp_path):
    tokenizer = load_tokenizer(LLM, twins.write_tokenizer(tmp_path / "tokenizer"), None)
    # the toy has one token for each byte, and closes each text with one
    assert text.template_length(tokenizer) == len(text.BEFORE)
