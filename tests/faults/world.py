"""A small world in which every command can run: tiny models, a dataset, its records, a run, a LoRA."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from musubi import registry
from musubi.testing import media, twins

FILES = ("dit", "vae", "t5")


class World:
    """Paths in one folder, and the words of each command in it.

    Args:
        folder: Where everything is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data.toml"
        self.out = folder / "out"
        self.made = folder / "made"
        self.lora = self.out / "cat.safetensors"

    @classmethod
    def build(cls, folder: Path) -> World:
        """The models and the dataset; commands make the rest."""
        world = cls(folder)
        twins.write_twins(
            registry.find("wan"), folder / "models", task=registry.find("wan").task("t2v")
        )
        for i, colour in enumerate(("red", "green")):
            picture = media.frame(64, 48, colour=colour, shape="ball", at=0.5)
            media.write_image(folder / "images" / f"{colour}.png", picture)
            caption = f"a {colour} ball{' that rolls' * i}"
            (folder / "images" / f"{colour}.txt").write_text(caption, encoding="utf-8")
        media.write_video(folder / "videos" / "c.mp4", media.clip(64, 48, 5))
        (folder / "videos" / "c.txt").write_text("a clip", encoding="utf-8")
        world.write_data(folder)
        (folder / "prompts.txt").write_text("a cat --d 1\na dog --d 2\n", encoding="utf-8")
        return world

    def write_data(self, root: Path) -> None:
        """The dataset file."""
        common = 'caption_extension = ".txt"\nresolution = [64, 48]\n'
        self.data.write_text(
            f"[general]\n{common}\n"
            f"[[datasets]]\nimage_directory = {json.dumps((root / 'images').as_posix())}\n"
            f"cache_directory = {json.dumps((root / 'cache').as_posix())}\n\n"
            f"[[datasets]]\nvideo_directory = {json.dumps((root / 'videos').as_posix())}\n"
            f"cache_directory = {json.dumps((root / 'clips').as_posix())}\ntarget_frames = [5]\n",
            encoding="utf-8",
        )

    def copy(self, folder: Path) -> World:
        """The same in another folder."""
        shutil.copytree(self.folder, folder, symlinks=True)
        world = World(folder)
        world.write_data(folder)
        return world

    def models(self, *names: str) -> list[str]:
        """Flags and paths of models."""
        return [
            w
            for n in names
            for w in (f"--{n}", str(self.folder / "models" / n / f"{n}.safetensors"))
        ]

    def words(self, command: str, *more: object) -> list[str]:
        """The words of a command; what is in `more` overrides."""
        arch, data = ["--arch", "wan"], ["--dataset_config", str(self.data)]
        known = {
            "cache latents": [*arch, *data, *self.models("vae")],
            "cache text": [*arch, *data, *self.models("t5")],
            "cache check": [*arch, *data],
            "train": [
                *arch, *data, *self.models("dit"), "--seed", "1", "--max_train_steps", "4",
                "--network_dim", "2", "--output_dir", str(self.out), "--output_name", "cat",
                "--save_every_n_steps", "2", "--save_state", "--log_with", "none",
                "--mixed_precision", "no", "--save_last_n_steps", "2",
            ],
            "generate": [
                *arch, *self.models(*FILES), "--prompt", "a ball", "--video_size", "48", "64",
                "--video_length", "5", "--infer_steps", "2", "--seed", "1", "--save_path", str(self.made),
            ],
            "lora merge": [
                *arch, *self.models("dit"), "--lora_weight", str(self.lora),
                "--save_merged_model", str(self.folder / "merged.safetensors"),
            ],
            "lora convert": [
                "--input", str(self.lora), "--output", str(self.folder / "other.safetensors"),
                "--target", "other",
            ],
            "lora info": [str(self.lora)],
        }  # fmt: skip
        return [*command.split(), *known[command], *map(str, more)]
