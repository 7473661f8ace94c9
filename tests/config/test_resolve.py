"""Flags over file over defaults, and a sentence for each thing that cannot be used."""

import math
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import field_validator, model_validator

from musubi import registry
from musubi.config.fields import flags
from musubi.config.options import Options, Retired, for_architecture, option, paths, tokenizers
from musubi.config.resolve import Notes, read_file, resolve, to_toml
from musubi.errors import ConfigError


class Sample(Options):
    dataset_config: str = option(..., "The dataset file.", metavar="PATH")
    learning_rate: float = option(2e-6, "Learning rate.", gt=0)
    max_train_steps: int = option(1600, "Steps.", ge=1)
    timestep_sampling: Literal["sigma", "uniform", "shift"] = option("sigma", "Density.")
    gradient_checkpointing: bool = option(False, "Recompute.")
    network_args: list[str] = option([], "More.", aliases=("net_args",))
    video_size: tuple[int, int] = option((256, 256), "Size.", metavar="H W")
    even: int | None = option(None, "An even number.")
    note: str | None = option(None, "Text.")
    where: Path | None = option(None, "A path.")
    port: int | bool | None = option(None, "A union.")

    @field_validator("even")
    @classmethod
    def _even(cls, value):
        if value is not None and value % 2:
            raise ValueError("it must be even")
        return value

    @model_validator(mode="after")
    def _agree(self):
        if self.note == "bad":
            raise ConfigError("--note is bad.", fix="Leave it out.")
        return self


GIVEN = {"dataset_config": "data.toml"}


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "run.toml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return read_file(path)

    return write


def test_flags_win_over_the_file_and_the_file_over_defaults(write):
    file = write(
        'dataset_config = "d.toml"\n[any-name]\nlearning_rate = 1e-4\nmax_train_steps = 5\n'
    )
    config = resolve(Sample, {"max_train_steps": "9"}, file)
    assert (config.dataset_config, config.learning_rate) == ("d.toml", 1e-4)
    assert config.max_train_steps == 9
    assert config.timestep_sampling == "sigma"


def test_sections_are_free_and_may_nest_and_dashes_are_underscores(write):
    file = write('[a]\ndataset-config = "d"\n[a.b]\nnet_args = "x=1"\nlearning_rate = 1\n')
    config = resolve(Sample, {}, file)
    assert config.network_args == ["x=1"]
    assert config.learning_rate == 1.0


def test_a_negated_flag_wins_over_the_file(write):
    file = write("gradient_checkpointing = true\n")
    assert not resolve(
        Sample, {**GIVEN, "gradient_checkpointing": False}, file
    ).gradient_checkpointing


def test_the_suffix_may_be_left_out(write, tmp_path):
    write("arch = 'wan'\nlearning_rate = 1e-3\n")
    file = read_file(tmp_path / "run")
    assert (file.arch, dict(file.values)) == ("wan", {"learning_rate": 1e-3})


def test_a_file_with_a_byte_order_mark_is_read(tmp_path):
    path = tmp_path / "run.toml"
    path.write_bytes(b"\xef\xbb\xbflearning_rate = 1\n")
    assert read_file(path).values == {"learning_rate": 1}


def test_old_keys_are_accepted_with_a_line(write):
    file = write('network_module = "networks.lora_wan"\n')
    notes = Notes()
    old = Retired("network_module", "it follows from --arch.")
    resolve(Sample, GIVEN, file, retired=[old], notes=notes)
    assert notes.lines == ["network_module in run.toml: it follows from --arch."]


BAD_FLAGS = [
    ({"learning_rate": "abc"}, "--learning_rate cannot be 'abc'. It must be a number."),
    ({"learning_rate": "0"}, "--learning_rate cannot be '0'. It must be more than 0"),
    ({"learning_rate": "nan"}, "--learning_rate cannot be 'nan'. It must be"),
    ({"max_train_steps": "1.5"}, "--max_train_steps cannot be '1.5'. It must be a whole number."),
    ({"max_train_steps": "0"}, "--max_train_steps cannot be '0'. It must be at least 1."),
    (
        {"timestep_sampling": "shfit"},
        "--timestep_sampling cannot be 'shfit'. Did you mean 'shift'? Allowed: sigma, uniform, shift.",
    ),
    (
        {"timestep_sampling": "q"},
        "--timestep_sampling cannot be 'q'. Allowed: sigma, uniform, shift.",
    ),
    ({"video_size": ["480", "x"]}, "--video_size cannot be 'x'. It must be a whole number."),
    ({"video_size": ["480"]}, "--video_size takes 2 values, not 480. Write --video_size 256 256."),
    ({"even": "3"}, "--even cannot be '3': it must be even."),
    ({"port": "x"}, "--port cannot be 'x'. It must be a whole number or true or false."),
    ({"note": "bad"}, "--note is bad. Leave it out."),
    ({"dataset_config": None}, "--dataset_config cannot be None. It must be text in quotes."),
]


@pytest.mark.parametrize(("given", "sentence"), BAD_FLAGS, ids=lambda v: str(v)[:40])
def test_a_value_that_cannot_be_used_is_explained(given, sentence):
    with pytest.raises(ConfigError) as error:
        resolve(Sample, {**GIVEN, **given})
    assert str(error.value).startswith(sentence)


def test_a_missing_option_says_what_it_is():
    with pytest.raises(ConfigError) as error:
        resolve(Sample, {})
    assert str(error.value) == (
        "--dataset_config is needed: The dataset file. Add --dataset_config PATH."
    )


def test_several_faults_are_said_at_once():
    with pytest.raises(ConfigError) as error:
        resolve(Sample, {**GIVEN, "learning_rate": "x", "max_train_steps": "y"})
    assert len(str(error.value).splitlines()) == 2


BAD_FILES = [
    ("learning_rat = 1\n", "run.toml has no option 'learning_rat'. Did you mean learning_rate?"),
    ("zzz = 1\n", "run.toml has no option 'zzz'. Remove it."),
    ("t5 = 'x'\n", "run.toml has no option 't5'. It belongs to an architecture."),
    ("learning_rate = 'x'\n", "'learning_rate' in {path} cannot be 'x'. It must be a number."),
    ("max_train_steps = 1.5\n", "'max_train_steps' in {path} cannot be 1.5. It must be a whole"),
    (
        "gradient_checkpointing = 'perhaps'\n",
        "'gradient_checkpointing' in {path} cannot be 'perhaps'.",
    ),
    ("video_size = [1, 2, 3]\n", "'video_size' in {path} takes 2 values, not 1 2 3."),
    ("[a]\nseed = 1\n[b]\nseed = 2\n", "{path} gives 'seed' twice, in [a] and in [b]. Keep one"),
    ("seed = \n", "{path} is not TOML: "),
    ('note = "C:\\models"\n', "{path} is not TOML: "),
    ("arch = 3\n", "'arch' in {path} is 3. Write the name in quotes."),
]


@pytest.mark.parametrize(("text", "sentence"), BAD_FILES, ids=lambda v: v[:30])
def test_a_file_that_cannot_be_used_is_explained(write, tmp_path, text, sentence):
    def elsewhere(key):
        return "It belongs to an architecture." if key == "t5" else None

    with pytest.raises(ConfigError) as error:
        resolve(Sample, GIVEN, write(text), elsewhere=elsewhere)
    assert sentence.format(path=tmp_path / "run.toml") in str(error.value)


def test_a_file_that_is_not_there_is_named_with_the_nearest(write, tmp_path):
    write("", "train_cat.toml")
    with pytest.raises(ConfigError, match=r"runs.*\(or runs\.toml\) does not exist"):
        read_file(tmp_path / "runs")
    with pytest.raises(ConfigError, match=r"Did you mean .*train_cat\.toml\?"):
        read_file(tmp_path / "train_cta.toml")


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "run.toml"
    path.write_bytes("note = '猫'".encode("shift_jis"))
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        read_file(path)


PLAIN = st.characters(exclude_categories=["Cs"], exclude_characters="\0")


@given(
    note=st.text(PLAIN),
    args=st.lists(st.text(PLAIN, max_size=5)),
    rate=st.floats(1e-300, 3e38),
    flag=st.booleans(),
)
def test_a_saved_file_gives_the_same_value_back(tmp_path_factory, note, args, rate, flag):
    if note == "bad":
        return
    config = Sample(
        dataset_config="d", note=note, network_args=args, learning_rate=rate,
        gradient_checkpointing=flag, video_size=(480, 832), where=Path("a b/猫[1].pt"),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("saved") / "config.toml"
    path.write_bytes(to_toml(config, registry.find("wan")).encode())
    file = read_file(path)
    assert file.arch == "wan"
    assert resolve(Sample, {}, file) == config


def test_an_infinite_default_survives_saving(tmp_path):
    class Endless(Options):
        limit: float = option(math.inf, "A limit.")

    path = tmp_path / "config.toml"
    path.write_text(to_toml(Endless()))
    assert resolve(Endless, {}, read_file(path)) == Endless()


def test_an_architecture_adds_its_files_and_options():
    architecture = registry.find("wan")
    train = for_architecture(Sample, architecture, "train")
    text = for_architecture(Sample, architecture, "cache text")
    assert {"dit", "vae", "t5", "t5_tokenizer"} <= set(train.model_fields)
    assert "t5" in text.model_fields
    assert "vae" not in text.model_fields
    assert flags(train)["dit"].group == "Models"
    config = train(dataset_config="d", dit="a.safetensors", t5_tokenizer="tok")
    assert paths(config, architecture) == {"dit": Path("a.safetensors")}
    assert tokenizers(config, architecture) == {"t5": Path("tok")}


def test_the_architecture_of_a_file_reaches_a_command_that_has_it_as_an_option(tmp_path):
    from musubi.config.lora import LoraVerifyConfig

    path = tmp_path / "a.toml"
    path.write_text('arch = "wan"\n[lora]\nfiles = ["x.safetensors"]\n')
    assert resolve(LoraVerifyConfig, {}, read_file(path)).arch == "wan"
    assert resolve(LoraVerifyConfig, {"arch": "other"}, read_file(path)).arch == "other"
