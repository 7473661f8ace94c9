"""The options of `musubi generate`: defaults, sizes, and requests that contradict themselves."""

import pydantic
import pytest

from musubi.config.generate import RETIRED, GenerateConfig
from musubi.config.options import for_architecture, own_options, paths
from musubi.errors import ConfigError

GOOD = {"prompt": "a", "save_path": "out"}


def test_nothing_is_decided_that_the_task_decides():
    config = GenerateConfig(**GOOD)
    undecided = ("task", "infer_steps", "flow_shift", "guidance_scale", "sample_solver", "fps")
    assert all(getattr(config, name) is None for name in undecided)
    assert config.width_height is None
    assert config.output_type == "video"


def test_both_ways_to_say_the_size():
    assert GenerateConfig(**GOOD, video_size=(480, 832)).width_height == (832, 480)
    assert GenerateConfig(**GOOD, size="832X480").width_height == (832, 480)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"save_path": "o"}, "Nothing says what to make"),
        ({**GOOD, "interactive": True}, "--prompt and --interactive were given together"),
        ({"prompt": "a"}, "Nothing says where to save.*--save_path"),
        (
            {"latent_path": ["a"], "save_path": "o", "output_type": "both"},
            "has its latents already.*video or images",
        ),
        ({**GOOD, "size": "832*480"}, r"--size '832\*480' is not a size"),
        ({**GOOD, "size": "64x64", "video_size": (64, 64)}, "--size and --video_size"),
        ({**GOOD, "cfg_skip_mode": "late"}, "mean nothing without each other"),
        ({**GOOD, "cfg_apply_ratio": 0.5}, "mean nothing without each other"),
        ({**GOOD, "lora_multiplier": [1.0]}, "--lora_multiplier has 1 value for 0 LoRA files"),
        ({**GOOD, "lora_weight": ["a"], "exclude_patterns": ["a", "b"]}, "has 2 values for 1"),
        ({"save_merged_model": "m"}, "--save_merged_model has nothing to merge"),
        ({**GOOD, "bit_depth": 9}, "--bit_depth 9 is not written"),
        (
            {**GOOD, "lossless": True, "crf": 20},
            "--lossless keeps .* so --crf would change nothing",
        ),
        ({**GOOD, "lossless": True, "bit_depth": 10}, "so --bit_depth would change nothing"),
        ({**GOOD, "crf": 20, "output_type": "images"}, "--output_type images writes none"),
        ({**GOOD, "lossless": True, "output_type": "latent"}, "--output_type latent writes none"),
    ],
)
def test_requests_that_contradict_themselves_are_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        GenerateConfig(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"crf": 52},
        {"crf": -1},
        {"infer_steps": 0},
        {"flow_shift": 0},
        {"sample_solver": "ddim"},
        {"fps": 0},
        {"sede": 1},
    ],
)
def test_impossible_values_are_refused(given):
    with pytest.raises(pydantic.ValidationError):
        GenerateConfig(**GOOD, **given)


def test_the_architecture_adds_its_own(toy):
    model = for_architecture(GenerateConfig, toy, "generate")
    config = model(**GOOD, dit="d.safetensors", gain=0.5)
    assert {name: str(path) for name, path in paths(config, toy).items()} == {
        "dit": "d.safetensors"
    }
    assert own_options(config, toy) == {"gain": 0.5, "loud": False}


def test_saving_a_merged_model_needs_no_prompt():
    GenerateConfig(save_merged_model="m.safetensors", lora_weight=["a"])


def test_retired_flags_are_no_options():
    assert {r.name for r in RETIRED}.isdisjoint(GenerateConfig.model_fields)
