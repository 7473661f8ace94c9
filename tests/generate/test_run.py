"""The command on toy files: one prompt, batches, decoding, prompts typed, and what goes wrong."""

import io
import json
import sys

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from musubi.errors import ConfigError, DataError, RunError


def latent(path):
    return load_file(path)["latent"]


def comment(path):
    with av.open(str(path)) as container:
        return json.loads(container.metadata["comment"])


def test_a_prompt_becomes_a_video_with_its_recipe(go, report):
    (video,) = go(prompt="a cat", seed=7)
    assert video.name.endswith("_7.mp4")
    with av.open(str(video)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 5
    recipe = comment(video)
    assert recipe["prompt"] == "a cat"
    assert recipe["negative_prompt"] == "bad"
    assert recipe["task"] == "t2v-toy"
    assert recipe["files"]["dit"] == "dit.safetensors"
    assert any("seed 7" in note for note in report.notes)


@pytest.mark.parametrize(
    ("kind", "endings"),
    [
        ("video", [".mp4"]),
        ("images", ["_000.png", "_001.png", "_002.png", "_003.png", "_004.png"]),
        ("latent", ["_latent.safetensors"]),
        ("both", [".mp4", "_latent.safetensors"]),
    ],
)
def test_output_types(go, kind, endings):
    made = go(prompt="a", seed=7, output_type=kind)
    assert [p.name[18 - 1 :] for p in made] == endings
    assert all((p.parent.name.endswith("_7")) == (kind == "images") for p in made)


def frames_of(path):
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return frames[0].format.name, np.stack([f.to_ndarray(format="rgb24") for f in frames])


def test_videos_are_as_good_as_is_asked_for(go):
    made = go(prompt="a", seed=7, output_type="images")
    pictures = np.stack([np.asarray(Image.open(path)) for path in sorted(made)])
    (exact,) = go(prompt="a", seed=7, lossless=True)
    layout, frames = frames_of(exact)
    assert layout == "gbrp" and np.array_equal(frames, pictures)
    (deep,) = go(prompt="a", seed=7, bit_depth=10)
    assert frames_of(deep)[0] == "yuv420p10le"
    (fine,), (coarse,) = go(prompt="a", seed=7, crf=1), go(prompt="a", seed=7, crf=45)
    assert fine.stat().st_size > coarse.stat().st_size


def test_latent_images_are_both(go):
    made = go(prompt="a", seed=7, output_type="latent_images", video_length=1)
    assert [p.suffix for p in made] == [".png", ".safetensors"]


def test_the_same_seed_makes_the_same_latents(go):
    first, again, other = (
        latent(go(prompt="a", seed=seed, output_type="latent")[0]) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_latents_decode_to_the_same_images(go):
    made = go(prompt="a", seed=7, output_type="latent_images")
    pictures = {p.name[-7:]: p.read_bytes() for p in made if p.suffix == ".png"}
    (saved,) = (p for p in made if p.suffix == ".safetensors")
    given = {"latent_path": [str(saved)], "prompt": "not read"}
    again = go(**given, output_type="images", dit=None, words=None)
    assert all(saved.stem in p.name for p in again)
    assert {p.name[-7:]: p.read_bytes() for p in again} == pictures


def test_several_latent_files_and_what_is_wrong_with_one(go, tmp_path, report):
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    save_file({"latent": torch.randn(4, 1, 2, 2)}, good)
    save_file({"latent": torch.randn(9, 1, 2, 2)}, bad)
    with pytest.raises(RunError, match=r"1 of 2 files failed: .*bad\.safetensors"):
        go(latent_path=[str(bad), str(good)])
    assert any("9 channels, and Toy has 4" in w for w in report.warnings)
    assert any("good.mp4" in note for note in report.notes)


def test_tail_frames_are_trimmed(go):
    assert len(go(prompt="a", output_type="images", trim_tail_frames=3)) == 2
    with pytest.raises(ConfigError, match="--trim_tail_frames 5 leaves nothing of 5 frames"):
        go(prompt="a", trim_tail_frames=5)


def test_no_metadata(go):
    (video,) = go(prompt="secret", no_metadata=True)
    with av.open(str(video)) as container:
        assert "comment" not in container.metadata
    assert (
        b"secret" not in go(prompt="secret", no_metadata=True, output_type="latent")[0].read_bytes()
    )


def test_a_batch_loads_once_and_a_bad_line_stops_no_other(go, tmp_path, report, calls):
    path = tmp_path / "p.txt"
    path.write_text(
        "# prompts\na cat --d 1 --f 1\na dog --zz 3\na fish --w 33\na cat --d 2 --s 3 --g 1\n"
    )
    with pytest.raises(
        RunError, match=r"2 of 4 prompts failed: .*line 3; .*line 4.*other 2 are done"
    ):
        go(from_file=str(path), output_type="latent")
    assert any("line 3: The prompt line has --zz" in w for w in report.warnings)
    assert any("line 4: Toy makes no 33x16" in w for w in report.warnings)
    assert calls["encode"] == 2  # one prompt, one negative
    assert calls["predict"] == 2 * 2 + 3


def test_a_batch_in_toml(go, tmp_path):
    path = tmp_path / "p.toml"
    path.write_text(
        '[prompt]\nseed = 4\n[[prompt.subset]]\nprompt = "a"\n[[prompt.subset]]\nprompt = "b"\n'
    )
    made = go(from_file=str(path))
    assert len(made) == 2


def test_prompts_as_they_are_typed(go, monkeypatch, report, calls):
    monkeypatch.setattr(sys, "stdin", io.StringIO("a cat --d 1\na --w wide\na cat --d 2\n"))
    assert len(go(interactive=True, output_type="both")) == 4
    assert any("--w of a prompt takes a whole number" in w for w in report.warnings)
    assert "1 of 3 prompts failed: a --w wide. The reasons" in report.warnings[-1]
    assert calls["encode"] == 2


def test_the_task_must_suit_the_checkpoint(go):
    with pytest.raises(ConfigError, match=r"--task wide needs .* channels 9.*has channels 4"):
        go(prompt="a", task="wide")


def test_missing_networks_are_named_by_their_flag(go):
    with pytest.raises(ConfigError, match="--dit"):
        go(prompt="a", dit=None)
    with pytest.raises(ConfigError, match="--words"):
        go(prompt="a", words=None)


def test_networks_that_are_not_needed_need_no_file(go):
    assert len(go(prompt="a", vae=None, output_type="latent")) == 1


def test_a_folder_that_cannot_be_written(go, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file.inner of --save_path cannot be written"):
        go(prompt="a", save_path=str(tmp_path / "file" / "inner"))


def test_a_size_that_does_not_fit(go):
    with pytest.raises(ConfigError, match="--size 48x32"):
        go(prompt="a", size="50x34")


def test_a_device_that_is_not_here(go):
    with pytest.raises(ConfigError, match="toaster"):
        go(prompt="a", device="toaster")


def test_latents_that_are_broken(go, tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"latents": torch.zeros(1)}, path)
    with pytest.raises(DataError, match=r"x\.safetensors has no tensor named latent"):
        go(latent_path=[str(path)])


def test_skipping_guidance_counts_its_calls(go, calls):
    go(prompt="a", infer_steps=4, cfg_skip_mode="early", cfg_apply_ratio=0.5)
    assert calls["predict"] == 4 + 2
