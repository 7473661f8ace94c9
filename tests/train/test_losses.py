"""Options of the loss, through `musubi train`."""

import pytest
import torch
from safetensors.torch import load_file

from musubi.config.optimization import TimestepOptions
from musubi.config.train import TrainConfig
from musubi.errors import ConfigError
from musubi.train.step import weight_at
from tests.train.test_command import metadata

KINDS = (
    {},
    {"loss_type": "l1"},
    {"loss_type": "huber"},
    {"loss_type": "huber", "huber_schedule": "snr"},
    {"loss_type": "smooth_l1", "huber_c": 0.3, "huber_scale": 2.0},
    {"min_snr_gamma": 5.0},
)


def test_each_option_changes_what_is_learned_and_resumes_exactly(toy) -> None:
    ends = []
    for i, options in enumerate(KINDS):
        whole = toy.train(full=True, save_precision="fp32", output_name=f"w{i}", **options)
        common = {"full": True, "save_precision": "fp32", "output_name": f"c{i}", **options}
        toy.train(max_train_steps=2, save_state=True, **common)
        toy.train(resume="auto", **common)
        ours, parted = (load_file(whole / f"{n}{i}.safetensors") for n in "wc")
        assert all(torch.equal(ours[n], parted[n]) for n in ours)
        ends.append(ours["first.weight"])
    for i, end in enumerate(ends):
        assert all(not torch.equal(end, other) for other in ends[:i])


def test_the_file_says_which_loss_it_was(toy) -> None:
    out = toy.train(full=True, loss_type="huber", huber_c=0.2)
    said = metadata(out / "cat.safetensors")
    assert (said["ss_loss_type"], said["ss_huber_c"]) == ("huber", "0.2")


def test_show_timesteps_weights_as_training_does() -> None:
    t = torch.tensor([0.25, 0.75])
    assert weight_at(TimestepOptions(min_snr_gamma=5.0), t).tolist() == [0.3125, 0.0625]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"huber_c": 0.1}, "--huber_c means nothing with --loss_type l2"),
        ({"huber_schedule": "snr", "loss_type": "l1"}, "--huber_schedule means nothing"),
        ({"min_snr_gamma": 5, "weighting_scheme": "cosmap"}, "two weights of one loss"),
    ],
)
def test_contradictions_are_refused(options, sentence) -> None:
    with pytest.raises(ConfigError, match=sentence):
        TrainConfig(**options)
