import pytest
import torch

from musubi.errors import CheckpointError
from musubi.weights.identity import identity
from musubi.weights.write import save


def test_the_same_content_is_the_same_wherever_it_lies(tmp_path):
    for name in ("a", "b [1]"):
        save(tmp_path / name / "x.safetensors", {"w": torch.ones(900_000)})
    first = identity(tmp_path / "a" / "x.safetensors")
    assert len(first) == 16
    assert first == identity(tmp_path / "b [1]" / "x.safetensors") == identity(tmp_path / "a")


@pytest.mark.parametrize("size", [10, 900_000])
def test_a_trained_copy_is_another(tmp_path, size):
    path = tmp_path / "x.safetensors"
    save(path, {"w": torch.ones(size)})
    before = identity(path)
    save(path, {"w": torch.full((size,), 2.0)})
    assert identity(path) != before


def test_every_shard_counts(tmp_path):
    for i in (1, 2):
        save(tmp_path / f"m-0000{i}-of-00002.safetensors", {f"w{i}": torch.ones(2)})
    before = identity(tmp_path / "m-00001-of-00002.safetensors")
    save(tmp_path / "m-00002-of-00002.safetensors", {"w2": torch.zeros(2)})
    assert identity(tmp_path / "m-00001-of-00002.safetensors") != before


def test_a_snapshot_is_all_its_parts(tmp_path):
    for name in ("vae", "transformer"):
        save(tmp_path / name / "model.safetensors", {"w": torch.ones(2)})
    before = identity(tmp_path)
    save(tmp_path / "vae" / "model.safetensors", {"w": torch.zeros(2)})
    assert identity(tmp_path) != before


def test_nothing_there_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="There is no file"):
        identity(tmp_path / "x.safetensors")
