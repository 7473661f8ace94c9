"""Masks of a dataset: resized with the clip, kept in its records, fresh by their bytes."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from musubi.cache.loss_weight import cells
from musubi.cache.store import read_record
from musubi.errors import ConfigError, DataError
from musubi.testing import media
from tests.cache.conftest import SIZE

WIDTH, HEIGHT = SIZE


def halves(size=SIZE) -> np.ndarray:
    """White on the left, black on the right."""
    mask = np.zeros((size[1], size[0], 3), np.uint8)
    mask[:, : size[0] // 2] = 255
    return mask


@pytest.fixture
def masked(world):
    """Masks for the images and the videos of the world: videos of masks for videos."""
    for image in (world.folder / "images").glob("*.png"):
        media.write_image(world.folder / "masks" / image.name, halves())
    for video in (world.folder / "videos").glob("*.mp4"):
        moving = np.stack([np.roll(halves(), 32 * (i > 4), axis=1) for i in range(9)])
        media.write_video(world.folder / "moving" / video.name, moving)
    for kind, place in (("image", "masks"), ("video", "moving")):
        where = (world.folder / place).as_posix()
        world.change(f"{kind}_directory", f"mask_directory = '{where}'\n{kind}_directory")
    return world


def weight_of(path) -> torch.Tensor:
    record, _ = read_record(path)
    return record["loss_weight"]


def test_masks_lie_in_the_records_and_reach_the_batch(masked) -> None:
    masked.latents()
    masked.text()
    (image, _), (*_, long) = (sorted(c.glob("*_toy.safetensors")) for c in masked.caches)
    found = weight_of(image)
    assert found.shape == (1, 6, 8) and found[..., :4].eq(1).all() and found[..., 4:].eq(0).all()
    moving = weight_of(long)  # nine frames in three cells of time
    assert moving.shape == (3, 6, 8)
    assert moving[:2, :, :3].min() > 0.9 and moving[2, :, :3].max() < 0.1
    records = masked.open()
    batch = records.load([0])
    assert batch["loss_weight"].shape[0] == 1


def test_a_changed_mask_makes_its_record_anew_and_no_other(masked) -> None:
    masked.latents()
    assert masked.latents().encoded == 0
    path = next((masked.folder / "masks").glob("*.png"))
    media.write_image(path, 255 - halves())
    os.utime(path, ns=(1, 1))
    assert masked.latents().encoded == 1
    assert masked.encoded() == [path.name]


def test_taking_the_masks_away_makes_records_without(masked) -> None:
    masked.latents()
    text = masked.data.read_text("utf-8")
    masked.data.write_text(
        "".join(line for line in text.splitlines(True) if "mask_directory" not in line), "utf-8"
    )
    assert masked.latents().encoded == 6
    records = [p for c in masked.caches for p in c.glob("*_toy.safetensors")]
    assert all("loss_weight" not in read_record(path)[0] for path in records)


def test_a_clip_without_a_mask_is_left_out_by_name(masked) -> None:
    path = next((masked.folder / "masks").glob("*.png"))
    path.unlink()
    summary = masked.latents()
    assert any("has no loss_mask file" in p.reason for p in summary.failed)


def test_a_mask_of_other_proportions_is_refused(masked) -> None:
    path = next((masked.folder / "masks").glob("*.png"))
    media.write_image(path, halves((48, 48)))
    summary = masked.latents()
    assert any("other proportions" in p.reason for p in summary.failed)


def test_a_smaller_mask_is_cropped_as_its_picture_is(world) -> None:
    name = next((world.folder / "images").glob("*.png")).name
    wide = media.frame(128, 48, colour="red", shape="ball", at=0.5)
    media.write_image(world.folder / "images" / name, wide)
    for image in (world.folder / "images").glob("*.png"):
        size = (64, 24) if image.name == name else SIZE
        media.write_image(world.folder / "masks" / image.name, halves(size))
    world.change("enable_bucket = true", "enable_bucket = false")
    world.change(
        "image_directory", f"mask_directory = '{world.folder.as_posix()}/masks'\nimage_directory"
    )
    world.latents()
    (path,) = world.caches[0].glob(f"{name[:-4]}_*_toy.safetensors")
    found = weight_of(path)  # the middle of the picture is the middle of the crop
    assert found.shape == (1, 6, 8) and found[..., :4].min() > 0.9 and found[..., 4:].max() < 0.1


def test_the_alpha_channel_says_it_where_that_is_asked_for(world) -> None:
    for path in (world.folder / "images").glob("*.png"):
        picture = np.asarray(Image.open(path).convert("RGBA")).copy()
        picture[:, WIDTH // 2 :, 3] = 0
        Image.fromarray(picture).save(path)
    assert world.latents().encoded == 6
    plain, _ = read_record(next(world.caches[0].glob("*_toy.safetensors")))
    world.change("image_directory", "alpha_mask = true\nimage_directory")
    assert world.latents().encoded == 2
    record, _ = read_record(next(world.caches[0].glob("*_toy.safetensors")))
    assert torch.equal(record["latents"], plain["latents"])  # still laid over white
    assert record["loss_weight"][..., :4].eq(1).all() and record["loss_weight"][..., 4:].eq(0).all()


def test_lines_of_a_list_name_masks(world) -> None:
    rows = []
    for image in sorted((world.folder / "images").glob("*.png")):
        mask = media.write_image(world.folder / "masks" / image.name, halves())
        rows.append({"image_path": str(image), "caption": "a ball", "mask_path": str(mask)})
    listing = world.folder / "list.jsonl"
    listing.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    world.data.write_text(
        f"[general]\nresolution = [64, 48]\n[[datasets]]\nimage_jsonl_file = '{listing.as_posix()}'\n"
        f"cache_directory = '{world.caches[0].as_posix()}'\n",
        "utf-8",
    )
    assert world.latents().encoded == 2
    assert weight_of(next(world.caches[0].glob("*_toy.safetensors"))).mean() == 0.5


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("video_directory", "alpha_mask = true\nvideo_directory", "alpha_mask means nothing for"),
        (
            "image_directory",
            "alpha_mask = true\nmask_directory = 'x'\nimage_directory",
            "both say where the loss counts",
        ),
        ("image_directory", "mask_directory = 'gone'\nimage_directory", "does not exist"),
        (
            "image_directory",
            "mask_directory = 'x'\nloss_mask_directory = 'y'\nimage_directory",
            "two names of one thing",
        ),
    ],
)
def test_contradictions_are_refused(world, old, new, sentence) -> None:
    world.change(old, new)
    with pytest.raises((ConfigError, DataError), match=sentence):
        world.latents()


def test_cells_are_means_over_space_and_time() -> None:
    mask = np.zeros((5, 8, 8, 1), np.uint8)
    mask[0] = 255
    mask[3, :4] = 255
    found = cells(mask, 5, 4, (1, 1))
    assert found.flatten().tolist() == [1.0, 0.125]
    assert cells(mask[:1], 9, 4, (2, 2)).eq(1).all()
