"""The workshop's denoiser is trained by the commands themselves."""

import shutil

import make
import make_dit
import torch

from musubi.demo import released
from musubi.weights.load import load


def test_the_commands_train_a_denoiser_from_scratch(tmp_path):
    shutil.copytree(released.HOME, tmp_path, dirs_exist_ok=True, ignore=lambda *_: {"dit.safetensors"})  # fmt: skip
    # Large steps and a short memory: the file has bfloat16, which rounds small changes away.
    make_dit.train_dit(tmp_path, steps=2, count=2, batch=2, learning_rate=1e-2, ema_decay=0.1)
    before, after = (
        load(make.architecture().dit, tmp_path / file, device=torch.device("cpu"), dtype=torch.float32).state_dict()
        for file in ("dit-untrained.safetensors", "dit.safetensors")
    )  # fmt: skip
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    assert len(changed) > 0.9 * len(before)
    assert all(tensor.isfinite().all() for tensor in after.values())
