import os
import shutil

import pytest
import torch
import toy_cache
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from musubi.cache import encode, store
from musubi.cache.match import open_training_set
from musubi.config.dataset import read_dataset_config
from musubi.data.batches import epoch_order
from musubi.errors import DataError

ARCHITECTURE = toy_cache.ARCHITECTURE


def test_items_are_those_of_the_dataset(cached):
    found = cached.open()
    assert [item.name for item in found.items] == [
        "green_1.png",
        "red_0.png",
        "green_1.mp4 (frames 0 to 0)",
        "green_1.mp4 (frames 0 to 8)",
        "red_0.mp4 (frames 0 to 0)",
        "red_0.mp4 (frames 0 to 8)",
    ]
    assert [item.dataset for item in found.items] == [0, 0, 1, 1, 1, 1]
    assert found.items[2].source == found.items[3].source != found.items[4].source
    assert found.items[2].bucket != found.items[3].bucket == found.items[5].bucket
    assert len({item.key for item in found.items}) == 6
    assert not found.missing and not found.stale and not found.skipped


def test_a_batch_holds_what_was_encoded(cached):
    found = cached.open()
    batch = found.load([3, 5])
    assert batch["latents"].shape == (2, 4, 3, 6, 8)
    assert batch["glyphs"].shape == (2, 8) and batch["glyphs_mask"].dtype == torch.int64
    assert isinstance(batch["words"], list) and len(batch["words"]) == 2
    stored = load_file(found.items[3].media_path)
    assert torch.equal(batch["latents"][0], stored["latents_3x6x8_float32"])
    with pytest.raises(DataError, match=r"'latents' of.*green_1\.mp4.*batch_size = 1"):
        found.load([0, 3])


def test_the_empty_caption_takes_a_captions_place(cached):
    found = cached.open()
    empty = found.empty_text(0)
    batch = found.load([0, 1], without_caption=[False, True])
    assert torch.equal(batch["words"][1], empty["words"])
    assert torch.equal(batch["glyphs"][1], empty["glyphs"])
    assert not torch.equal(batch["words"][0], empty["words"])


def test_the_order_of_batches_is_made_from_it(cached):
    found = cached.open()
    order = epoch_order(found.items, seed=1, epoch=1, digest=found.digest)
    assert sorted(i for batch in order for i in batch) == list(range(6))
    for batch in order:
        found.load(batch)
    cached.change("target_frames = [1, 9]", "target_frames = [9]")
    cached.latents()
    assert cached.open().digest != found.digest


def test_leftovers_are_never_trained_on(cached):
    (cached.folder / "images" / "red_0.png").unlink()
    assert "red_0.png" not in [item.name for item in cached.open().items]


@pytest.mark.parametrize("kind", ["latents", "text"])
def test_missing_records_are_named_with_the_command(world, kind):
    getattr(world, kind)()
    other = "text" if kind == "latents" else "latents"
    with pytest.raises(DataError) as caught:
        world.open()
    said = str(caught.value)
    assert "4 have no record" in said and "red_0.png: no record" in said
    assert f"musubi cache {other} --arch toy --dataset_config {world.data}" in said
    assert f"musubi cache {kind} " not in said
    assert ("--words PATH --glyphs PATH" if other == "text" else "--vae PATH") in said


def test_stale_records_are_named_with_their_reason(cached):
    (cached.folder / "images" / "red_0.txt").write_text("new words")
    with pytest.raises(DataError, match=r"1 a stale one: red_0\.png: the caption has changed"):
        cached.open()
    found = cached.open(partial=True)
    assert len(found.items) == 5 and [p.what for p in found.stale] == ["text"]
    assert any("caption has changed" in w for w in cached.report.warnings)


def test_a_changed_picture_and_a_touched_one(cached):
    from musubi.testing import media

    os.utime(cached.folder / "images" / "green_1.png", (1, 1))
    path = cached.folder / "images" / "red_0.png"
    media.write_image(path, media.frame(64, 48, colour="blue", shape="ball", at=0.9))
    found = cached.open(partial=True)
    assert [(p.name, p.reason) for p in found.stale] == [("red_0.png", "the file has changed")]


def test_changed_settings(cached):
    cached.change("[64, 48]", "[32, 32]")
    with pytest.raises(DataError, match=r"4 a stale one.*other settings"):
        cached.open()


def test_another_vae(cached):
    other = toy_cache.write_weights(cached.folder / "weights", seed=1)
    assert len(cached.open(encoders=cached.weights).items) == 6
    with pytest.raises(DataError, match="made with another vae file"):
        cached.open(encoders={"vae": other["vae"]})


def test_a_set_made_with_two_encoder_files(cached):
    other = toy_cache.write_weights(cached.folder / "weights", seed=1)
    (cached.folder / "image_cache" / "red_0_0064x0048_toy.safetensors").unlink()
    cached._replace(weights={**cached.weights, "vae": other["vae"]}).latents(skip_existing=True)
    found = cached.open(partial=True)
    assert [(p.name, p.reason) for p in found.stale] == [
        ("red_0.png", "made with another vae file than most")
    ]


def test_a_task_that_needs_more(cached):
    with pytest.raises(DataError, match="older layout"):
        cached.open("later")


def test_files_that_failed_are_left_out_without_stopping(world, paint):
    paint(world.folder / "images" / "flat.png").with_suffix(".txt").write_text("flat")
    world.latents()
    world.text()
    found = world.open()
    assert len(found.items) == 6 and [p.name for p in found.skipped] == ["flat.png"]
    assert any("not finite" in w for w in world.report.warnings)
    shutil.copy(world.folder / "images" / "red_0.png", world.folder / "images" / "flat.png")
    with pytest.raises(DataError, match=r"flat\.png: no record"):
        world.open()


def test_records_without_the_files_they_were_made_of(cached):
    shutil.rmtree(cached.folder / "videos")
    found = cached.open()
    assert len(found.items) == 6
    assert any("is gone. Of it 4 records" in w for w in cached.report.warnings)
    found.load([3, 5])
    before = cached.records()
    assert cached.latents().fresh == 6 and cached.text().fresh == 5
    assert cached.records() == before


def test_a_damaged_record_is_missing(cached):
    path = cached.folder / "image_cache" / "red_0_0064x0048_toy.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"red_0\.png: no record"):
        cached.open()


def unheaded(world):
    """Make all records such as musubi-tuner writes."""
    for cache in world.caches:
        (cache / "empty-caption.toy.safetensors").unlink()
        for path in cache.glob("*.safetensors"):
            with safe_open(path, "pt") as file:
                known = {k: v for k, v in file.metadata().items() if k != store.KEY}
            save_file(load_file(path), path, known)


def test_records_of_the_old_tool_are_trained_on(cached):
    wanted = cached.open().items
    unheaded(cached)
    before = cached.records()
    assert cached.open().items == wanted
    assert cached.records() == before, "no file is touched"
    (said,) = [note for note in cached.report.notes if "musubi-tuner" in note]
    assert said.startswith("10 records of musubi-tuner are used as they are.")
    assert "cannot be checked" in said


def test_records_of_the_old_tool_are_trained_on_without_their_sources(cached):
    items = [(item.key, item.bucket) for item in cached.open().items]
    unheaded(cached)
    shutil.rmtree(cached.folder / "images")
    shutil.rmtree(cached.folder / "videos")
    assert [(item.key, item.bucket) for item in cached.open().items] == items


def test_sections_of_the_old_tool_are_items(world):
    world.latents(task="cut")
    world.text()
    unheaded(world)
    assert len(world.open("cut").items) == 8
    next(world.caches[1].glob("*-009-0000_*")).unlink()
    with pytest.raises(DataError, match="some sections of its clips have no record"):
        world.open("cut")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("[64, 48]", "[32, 32]", "it is of 64x48, and the dataset file asks for 32x32"),
        ("target_frames = [1, 9]", "target_frames = [5]", "cuts no such clip"),
    ],
)
def test_what_a_name_tells_is_compared_with_the_dataset_file(cached, old, new, reason):
    unheaded(cached)
    cached.change(old, new)
    with pytest.raises(DataError, match=reason):
        cached.open()


def test_a_caption_that_changed_since_the_old_tool_encoded_it(cached):
    unheaded(cached)
    (cached.folder / "images" / "red_0.txt").write_text("something else", encoding="utf-8")
    with pytest.raises(DataError, match="the caption has changed"):
        cached.open()
    summary = cached.text()
    assert (summary.encoded, summary.adopted) == (3, 3), "one caption, and an empty one a directory"


def test_a_record_of_the_old_tool_for_another_task_is_not_used(cached):
    path = cached.folder / "image_cache" / "red_0_0064x0048_toy.safetensors"
    tensors = {k: v for k, v in load_file(path).items() if "first" not in k}
    save_file(tensors, path, {"architecture": "toy", "format_version": "1.0.1"})
    with pytest.raises(DataError, match=r"written by musubi-tuner .* no 'latents_first'"):
        cached.open()
    assert cached.latents().encoded == 1


def test_two_dtypes_of_one_field_are_told(cached):
    path = cached.folder / "image_cache" / "red_0_toy_te.safetensors"
    tensors = load_file(path)
    tensors["glyphs_float16"] = tensors["glyphs_float32"].half()
    save_file(tensors, path, {"architecture": "toy", "format_version": "1.0.1"})
    with pytest.raises(DataError, match="'glyphs' in two dtypes"):
        cached.open()


def test_sections_are_items(world):
    world.latents(task="cut")
    world.text()
    found = world.open("cut")
    assert len(found.items) == 8
    assert found.items[-1].name == "red_0.mp4 (frames 0 to 8, section 2)"


def test_training_makes_what_is_missing(world):
    dataset = read_dataset_config(world.data, ARCHITECTURE, ARCHITECTURE.tasks[0])
    arguments = (dataset, ARCHITECTURE, ARCHITECTURE.task("t2v"))
    device = torch.device("cpu")
    encode.ensure(
        *arguments, files={"vae": world.weights["vae"]}, report=world.report, device=device
    )
    with pytest.raises(DataError, match="cache text"):
        world.open()
    encode.ensure(*arguments, files=world.weights, report=world.report, device=device)
    assert len(world.open().items) == 6
    toy_cache.Runtime.calls.clear()
    notes = list(world.report.notes)
    encode.ensure(*arguments, files=world.weights, report=world.report, device=device)
    assert not toy_cache.Runtime.calls and world.report.notes == notes


def test_training_tells_of_each_file_that_is_left_out_once(world):
    images = world.folder / "images"
    (images / "broken.png").write_bytes(b"no image")
    (images / "broken.txt").write_text("a ball")
    shutil.copy(images / "red_0.png", images / "alone.png")
    dataset = read_dataset_config(world.data, ARCHITECTURE, ARCHITECTURE.task("t2v"))
    told = encode.ensure(
        dataset,
        ARCHITECTURE,
        ARCHITECTURE.task("t2v"),
        files=world.weights,
        report=world.report,
        device=torch.device("cpu"),
    )
    found = open_training_set(
        dataset, ARCHITECTURE, ARCHITECTURE.task("t2v"), report=world.report, told=told
    )
    assert len(found.items) == 6 and len(found.skipped) == 2
    said = "\n".join([*world.report.notes, *world.report.warnings])
    for name in ("broken.png", "alone.png"):
        assert len([line for line in said.splitlines() if name in line]) == 1, said
    # without caching, opening the records is what tells
    open_training_set(dataset, ARCHITECTURE, ARCHITECTURE.task("t2v"), report=world.report)
    assert "2 files left out" in world.report.warnings[-1]


def test_training_leaves_records_of_another_dtype_alone(world):
    world.latents(vae_dtype="fp16")
    world.text()
    dataset = read_dataset_config(world.data, ARCHITECTURE, ARCHITECTURE.tasks[0])
    toy_cache.Runtime.calls.clear()
    encode.ensure(
        dataset,
        ARCHITECTURE,
        ARCHITECTURE.task("t2v"),
        files=world.weights,
        report=world.report,
        device=torch.device("cpu"),
    )
    assert not toy_cache.Runtime.calls
