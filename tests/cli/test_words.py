"""Every way of writing an option, through the real program."""

import pytest

ARCH = ("--arch", "wan")


def _config(run, *words):
    code, _, err = run("train", *ARCH, *words)
    assert code == 0, err
    return run.calls[-1][0]


def test_dashes_and_underscores_are_the_same(musubi_main):
    assert _config(musubi_main, "--learning-rate", "1e-4").learning_rate == 1e-4
    assert _config(musubi_main, "--learning_rate=1e-3").learning_rate == 1e-3


def test_lists_take_words_and_may_be_repeated(musubi_main):
    together = _config(musubi_main, "--network_args", "a=1", "b=2", "--sdpa")
    apart = _config(musubi_main, "--network_args", "a=1", "--sdpa", "--network-args=b=2")
    assert together.network_args == apart.network_args == ["a=1", "b=2"]
    assert together.sdpa


def test_negative_numbers_are_values(musubi_main):
    assert _config(musubi_main, "--multiplier", "-1", "0.5", "-.25").multiplier == (-1, 0.5, -0.25)


def test_fixed_tuples(musubi_main):
    assert _config(musubi_main, "--video_size", "480", "832", "--sdpa").video_size == (480, 832)


def test_plain_flags_and_their_negation(musubi_main):
    assert _config(musubi_main).metadata
    assert not _config(musubi_main, "--no-metadata").metadata
    assert not _config(musubi_main, "--no_metadata").metadata
    assert _config(musubi_main, "--no-metadata", "--metadata").metadata
    assert not _config(musubi_main, "--sdpa", "--no-sdpa").sdpa


def test_aliases(musubi_main):
    assert _config(musubi_main, "--net-args", "a=1").network_args == ["a=1"]


def test_a_prompt_may_hold_anything(musubi_main):
    text = "a cat -- [bold]猫[/bold] --w 8 \"quoted\" 'and' = done"
    assert _config(musubi_main, "--prompt", text).prompt == text
    assert _config(musubi_main, "--prompt=--sdpa").prompt == "--sdpa"
    assert _config(musubi_main, "--prompt", "").prompt == ""


def test_the_last_of_two_wins(musubi_main):
    assert _config(musubi_main, "--prompt", "a", "--prompt", "b").prompt == "b"


def test_the_architecture_adds_its_options_and_is_handed_over(musubi_main):
    config = _config(musubi_main, "--t5", "t5.pth", "--dit", "dit.safetensors")
    assert config.t5 == "t5.pth"
    assert musubi_main.calls[-1][1].name == "wan"


def test_bare_words(musubi_main):
    code, _, err = musubi_main("lora", "info", "a.safetensors", "b c.safetensors")
    assert code == 0, err
    assert musubi_main.calls[-1][0].files == ["a.safetensors", "b c.safetensors"]


def test_old_flags_are_answered_with_a_line(musubi_main):
    code, out, _ = musubi_main(
        "train", *ARCH, "--network_module", "networks.lora_wan", "--old-flag", "--old_list", "a", "b", "--sdpa"
    )  # fmt: skip
    assert code == 0
    assert out.splitlines() == [
        "--network_module: it follows from --arch.",
        "--old-flag: nothing to choose any more.",
        "--old_list: nothing to list any more.",
    ]
    assert musubi_main.calls[-1][0].sdpa


def test_the_file_fills_what_flags_leave(musubi_main, tmp_path):
    path = tmp_path / "my run.toml"
    path.write_text('arch = "wan"\n[x]\nlearning_rate = 1e-4\nsdpa = true\nt5 = "a"\n')
    for option in ("--config", "--config_file", "--config-file"):
        code, _, err = musubi_main(
            "train", option, str(path.with_suffix("")), "--no-sdpa", "--t5=b"
        )
        assert code == 0, err
        config, architecture = musubi_main.calls[-1]
        assert (config.learning_rate, config.sdpa, config.t5) == (1e-4, False, "b")
        assert architecture.name == "wan"


REFUSED = [
    (("trian",), "error: `musubi` has no command 'trian'.\nDid you mean `musubi train`?"),
    (("lora", "inof"), "error: `musubi lora` has no command 'inof'.\nDid you mean `musubi lora info`?"),
    (("models", "shwo"), "error: `musubi models` has no command 'shwo'."),
    (("models", "show"), "error: `musubi models show` needs the name of an architecture."),
    (("models", "wan"), "error: `musubi models` has no command 'wan'.\nWrite `musubi models show wan`."),
    (("--sdpa",), "error: `musubi` has no option '--sdpa'."),
    (("train",), "error: `musubi train` must know the architecture.\nAdd `--arch "),
    (("train", "--arch", "wann"), "error: There is no architecture 'wann'.\nDid you mean 'wan'?"),
    (("train", "--arch"), "error: --arch needs a value.\nWrite --arch NAME."),
    (
        ("train", *ARCH, "--lerning-rate", "1"),
        "error: `musubi train` has no option '--lerning-rate'.\nDid you mean --learning_rate?",
    ),
    (("train", *ARCH, "--qqq"), "error: `musubi train` has no option '--qqq'.\n`--help` lists"),
    (
        ("train", *ARCH, "--files", "x"),
        "error: `musubi train` has no option '--files'.\nIt belongs to `musubi lora info`.",
    ),
    (
        ("train", "--t5", "x"),
        "error: `musubi train` has no option '--t5'.\nIt belongs to an architecture: add `--arch wan`.",
    ),
    (("train", *ARCH, "--sdpa=1"), "error: --sdpa takes no value.\nWrite --sdpa alone."),
    (("train", *ARCH, "--no_sdpa=1"), "error: --no_sdpa takes no value."),
    (("train", *ARCH, "--prompt"), "error: --prompt needs a value.\nWrite --prompt TEXT."),
    (("train", *ARCH, "--prompt", "--sdpa"), "error: --prompt needs a value."),
    (("train", *ARCH, "--network_args", "--sdpa"), "error: --network_args needs a value."),
    (
        ("train", *ARCH, "--video_size", "480", "--sdpa"),
        "error: --video_size takes 2 values, and 1 came.\nWrite --video_size H W.",
    ),
    (
        ("train", *ARCH, "--mode", "shfit"),
        "error: --mode cannot be 'shfit'.\nDid you mean 'shift'? Allowed: sigma, shift.",
    ),
    (
        ("train", *ARCH, "--task", "t2v-13B"),
        "error: Wan has no task 't2v-13B'.\nDid you mean 't2v-1.3B'?",
    ),
    (
        ("train", "--arch", "hunyuan_video", "--task", "i2v-14B"),
        "error: HunyuanVideo has no task 'i2v-14B'.\nDid you mean 'i2v'? `--arch wan` has 'i2v-14B'.",
    ),
    (
        ("train", "--arch", "framepack", "--task", "t2v-14B"),
        "error: FramePack has no task 't2v-14B'.\nKnown: ",
    ),
    (("train", *ARCH, "stray"), "error: The word 'stray' belongs to no option."),
    (("train", *ARCH, "-x"), "error: The word '-x' belongs to no option."),
    (("lora", "info"), "error: FILE is needed: LoRA files.\nWrite `musubi lora info FILE`."),
    (("train", "--config", "no_such_file"), "error: The config file no_such_file (or no_such_file.toml)"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "said"), REFUSED, ids=lambda v: " ".join(v)[:40])
def test_what_cannot_be_used_is_refused_with_the_nearest(musubi_main, words, said):
    code, out, err = musubi_main(*words)
    assert (code, out) == (2, "")
    assert err.startswith(said)
    assert not musubi_main.calls
