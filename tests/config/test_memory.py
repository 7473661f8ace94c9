"""What the options of memory and speed mean."""

from typing import Any

import pytest

from musubi import registry
from musubi.config.bench import BenchConfig
from musubi.config.generate import GenerateConfig
from musubi.config.memory import compiler_words, dit_policy, encoder_policies
from musubi.config.options import for_architecture
from musubi.config.plan import PlanConfig
from musubi.config.sizes import parse_bytes
from musubi.config.train import TrainConfig
from musubi.errors import ConfigError
from musubi.plugin import Policy

WAN, HUNYUAN = registry.find("wan"), registry.find("hunyuan_video")


def of(**given: object) -> Policy:
    return dit_policy(TrainConfig(**given), WAN.dit)  # type: ignore[arg-type]


def test_nothing_given_changes_nothing() -> None:
    assert of() == Policy()


@pytest.mark.parametrize(
    ("given", "policy"),
    [
        ({"fp8_base": True}, Policy(storage="fp8")),
        ({"fp8_base": True, "fp8_scaled": True}, Policy(storage="fp8_scaled")),
        (
            {"fp8_scaled": True, "fp8_fast": True},
            Policy(storage="fp8_scaled", quantized_matmul=True),
        ),
        ({"int8": True}, Policy(storage="int8")),
        ({"int8_fast": True}, Policy(storage="int8", quantized_matmul=True)),
        ({"int8": True, "int8_fast": True}, Policy(storage="int8", quantized_matmul=True)),
        ({"blocks_to_swap": 36}, Policy(streamed=(36,))),
        ({"blocks_to_swap": 0}, Policy()),
        ({"gradient_checkpointing": True}, Policy(recompute="blocks")),
        ({"gradient_checkpointing": True, "recompute": "attention"}, Policy(recompute="attention")),
        (
            {"gradient_checkpointing_cpu_offload": True},
            Policy(recompute="blocks", offload_activations=True),
        ),
        ({"compile": True}, Policy(compile=True)),
        ({"dynamo_backend": "inductor"}, Policy(compile=True)),
        ({"ffn_slices": 4}, Policy(ffn_chunks=4)),
    ],
)
def test_each_option(given: dict, policy: Policy) -> None:
    assert of(**given) == policy


def test_generation_says_fp8() -> None:
    config = GenerateConfig(prompt="a", save_path="x", fp8=True)
    assert dit_policy(config, WAN.dit) == Policy(storage="fp8")


def test_two_stacks_share_the_swapped_blocks() -> None:
    config = TrainConfig(blocks_to_swap=36)
    assert dit_policy(config, HUNYUAN.dit).streamed == (18, 37)
    assert dit_policy(TrainConfig(blocks_to_swap=38), HUNYUAN.dit).streamed == (19, 39)


@pytest.mark.parametrize("one", ["int8", "int8_fast"])
@pytest.mark.parametrize("other", ["fp8_base", "fp8_scaled", "fp8_fast"])
def test_two_kinds_of_8_bits_are_refused(one: str, other: str) -> None:
    with pytest.raises(ConfigError, match=f"--{other} stores the DiT in fp8, and --{one} in int8"):
        of(**{one: True, other: True})
    if other != "fp8_base":
        config = GenerateConfig(prompt="a", save_path="x", **{one: True, other: True})
        with pytest.raises(ConfigError, match=f"--{other} "):
            dit_policy(config, WAN.dit)


def test_products_without_8_bits_are_refused() -> None:
    with pytest.raises(ConfigError, match="--fp8_fast multiplies weights that are stored in fp8"):
        of(fp8_fast=True)


@pytest.mark.parametrize(
    "option",
    [
        {"fp8_base": True},
        {"int8": True},
        {"int8_fast": True},
        {"fp8_fast": True},
        {"blocks_to_swap": 3},
    ],
)
def test_the_whole_network_is_trained_as_it_is(option: dict) -> None:
    with pytest.raises(ConfigError, match="--full trains the DiT itself"):
        TrainConfig(full=True, **option)


def test_encoders_have_flags_of_their_own() -> None:
    for architecture, flag, name in (
        (WAN, "fp8_t5", "t5"),
        (HUNYUAN, "fp8_llm", "text_encoder1"),
    ):
        config = for_architecture(TrainConfig, architecture, "train")(**{flag: True})
        assert encoder_policies(config, architecture) == {name: Policy(storage="fp8_scaled")}
    config = for_architecture(TrainConfig, HUNYUAN, "train")(text_encoder_swap=6)
    assert encoder_policies(config, HUNYUAN) == {
        "text_encoder1": Policy(streamed=(6,)),
        "text_encoder2": Policy(streamed=(6,)),
    }


def test_what_the_compiler_is_told() -> None:
    assert compiler_words(TrainConfig()) == {"backend": "inductor"}
    words = compiler_words(
        TrainConfig(compile_args=("inductor", "max-autotune-no-cudagraphs", "False", "true"))
    )
    assert words == {
        "backend": "inductor",
        "mode": "max-autotune-no-cudagraphs",
        "dynamic": False,
        "fullgraph": True,
    }
    assert (
        compiler_words(TrainConfig(compile_args=("eager", "default", "auto", "no")))["dynamic"]
        is None
    )
    words = compiler_words(TrainConfig(dynamo_backend="aot_eager", dynamo_dynamic=True))
    assert words == {"backend": "aot_eager", "mode": "default", "dynamic": True, "fullgraph": False}


def test_a_word_that_is_neither_true_nor_false_is_named() -> None:
    # The letters of "ru" stand in "true".
    with pytest.raises(ConfigError, match="'ru' is neither true nor false"):
        compiler_words(TrainConfig(compile_args=("inductor", "default", "ru", "false")))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("12GiB", 12 << 30),
        ("12", 12 << 30),
        ("12.5 gib", int(12.5 * 2**30)),
        ("8000MiB", 8000 << 20),
        ("8GB", 8 * 10**9),
    ],
)
def test_amounts_of_memory(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "12 parsec", "0GiB", "-1"])
def test_what_is_no_amount_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="is no amount of memory"):
        parse_bytes(text)


@pytest.mark.parametrize("model", [TrainConfig, GenerateConfig, PlanConfig])
def test_ram_without_vram_is_refused(model: Any) -> None:
    more = {"prompt": "a", "save_path": "x"} if model is GenerateConfig else {}
    with pytest.raises(ConfigError, match="--ram limits what --vram chooses") as told:
        model(ram="32GiB", **more)
    assert "--vram auto" in str(told.value.fix)
    assert model(ram="32GiB", vram="auto", **more).ram == "32GiB"


@pytest.mark.parametrize("given", [{"vram": "lots"}, {"vram": "12GiB", "ram": "auto"}])
def test_what_is_no_amount_is_named_with_its_option(given: dict) -> None:
    with pytest.raises(ConfigError, match=f"--{list(given)[-1]}: .* is no amount of memory"):
        TrainConfig(**given)


def test_a_file_may_give_a_number() -> None:
    assert TrainConfig(vram=12, ram=31.5).vram == "12"  # type: ignore[arg-type]


def test_a_measurement_chooses_nothing() -> None:
    assert not {"vram", "ram"} & set(BenchConfig.model_fields)
