"""An architecture from outside: installed with one entry-point line, it does everything."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.pipeline
PLUGIN = Path(__file__).parents[2] / "examples" / "plugin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> dict[str, str]:
    """An environment in which the example package is installed beside musubi; nothing is downloaded."""
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(
        PLUGIN, folder / "source", ignore=shutil.ignore_patterns("__pycache__")
    )
    site = folder / "site"
    subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--no-build-isolation",
            ),
            *("--no-index", "--target", str(site), str(source)),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def test_the_plugin_passes_the_suite(installed):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            str(PLUGIN / "test_pixels.py"),
        ],
        env=installed,
        capture_output=True,
        text=True,
        cwd=PLUGIN.parents[1],
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


SCRIPT = """
import sys
from pathlib import Path
from musubi import registry
from musubi.testing import media, twins
folder = Path(sys.argv[1])
media.write_dataset(folder / "data", frames=5, fps=8)
twins.write_twins(registry.find("pixels"), folder / "models")
"""


def test_the_plugin_goes_through_cache_train_and_generate(installed, tmp_path):
    def call(*words: object) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            env=installed,
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    call("-c", SCRIPT, tmp_path)
    model = {
        name: tmp_path / "models" / name / f"{name}.safetensors" for name in ("dit", "vae", "words")
    }
    data = tmp_path / "data" / "data.toml"
    assert "pixels" in call("-m", "musubi", "models")
    assert "--words" in call("-m", "musubi", "generate", "--arch", "pixels", "--help")
    start = ("-m", "musubi")
    call(
        *start,
        "cache",
        "latents",
        "--arch",
        "pixels",
        "--dataset_config",
        data,
        "--vae",
        model["vae"],
    )
    call(
        *start,
        "cache",
        "text",
        "--arch",
        "pixels",
        "--dataset_config",
        data,
        "--words",
        model["words"],
    )
    call(
        *(*start, "train", "--arch", "pixels", "--dit", model["dit"], "--dataset_config", data),
        *(
            "--max_train_steps",
            "2",
            "--network_dim",
            "2",
            "--output_dir",
            "out",
            "--output_name",
            "px",
        ),
    )
    call(
        *(*start, "generate", "--arch", "pixels", "--dit", model["dit"], "--vae", model["vae"]),
        *("--words", model["words"], "--prompt", "a red ball", "--video_size", "32", "48"),
        *("--lora_weight", "out/px.safetensors", "--save_path", "made"),
    )
    assert len(list((tmp_path / "made").glob("*.mp4"))) == 1
