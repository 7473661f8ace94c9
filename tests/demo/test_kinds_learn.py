"""Adapters of other kinds learn the lesson of the tiny world as a LoRA does, each at a rate of its own."""

import pytest

from tests.demo.test_learning import data, loss, train, world  # noqa: F401 - fixtures

# LoHa's first numbers are large, so its rate is small.
RATES = {"loha": 4e-3, "lokr": 2e-2, "dora": 8e-3, "oft": 3e-3}


@pytest.mark.parametrize("kind", RATES)
def test_it_learns_what_the_base_never_saw(kind, world, data, loss, tmp_path):  # noqa: F811
    path = train(
        world,
        data,
        tmp_path,
        max_train_steps=20,
        network_type=kind,
        network_args=["factor=8"] if kind == "lokr" else None,
        learning_rate=RATES[kind],
    )
    assert loss(path) < 0.75 * loss()
