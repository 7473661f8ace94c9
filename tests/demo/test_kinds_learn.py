"""Adapters of every kind learn the lesson of the tiny world, in as many steps as a LoRA."""

import pytest

from tests.demo.test_learning import STEPS, data, loss, train, world  # noqa: F401 - fixtures

RATES = {"loha": 2e-2, "lokr": 2e-2, "dora": 8e-3, "oft": 8e-3, "full": 1e-3}


@pytest.mark.parametrize("kind", RATES)
def test_it_learns_what_the_base_never_saw(kind, world, data, loss, tmp_path):  # noqa: F811
    args = ["factor=8"] if kind == "lokr" else None
    path = train(
        world,
        data,
        tmp_path,
        max_train_steps=STEPS,
        network_type=kind,
        network_args=args,
        learning_rate=RATES[kind],
    )
    assert loss(path) < 0.8 * loss()
