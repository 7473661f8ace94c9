import toy_cache

from musubi.cache import check
from musubi.config.cache import CacheCheckConfig
from musubi.config.options import for_architecture


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
