"""Tasks of Wan that musubi-tuner did not have, through the command line: Wan2.2's 5B model and VACE."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from musubi import registry
from musubi.cli import main
from musubi.testing import media, twins


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("empty hub")))
        yield


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Toy files, a dataset and pictures."""
    folder = tmp_path_factory.mktemp("tasks")
    architecture = registry.find("wan")
    found: dict[str, Path] = {"folder": folder}
    for name in ("ti2v", "vace", "t2v", "t2v-FC"):
        numbers = twins.numbers_for(architecture.task(name))
        found[name] = twins.write_twin(architecture.dit, folder / name, numbers=numbers)
    for name in ("vae", "vae22", "t5", "clip"):
        found[name] = twins.write_twin(architecture.component(name), folder / name)
    found["toml"] = media.write_dataset(folder / "data", images=0, videos=1, width=96, height=64)
    found["video"] = next((folder / "data").rglob("*.mp4"))
    found["image"] = media.write_image(
        folder / "image.png", media.frame(90, 60, colour="red", shape="ball", at=0.5)
    )
    return found


def run(places, command):
    words = [word.format(**places) for word in command.split()]
    with pytest.raises(SystemExit) as end:
        main(words)
    assert (end.value.code or 0) == 0, command


SHORT = "--max_train_steps 1 --learning_rate 1e-4 --optimizer_type adamw --sdpa --output_dir {folder}/out"
MADE = "--size 96x64 --video_length 5 --infer_steps 2 --prompt ball --vae_dtype float32 --output_type both"


def test_the_5b_model_and_its_autoencoder(places):
    files = "--vae {vae22} --t5 {t5}"
    run(
        places,
        "cache latents --arch wan --task ti2v-5B --dataset_config {toml} --vae {vae22} --vae_dtype float32",
    )
    run(places, "cache text --arch wan --dataset_config {toml} --t5 {t5}")
    for task in ("ti2v", "ti2v-image"):
        run(
            places,
            f"train --arch wan --task {task} --dit {{ti2v}} --dataset_config {{toml}} {SHORT} --output_name {task}",
        )
    run(
        places,
        f"generate --arch wan --task ti2v --dit {{ti2v}} {files} {MADE} --save_path {{folder}}/5b --lora_weight {{folder}}/out/ti2v.safetensors",
    )
    run(
        places,
        f"generate --arch wan --task ti2v --dit {{ti2v}} {files} {MADE} --save_path {{folder}}/5b --image_path {{image}}",
    )
    made = sorted((places["folder"] / "5b").glob("*.safetensors"))
    assert len(made) == 2
    shapes = {tuple(load_file(path)["latent"].shape[-4:]) for path in made}
    assert (48, 2, 4, 6) in shapes


def test_another_autoencoder_is_refused_by_name(places, capsys):
    with pytest.raises(SystemExit) as end:
        main(
            [
                w.format(**places)
                for w in f"generate --arch wan --task ti2v --dit {{ti2v}} --vae {{vae}} --t5 {{t5}} {MADE} --save_path {{folder}}/no".split()
            ]
        )
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "It seems to be the vae" in said and "Give --vae another file" in said


def test_vace(places):
    files = "--vae {vae} --t5 {t5}"
    run(
        places,
        f"generate --arch wan --task vace --dit {{vace}} {files} {MADE} --save_path {{folder}}/made --control_path {{video}} --reference_image_path {{image}} {{image}} --control_scale 0.8",
    )
    (latent,) = (places["folder"] / "made").glob("*.safetensors")
    assert load_file(latent)["latent"].shape[-3:] == (2, 8, 12)
    run(
        places,
        f"generate --arch wan --task vace --dit {{vace}} {files} {MADE} --save_path {{folder}}/small --control_path {{video}} --fp8_scaled --blocks_to_swap 1 --infer_steps 4 --magcache_mag_ratios 1,1,1,1 --magcache_retention_ratio 0.2 --magcache_threshold 9 --magcache_k 2",
    )
    (latent,) = (places["folder"] / "small").glob("*.safetensors")
    assert load_file(latent)["latent"].isfinite().all()
