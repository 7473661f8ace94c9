import pytest
import torch

from musubi import registry
from musubi.errors import RunError
from musubi.plan import advice, out_of_memory
from musubi.plan.out_of_memory import explain, explained, remedy
from musubi.plan.workload import Bucket, Network, workload
from musubi.plugin import Policy, Quiet

WAN = registry.find("wan")
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. If reserved but …")
BUCKETS = (Bucket(128, 128, 9), Bucket(256, 256, 9))


@pytest.fixture
def toy(config, models):
    return config(**{name: str(path) for name, path in models.items()})


def test_the_message_is_the_plan_and_one_setting(toy):
    error = explain(FULL, toy, WAN, "train", policy=Policy(), buckets=BUCKETS)
    assert error.what.startswith(
        "The GPU's memory is full in a training step at 256x256, 9 frames."
    )
    assert "a training step  256x256, 9 frames" in error.what
    assert "a training step  128x128, 9 frames" in error.what
    assert error.fix.startswith("Add --")
    assert "GiB are needed instead of" in error.fix


def test_the_first_change_that_is_enough_is_named(toy, monkeypatch):
    about = workload(toy, WAN, trains=True, report=Quiet(), buckets=BUCKETS)
    needs = {
        again: out_of_memory._needs(about, Policy(recompute=again))
        for again in ("none", "attention")
    }
    assert needs["attention"] < needs["none"]
    enough = remedy(about, Policy(), "train", needs["attention"])
    assert enough.startswith("Add --recompute attention:")
    most = remedy(about, Policy(), "train", 1)
    assert not most.startswith("Add --recompute attention:")


def test_what_is_used_up_is_not_named_again(toy):
    about = workload(toy, WAN, trains=True, report=Quiet(), buckets=BUCKETS)
    everything = Policy(
        storage="fp8_scaled", streamed=(1,), recompute="blocks", offload_activations=True,
        ffn_chunks=4, compile=True,
    )  # fmt: skip
    assert "no setting of memory is left" in remedy(about, everything, "train", 1)


@pytest.mark.parametrize(
    ("where", "given", "named"),
    [
        ("text", {}, "Add --fp8_t5 --text_encoder_swap 24 (3.1 GiB are needed then)."),
        ("text", {"fp8_t5": True}, "Add --text_encoder_swap 24 (3.1 GiB are needed then)."),
        ("text", {"fp8_t5": True, "text_encoder_swap": 24}, "No setting of memory is left for"),
        ("decode", {}, "Add --vae_tiling; if that is not enough, --vae_cache_cpu too."),
        ("encode", {"vae_tiling": True}, "Add --vae_cache_cpu."),
        ("decode", {"vae_tiling": True, "vae_cache_cpu": True}, "Lower the size"),
    ],
)
def test_other_networks_have_settings_of_their_own(config, where, given, named):
    asked = config(size="1.3B", **given)
    error = explain(FULL, asked, WAN, where, policy=Policy(), buckets=BUCKETS)
    assert error.fix.startswith(named)


@pytest.mark.parametrize(
    ("room", "named"),
    [
        (12 << 30, "Add --text_encoder_swap 8 (11.6 GiB are needed then), or --fp8_llm ("),
        (8 << 30, "Add --text_encoder_swap 17 (7.8 GiB are needed then)."),
    ],
)
def test_what_is_enough_for_a_text_encoder_is_named(room, named):
    hunyuan = registry.find("hunyuan_video")
    component = hunyuan.component("text_encoder1")
    network = Network(component, component.full, torch.bfloat16)
    assert advice.for_text(hunyuan, network, Policy(), room).startswith(named)


def test_only_options_of_the_command_are_named():
    hunyuan = registry.find("hunyuan_video")
    own = {option.name: option.default for option in hunyuan.options}
    assert advice.for_vae(hunyuan, own, "cache latents").startswith("Add --vae_tiling;")
    making = advice.for_vae(hunyuan, own, "generate")
    assert making.startswith("Add --vae_spatial_tile_sample_min_size 128;")


def test_what_cannot_be_planned_keeps_its_fact(config):
    error = explain(FULL, config(dit="gone.safetensors"), WAN, "sample", policy=Policy())
    assert "Tried to allocate 2.00 GiB" in error.what
    assert "If reserved" not in error.what


def test_only_full_memory_is_explained(toy):
    with (
        pytest.raises(RunError, match="The GPU's memory"),
        explained(toy, WAN, "train", policy=Policy(), buckets=BUCKETS),
    ):
        raise FULL
    with pytest.raises(RuntimeError, match="shapes"), explained(toy, WAN, "train", policy=Policy()):
        raise RuntimeError("shapes do not match")
    with explained(toy, WAN, "train", policy=Policy()):
        pass
