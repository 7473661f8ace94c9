"""What HunyuanVideo's verbs promise beyond the conformance suite."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from musubi.architectures.hunyuan_video import ARCHITECTURE
from musubi.architectures.hunyuan_video.runtime import HunyuanVideoRuntime
from musubi.config.generate import GenerateConfig
from musubi.config.options import for_architecture, own_options
from musubi.config.recipe import build_recipe
from musubi.config.resolve import resolve
from musubi.config.task import choose_task
from musubi.config.train import TrainConfig
from musubi.encoders.hunyuan_vae.network import SCALING, Pieces
from musubi.errors import CheckpointError, ConfigError
from musubi.estimate.trace import Recorder
from musubi.generate.write import metadata
from musubi.plugin import Clip, Conditioning, Quiet, Recipe
from musubi.testing import twins
from musubi.train.step import move

CPU = torch.device("cpu")


def runtime(task="t2v", **options):
    return HunyuanVideoRuntime(ARCHITECTURE, ARCHITECTURE.task(task), options)


class OneVae:
    """Networks with nothing but a toy autoencoder."""

    device = CPU

    def __init__(self):
        self.vae = twins.build_twin(ARCHITECTURE.component("vae"))

    def __getitem__(self, name):
        assert name == "vae"
        return self.vae

    def __contains__(self, name):
        return name == "vae"


@pytest.fixture(scope="module")
def nets():
    return OneVae()


class Ear(torch.nn.Module):
    """A denoiser that keeps what it was told."""

    def forward(self, x, t, text, pooled, *, guidance, joined):
        self.text, self.guidance, self.joined = text, guidance, joined
        return x


def batch(count=2, **more):
    mask = torch.zeros(count, 256, dtype=torch.int64)
    mask[:, :5] = 1
    mask[-1, :9] = 1
    return {
        "llm": torch.randn(count, 256, 32),
        "llm_mask": mask,
        "clipL": torch.randn(count, 16),
        "clipL_mask": torch.ones(count, 77, dtype=torch.int64),
        **more,
    }


def recipe(frames=9, **options):
    return Recipe(prompt="", negative_prompt="", width=64, height=48, frames=frames, fps=24.0, seed=7,
                  steps=2, solver="vanilla", flow_shift=7.0, guidance_scale=1.0, options=options)  # fmt: skip


def section(made, one):
    return next(made.rollout(one, Conditioning({}), CPU))


def clip(seed=0, frames=5):
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, 32, 48, 3), dtype=np.uint8)
    return Clip(name=f"clip {seed}", frames=pixels, length=frames)


def test_guidance_has_one_scale_in_training_and_generation():
    made, ear = runtime(guidance_scale=6.0), Ear()
    x, t = torch.randn(2, 16, 2, 4, 4), torch.tensor([0.5, 0.5])
    given = made.condition(batch(latents=x))
    made.predict(ear, x, t, given)
    assert ear.guidance.tolist() == [6000.0, 6000.0]
    told = section(runtime(), recipe(embedded_cfg_scale=6.0)).inputs
    made.predict(ear, x, t, runtime().condition(batch()).plus(**told))
    assert ear.guidance.tolist() == [6000.0, 6000.0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made.predict(ear, x, t, given)
    assert ear.guidance.tolist() == [6016.0, 6016.0]


def test_embedded_guidance_is_written_where_older_tools_look():
    written = [option.name for option in ARCHITECTURE.options if option.written]
    found = metadata(recipe(embedded_cfg_scale=6.0), written=written)
    assert found["embedded_cfg_scale"] == "6.0"
    assert "embedded_cfg_scale" not in metadata(recipe(), written=written)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_near(nets, dtype):
    whole = runtime().encode_media(nets, [clip()])[0][0]["latents"]
    half = OneVae()
    half.vae.to(dtype)
    found = runtime().encode_media(half, [clip()])[0][0]["latents"]
    assert found.dtype == dtype
    assert (found.float() - whole).norm() < 0.05 * whole.norm()


@pytest.mark.parametrize(
    ("name", "embedded", "guidance"),
    [("t2v-13B", 6.0, 1.0), ("skyreels-t2v", 1.0, 6.0), ("skyreels-i2v", 1.0, 6.0)],
)
def test_a_variant_brings_its_guidance(name, embedded, guidance):
    choice = choose_task(ARCHITECTURE, name)
    options = {o.name: o.default for o in ARCHITECTURE.options}
    if choice.task.input("image"):
        options["image_path"] = "a.png"
    made = build_recipe(ARCHITECTURE, choice, {}, options, Quiet())
    assert made.options["embedded_cfg_scale"] == embedded and made.guidance_scale == guidance
    asked = {**options, "embedded_cfg_scale": 3.0}
    assert build_recipe(ARCHITECTURE, choice, {}, asked, Quiet()).options["embedded_cfg_scale"] == 3
    line = build_recipe(ARCHITECTURE, choice, {"embedded_cfg_scale": 2.0}, asked, Quiet())
    assert line.options["embedded_cfg_scale"] == 2


def test_guidance_scale_is_embedded_in_training_only():
    train = for_architecture(TrainConfig, ARCHITECTURE, "train")
    assert own_options(resolve(train, {"guidance_scale": 4.0}), ARCHITECTURE)["guidance_scale"] == 4
    generate = for_architecture(GenerateConfig, ARCHITECTURE, "generate")
    given = {"prompt": "a", "save_path": "b", "guidance_scale": 4.0}
    config = resolve(generate, given)
    assert config.guidance_scale == 4
    assert own_options(config, ARCHITECTURE)["guidance_scale"] == 1


def test_padding_is_cut_off():
    made, ear = runtime(), Ear()
    records = batch()
    x = torch.randn(2, 16, 1, 4, 4)
    made.predict(ear, x, torch.tensor([0.5, 0.5]), made.condition(records))
    assert [len(one) for one in ear.text] == [5, 9]
    assert torch.equal(ear.text[1], records["llm"][1, :9])


@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_a_step_reads_nothing_back_from_the_device(task, monkeypatch):
    # A tensor on "meta" has no values: to read one, as a length or a number, is an error.
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # it has no autocast
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    device = torch.device("meta")
    numbers = {**ARCHITECTURE.dit.tiny, "in_channels": 32 if task == "i2v" else 16}
    with device:
        dit = ARCHITECTURE.dit.build(**numbers)
    records = move(batch(2, latents=torch.zeros(2, 16, 3, 4, 6)), device)
    assert records["llm"].device == device and records["llm_mask"].device == CPU
    made = runtime(task)
    given = made.condition(records)
    assert given.latents is not None
    velocity = made.predict(dit, given.latents, torch.rand(2, device=device), given)
    assert velocity.device == device and velocity.shape == given.latents.shape


def test_latents_are_scaled_on_the_way_to_the_model(nets):
    made = runtime()
    ((record,),) = made.encode_media(nets, [clip()])
    given = made.condition(batch(1, latents=record["latents"][None]))
    assert torch.equal(given.latents[0], record["latents"] * SCALING)
    (frames,) = made.decode(nets, given.latents)
    assert frames.shape == (1, 3, 5, 32, 48)


def test_the_image_stands_in_the_first_frame(nets):
    made, ear = runtime("i2v"), Ear()
    x = torch.randn(1, 16, 3, 4, 6)
    given = made.condition(batch(1, latents=x))
    made.predict(ear, torch.randn_like(x), torch.tensor([0.5]), given)
    assert torch.equal(ear.joined[:, :, :1], x[:, :, :1] * SCALING)
    assert not ear.joined[:, :, 1:].any()
    start = clip(frames=1)
    image = {"image": (start.frames,)}
    asked = Clip(name="", frames=start.frames[:0], length=9, target=False, inputs=image)
    ((record,),) = made.encode_media(nets, [asked])
    ((alone,),) = made.encode_media(nets, [start])
    assert torch.equal(record["latents_image"], alone["latents"])
    given = made.condition(batch(1, latents_image=record["latents_image"][None]))
    assert given.latents is None
    made.predict(ear, x, torch.tensor([0.5]), given)
    assert torch.equal(ear.joined[:, :, :1], alone["latents"][None] * SCALING)


@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_a_video_to_start_from_is_encoded_and_handed_on(nets, task):
    made, source = runtime(task), clip()
    inputs = {"video": (source.frames,), "image": (source.frames[:1],)}
    inputs = {name: given for name, given in inputs.items() if made.task.input(name)}
    asked = Clip(name="", frames=source.frames[:0], length=5, target=False, inputs=inputs)
    ((record,),) = made.encode_media(nets, [asked])
    assert set(record) == {"latents_video"} | ({"latents_image"} if task == "i2v" else set())
    ((learned,),) = made.encode_media(nets, [source])
    assert torch.equal(record["latents_video"], learned["latents"])
    given = made.condition(batch(1, **{name: tensor[None] for name, tensor in record.items()}))
    assert given.latents is None
    start = next(made.rollout(recipe(5, strength=0.3), given, CPU))
    assert start.clean is not None and start.strength == 0.3
    assert torch.equal(start.clean, record["latents_video"][None] * SCALING)
    assert section(made, recipe(5, strength=0.3)).clean is None


def test_a_task_without_media_loads_no_autoencoder():
    class Nothing:
        device = CPU

        def __getitem__(self, name):
            raise AssertionError(name)

    asked = Clip(name="", frames=clip().frames[:0], length=5, target=False)
    assert runtime().encode_media(Nothing(), [asked]) == [({},)]


def test_videos_of_one_seed_begin_alike():
    short, long = (section(runtime(), recipe(frames)).noise for frames in (5, 13))
    assert torch.equal(long[:, :, :2], short)
    assert torch.equal(long, long.bfloat16().float())
    generator = torch.Generator().manual_seed(7)
    first = torch.randn(1, 16, 1, 6, 8, generator=generator, dtype=torch.bfloat16)
    assert torch.equal(short[:, :, :1], first.float())


def test_a_sample_follows_from_its_seed_and_its_clip(nets):
    mean, again = (runtime().encode_media(nets, [clip()])[0][0]["latents"] for _ in range(2))
    assert torch.equal(mean, again)
    drawn = runtime(vae_sample_seed=1)
    both = drawn.encode_media(nets, [clip(3), clip()])
    alone = drawn.encode_media(nets, [clip()])
    assert torch.equal(both[1][0]["latents"], alone[0][0]["latents"])
    assert not torch.equal(alone[0][0]["latents"], mean)
    other = runtime(vae_sample_seed=2).encode_media(nets, [clip()])
    assert not torch.equal(other[0][0]["latents"], alone[0][0]["latents"])


def test_columns_change_nothing_and_tiles_little(nets):
    whole = runtime().encode_media(nets, [clip()])[0][0]["latents"]
    narrow = runtime(vae_chunk_size=8).encode_media(nets, [clip()])[0][0]["latents"]
    torch.testing.assert_close(narrow, whole, rtol=1e-4, atol=1e-5)


def test_columns_need_less_memory():
    vae = ARCHITECTURE.component("vae")
    peaks = []
    for columns in (None, 32):
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            module = vae.build(**vae.full)
            recorder = Recorder()
            with recorder:
                module.encode(torch.empty(1, 3, 9, 256, 256), pieces=Pieces(columns=columns))
        peaks.append(recorder.trace.peak)
    assert peaks[1] < 0.9 * peaks[0]


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        ({"vae_spatial_tile_sample_min_size": 100}, "size 96"),
        ({"vae_spatial_tile_sample_min_size": 8}, "size 32"),
        ({"vae_temporal_tile_sample_min_size": 20}, "size 16"),
        ({"vae_chunk_size": 0}, "32"),
    ],
)
def test_pieces_that_do_not_fit_are_refused(options, fix):
    with pytest.raises(ConfigError) as error:
        runtime(**options)
    assert fix in error.value.fix


def test_strangers_are_named():
    llm, clip_, vae = (ARCHITECTURE.component(n) for n in ("text_encoder1", "text_encoder2", "vae"))
    with pytest.raises(CheckpointError, match="not a Llama language model"):
        llm.infer({"a.weight": (1, 1)})
    with pytest.raises(CheckpointError, match="not CLIP-L: it reads 64 tokens"):
        clip_.infer(
            {
                "text_model.embeddings.token_embedding.weight": (10, 64),
                "text_model.embeddings.position_embedding.weight": (64, 64),
                "text_model.encoder.layers.0.mlp.fc1.weight": (128, 64),
            }
        )
    with pytest.raises(CheckpointError, match="not a HunyuanVideo VAE"):
        vae.infer({"encoder.conv1.weight": (96, 3, 3, 3, 3)})


def test_full_size_encoders_have_the_released_names_and_shapes():
    from transformers import LlamaConfig, LlamaForCausalLM

    llm, clip_ = ARCHITECTURE.component("text_encoder1"), ARCHITECTURE.component("text_encoder2")
    numbers = {"vocab_size": 128320, "dim": 4096, "ffn_dim": 14336, "num_layers": 32,
               "num_heads": 32, "num_kv_heads": 8}  # fmt: skip
    with torch.device("meta"):
        ours = {n: tuple(t.shape) for n, t in llm.build(**numbers).state_dict().items()}
        theirs = LlamaForCausalLM(
            LlamaConfig(vocab_size=128320, hidden_size=4096, intermediate_size=14336,
                        num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8)
        ).state_dict()  # fmt: skip
    assert llm.infer(ours) == numbers
    assert ours == {n: tuple(t.shape) for n, t in theirs.items() if n != "lm_head.weight"}
    numbers = {"vocab_size": 49408, "dim": 768, "ffn_dim": 3072, "num_layers": 12, "positions": 77}
    with torch.device("meta"):
        ours = {n: tuple(t.shape) for n, t in clip_.build(**numbers).state_dict().items()}
    assert clip_.infer(ours) == numbers
    assert len(ours) == 196
    assert ours["text_model.encoder.layers.11.self_attn.q_proj.weight"] == (768, 768)
