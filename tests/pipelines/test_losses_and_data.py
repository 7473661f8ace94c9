"""Masks, regularization and captions through the command line, each resumed bit for bit."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from musubi import registry
from musubi.cli import main
from musubi.testing import media, twins

TRAIN = (
    "train --arch wan --task t2v-1.3B --dit {dit} --dataset_config {data} --sdpa --seed 3 --learning_rate 1e-2 "
    "--optimizer_type adamw --network_dim 2 --mixed_precision no --dit_dtype float32 --log_with none "
    "--max_data_loader_n_workers 0 --output_dir {folder}/out --save_precision fp32"
)


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("empty hub")))
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Tiny checkpoints."""
    folder = tmp_path_factory.mktemp("twins")
    wan = registry.find("wan")
    numbers = twins.numbers_for(wan.task("t2v"))
    found = {"dit": twins.write_twin(wan.dit, folder / "dit", numbers=numbers)}
    for name in ("vae", "t5"):
        found[name] = twins.write_twin(wan.component(name), folder / name)
    return found


@pytest.fixture
def world(files, tmp_path):
    """Four pictures of red and blue, known by a rare word or not; `write` makes the dataset file."""
    for place, colour, caption in (("new", "red", "a zyx ball"), ("known", "blue", "a ball")):
        for i in range(2):
            picture = media.frame(32, 32, colour=colour, shape="ball", at=0.3 + 0.4 * i)
            path = media.write_image(tmp_path / place / f"{i}.png", picture)
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return World(tmp_path, {**files, "folder": tmp_path, "data": tmp_path / "data.toml"})


class World:
    def __init__(self, folder, places):
        self.folder, self.places = folder, places

    def write(self, *datasets, general=""):
        """Each dataset is a folder and further lines."""
        text = f"[general]\nresolution = [32, 32]\ncaption_extension = '.txt'\n{general}\n"
        for number, (place, lines) in enumerate(datasets):
            text += (
                f"[[datasets]]\nimage_directory = '{(self.folder / place).as_posix()}'\n"
                f"cache_directory = '{(self.folder / f'cache{number}').as_posix()}'\n{lines}\n"
            )
        self.places["data"].write_text(text, encoding="utf-8")

    def run(self, command, *, ends=0):
        words = [word.format(**self.places) for word in command.split()]
        with pytest.raises(SystemExit) as end:
            main(words)
        assert (end.value.code or 0) == ends, command

    def cache(self):
        self.run(
            "cache latents --arch wan --task t2v-1.3B --dataset_config {data} --vae {vae} "
            "--vae_dtype float32"
        )
        self.run("cache text --arch wan --task t2v-1.3B --dataset_config {data} --t5 {t5}")

    def train(self, name, more="", steps=4):
        self.run(f"{TRAIN} --output_name {name} --max_train_steps {steps} {more}")
        return load_file(self.folder / "out" / f"{name}.safetensors")

    def resumes(self, more=""):
        """Trains whole and in two parts, and returns the weights, which must be equal."""
        whole = self.train("whole", more)
        self.train("parted", f"{more} --save_state", steps=2)
        parted = self.train("parted", f"{more} --resume auto")
        assert same(whole, parted)
        return whole


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_masks_decide_what_is_learned_and_resume_exactly(world, capsys):
    mask = np.zeros((32, 32, 3), np.uint8)
    mask[:, :16] = 255
    for i in range(2):
        media.write_image(world.folder / "masks" / f"{i}.png", mask)
    world.write(("new", f"mask_directory = '{(world.folder / 'masks').as_posix()}'"))
    world.cache()
    masked = world.resumes()
    half = world.train("half", "--unmasked_weight 0.5")
    all_over = world.train("all", "--unmasked_weight 1")
    assert not same(masked, half) and not same(half, all_over)
    world.write(("new", ""))
    world.cache()
    capsys.readouterr()
    world.run(f"{TRAIN} --output_name no --unmasked_weight 0.5", ends=2)
    assert "--unmasked_weight means nothing" in capsys.readouterr().err


def test_a_regularization_set_is_balanced_and_held_to_the_base(world, capsys):
    world.write(("new", "num_repeats = 3"), ("known", "is_reg = true\nreg_ratio = 0.5"))
    world.cache()
    plain = world.resumes()
    assert "items an epoch, repeats counted  9" in " ".join(capsys.readouterr().out.split("\n"))
    held = world.resumes("--prior_preservation")
    weighed = world.train("weighed", "--prior_preservation --prior_loss_weight 0.1")
    assert not same(plain, held) and not same(held, weighed)


def test_the_class_word_is_held_to_the_base(world):
    world.write(("new", "trigger_word = 'zyx'\nclass_word = 'red'"))
    world.cache()
    assert len(list((world.folder / "cache0").glob("*_te*.safetensors"))) == 4
    plain = world.train("plain")
    held = world.resumes("--diff_output_preservation")
    more = world.train(
        "more", "--diff_output_preservation --diff_output_preservation_multiplier 10"
    )
    assert not same(plain, held) and not same(held, more)


def test_variants_of_captions_are_all_cached_and_drawn(world):
    (world.folder / "new" / "0.txt").write_text("zyx, red, ball, small, round", encoding="utf-8")
    world.write(("new", ""))
    world.cache()
    plain = world.train("plain")
    rules = "shuffle_caption = true\nkeep_tokens = 1\ncaption_tag_dropout_rate = 0.3\ncaption_variants = 5"
    world.write(("new", f"{rules}\ncaption_prefix = 'photo of'"))
    world.cache()
    assert len(list((world.folder / "cache0").glob("0_*_te~*.safetensors"))) == 4
    assert not same(plain, world.resumes())


def test_a_file_named_like_a_variant_keeps_its_own_record(world):
    folder = world.folder / "new"
    (folder / "0.txt").write_text("one\nother", encoding="utf-8")
    for name in ("0~1", "0_wan_te~1"):
        media.write_image(
            folder / f"{name}.png", media.frame(32, 32, colour="red", shape="ball", at=0.5)
        )
        (folder / f"{name}.txt").write_text(f"caption of {name}", encoding="utf-8")
    world.write(("new", "captions_by_line = true"))
    world.cache()
    said = []
    for path in (world.folder / "cache0").glob("*_te*.safetensors"):
        with safe_open(path, framework="pt") as record:
            said.append(record.metadata().get("caption1"))
    assert sorted(filter(None, said)) == sorted(
        ["one", "other", "caption of 0~1", "caption of 0_wan_te~1", "a zyx ball"]
    )
    first = world.train("all")
    world.cache()  # nothing is taken for a leftover
    assert same(first, world.train("again"))


@pytest.mark.parametrize("form", ["zip", "tar"])
def test_an_archive_trains_as_the_folder_in_it_does(world, capsys, form):
    world.write(("new", ""))
    world.cache()
    plain = world.train("plain")
    archive = Path(shutil.make_archive(str(world.folder / "packed"), form, world.folder / "new"))
    world.write((archive.name, ""))
    shutil.rmtree(world.folder / "cache0")
    world.cache()
    assert same(plain, world.resumes())
    capsys.readouterr()
    world.cache()
    world.run("cache check --arch wan --task t2v-1.3B --dataset_config {data}")
    assert capsys.readouterr().out.count(" 0 encoded") == 2
    (world.folder / "new" / "0.txt").write_text("another", encoding="utf-8")
    shutil.make_archive(str(world.folder / "packed"), form, world.folder / "new")
    world.cache()
    assert "Latents: 0 encoded" in (said := capsys.readouterr().out) and "Text: 1 encoded" in said
    archive.unlink()  # the records do without
    assert not same(plain, world.train("gone"))


def test_archives_that_cannot_be_used_are_refused_in_one_sentence(world, capsys):
    (world.folder / "bad.zip").write_bytes(b"no archive")
    world.write(("bad.zip", ""))
    world.run("cache text --arch wan --dataset_config {data} --t5 {t5}", ends=2)
    assert "bad.zip cannot be read: File is not a zip file." in capsys.readouterr().err
    text = world.places["data"].read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if "cache_directory" not in line]
    world.places["data"].write_text("\n".join(lines), encoding="utf-8")
    world.run("cache text --arch wan --dataset_config {data} --t5 {t5}", ends=2)
    assert "an archive has no directory to keep records in" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_learning_rate_is_found_and_nothing_is_left(world, capsys):
    world.write(("new", ""))
    world.cache()
    capsys.readouterr()
    world.run(f"{TRAIN} --output_name cat --find_lr --find_lr_steps 4 --log_with tensorboard")
    said = capsys.readouterr().out
    assert said.count("e-0") > 7 and ("--learning_rate" in said)
    left = [p for p in (world.folder / "out").rglob("*") if p.is_file()]
    assert [p.name for p in left] == ["learning_rates.png"]
    for more, reason in (
        ("--optimizer_type prodigy", "chooses its own rate"),
        ("--optimizer_type adafactor --optimizer_args relative_step=True", "chooses its own rate"),
        ("--resume auto", "--resume was given"),
        ("--optimizer_offload", "--optimizer_offload was given"),
    ):
        world.run(f"{TRAIN} --output_name cat --find_lr {more}", ends=2)
        assert reason in " ".join(capsys.readouterr().err.split())
    world.run(f"{TRAIN} --output_name cat --max_train_steps 1 --find_lr_steps 4")
    assert "--find_lr_steps" in capsys.readouterr().err


def test_weights_share_an_epoch(world, capsys):
    world.write(("new", "weight = 3"), ("known", "weight = 1"))
    world.cache()
    capsys.readouterr()
    world.resumes()
    assert "items an epoch, repeats counted  4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("datasets", "more", "sentence"),
    [
        ([("new", "")], "--prior_preservation", "no dataset of"),
        ([("new", "")], "--diff_output_preservation", "has a class_word"),
        ([("new", "")], "--diff_output_preservation_multiplier 2", "means nothing without"),
        ([("new", "weight = 2"), ("known", "")], "", "Give each dataset a weight"),
        ([("new", "is_reg = true")], "", "nothing but datasets with is_reg"),
        ([("new", "reg_ratio = 2.0")], "", "reg_ratio means nothing"),
        ([("new", "class_word = 'ball'")], "", "class_word means nothing without trigger_word"),
        ([("new", "keep_tokens = 2")], "", "keep_tokens means nothing"),
    ],
)
def test_contradictions_are_refused(world, capsys, datasets, more, sentence):
    world.write(*datasets)
    world.run(f"{TRAIN} --output_name no --max_train_steps 1 {more}", ends=2)
    assert sentence in " ".join(capsys.readouterr().err.split())
