"""Previews of a run are planned: the network stays on the device, with all that is trained."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from musubi import registry
from musubi.config.task import Choice
from musubi.errors import ConfigError
from musubi.estimate.step import estimate
from musubi.estimate.trace import Recorder
from musubi.lora.adapter import Adapters
from musubi.plan import requests
from musubi.plan.choose import needed
from musubi.plan.fit import fitting, policy_for
from musubi.plan.previews import PreviewNeeds, Shown
from musubi.plan.workload import Bucket, FullTraining, workload
from musubi.plugin import Policy, Quiet
from musubi.train.preview import read_prompts

pytestmark = pytest.mark.usefixtures("roomy")

WAN = registry.find("wan")
GIB = 2**30
TRAINED = [Bucket(256, 256, 5)]
LARGE = "a cat --w 832 --h 480 --f 17\n"


@pytest.fixture
def prompts(tmp_path):
    """`prompts(text)`: a file for `--sample_prompts`."""

    def make(text=LARGE):
        path = tmp_path / "prompts.txt"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return make


@pytest.fixture
def about(config, prompts):
    """`about(**options)`: a run of the 1.3B model at a small size, with large previews."""

    def make(text=LARGE, **options):
        asked = config(size="1.3B", sample_prompts=prompts(text), network_dim=32, **options)
        return workload(asked, WAN, trains=True, report=Quiet(), buckets=TRAINED)

    return make


def test_sizes_are_those_that_training_draws(prompts, config):
    path = prompts("a cat --w 70 --h 33 --f 6 --l 1\n# no\na dog --s 7\n")
    choice = Choice(WAN.tasks[0])
    asked = requests.previews(config(), Path(path), WAN, choice)
    drawn = read_prompts(path, WAN, choice, {}, seed=1, report=Quiet())
    sizes = [(p.recipe.width, p.recipe.height, p.recipe.frames, p.recipe.steps) for p in drawn]
    assert [(a.width, a.height, a.frames, a.steps) for a in asked] == sizes
    assert [a.calls for a in asked] == [1, 2]


def test_their_phases_are_shown(plan, models, prompts):
    files = {name: str(path) for name, path in models.items()}
    size = {"width": 128, "height": 128, "frames": 9}
    path = prompts("a cat --w 192 --h 128 --f 9\na dog\na dog\n")
    figures, _ = plan(**files, **size, sample_prompts=path)
    rows = [(p["phase"], p["size"]) for p in figures["phases"]]
    names = [name for name, _ in rows]
    assert names[-4:-1] == ["a training step", "a step of a preview", "a step of a preview"]
    assert names[-1] == "decode a preview"
    assert rows[-1][1] == {"width": 192, "height": 128, "frames": 9, "batch": 1}
    assert figures["phases"][-1]["parts"]["the DiT's weights"] > 0
    without, _ = plan(**files, **size)
    assert "decode a preview" not in [p["phase"] for p in without["phases"]]
    making, _ = plan(**files, **size, sample_prompts=path, purpose="generate")
    assert "decode a preview" not in [p["phase"] for p in making["phases"]]


def test_what_is_trained_stays_on_the_device(about):
    run = about()
    drawn = PreviewNeeds.of(run)
    policy = Policy(streamed=(10,), recompute="blocks")
    step, decode = drawn(policy)
    training = estimate(run.case, policy, optimizer=run.optimizer)
    for found in (step, decode):
        assert found.parts["what is trained"] == training.parts["what is trained"]
        assert found.pinned == training.pinned
    assert step.parts["weights"] == decode.parts["the DiT's weights"] == training.parts["weights"]
    away = replace(run, optimizer=replace(run.optimizer, offload=True))
    less, _ = PreviewNeeds.of(away)(policy)
    assert less.device < step.device
    assert less.host > step.host


def test_a_step_with_a_lora_is_recorded_with_it(about):
    run = about("a cat --w 256 --h 256 --f 5\n")
    assert not replace(run.case, attach=Shown(run.case.attach), shown=True).trains
    step, _ = PreviewNeeds.of(run)(Policy())
    bare = estimate(replace(run.case, attach=None), Policy())
    assert step.device - step.parts["what is trained"] >= bare.device


def test_a_step_peaks_where_it_was_recorded():
    # The same network with its LoRA, in numbers: what a preview's step allocates.
    from musubi.estimate.example import example_batch
    from musubi.estimate.record import Case
    from musubi.lora.options import Asked
    from musubi.plan.workload import NewLora

    numbers = {**WAN.dit.tiny, "num_layers": 2}
    case = Case(
        architecture=WAN, task=WAN.tasks[0], numbers=numbers, width=256, height=256, frames=9,
        dtype=torch.float32, compute=None,
        attach=Shown(NewLora(WAN.dit.traits.lora, Asked(rank=4))), shown=True,
    )  # fmt: skip
    torch.manual_seed(0)
    dit = WAN.dit.build(**numbers).eval().requires_grad_(False)
    lora = Adapters.create(dit, WAN.dit.traits.lora, rank=4)
    lora.attach()
    runtime = WAN.runtime(WAN, case.task, {})
    given = runtime.condition(
        example_batch(WAN, case.task, numbers, width=256, height=256, frames=9, batch=1)
    )
    recorder = Recorder()
    with torch.no_grad(), recorder:
        x = torch.randn_like(given.latents.float())
        runtime.predict(dit, x, torch.full((1,), 0.5), given).float()
    assert estimate(case, Policy()).parts["activations"] == pytest.approx(
        recorder.trace.peak, rel=0.15
    )


def test_settings_are_chosen_under_which_previews_fit(config, prompts):
    asked = {"vram": "6GiB", "ram": "64GiB", "size": "1.3B", "network_dim": 32}
    plain = config(**asked)
    drawing = config(**asked, sample_prompts=prompts())
    chosen = {}
    for name, one in (("plain", plain), ("drawing", drawing)):
        run = workload(one, WAN, trains=True, report=Quiet(), buckets=TRAINED)
        chosen[name] = fitting(one, run, None).policy
    drawn = PreviewNeeds.of(run)
    assert max(needed(found) for found in drawn(chosen["plain"])) > 6 * GIB
    assert max(needed(found) for found in drawn(chosen["drawing"])) <= 6 * GIB
    assert sum(chosen["drawing"].streamed) > sum(chosen["plain"].streamed)


def test_previews_that_cannot_fit_are_said_and_training_goes_on(config, prompts):
    report = Quiet()
    asked = {"vram": "4GiB", "ram": "64GiB", "size": "1.3B", "network_dim": 32}
    drawing = config(**asked, sample_prompts=prompts("a cat --w 1920 --h 1088 --f 81\n"))
    made = policy_for(drawing, WAN, trains=True, buckets=TRAINED, report=report)
    assert made == policy_for(config(**asked), WAN, trains=True, buckets=TRAINED, report=Quiet())
    (said,) = report.warnings
    assert said.startswith("Previews at 1920x1088, 81 frames need a card with ")
    assert "--sample_prompts" in said
    assert "Add --vae_tiling" in said


def test_the_whole_network_is_looked_at_in_its_own_numbers(about):
    run = about(full=True)
    assert isinstance(run.case.attach, FullTraining)
    step, _ = PreviewNeeds.of(run)(Policy(recompute="blocks"))
    assert step.parts["weights"] > 1.4e9 * 4
    assert step.parts["what is trained"] == pytest.approx(8 * 1.42e9, rel=0.02)


def test_a_prompt_that_cannot_be_drawn_is_refused(about):
    with pytest.raises(ConfigError, match="--zz"):
        about("a cat --zz 4\n")
