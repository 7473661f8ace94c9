import shutil

import pytest
import toy_cache

from musubi.cache import check
from musubi.cache.survey import OTHER_SETTINGS
from musubi.config.cache import CacheCheckConfig, CachePreviewConfig
from musubi.config.options import for_architecture
from musubi.data import preview
from musubi.errors import DataError


def states(world, **more) -> dict[tuple[int, str, str], int]:
    model = for_architecture(CacheCheckConfig, toy_cache.ARCHITECTURE, "cache latents")
    config = model(dataset_config=str(world.data), **more)
    rows = check.record_states(config, toy_cache.ARCHITECTURE)
    return {(number, what, state): count for number, what, state, count in rows}


def test_every_state_is_counted(world):
    assert states(world)[1, "latents", "missing"] == states(world)[2, "text", "missing"] == 2
    world.latents()
    world.text()
    assert set(states(world).values()) == {2}
    assert {state for _, _, state in states(world)} == {"fresh"}
    (world.folder / "images" / "red_0.txt").write_text("new words")
    found = states(world)
    assert found[1, "text", "fresh"] == found[1, "text", "stale: the caption has changed"] == 1
    other = toy_cache.write_weights(world.folder / "weights", seed=1)
    found = states(world, vae=str(other["vae"]))
    assert found[2, "latents", "stale: made with another vae file"] == 2


def test_the_command_accounts_for_files_and_records(cached):
    model = for_architecture(CacheCheckConfig, toy_cache.ARCHITECTURE, "cache latents")
    check.run(model(dataset_config=str(cached.data)), toy_cache.ARCHITECTURE, cached.report)
    assert "Records" in cached.report.notes
    assert any(note == "1 | latents | fresh | 2" for note in cached.report.notes)


def test_records_without_the_files_they_were_made_of_are_judged_too(cached):
    shutil.rmtree(cached.folder / "videos")
    model = for_architecture(CacheCheckConfig, toy_cache.ARCHITECTURE, "cache latents")
    check.run(model(dataset_config=str(cached.data)), toy_cache.ARCHITECTURE, cached.report)
    (said,) = [w for w in cached.report.warnings if "is gone" in w]
    assert str(cached.folder / "videos") in said and str(cached.folder / "video_cache") in said
    assert {"1 | latents | fresh | 2", "2 | latents | fresh | 2"} <= set(cached.report.notes)
    next((cached.folder / "video_cache").glob("*_0_toy_te.safetensors")).unlink()
    other = toy_cache.write_weights(cached.folder / "weights", seed=1)
    found = states(cached, vae=str(other["vae"]))
    assert found[2, "latents", "stale: made with another vae file"] == 2
    assert found[2, "text", "fresh"] == found[2, "text", "missing"] == 1
    cached.change("target_frames = [1, 9]", "target_frames = [5]")
    found = states(cached)
    assert found[2, "latents", f"stale: {OTHER_SETTINGS}"] == 2


def test_nothing_but_records_is_enough(cached):
    for name in ("images", "videos"):
        shutil.rmtree(cached.folder / name)
    model = for_architecture(CacheCheckConfig, toy_cache.ARCHITECTURE, "cache latents")
    check.run(model(dataset_config=str(cached.data)), toy_cache.ARCHITECTURE, cached.report)
    assert cached.report.notes[-4:] == [
        f"{number} | {what} | fresh | 2" for number in (1, 2) for what in ("latents", "text")
    ]
    model = for_architecture(CachePreviewConfig, toy_cache.ARCHITECTURE, "cache latents")
    with pytest.raises(DataError, match=r"nothing to show: the files .* are gone"):
        preview.run(model(dataset_config=str(cached.data)), toy_cache.ARCHITECTURE, cached.report)


def test_a_decoder_that_gives_other_pixels_makes_records_of_videos_stale(cached, monkeypatch):
    monkeypatch.setattr("musubi.cache.survey.DECODING_VERSION", 0)
    found = states(cached)
    assert found[1, "latents", "fresh"] == 2
    assert found[2, "latents", f"stale: {OTHER_SETTINGS}"] == 2
