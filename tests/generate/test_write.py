"""What is left on disk: names, codecs, metadata, and that nothing is left half done."""

import json
import re
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from musubi.errors import CheckpointError, DataError
from musubi.generate import write
from musubi.plugin import Recipe

RECIPE = Recipe(
    prompt="a 猫 [x]",
    negative_prompt="bad",
    width=32,
    height=16,
    frames=5,
    fps=8,
    seed=7,
    steps=3,
    solver="unipc",
    flow_shift=3.0,
    guidance_scale=2.0,
    options={"slg_layers": None},
)
NOTES = write.metadata(RECIPE, architecture="toy", loras=[{"file": "c.safetensors"}])


def pictures(frames=5, height=16, width=32):
    y, x = np.mgrid[0:height, 0:width]
    one = np.stack([x * 255 // width, y * 255 // height, 0 * x], -1).astype(np.uint8)
    return np.stack([np.roll(one, 2 * i, 1) for i in range(frames)])


def decoded(path):
    with av.open(str(path)) as container:
        (stream,) = container.streams.video
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(stream)]
        facts = stream.codec_context.name, stream.pix_fmt, float(stream.average_rate)
        return np.stack(frames), facts, dict(container.metadata)


def test_metadata_has_the_whole_recipe_and_the_old_keys():
    assert {k: v for k, v in NOTES.items() if k != "musubi"} == {
        "seeds": "7",
        "prompt": "a 猫 [x]",
        "negative_prompt": "bad",
        "height": "16",
        "width": "32",
        "video_length": "5",
        "infer_steps": "3",
        "guidance_scale": "2.0",
    }
    whole = json.loads(NOTES["musubi"])
    assert whole["flow_shift"] == 3.0
    assert whole["solver"] == "unipc"
    assert whole["architecture"] == "toy"
    assert whole["loras"] == [{"file": "c.safetensors"}]


@pytest.mark.parametrize("fps", [8, 16.0, 23.976])
def test_video_is_h264_and_carries_its_recipe(tmp_path, fps):
    path = write.write_video(pictures(), tmp_path / "new" / "a [b] 猫.mp4", fps, NOTES)
    frames, facts, notes = decoded(path)
    assert frames.shape == (5, 16, 32, 3)
    assert facts[:2] == ("h264", "yuv420p")
    assert facts[2] == pytest.approx(fps, rel=1e-4)
    assert json.loads(notes["comment"])["prompt"] == "a 猫 [x]"
    assert [p.name for p in path.parent.iterdir()] == ["a [b] 猫.mp4"]


def test_no_metadata_means_none(tmp_path):
    _, _, notes = decoded(write.write_video(pictures(), tmp_path / "a.mp4", 8))
    assert "comment" not in notes
    (path,) = write.write_images(pictures(1), tmp_path, "a")
    with Image.open(path) as image:
        assert image.info == {}


def test_odd_sides_gain_a_line(tmp_path):
    odd = np.full((2, 15, 33, 3), 200, np.uint8)
    frames, _, _ = decoded(write.write_video(odd, tmp_path / "a.mp4", 8))
    assert frames.shape == (2, 16, 34, 3)
    assert frames.min() > 180


def test_a_video_that_cannot_be_finished_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr("musubi.data.colours.to_yuv420", fail)
    with pytest.raises(MemoryError):
        write.write_video(pictures(), tmp_path / "a.mp4", 8)
    assert list(tmp_path.iterdir()) == []


def test_images_in_their_folder_and_one_alone_without(tmp_path):
    many = write.write_images(pictures(3), tmp_path, "t_7", NOTES)
    assert [p.relative_to(tmp_path) for p in many] == [
        Path("t_7", f"t_7_{i:03d}.png") for i in range(3)
    ]
    (one,) = write.write_images(pictures(1), tmp_path, "t_8", NOTES)
    assert one == tmp_path / "t_8_000.png"
    with Image.open(one) as image:
        assert np.array_equal(np.asarray(image), pictures(1)[0])
        assert json.loads(image.info["musubi"])["seed"] == 7
        assert image.info["prompt"] == "a 猫 [x]"


def test_latents_come_back(tmp_path):
    latents = torch.randn(1, 4, 2, 2, 4)
    path = write.write_latents(latents.bfloat16(), tmp_path / "x_latent.safetensors", NOTES)
    with safe_open(path, "pt") as opened:
        assert list(opened.keys()) == ["latent"]
        assert opened.get_slice("latent").get_shape() == [4, 2, 2, 4]
        assert opened.metadata()["seeds"] == "7"
    found = write.read_latents(path)
    assert torch.equal(found.latents, latents.bfloat16().float())
    assert found.seed == 7
    assert found.recipe["solver"] == "unipc"


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("batch", [True, False])
def test_old_latents_in_pt_files(tmp_path, wrapped, batch):
    latent = torch.randn(4, 2, 2, 4)
    content = latent[None] if batch else latent
    torch.save({"latent": content} if wrapped else content, tmp_path / "x.pt")
    found = write.read_latents(tmp_path / "x.pt")
    assert torch.equal(found.latents[0], latent)
    assert found.seed == 0


def test_files_that_hold_no_latents_are_refused(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "w.safetensors")
    save_file({"latent": torch.zeros(2, 3)}, tmp_path / "s.safetensors")
    save_file({"latent": torch.full((1, 1, 1, 1), float("nan"))}, tmp_path / "n.safetensors")
    torch.save({"a": 1}, tmp_path / "d.pt")
    torch.save({"latent": Path("x")}, tmp_path / "code.pt")
    for name, kind, words in (
        ("w.safetensors", DataError, "no tensor named latent"),
        ("s.safetensors", DataError, r"shape \(2, 3\)"),
        ("n.safetensors", DataError, "not finite"),
        ("d.pt", DataError, "no tensor of latents"),
        ("code.pt", CheckpointError, "cannot be read as plain tensors"),
        ("none.pt", CheckpointError, "does not exist"),
        ("none.safetensors", CheckpointError, r"none\.safetensors"),
    ):
        with pytest.raises(kind, match=words) as caught:
            write.read_latents(tmp_path / name)
        assert name in str(caught.value)


def test_names_are_the_time_and_the_seed_and_never_taken(tmp_path):
    name = write.stem(tmp_path, 7)
    assert re.fullmatch(r"\d{8}-\d{6}_7", name)
    assert re.fullmatch(r"\d{8}-\d{6}_7_old", write.stem(tmp_path, 7, original="old"))
    names = set()
    for ending in (".mp4", "_latent.safetensors", "_000.png", ""):
        name = write.stem(tmp_path, 7)
        (tmp_path / f"{name}{ending}").touch()
        names.add(name)
    assert len(names) == 4


@pytest.mark.parametrize(
    "seeds", ["../../../etc/x", "/tmp/x", "1/2", "-1", "", "7\x00", "١", "1e3", "9" * 40, "nan"]
)
def test_what_a_latent_file_says_is_no_part_of_a_path(tmp_path, seeds):
    save_file({"latent": torch.zeros(1, 1, 1, 1)}, tmp_path / "x.safetensors", {"seeds": seeds})
    assert write.read_latents(tmp_path / "x.safetensors").seed == 0


@pytest.mark.parametrize("fps", ["0", "-1", "1e999", "NaN", '"25"', "true", "[1]"])
def test_a_frame_rate_that_cannot_be_meant_is_left_out(tmp_path, fps):
    notes = {"musubi": f'{{"fps": {fps}}}'}
    save_file({"latent": torch.zeros(1, 1, 1, 1)}, tmp_path / "x.safetensors", notes)
    assert write.read_latents(tmp_path / "x.safetensors").fps is None


def test_the_name_of_another_file_is_cut(tmp_path):
    name = write.stem(tmp_path, 7, original="あ" * 80)
    assert len(name.encode()) < 200 and "あ" in name
