"""Starting from a video: what is read of it, where denoising begins, and what is refused."""

import dataclasses

import numpy as np
import pytest
import torch

from musubi.config.prompts import grammar, read_prompt_file
from musubi.config.recipe import build_recipe
from musubi.config.task import Choice
from musubi.data.buckets import resize_and_crop
from musubi.errors import ConfigError, DataError
from musubi.flow import schedules, solvers
from musubi.flow.times import mix
from musubi.generate.inputs import check, clip_for, has_media
from musubi.generate.pipeline import Pipeline
from musubi.plugin import Field, Input, Lazy, Option, Recipe, Section
from musubi.testing import media

RECIPE = Recipe(prompt="a cat", negative_prompt="", width=32, height=16, frames=5, fps=8.0, seed=7,
                steps=4, solver="vanilla", flow_shift=3.0, guidance_scale=1.0)  # fmt: skip


@pytest.fixture(scope="module")
def pictures():
    return media.clip(64, 48, 7, colour="red")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pictures):
    """The frames as images; the order of their names is not that of their making."""
    folder = tmp_path_factory.mktemp("frames [1]")
    for i in reversed(range(len(pictures))):
        media.write_image(folder / f"{i:02}.png", pictures[i])
    (folder / "notes.txt").write_text("not a picture")
    return folder


@pytest.fixture
def taking_video(toy):
    """The toy, which mixes noise into a video's means over 4 frames and 8 by 8 pixels."""
    runtime_class = toy.runtime.load()

    class FromVideo(runtime_class):
        def encode_media(self, nets, clips):
            assert "vae" in nets
            return [({"latents_video": small(clip.input("video"))[0]},) for clip in clips]

        def condition(self, batch):
            given = super().condition(batch)
            return given.plus(video=batch["latents_video"]) if "latents_video" in batch else given

        def rollout(self, recipe, given, device):
            (section,) = [next(super().rollout(recipe, given, device))]
            return (
                yield Section(
                    noise=section.noise,
                    clean=given.inputs.get("video"),
                    strength=recipe.options["strength"],
                )
            )

    task = dataclasses.replace(
        toy.task("t2v"),
        schema=dataclasses.replace(
            toy.task("t2v").schema,
            media=(Field(name="latents_video", dims="CFHW", optional=True),),
        ),
        inputs=(Input(name="video", kind="video", help="A video.", flag="video_path", hold=False),),
        check=Lazy("musubi.architectures.hunyuan_video.runtime:check"),
    )
    return dataclasses.replace(
        toy,
        runtime=dataclasses.replace(toy.runtime, value=FromVideo),
        tasks=(task,),
        options=(
            Option(name="strength", type=float, default=0.8, help="x.", commands=("generate",)),
        ),
    )


def small(video):
    means = torch.from_numpy(video[::4].copy()).float().mean(-1) / 255
    cells = torch.nn.functional.avg_pool2d(means[None], 8)
    return cells[:, None].expand(1, 4, *cells.shape[1:]).contiguous()


def asked(path, strength=0.8, **more):
    options = {"video_path": str(path), "strength": strength}
    return dataclasses.replace(RECIPE, options=options, **more)


def test_a_folder_gives_its_first_frames_resized_as_for_training(taking_video, folder, pictures):
    clip = clip_for(asked(folder), taking_video.task("t2v"))
    assert clip.input("video") is not None and not clip.target and len(clip.frames) == 0
    np.testing.assert_array_equal(clip.input("video"), resize_and_crop(pictures[:5], (32, 16)))


def test_a_file_is_taken_frame_by_frame_whatever_its_rate(taking_video, tmp_path, pictures):
    path = media.write_video(tmp_path / "in.mp4", pictures, fps=60)
    clip = clip_for(asked(path), taking_video.task("t2v"))
    expected = resize_and_crop(pictures[:5], (32, 16)).astype(float)
    assert clip.input("video") is not None and clip.input("video").shape == expected.shape
    assert np.abs(clip.input("video") - expected).mean() < 8  # it was compressed


@pytest.mark.parametrize(("strength", "taken"), [(0.5, 2), (0.8, 3), (1.0, 4)])
def test_the_last_steps_are_taken_from_noise_mixed_in(
    taking_video, nets, modules, calls, folder, pictures, strength, taken
):
    task = taking_video.task("t2v")
    found = Pipeline(taking_video, task, {}, nets, device="cpu").latents(asked(folder, strength))
    assert calls["predict"] == taken
    words = modules["words"].table(torch.tensor(list(b"a cat")))[None]
    levels = schedules.sigmas("vanilla", 4, 3.0)[4 - taken :]
    noise = torch.randn(1, 4, 2, 2, 4, generator=torch.Generator().manual_seed(7))
    x = mix(small(resize_and_crop(pictures[:5], (32, 16))), noise, levels[:1])
    with torch.no_grad():
        expected = solvers.solve(
            "vanilla",
            lambda x, t, i: modules["dit"](x, t, words),
            x,
            levels,
            schedules.timesteps("vanilla", levels),
        )
    assert torch.equal(found, expected)
    if strength == 1:  # nothing of the video is left
        plain = Pipeline(taking_video, task, {}, nets, device="cpu")
        assert torch.equal(plain.latents(asked("", 1.0)), found)


@pytest.mark.parametrize("solver", solvers.NAMES)
def test_every_solver_can_begin_late(taking_video, nets, folder, solver):
    pipeline = Pipeline(taking_video, taking_video.task("t2v"), {}, nets, device="cpu")
    kept = pipeline.latents(asked(folder, 0.25, solver=solver))
    changed = pipeline.latents(asked(folder, 1.0, solver=solver))
    start = pipeline.encode(asked(folder))["prompt"].inputs["video"]
    assert (kept - start).norm() < (changed - start).norm()


def test_the_encoder_is_loaded_for_a_video_only(taking_video, nets, folder):
    pipeline = Pipeline(taking_video, taking_video.task("t2v"), {}, nets, device="cpu")
    pipeline.prepare([asked("")])
    assert "free vae" not in nets.log
    pipeline.prepare([asked(folder)])
    assert "free vae" in nets.log


def test_guidance_is_skipped_for_a_part_of_the_steps_that_are_taken(
    taking_video, nets, calls, folder
):
    recipe = asked(folder, 0.5, guidance_scale=2.0)
    recipe = dataclasses.replace(
        recipe, options={**recipe.options, "cfg_skip_mode": "late", "cfg_apply_ratio": 0.5}
    )
    Pipeline(taking_video, taking_video.task("t2v"), {}, nets, device="cpu").latents(recipe)
    assert calls["predict"] == 2 + 1


@pytest.mark.parametrize(
    ("strength", "more", "words"),
    [
        (0.0, {}, r"strength of 0 .*above 0"),
        (1.5, {}, r"strength of 1\.5 .*up to 1"),
        (0.1, {}, r"strength of 0\.1 takes none of 4 steps.*--strength 0\.25"),
        (0.8, {"frames": 9}, r"has 7 frames, and the video is to have 9.*--video_length 7"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(
    taking_video, nets, folder, strength, more, words
):
    pipeline = Pipeline(taking_video, taking_video.task("t2v"), {}, nets, device="cpu")
    with pytest.raises((ConfigError, DataError), match=words):
        pipeline.prepare([asked(folder, strength, **more)])
    assert nets.log == []


def test_a_video_that_is_not_there_or_none_is_named(taking_video, tmp_path):
    task = taking_video.task("t2v")
    for name, words in (
        ("no.mp4", "no.mp4 of --video_path does not exist"),
        ("empty", "empty has no images"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises((ConfigError, DataError), match=words):
            check(asked(tmp_path / name), task)


def test_a_prompt_file_may_name_a_video(taking_video, folder, tmp_path, report):
    path = tmp_path / "prompts.toml"
    path.write_text(
        f"[prompt]\n[[prompt.subset]]\nprompt = 'a dog'\nvideo_path = '{folder.as_posix()}'\nstrength = 0.5\n",
        encoding="utf-8",
    )
    (given,) = read_prompt_file(path, grammar(taking_video))
    choice = Choice(taking_video.task("t2v"))
    made = build_recipe(taking_video, choice, given, {"strength": 0.8}, report)
    assert made.options == {"video_path": folder.as_posix(), "strength": 0.5}


def test_a_task_without_videos_looks_at_none(toy):
    assert not has_media({"video_path": "x.mp4"}, toy.task("t2v"))
    check(asked("x.mp4"), toy.task("t2v"))
