"""The room for checkpoints is looked at before the first step."""

import shutil
from collections import namedtuple

import pytest

from musubi.config.train import TrainConfig
from musubi.errors import RunError
from musubi.plugin import Quiet
from musubi.train.space import check_space

Usage = namedtuple("Usage", "total used free")
MILLION = 1_000_000  # numbers trained: 2 MB a checkpoint in bf16, 12 MB a state


@pytest.mark.parametrize(
    ("options", "whole"),
    [
        ({}, 2),
        ({"save_every_n_steps": 10}, 22),
        ({"save_every_n_steps": 10, "save_last_n_steps": 10}, 8),
        ({"save_every_n_epochs": 1, "save_precision": "float"}, 24),
        ({"save_every_n_steps": 50, "save_state": True}, 3 * 14),
        ({"save_state_on_train_end": True}, 14),
    ],
)
def test_too_little_room_is_said_before_the_run(tmp_path, monkeypatch, options, whole):
    config = TrainConfig(**options)

    def told(free: float) -> list[str]:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, int(free * MILLION)))
        report = Quiet()
        check_space(tmp_path, config, numbers=MILLION, steps=100, epochs=5, report=report)
        return report.warnings

    assert not told(whole)
    if whole > 4 and not options.get("save_state_on_train_end"):
        assert len(told(whole - 0.1)) == 1
    with pytest.raises(RunError, match="one checkpoint needs"):
        told(1)
