"""Registered means tested: every task of every installed architecture passes the whole suite."""

import pytest
import torch

from musubi import registry
from musubi.testing import conformance

CHECKS = pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
TASK_CHECKS = pytest.mark.parametrize(
    "check", conformance.TASK_CHECKS, ids=lambda check: check.__name__
)
NAMES = pytest.mark.parametrize("name", registry.names())
TASKS = pytest.mark.parametrize(
    ("name", "task"),
    [(name, task.name) for name in registry.names() for task in registry.find(name).tasks],
)


@pytest.fixture(scope="session")
def twins(tmp_path_factory):
    """Where twins are written once."""
    return tmp_path_factory.mktemp("conformance")


@CHECKS
@NAMES
def test_conforms(name, check, twins):
    check(conformance.Subject(name, twins / name))


@TASK_CHECKS
@TASKS
def test_task_conforms(name, task, check, twins):
    subject = conformance.Subject(name, twins / name)
    check(subject, subject.architecture.task(task))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("default")  # the compiler's advice
@TASK_CHECKS
@TASKS
def test_task_conforms_on_a_gpu(name, task, check, twins, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch._dynamo.reset()
    subject = conformance.Subject(name, twins / name, device="cuda")
    check(subject, subject.architecture.task(task))
