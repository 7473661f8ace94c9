"""`--continue` in a batch: what is there is not made again, whatever was written of it."""

import pytest

PROMPTS = "a cat --d 1\na dog --d 2\na cat --d 3\na bird\na bird\n"


@pytest.fixture
def batch(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text(PROMPTS, encoding="utf-8")
    return {"from_file": str(path), "continue_video": True}


@pytest.mark.parametrize("kind", ["video", "images", "latent", "both", "latent_images"])
def test_a_finished_batch_is_left_as_it_is(go, batch, out, calls, report, kind):
    first = go(**batch, output_type=kind)
    assert len({path.stem.split("_")[1] for path in first}) == 5
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix != ".png"}
    calls.clear()
    assert go(**batch, output_type=kind) == []
    assert not calls["predict"]
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix != ".png"}
    if kind != "latent_images":  # images may be written again from their latents
        assert before == after


def test_only_what_is_missing_is_made(go, batch, out, calls, report):
    first = go(**batch)
    lost = next(path for path in first if path.name.endswith("_2.mp4"))
    bird = next(path for path in first if not path.stem.endswith(("_1", "_2", "_3")))
    lost.unlink()
    bird.unlink()
    calls.clear()
    again = go(**batch)
    assert calls["predict"] == 2 * 2 * 2  # two prompts, two steps, with and without
    assert len(again) == 2 and sum(path.name.endswith("_2.mp4") for path in again) == 1
    assert len(list(out.glob("*.mp4"))) == 5
    assert sum("is there already" in note for note in report.notes) == 3


def test_what_was_denoised_is_only_decoded(go, batch, out, calls):
    latents = go(**batch, output_type="latent")
    calls.clear()
    videos = go(**batch, output_type="video")
    assert not calls["predict"] and len(videos) == 5
    assert {path.stem for path in videos} == {
        path.name.removesuffix("_latent.safetensors") for path in latents
    }


@pytest.mark.parametrize("other", [{"infer_steps": 3}, {"gain": 2.0}, {"video_length": 1}])
def test_another_recipe_is_made(go, batch, calls, other):
    go(**batch)
    assert len(go(**batch, **other)) == 5


def test_each_seed_of_a_batch_is_its_own(go, batch, out, calls):
    """A seed in a line counts, though the command gives none."""
    first = go(**batch)
    for path in first:
        if path.name.endswith("_1.mp4"):
            path.unlink()
    (made,) = go(**batch)
    assert made.name.endswith("_1.mp4")


def test_without_metadata_nothing_is_recognised(go, batch):
    go(**batch, no_metadata=True)
    assert len(go(**batch)) == 5


def test_files_of_others_are_passed_over(go, batch, out):
    out.mkdir()
    for name in ("a.mp4", "b_latent.safetensors", "c_000.png", "d.txt"):
        (out / name).write_bytes(b"no such thing")
    (out / "e").mkdir()
    assert len(go(**batch)) == 5
