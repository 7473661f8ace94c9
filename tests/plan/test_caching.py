"""What caching says when the device is full, and plans of datasets that are records only."""

import shutil

import pytest
import torch

from musubi import registry
from musubi.architectures.wan.runtime import WanRuntime
from musubi.config.cache import CacheLatentsConfig, CacheTextConfig
from musubi.config.options import for_architecture
from musubi.errors import ConfigError, RunError
from musubi.plan import caching
from musubi.plugin import Quiet
from musubi.testing import media

WAN = registry.find("wan")


@pytest.fixture
def dataset(tmp_path):
    return media.write_dataset(tmp_path / "data")


@pytest.fixture
def options(models, dataset):
    """`options(Model, command, **given)`: of a command that caches the small dataset."""

    def make(model, command, **given):
        made = for_architecture(model, WAN, command)
        files = {n: str(p) for n, p in models.items() if n in made.model_fields}
        return made(dataset_config=str(dataset), device="cpu", **files, **given)

    return make


def full(*_):
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_clip_that_does_not_fit_says_what_it_needs(options, monkeypatch):
    monkeypatch.setattr(WanRuntime, "encode_media", full)
    config = options(CacheLatentsConfig, "cache latents")
    with pytest.raises(RunError) as told:
        caching.run_latents(config, WAN, Quiet())
    # The plan runs the same code, and cannot: the fact stays.
    assert "the device has too little memory" in told.value.what
    assert "resolution" in told.value.fix


@pytest.mark.parametrize(
    ("given", "named"),
    [({}, "Add --vae_tiling; if that"), ({"vae_tiling": True}, "Add --vae_cache_cpu.")],
)
def test_figures_and_the_setting_to_change_are_named(options, monkeypatch, given, named):
    encode = WanRuntime.encode_media

    def fails_once(self, nets, clips):
        monkeypatch.setattr(WanRuntime, "encode_media", encode)
        full()

    monkeypatch.setattr(WanRuntime, "encode_media", fails_once)
    monkeypatch.setattr(caching, "device_room", lambda: 12 << 30)
    config = options(CacheLatentsConfig, "cache latents", **given)
    with pytest.raises(RunError) as told:
        caching.run_latents(config, WAN, Quiet())
    assert "It needs a card with 0.3 GiB free at " in told.value.what
    assert "and this one has 12.0." in told.value.what
    assert told.value.fix.startswith(named)


def test_a_caption_that_does_not_fit_names_the_encoder_settings(options, monkeypatch):
    encode = WanRuntime.encode_text

    def fails(self, nets, component, captions):
        if len(captions) == 1:
            monkeypatch.setattr(WanRuntime, "encode_text", encode)
        full()

    monkeypatch.setattr(WanRuntime, "encode_text", fails)
    monkeypatch.setattr(caching.advice, "for_text", lambda a, n, p, room: f"Add {p.storage}.")
    config = options(CacheTextConfig, "cache text", fp8_t5=True)
    with pytest.raises(RunError) as told:
        caching.run_text(config, WAN, Quiet())
    assert "It needs a card with 0.3 GiB free." in told.value.what
    assert told.value.fix == "Add fp8_scaled. Or use --device cpu."


def test_records_are_planned_for_where_the_sources_are_gone(plan, models, options, dataset):
    asked = {"dit": str(models["dit"]), "dataset_config": str(dataset)}
    caching.run_latents(options(CacheLatentsConfig, "cache latents"), WAN, Quiet())
    before, _ = plan(**asked)
    for place in ("images", "videos"):
        shutil.rmtree(dataset.parent / place)
    after, report = plan(**asked)
    assert after["phases"] == before["phases"]
    assert any("is gone: the sizes of 2 records in " in note for note in report.notes)
    assert not any("not counted" in said for said in report.warnings)
    text = dataset.read_text(encoding="utf-8")
    dataset.write_text(text.replace("= [64, 48]", "= [128, 128]"), encoding="utf-8")
    with pytest.raises(ConfigError, match="gives no clip"):
        plan(**asked)
