"""`generate --vram` and `plan --for generate`: the same settings, and compiled where that pays."""

import json
from dataclasses import asdict

import pytest

from musubi import registry
from musubi.config.generate import GenerateConfig
from musubi.config.options import for_architecture
from musubi.errors import ConfigError
from musubi.estimate.cards import named
from musubi.estimate.step import estimate
from musubi.plan import fit
from musubi.plan.choose import COMPILING, choose, needed
from musubi.plan.fit import fitting, given, policy_for
from musubi.plan.workload import Bucket, workload
from musubi.plugin import Policy, Quiet

pytestmark = pytest.mark.usefixtures("roomy")

WAN = registry.find("wan")
GIB = 2**30
LARGE = {"size": "14B", "video_size": (480, 832), "video_length": 81}


@pytest.fixture
def generate(tmp_path):
    """`generate(**options)`: the checked options of `musubi generate`."""
    model = for_architecture(GenerateConfig, WAN, "generate")

    def make(**options):
        asked = {"save_path": str(tmp_path), "task": "t2v-14B", **options}
        return model(**({"prompt": "a cat"} | asked if "from_file" not in asked else asked))

    return make


def chosen(config, card="H200", **options):
    asked = config(purpose="generate", vram="80GiB", **options)
    about = workload(asked, WAN, trains=False, report=Quiet())
    return fitting(asked, about, named(card)).policy


def test_long_videos_are_compiled_and_short_ones_are_not(config):
    assert chosen(config, **LARGE).compile
    assert not chosen(config, **LARGE, infer_steps=10).compile
    assert not chosen(config, **{**LARGE, "video_length": 17}).compile
    assert chosen(config, "RTX 4090", **{**LARGE, "video_length": 17}).compile


def test_guidance_counts_as_a_second_call(config):
    # At 45 steps two calls save more than compiling takes, and one call does not.
    asked = {**LARGE, "infer_steps": 45}
    assert chosen(config, **asked).compile
    assert not chosen(config, **asked, guidance_scale=1.0).compile


def test_what_compiling_takes_is_weighed_against_what_it_saves(config):
    asked = config(purpose="generate", **LARGE)
    case = workload(asked, WAN, trains=False, report=Quiet()).case
    card = named("H200")
    eager, fused = (estimate(case, Policy(compile=c), card=card).seconds for c in (False, True))
    even = COMPILING / (eager - fused)
    for steps, compiled in ((0.9 * even, False), (1.1 * even, True)):
        found = choose(case, vram=80 * GIB, card=card, steps=steps)
        assert found.policy == Policy(compile=compiled)
        without = choose(case, vram=80 * GIB, card=card, steps=steps, may_compile=False)
        assert without.policy == Policy()


def test_what_fits_only_compiled_is_compiled(config):
    asked = config(purpose="generate", **LARGE)
    case = workload(asked, WAN, trains=False, report=Quiet()).case
    room = needed(estimate(case, Policy(compile=True))) + (64 << 20)
    assert room < needed(estimate(case, Policy()))
    fixed = {"streamed": (), "storage": "native"}
    found = choose(case, vram=room, card=named("H200"), steps=1, fixed=fixed)
    assert found.policy == Policy(compile=True)
    with pytest.raises(ConfigError, match="Nothing fits"):
        choose(case, vram=room, steps=1, fixed=fixed, may_compile=False)


def test_without_triton_nothing_is_compiled(config, monkeypatch):
    monkeypatch.setattr(fit, "may_compile", lambda: False)
    assert not chosen(config, **LARGE).compile


def test_a_plan_and_the_command_choose_alike(plan, generate, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat --w 832 --h 480 --f 81 --s 20\na dog --w 480 --h 832 --f 81 --s 30\n")
    for vram in ("16GiB", "80GiB"):
        for asked in (
            {"video_size": (480, 832), "video_length": 81},
            {"video_size": (480, 832), "video_length": 80, "infer_steps": 4},
            {"from_file": str(prompts)},
        ):
            made = policy_for(
                generate(vram=vram, **asked), WAN, trains=False, buckets=(), report=Quiet()
            )
            figures, _ = plan(purpose="generate", task="t2v-14B", vram=vram, **asked)
            expected = json.loads(json.dumps(asdict(made)))
            assert json.loads(json.dumps(figures["policy"])) == expected


def test_prompts_of_a_file_decide_sizes_and_steps(config, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text(
        "a cat --w 832 --h 480 --f 80 --s 20\n# no prompt\n\na dog --w 416 --h 480 --f 77 --g 1\n"
        "too wide --w 833\nwhat --zz 3\n"
    )
    asked = config(purpose="generate", size="14B", from_file=str(file), infer_steps=40)
    about = workload(asked, WAN, trains=False, report=Quiet())
    assert about.buckets == (Bucket(832, 480, 77), Bucket(416, 480, 77))
    assert about.case.calls == 2
    assert about.steps == pytest.approx(20 + 40 / 2 / 2)
    file.write_text("too wide --w 833\n")
    with pytest.raises(ConfigError, match="no prompt that can be made"):
        workload(asked, WAN, trains=False, report=Quiet())


def test_many_short_videos_are_worth_compiling_for(config, tmp_path):
    file = tmp_path / "prompts.toml"
    file.write_text(
        "[prompt]\nwidth = 832\nheight = 480\nframe_count = 17\n"
        + '[[prompt.subset]]\nprompt = "a cat"\n' * 8
    )
    assert chosen(config, size="14B", from_file=str(file)).compile
    assert not chosen(config, **{**LARGE, "video_length": 17}).compile


def test_options_of_training_say_nothing_of_generating(config):
    asked = config(
        purpose="generate", gradient_checkpointing=True, ffn_slices=4, fp8_scaled=True,
        gradient_checkpointing_cpu_offload=True, dynamo_backend="inductor",
    )  # fmt: skip
    assert given(asked, WAN.dit, trains=False) == Policy(storage="fp8_scaled")
    assert given(asked, WAN.dit, trains=True).ffn_chunks == 4


def test_latents_are_decoded_without_the_network(generate):
    asked = generate(prompt=None, latent_path=["a.safetensors"], vram="0.1GiB")
    made = policy_for(asked, WAN, trains=False, buckets=(), report=Quiet())
    assert made == Policy()
