"""Caches of musubi-tuner's Wan tasks, written out by hand, are adopted and train as they are."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from musubi import registry
from musubi.cli import main
from musubi.testing import media, twins


def record(frames, **more):
    """Latents and what a task had beside them, under the keys of musubi-tuner."""
    generator = torch.Generator().manual_seed(0)

    def latents(channels):
        return torch.randn(channels, frames, 4, 6, generator=generator).bfloat16()

    size = f"{frames}x4x6"
    found = {f"latents_{size}_bfloat16": latents(16)}
    for name, value in more.items():
        if name in ("image", "control"):
            found[f"latents_{name}_{size}_bfloat16"] = latents(value)
        elif name == "clip":  # the key says bfloat16, and the tensor is float16
            found["clip_bfloat16"] = torch.randn(*value, 80, generator=generator).half()
        else:
            found[f"{name}_int32"] = torch.tensor(value, dtype=torch.int32)
    return found


CASES = {
    "i2v": record(2, image=20, clip=(257,)),
    "i2v-2.2": record(2, image=20),
    "t2v-FC": record(2, control=16),
    "i2v-FC": record(2, image=20, control=16, clip=(257,)),
    "one_frame": record(2, image=20, clip=(1, 257), f_indices=[0, 5]),
    "one_frame_flf2v": record(3, image=20, clip=(2, 257), f_indices=[0, 5, 9]),
}


@pytest.mark.parametrize("task", CASES)
def test_a_cache_of_the_old_tool_trains(task, tmp_path):
    architecture = registry.find("wan")
    cache = tmp_path / "cache"
    cache.mkdir()
    one = task.startswith("one_frame")
    stem = "cat" if one else "cat_00000-005"
    head = {"architecture": "wan", "width": "48", "height": "32", "format_version": "1.0.1"}
    more = {} if one else {"frame_count": "5"}
    latents = cache / f"{stem}_0048x0032_wan.safetensors"
    save_file(CASES[task], latents, {**head, **more})
    words = {"varlen_t5_bfloat16": torch.randn(7, 32).bfloat16()}
    about = {"architecture": "wan", "caption1": "a cat", "format_version": "1.0.1"}
    save_file(words, cache / "cat_wan_te.safetensors", about)
    kind = "image" if one else "video"
    picture = media.clip(48, 32, 9)
    folder = tmp_path / "sources"
    if one:
        media.write_image(folder / "cat.png", picture[0])
    else:
        media.write_video(folder / "cat.mp4", picture)
    (folder / "cat.txt").write_text("a cat", encoding="utf-8")
    inputs = ""
    if "FC" in task:
        media.write_video(tmp_path / "controls" / "cat.mp4", picture)
        inputs = f"control_directory = '{tmp_path / 'controls'}'\n"
    if one:
        for number in range(2 if task.endswith("flf2v") else 1):
            media.write_image(tmp_path / "controls" / f"cat_{number}.png", picture[0])
        places = [0, 9] if task.endswith("flf2v") else [0]
        inputs = f"control_directory = '{tmp_path / 'controls'}'\n"
        inputs += f"fp_1f_clean_indices = {places}\nfp_1f_target_index = 5\n"
    kind = "image" if one else "video"
    (tmp_path / "data.toml").write_text(
        "[general]\nresolution = [48, 32]\ncaption_extension = '.txt'\n"
        f"[[datasets]]\n{kind}_directory = '{folder}'\ncache_directory = '{cache}'\n{inputs}"
        + ("" if one else "target_frames = [5]\n"),
        encoding="utf-8",
    )
    numbers = twins.numbers_for(architecture.task(task))
    dit = twins.write_twin(architecture.dit, tmp_path / "dit", numbers=numbers)
    data = f"--arch wan --dataset_config {tmp_path / 'data.toml'}"
    files = {
        name: twins.write_twin(architecture.component(name), tmp_path / name)
        for name in architecture.task(task).components
    }
    t5 = files.pop("t5")
    given = " ".join(f"--{name} {path}" for name, path in files.items())
    run(f"cache latents {data} --task {task} {given} --skip_existing")
    run(f"cache text {data} --t5 {t5} --skip_existing")
    assert sorted(load_file(latents)) == sorted(CASES[task]), "the record is as it was"
    run(
        f"train {data} --task {task} --dit {dit} --max_train_steps 1 --learning_rate 1e-4 "
        f"--optimizer_type adamw --sdpa --network_dim 2 --output_dir {tmp_path / 'out'} "
        "--output_name old"
    )
    assert load_file(next((tmp_path / "out").glob("old*.safetensors")))


def run(command):
    with pytest.raises(SystemExit) as end:
        main(command.split())
    assert (end.value.code or 0) == 0, command
