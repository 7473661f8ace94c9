"""Both prompt grammars, and prompt files in their three forms."""

import dataclasses
import json

import pytest

from musubi import registry
from musubi.config.prompts import grammar, parse_line, read_prompt_file
from musubi.errors import ConfigError
from musubi.plugin import Input

HUNYUAN = registry.find("hunyuan_video")


def test_a_line_with_everything():
    line = (
        "a cat, 4k --w 832 --h 480 --f 81 --d 42 --s 20 --g 6.5 --fs 3 --n blurry, dark --i a b.png"
    )
    assert parse_line(line, grammar(HUNYUAN)) == {
        "prompt": "a cat, 4k",
        "width": 832,
        "height": 480,
        "frames": 81,
        "seed": 42,
        "steps": 20,
        "guidance_scale": 6.5,
        "flow_shift": 3.0,
        "negative_prompt": "blurry, dark",
        "image_path": "a b.png",
    }


def test_the_prompt_itself_is_never_searched_for_letters():
    assert parse_line("w 100 h 50 of a well--known f 3 cat") == {
        "prompt": "w 100 h 50 of a well--known f 3 cat"
    }


def test_g_is_guidance_in_a_batch_and_embedded_guidance_in_previews():
    assert parse_line("a --g 6 ", grammar(HUNYUAN))["guidance_scale"] == 6
    assert parse_line("a --l 6 ")["guidance_scale"] == 6
    assert parse_line("a --g 6 --l 2", grammar(HUNYUAN, "preview")) == {
        "prompt": "a",
        "embedded_cfg_scale": 6.0,
        "guidance_scale": 2.0,
    }


def test_letters_may_be_large_and_values_negative():
    assert parse_line("a --W 64 --N b --fs 1e1") == {
        "prompt": "a",
        "width": 64,
        "negative_prompt": "b",
        "flow_shift": 10.0,
    }


def test_inputs_bring_letters_and_may_repeat():
    control = Input(
        name="control", kind="image", help="", flag="control_image_path", letter="ci", many=True
    )
    task = dataclasses.replace(HUNYUAN.tasks[0], inputs=(control,))
    says = grammar(dataclasses.replace(HUNYUAN, tasks=(task,)))
    found = parse_line("a --ci 1.png --ci 2.png", says)
    assert found["control_image_path"] == ["1.png", "2.png"]


def test_a_letter_of_other_models_is_said_to_be_unused():
    wan, notes = registry.find("wan"), []
    found = parse_line("a --g 6 --l 2", grammar(wan, "preview"), note=notes.append)
    assert found == {"prompt": "a", "guidance_scale": 2.0}
    assert "--g in the prompt of a preview" in notes[0]


@pytest.mark.parametrize("line", ["a\t--w 64", "a  --w 64", "a --w\t64"])
def test_any_space_stands_before_an_option(line):
    assert parse_line(line) == {"prompt": "a", "width": 64}


def test_a_dash_in_the_text_is_text():
    assert parse_line("a cat -- running --h 32") == {"prompt": "a cat -- running", "height": 32}


def test_defaults_lie_below():
    assert parse_line("a --w 64", defaults={"width": 32, "height": 16}) == {
        "prompt": "a",
        "width": 64,
        "height": 16,
    }


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a --zz 3", "has --zz, which is no option of prompts"),
        ("a --w wide", "--w of a prompt takes a whole number, not 'wide'"),
        ("a --w 6.5", "takes a whole number, not '6.5'"),
        ("a --fs", "--fs of a prompt takes a number, not ''"),
    ],
)
def test_wrong_lines_are_refused(line, words):
    with pytest.raises(ConfigError, match=words):
        parse_line(line)


def test_large_seeds_are_exact():
    assert parse_line("a --d 9007199254740993")["seed"] == 9007199254740993


def test_text_file(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("# comment\n\na cat --d 1\n  \n猫 --w 64\n", encoding="utf-8-sig")
    assert read_prompt_file(path) == [
        {"prompt": "a cat", "seed": 1},
        {"prompt": "猫", "width": 64},
    ]


def test_toml_file_merges_its_defaults(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text(
        "[prompt]\nwidth = 640\nsample_steps = 8\n"
        '[[prompt.subset]]\nprompt = "a"\nseed = 3\n'
        '[[prompt.subset]]\nprompt = "b"\nwidth = 320\ndiscrete_flow_shift = 2\ncfg_scale = 4.5\n',
        encoding="utf-8",
    )
    assert read_prompt_file(path, grammar(HUNYUAN, "preview")) == [
        {"width": 640, "steps": 8, "prompt": "a", "seed": 3},
        {"width": 320, "steps": 8, "prompt": "b", "flow_shift": 2.0, "guidance_scale": 4.5},
    ]


def test_json_file_takes_lines_and_objects(tmp_path):
    path = tmp_path / "p.json"
    entries = ["a --d 1", {"prompt": "b --d 2", "frame_count": 9, "guidance_scale": 6}]
    path.write_text(json.dumps(entries), encoding="utf-8")
    assert read_prompt_file(path, grammar(HUNYUAN, "preview")) == [
        {"prompt": "a", "seed": 1},
        {"prompt": "b --d 2", "frames": 9, "embedded_cfg_scale": 6.0},
    ]
    assert read_prompt_file(path)[1]["guidance_scale"] == 6


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.txt", b"# only this\n", "holds no prompt"),
        ("p.txt", b"\xff\xfe\x80", "is not UTF-8 text"),
        ("p.toml", b"[prompt", "is not TOML"),
        ("p.toml", b"a = 1", r"has no table \[prompt\]"),
        ("p.toml", b'[prompt]\nprompt = "a"\nwidht = 3', "key 'widht'.*'width'"),
        ("p.json", b"[", "is not JSON"),
        ("p.json", b"{}", "is not a list"),
        ("p.json", b'[{"seed": 1}]', "an entry without a prompt"),
    ],
)
def test_wrong_files_are_refused(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        read_prompt_file(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.txt does not exist"):
        read_prompt_file(tmp_path / "none.txt")
