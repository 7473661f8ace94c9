"""The whole tool on toy files: python examples/quickstart.py [FOLDER]

Writes small videos with captions and a tiny checkpoint with random weights in Wan2.1's released
layout, then shows and runs the commands that a user types: cache, train, generate, merge, info.
The result is noise, as random weights must be; every file and every step is the real thing.
"""

import shlex
import subprocess
import sys
from pathlib import Path

from musubi import registry
from musubi.testing import media, twins


def commands(folder: Path) -> list[list[str]]:
    """What a user types, with the toy files' paths."""
    model = {name: f"{folder}/models/{name}/{name}.safetensors" for name in ("dit", "vae", "t5")}
    data, out = f"{folder}/data/data.toml", f"{folder}/out"
    return [
        ["models"],
        ["cache", "check", "--arch", "wan", "--dataset_config", data],
        ["cache", "latents", "--arch", "wan", "--dataset_config", data, "--vae", model["vae"]],
        ["cache", "text", "--arch", "wan", "--dataset_config", data, "--t5", model["t5"]],
        [
            *("train", "--arch", "wan", "--task", "t2v-1.3B", "--dit", model["dit"]),
            *("--dataset_config", data, "--sdpa", "--mixed_precision", "bf16"),
            *("--optimizer_type", "adamw", "--learning_rate", "2e-4", "--gradient_checkpointing"),
            *("--network_dim", "8", "--timestep_sampling", "shift", "--discrete_flow_shift", "3.0"),
            *("--max_train_epochs", "2", "--save_every_n_epochs", "1", "--seed", "42"),
            *("--output_dir", out, "--output_name", "cat"),
        ],
        [
            *("generate", "--arch", "wan", "--task", "t2v-1.3B", "--dit", model["dit"]),
            *("--vae", model["vae"], "--t5", model["t5"], "--prompt", "a red ball moves right"),
            *(
                "--video_size",
                "48",
                "64",
                "--video_length",
                "9",
                "--infer_steps",
                "4",
                "--seed",
                "7",
            ),
            *("--lora_weight", f"{out}/cat.safetensors", "--lora_multiplier", "1.0"),
            *("--save_path", out, "--output_type", "both"),
        ],
        [
            *("lora", "merge", "--arch", "wan", "--dit", model["dit"]),
            *("--lora_weight", f"{out}/cat.safetensors", "--lora_multiplier", "0.8"),
            *("--save_merged_model", f"{out}/merged.safetensors"),
        ],
        ["lora", "info", f"{out}/cat.safetensors"],
    ]


def main() -> None:
    """Write the toy files and run the commands."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "quickstart")
    media.write_dataset(folder / "data")
    twins.write_twins(registry.find("wan"), folder / "models")
    for words in commands(folder):
        print("\n$ musubi", shlex.join(words), flush=True)
        subprocess.run([sys.executable, "-m", "musubi", *words], check=True)
    print(f"\nThe video, the LoRA and the merged checkpoint are in {folder / 'out'}.")


if __name__ == "__main__":
    main()
