import pytest
import torch

from musubi import registry
from musubi.errors import RunError
from musubi.plan import rescue
from musubi.plan.rescue import advice, explain, rescued
from musubi.plan.subject import Bucket, subject
from musubi.spec import Policy, Quiet

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
    about = subject(toy, WAN, trains=True, report=Quiet(), buckets=BUCKETS)
    needs = {
        again: rescue._needs(about, Policy(recompute=again)) for again in ("none", "attention")
    }
    assert needs["attention"] < needs["none"]
    enough = advice(about, Policy(), "train", needs["attention"])
    assert enough.startswith("Add --recompute attention:")
    most = advice(about, Policy(), "train", 1)
    assert not most.startswith("Add --recompute attention:")


def test_what_is_used_up_is_not_named_again(toy):
    about = subject(toy, WAN, trains=True, report=Quiet(), buckets=BUCKETS)
    everything = Policy(
        storage="fp8_scaled", streamed=(1,), recompute="blocks", offload_activations=True,
        slices=4, compile=True,
    )  # fmt: skip
    assert "no setting of memory is left" in advice(about, everything, "train", 1)


@pytest.mark.parametrize(
    ("where", "named"),
    [("text", "--fp8_t5"), ("decode", "--vae_tiling"), ("encode", "--vae_tiling")],
)
def test_other_networks_have_settings_of_their_own(toy, where, named):
    error = explain(FULL, toy, WAN, where, policy=Policy(), buckets=BUCKETS)
    assert named in error.fix


def test_what_cannot_be_planned_keeps_its_fact(config):
    error = explain(FULL, config(dit="gone.safetensors"), WAN, "sample", policy=Policy())
    assert "Tried to allocate 2.00 GiB" in error.what
    assert "If reserved" not in error.what


def test_only_full_memory_is_explained(toy):
    with (
        pytest.raises(RunError, match="The GPU's memory"),
        rescued(toy, WAN, "train", policy=Policy(), buckets=BUCKETS),
    ):
        raise FULL
    with pytest.raises(RuntimeError, match="shapes"), rescued(toy, WAN, "train", policy=Policy()):
        raise RuntimeError("shapes do not match")
    with rescued(toy, WAN, "train", policy=Policy()):
        pass
