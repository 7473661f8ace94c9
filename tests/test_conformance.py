"""Registered means tested: every installed architecture passes the whole suite."""

import pytest
import torch

from musubi import registry
from musubi.testing import conformance

CHECKS = pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
NAMES = pytest.mark.parametrize("name", registry.names())


@CHECKS
@NAMES
def test_conforms(name, check, tmp_path):
    check(conformance.Subject(name, tmp_path))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("default")  # the compiler's advice
@CHECKS
@NAMES
def test_conforms_on_a_gpu(name, check, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch._dynamo.reset()
    check(conformance.Subject(name, tmp_path, device="cuda"))
