"""A checkpoint like that in `musubi/demo/world`: python examples/world/make.py vae|text|dit FOLDER

`vae` and `text` train the two encoders from scratch; `dit` writes videos with captions, and teaches
them to the denoiser by `musubi cache` and `musubi train --full`. `clips` and `untrained` write only
what these commands begin with. What is in the package, and how that was made, is told in
`musubi/demo/world/README.md`.
"""

from __future__ import annotations

import json
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from musubi import registry
from musubi.demo import shapes
from musubi.plugin import Architecture
from musubi.testing import media
from musubi.weights.write import save

ARCH = "wan"
VAE = {"dim": 16, "z_dim": 16}
TEXT = {
    "vocab_size": 512,
    "dim": 64,
    "head_dim": 16,
    "ffn_dim": 128,
    "num_layers": 2,
    "num_heads": 4,
    "num_buckets": 32,
}
DIT = {
    "family": "t2v",
    "dim": 256,
    "ffn_dim": 512,
    "num_layers": 4,
    "in_dim": 16,
    "out_dim": 16,
    "text_dim": 64,
    "freq_dim": 256,
}
LICENCE = "Apache-2.0"


def architecture() -> Architecture:
    """The architecture that the world is a tiny checkpoint of."""
    return registry.find(ARCH)


def train_text(folder: Path, *, steps: int = 2000, batch: int = 128) -> None:
    """Teach the encoder to tell captions apart: each state names its word, their mean the scene."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = make_tokenizer(folder / "tokenizer")
    component = architecture().component("t5")
    torch.manual_seed(0)
    encoder = component.build(**TEXT).to(device).train()
    words = nn.Linear(TEXT["dim"], TEXT["vocab_size"]).to(device)
    facts = nn.ModuleList(nn.Linear(TEXT["dim"], len(names)) for names in _FACTS).to(device)
    parameters = [*encoder.parameters(), *words.parameters(), *facts.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3)
    source = random.Random(2)
    for step in range(steps):
        scenes = [any_scene(source) for _ in range(batch)]
        tokens = tokenizer([s.caption for s in scenes], padding=True, return_tensors="pt").to(
            device
        )
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        hidden = encoder(ids, mask)
        naming = F.cross_entropy(words(hidden)[mask.bool()], ids[mask.bool()])
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        truth = torch.tensor([_fact_numbers(s) for s in scenes], device=device)
        losses = [F.cross_entropy(head(pooled), truth[:, i]) for i, head in enumerate(facts)]
        telling = torch.stack(losses).sum()
        loss = naming + telling
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % 500 == 0 or step == steps - 1:
            _say(f"text {step} naming {naming.item():.4f} telling {telling.item():.4f}")
    save_component("t5", encoder, folder / "t5.safetensors", torch.bfloat16)


def make_tokenizer(folder: Path):
    """Whole words of the captions, and bytes for everything else; 512 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TEXT["vocab_size"],
        special_tokens=["<pad>", "</s>", "<unk>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    source = random.Random(3)
    tokenizer.train_from_iterator((any_scene(source).caption for _ in range(4000)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(str(folder))
    return fast


def write_clips(folder: Path, *, count: int = 6000, batch: int = 128) -> None:
    """Videos with captions beside them, and the dataset file; no star and no spin among them."""
    place = folder / "clips"
    place.mkdir(parents=True, exist_ok=True)
    source = random.Random(4)
    scenes = [shapes.random_scene(source) for _ in range(count)]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        jobs = [(place, start, scenes[start : start + 250]) for start in range(0, count, 250)]
        for _ in pool.map(_write_clips, jobs):
            pass
    (folder / "data.toml").write_text(
        f'[general]\ncaption_extension = ".txt"\nresolution = [{shapes.SIDE}, {shapes.SIDE}]\n'
        f"batch_size = {batch}\n\n"
        f'[[datasets]]\nvideo_directory = "{place.as_posix()}"\n'
        f'cache_directory = "{(folder / "cache").as_posix()}"\ntarget_frames = [{shapes.FRAMES}]\n',
        encoding="utf-8",
    )


def _write_clips(job: tuple[Path, int, list[shapes.Scene]]) -> None:
    place, start, scenes = job
    torch.set_num_threads(1)
    for i, (scene, frames) in enumerate(zip(scenes, shapes.draw(scenes).numpy(), strict=True)):
        path = place / f"{start + i:05d}.mp4"
        media.write_video(path, frames, fps=shapes.RATE)
        path.with_suffix(".txt").write_text(scene.caption, encoding="utf-8")


def write_untrained_dit(folder: Path) -> None:
    """A denoiser that `musubi train --full` can start from."""
    save_component("dit", untrained_dit(), folder / "dit-untrained.safetensors", torch.bfloat16)


def untrained_dit() -> nn.Module:
    """The denoiser before training."""
    torch.manual_seed(0)
    dit = architecture().dit.build(**DIT)
    for name, parameter in dit.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim >= 2 and "modulation" not in name:
            nn.init.xavier_uniform_(parameter.flatten(1))
    nn.init.normal_(dit.head.head.weight, std=0.02)
    nn.init.normal_(dit.time_projection[1].weight, std=0.005)
    return dit


_FACTS = (
    (*shapes.COLOURS,),
    (*shapes.SHAPES, "star"),
    (*shapes.MOTIONS, "spins"),
    (*shapes.FLOORS,),
)


def any_scene(source: random.Random) -> shapes.Scene:
    """Any scene, stars and spins too: the encoders know more than the denoiser is taught."""
    scene = shapes.random_scene(source)
    star, spin = source.random() < 0.2, source.random() < 0.2
    words = {**({"shape": "star"} if star else {}), **({"motion": "spins"} if spin else {})}
    return shapes.Scene(**{**scene.__dict__, **words})


def _fact_numbers(scene: shapes.Scene) -> list[int]:
    words = (scene.colour, scene.shape, scene.motion, scene.floor)
    return [names.index(word) for names, word in zip(_FACTS, words, strict=True)]


def save_component(name: str, module: nn.Module, path: Path, dtype: torch.dtype) -> None:
    """Write a component in the layout of the released files."""
    layout = architecture().component(name).dialects[0]
    ours = {n: p.detach().to("cpu", dtype).contiguous() for n, p in module.state_dict().items()}
    theirs = {n: ours[s.names[0]] for n, s in layout.writing(ours).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, theirs, {"format": "pt", "licence": LICENCE, "made_by": "examples/world/make.py"})
    _say(json.dumps({"file": path.name, "MB": round(path.stat().st_size / 1e6, 2)}))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    """Do what the first word says, in the folder that the second names."""
    from make_dit import train_dit
    from make_vae import train_vae

    makers = {
        "vae": train_vae,
        "text": train_text,
        "dit": train_dit,
        "clips": write_clips,
        "untrained": write_untrained_dit,
    }
    what, folder, *number = sys.argv[1:]
    if not number:
        makers[what](Path(folder))
        return
    given = {"steps": int(number[0])} if what == "dit" else {"seconds": float(number[0])}
    makers[what](Path(folder), **given)


if __name__ == "__main__":
    main()
