"""What the comparisons with other libraries share."""

import pytest
import torch
from safetensors.torch import save_file

from musubi.weights.load import load


@pytest.fixture
def loaded(tmp_path):
    """Ours, from a file that holds another's tensors under their own names."""

    def from_file(component, state, suffix=".safetensors"):
        path = tmp_path / f"weights{suffix}"
        state = {name: tensor.clone().contiguous() for name, tensor in state.items()}
        save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
        return load(component, path, device=torch.device("cpu"), dtype=torch.float32)

    return from_file
