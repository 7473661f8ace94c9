"""Which sizes fit: each that is named really does, and the next longer one does not."""

from dataclasses import replace

import pytest

from musubi import registry
from musubi.errors import ConfigError
from musubi.estimate import cards
from musubi.plan import sizes
from musubi.plan.fit import fitting
from musubi.plan.workload import Bucket, workload
from musubi.plugin import Quiet

pytestmark = pytest.mark.usefixtures("roomy")

WAN = registry.find("wan")
SMALL = {"task": "t2v-1.3B", "network_dim": 32}


def fits(config, about, width, height, frames):
    bucket = Bucket(width, height, frames)
    at = replace(about, buckets=(bucket,), case=about.at(bucket))
    try:
        fitting(config, at, cards.of_device(), here=False)
    except ConfigError:
        return False
    return True


def test_a_size_that_does_not_fit_is_answered_with_sizes_that_do(plan, config):
    asked = {**SMALL, "width": 832, "height": 480, "frames": 81, "vram": "4GiB"}
    with pytest.raises(ConfigError) as failure:
        plan(**asked)
    assert "Nothing fits 4.0 GiB at 832x480, 81 frames" in failure.value.what
    options = config(**asked)
    about = workload(options, WAN, trains=True, report=Quiet())
    bar = Quiet().progress("", None)
    found = sizes.that_fit(options, about, bar, here=False)
    assert found[0].width == 832 and 1 < found[0].frames < 81
    assert f"832x480 with {found[0].frames} frames" in failure.value.fix
    assert f"--width 832 --height 480 --frames {found[0].frames}" in failure.value.fix
    last = found[-1]
    assert fits(options, about, last.width, last.height, last.frames)
    assert not fits(options, about, 832, 480, found[0].frames + 8)


def test_a_plan_that_fits_tells_how_large_one_can_go(plan):
    figures, report = plan(**SMALL, vram="8GiB")
    found = figures["fits"]
    assert found[-1]["frames"] == 81
    areas = [f["width"] * f["height"] for f in found]
    assert areas == sorted(areas, reverse=True)
    said = f"{found[0]['width']}x{found[0]['height']} with {found[0]['frames']} frames"
    assert any(line.startswith(f"Sizes that fit 8GiB: {said}") for line in report.notes)


def test_with_a_dataset_its_keys_are_named(config):
    options = config(**SMALL, vram="4GiB", dataset_config="data.toml")
    text = sizes.way_out(options, [Bucket(832, 480, 17), Bucket(640, 384, 33)])
    assert text == (
        "832x480 with 17 frames, 640x384 with 33 frames fit: write in the dataset file, "
        "resolution = [832, 480] and at most 17 frames."
    )


def test_no_size_fits_nothing(plan):
    with pytest.raises(ConfigError) as failure:
        plan(**SMALL, vram="1GiB")
    assert "shorter videos" in failure.value.fix


def test_where_a_text_encoder_needs_the_most_its_flag_is_named(plan):
    _, report = plan(**SMALL, width=256, height=256, frames=17)
    most = next(line for line in report.notes if line.startswith("The most is needed for"))
    assert "text by the t5" in most
    assert any("--fp8_t5" in line or "--text_encoder_swap" in line for line in report.notes)
