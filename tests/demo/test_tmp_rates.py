import pytest
from tests.demo.test_learning import STEPS, data, loss, train, world  # noqa: F401 - fixtures
@pytest.mark.parametrize(("kind","rate"), [("loha",1.5e-3),("loha",4e-3),("oft",3e-3)])
def test_it(kind, rate, world, data, loss, tmp_path):
    path = train(world, data, tmp_path, max_train_steps=STEPS, network_type=kind, learning_rate=rate)
    print("RESULT", kind, rate, loss(path), loss())
