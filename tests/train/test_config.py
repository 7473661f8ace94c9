import pytest

from musubi.config.optimization import literals
from musubi.config.train import TrainConfig
from musubi.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"sage_attn": True}, "has no backward pass"),
        ({"sdpa": True, "xformers": True}, "--sdpa and --xformers were both given"),
        ({"min_timestep": 500, "max_timestep": 400}, "500 is not below --max_timestep 400"),
        ({"dim_from_weights": True}, "without --network_weights"),
        ({"dim_from_weights": True, "network_weights": "a", "network_dim": 4}, "contradict"),
        ({"base_weights": ["a"], "base_weights_multiplier": [1.0, 2.0]}, "2 values for 1 files"),
        ({"full": True, "network_dim": 4}, "--network_dim means nothing"),
        ({"sample_every_n_steps": 5}, "--sample_prompts FILE"),
        ({"sample_at_first": True}, "--sample_prompts FILE"),
        ({"validate_every_n_steps": 5}, "--validation_split"),
        ({"output_name": "a/b"}, "cannot be part of a file name"),
        ({"save_state_to_huggingface": True}, "--huggingface_repo_id"),
    ],
)
def test_contradictions_are_refused(options: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        TrainConfig(**options)


def test_defaults() -> None:
    assert TrainConfig().attention == "sdpa"
    assert TrainConfig(flash_attn=True).attention == "flash2"
    assert TrainConfig().learning_rate_or_default == 1e-4
    assert TrainConfig(full=True).learning_rate_or_default == 1e-5
    assert TrainConfig(learning_rate=3e-4).learning_rate_or_default == 3e-4


def test_literals() -> None:
    assert literals(["a=1", "b=(0.9,0.99)", "c=True", "d='x=y'"], "optimizer_args") == {
        "a": 1,
        "b": (0.9, 0.99),
        "c": True,
        "d": "x=y",
    }
    for bad in ("a", "a=[1", "=3"):
        with pytest.raises(ConfigError, match="--optimizer_args"):
            literals([bad], "optimizer_args")
