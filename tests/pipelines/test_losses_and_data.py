"""Masks, regularization and captions through the command line, each resumed bit for bit."""

import numpy as np
import pytest
import torch
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
