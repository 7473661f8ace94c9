import json
from dataclasses import replace

import pytest
import torch

from musubi import registry
from musubi.config.memory import dit_policy, streamed
from musubi.errors import ConfigError
from musubi.plan import words
from musubi.plan.choose import needed
from musubi.plan.fit import buckets_of, decided, encoders_for, largest_batch, policy_for
from musubi.plan.workload import Bucket, largest, workload
from musubi.plugin import Policy, Quiet

pytestmark = pytest.mark.usefixtures("roomy")

WAN = registry.find("wan")
SIZE = {"width": 128, "height": 128, "frames": 9}
GIB = 2**30


def phase(figures, name):
    return next(p for p in figures["phases"] if p["phase"] == name)


def files(models):
    return {name: str(path) for name, path in models.items()}


def test_a_published_size_needs_no_file(plan):
    figures, report = plan(
        size="1.3B", width=832, height=480, frames=17, network_dim=32, card="4090"
    )
    assert figures["variant"] == "t2v-1.3B"
    names = [p["phase"] for p in figures["phases"]]
    assert names == ["encode", "text by the t5", "load the dit", "a training step"]
    step = phase(figures, "a training step")
    assert sum(step["parts"].values()) == step["device"]
    assert step["parts"]["weights"] > 1.3e9 * 2
    assert step["seconds"] > 0
    assert any("a training step | 832x480, 17 frames" in line for line in report.notes)
    assert any("These GiB are: " in line for line in report.notes)


def test_files_decide_sizes(plan, models):
    figures, _ = plan(**files(models), **SIZE)
    assert figures["variant"] is None
    assert phase(figures, "a training step")["device"] < 1 * GIB
    assert phase(figures, "load the dit")["device"] < 0.1 * GIB


def test_every_bucket_of_a_dataset_is_planned(plan, models, dataset):
    figures, _ = plan(**files(models), dataset_config=str(dataset))
    steps = [p for p in figures["phases"] if p["phase"] == "a training step"]
    assert len(steps) > 1
    sizes = [p["size"] for p in steps]
    volumes = [s["width"] * s["height"] * s["frames"] * s["batch"] for s in sizes]
    assert volumes == sorted(volumes, reverse=True)
    assert steps[0]["device"] == max(p["device"] for p in steps)


def test_generating_is_planned_too(plan, models):
    figures, _ = plan(**files(models), purpose="generate", size="128x128", video_length=9)
    names = [p["phase"] for p in figures["phases"]]
    assert names == ["text by the t5", "load the dit", "a denoising step", "decode"]
    assert phase(figures, "decode")["parts"]["activations"] > 128 * 128 * 9 * 3 * 4
    one, _ = plan(
        **files(models), purpose="generate", size="128x128", video_length=9, guidance_scale=1.0,
        card="H200",
    )  # fmt: skip
    two, _ = plan(**files(models), purpose="generate", size="128x128", video_length=9, card="H200")
    seconds = [phase(f, "a denoising step")["seconds"] for f in (one, two)]
    assert seconds[1] == pytest.approx(2 * seconds[0])


def test_tiles_of_the_vae_need_less(plan, models):
    asked = {**files(models), "purpose": "generate", "size": "128x128", "video_length": 5}
    whole, _ = plan(**asked)
    tiled, _ = plan(**asked, vae_tiling=True, vae_tile_size=64)
    assert phase(tiled, "decode")["device"] < phase(whole, "decode")["device"]


def _options(flags):
    """Flags as the values that the command line gives."""
    given, name = {}, ""
    for word in " ".join(flags).split():
        if word.startswith("--"):
            name = word[2:]
            given[name] = True
        else:
            given[name] = word
    return given


@pytest.mark.parametrize("arch", ["wan", "hunyuan_video"])
@pytest.mark.parametrize(
    "policy",
    [
        Policy(),
        Policy(recompute="blocks", compile=True),
        Policy(recompute="attention", offload_activations=True),
        Policy(recompute="none", offload_activations=True),
        Policy(storage="fp8"),
        Policy(
            storage="fp8_scaled",
            quantized_matmul=True,
            recompute="blocks",
            offload_activations=True,
        ),
    ],
)
@pytest.mark.parametrize("swapped", [0, 7, 30])
def test_flags_ask_for_the_policy(config, arch, policy, swapped):
    dit = registry.find(arch).dit
    policy = replace(policy, streamed=streamed(swapped, dit))
    flags = words.flags(policy, dit, trains=True)
    assert dit_policy(config(arch, **_options(flags)), dit) == policy


def test_the_settings_that_fit_are_shown_as_flags(plan, models):
    figures, report = plan(**files(models), **SIZE, vram="2GiB", ram="8GiB", card="RTX 4090")
    assert phase(figures, "a training step")["needs"] <= 2 * GIB
    assert figures["flags"] == ["--compile"]
    assert "The fastest settings that fit 2GiB: --compile" in report.notes


def test_what_cannot_fit_says_what_would(plan, models):
    with pytest.raises(ConfigError, match=r"Nothing fits 0\.1 GiB") as told:
        plan(**files(models), **SIZE, vram="0.1GiB")
    assert "smaller or shorter" in told.value.fix


def test_other_phases_that_do_not_fit_are_named(plan, models):
    dit = str(models["dit"])
    _, report = plan(dit=dit, **SIZE, vram="2GiB", recompute="blocks", compile=True)
    assert any("text by the t5" in w and "--fp8_t5" in w for w in report.warnings)


def test_what_is_done_already_is_not_advised(plan):
    asked = {"size": "1.3B", "width": 832, "height": 480, "frames": 17, "vram": "2GiB"}
    _, report = plan(**asked, fp8_t5=True, vae_tiling=True)
    said = "\n".join(report.warnings)
    assert "text by the t5" in said
    assert "--fp8_t5" not in said
    assert "--vae_tiling" not in said
    assert "--text_encoder_swap" not in said  # as many as there are stream already


def test_text_encoders_are_streamed_as_far_as_they_must(config):
    for vram, blocks in (("16GiB", 0), ("8GiB", 10), ("6GiB", 15)):
        found = encoders_for(config(vram=vram), WAN)
        streamed = found["t5"].streamed[0] if "t5" in found else 0
        assert abs(streamed - blocks) <= 3, (vram, streamed)
    given = encoders_for(config(vram="8GiB", text_encoder_swap=20, fp8_t5=True), WAN)
    assert given["t5"] == Policy(storage="fp8_scaled", streamed=(20,))
    assert encoders_for(config(), WAN) == {}


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"size": "15B"}, "no size '15B'"),
        ({"width": 100, "height": 128}, "multiples of 16"),
        ({"width": 128, "height": 128, "frames": 10}, r"takes 4k\+1"),
        ({"card": "Voodoo 2"}, "No speed is known"),
        ({"vram": "lots"}, "no amount of memory"),
        (
            {"size": "1.3B", "blocks_to_swap": 31},
            "would swap 31 blocks of 'blocks', and this network has 30",
        ),
        ({"vram": "24GiB", "blocks_to_swap": 41, "size": "14B"}, "has 40"),
        ({"arch": "hunyuan_video", "blocks_to_swap": 60}, "this network has"),
        ({"full": True, "fp8_scaled": True}, "--fp8_scaled means nothing"),
        ({"full": True, "blocks_to_swap": 4}, "--blocks_to_swap means nothing"),
        ({"full": True, "fp8_scaled": True, "fp8_fast": True}, "--fp8_scaled means nothing"),
    ],
)
def test_what_cannot_be_planned_is_refused(plan, options, what):
    with pytest.raises(ConfigError, match=what):
        plan(**options)


def test_json_alone_can_be_shown(config, models):
    from musubi.plan.run import run

    report = Quiet()
    run(config(json_file="-", **files(models), **SIZE), WAN, report)
    (line,) = report.notes
    assert json.loads(line)["arch"] == "wan"


def test_vram_completes_what_the_options_say(config):
    report = Quiet()
    bucket = [Bucket(256, 256, 9)]
    asked = config(
        vram="1.5GiB", size="1.3B", fp8_base=True, fp8_scaled=True, gradient_checkpointing=True
    )
    policy = policy_for(asked, WAN, trains=True, buckets=bucket, report=report)
    assert policy.storage == "fp8_scaled"
    assert any(policy.streamed)
    assert "--vram 1.5GiB" in report.notes[-1]

    def never():
        raise AssertionError("sizes are looked up for --vram only")

    plain = config(gradient_checkpointing=True)
    assert policy_for(plain, WAN, trains=True, buckets=never, report=report) == Policy(
        recompute="blocks"
    )


def test_vram_refuses_what_loading_would_refuse_later(config):
    asked = config(vram="12GiB", size="1.3B", blocks_to_swap=31)
    with pytest.raises(
        ConfigError, match="would swap 31 blocks of 'blocks', and this network has 30"
    ):
        policy_for(asked, WAN, trains=True, buckets=[Bucket(64, 64, 1)], report=Quiet())


def test_the_planner_leaves_alone_what_was_given(config):
    asked = config(blocks_to_swap=0, recompute="attention", compile=True)
    assert decided(asked, dit_policy(asked, WAN.dit)) == {
        "streamed": (),
        "recompute": "attention",
        "compile": True,
    }


class Item:
    def __init__(self, size, *, repeats=1, batch_size=2, dataset=0):
        self.bucket, self.repeats = (*size, "shape"), repeats
        self.batch_size, self.dataset = batch_size, dataset


def test_the_largest_batch_comes_first():
    items = [
        Item((64, 64, 1)),
        Item((128, 64, 5)),
        Item((128, 64, 5)),
        Item((128, 64, 5)),
        Item((128, 96, 5)),
        Item((64, 64, 1), repeats=5),
    ]
    assert largest(buckets_of(items)) == Bucket(128, 64, 5, 2)
    assert largest_batch(items) == [1, 2]
    assert largest_batch([Item((64, 64, 1), repeats=3)]) == [0, 0]
    assert Bucket(64, 64, 1, 2) in buckets_of(items)


def test_the_whole_network_can_be_planned(config):
    asked = config(full=True, size="1.3B", **SIZE, optimizer_type="adamw8bit")
    about = workload(asked, WAN, trains=True, report=Quiet())
    assert about.case.dtype == torch.float32
    from musubi.plan.phases import phases

    step = phases(about, Policy(recompute="blocks"))[-1].estimate
    numbers = 1.4e9
    assert step.device > numbers * (4 + 4 + 2)  # weights, gradients, states
    assert needed(step) > step.device


def test_settings_in_words():
    dit = WAN.dit
    everything = Policy(
        storage="fp8_scaled", quantized_matmul=True, streamed=(30,), recompute="blocks",
        offload_activations=True, compile=True,
    )  # fmt: skip
    assert words.settings(everything, dit, trains=True) == (
        "--fp8_base --fp8_scaled --fp8_fast --blocks_to_swap 30 --gradient_checkpointing "
        "--gradient_checkpointing_cpu_offload --compile"
    )
    assert words.settings(Policy(storage="fp8"), dit, trains=False) == "--fp8"
    assert words.settings(Policy(), dit, trains=True) == "no flags"


def test_two_experts_are_both_counted(plan):
    sizes = {"width": 128, "height": 128, "frames": 5, "network_dim": 4, "blocks_to_swap": 30}

    def step(task, **more):
        figures, _ = plan(task=task, mixed_precision="bf16", **sizes, **more)
        return next(p for p in figures["phases"] if p["phase"] == "a training step")

    one, two = step("t2v-14B"), step("t2v-A14B")
    parked = step("t2v-A14B", offload_inactive_dit=True)
    assert two["parts"]["what is trained"] == 2 * one["parts"]["what is trained"]
    assert two["parts"]["the denoisers that rest"] > 6e9  # 10 blocks that do not stream
    assert "the denoisers that rest" not in parked["parts"]
    assert two["pinned"] == 2 * one["pinned"]
    assert parked["pinned"] > two["pinned"] + 6e9
