"""How the checkpoint in `world/` was made: python -m musubi.demo.make vae|text|clips FOLDER

`vae` and `text` train the two encoders from scratch; `clips` writes the videos and captions that
`musubi cache` and `musubi train --full` then teach to the denoiser. The commands, in order, are in
`world/README.md`. A GPU needs a few minutes for all of it.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from musubi import registry
from musubi.demo import shapes
from musubi.nn.causal_conv import Stream
from musubi.testing import media
from musubi.weights.write import save

ARCH = "wan"
VAE = {"dim": 14, "z_dim": 16}
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
    "ffn_dim": 768,
    "num_layers": 4,
    "in_dim": 16,
    "out_dim": 16,
    "text_dim": 64,
    "freq_dim": 256,
}
LICENCE = "Apache-2.0"


def train_vae(folder: Path, *, steps: int = 2400, batch: int = 48) -> None:
    """Reconstruct clips and stills through latents that are near a unit Gaussian, then save."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    component = registry.find(ARCH).component("vae")
    torch.manual_seed(0)
    vae = component.build(**VAE).to(device).train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=1e-4, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 3e-3, total_steps=steps, pct_start=0.05
    )
    source = random.Random(1)
    shift, scale = vae._normalisation(device)
    for step in range(steps):
        frames = _pictures(source, batch, device)
        # mostly nine frames of the seventeen: three steps of the recurrence instead of five
        length = 1 if step % 5 == 4 else 17 if step > 0.9 * steps else 9
        frames = frames[:, :, :length] if step % 2 else frames[:, :, -length:]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            mean, logvar = _posterior(vae, frames)
            mean, logvar = mean.float(), logvar.float().clamp(-12, 4)
            z = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
            out = _reconstruct(vae, z).float()
        unit, spread = (mean - shift) / scale, logvar.exp() / scale**2
        kl = 0.5 * (unit.square() + spread - spread.log() - 1).mean()
        weight = 1 + 4 * (frames - frames.flatten(3).median(-1).values[..., None, None]).abs()
        loss = (weight * (out - frames).abs()).mean() + 0.5 * _edges(out, frames) + 2e-3 * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 250 == 0 or step == steps - 1:
            error = (out - frames).square().mean().sqrt().item()
            _say(f"vae {step} loss {loss.item():.4f} rmse {error:.4f} kl {kl.item():.3f}")
    _save(component.name, vae, folder / "vae.safetensors", torch.bfloat16)


def train_text(folder: Path, *, steps: int = 2000, batch: int = 128) -> None:
    """Teach the encoder to tell captions apart: each state names its word, their mean the scene."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = make_tokenizer(folder / "tokenizer")
    component = registry.find(ARCH).component("t5")
    torch.manual_seed(0)
    encoder = component.build(**TEXT).to(device).train()
    words = nn.Linear(TEXT["dim"], TEXT["vocab_size"]).to(device)
    facts = nn.ModuleList(nn.Linear(TEXT["dim"], len(names)) for names in _FACTS).to(device)
    parameters = [*encoder.parameters(), *words.parameters(), *facts.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3)
    source = random.Random(2)
    for step in range(steps):
        scenes = [_any_scene(source) for _ in range(batch)]
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
    _save(component.name, encoder, folder / "t5.safetensors", torch.bfloat16)


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
    tokenizer.train_from_iterator((_any_scene(source).caption for _ in range(4000)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(str(folder))
    return fast


def write_clips(folder: Path, *, count: int = 6000) -> None:
    """Videos with captions beside them, and the dataset file; no star and no spin among them."""
    source = random.Random(4)
    place = folder / "clips"
    place.mkdir(parents=True, exist_ok=True)
    for start in range(0, count, 250):
        scenes = [shapes.random_scene(source) for _ in range(min(250, count - start))]
        for i, (scene, frames) in enumerate(zip(scenes, shapes.draw(scenes).numpy(), strict=True)):
            path = place / f"{start + i:05d}.mp4"
            media.write_video(path, frames, fps=shapes.RATE)
            path.with_suffix(".txt").write_text(scene.caption, encoding="utf-8")
    (folder / "data.toml").write_text(
        f'[general]\ncaption_extension = ".txt"\nresolution = [{shapes.SIDE}, {shapes.SIDE}]\n'
        "batch_size = 64\n\n"
        f'[[datasets]]\nvideo_directory = "{place.as_posix()}"\n'
        f'cache_directory = "{(folder / "cache").as_posix()}"\ntarget_frames = [{shapes.FRAMES}]\n',
        encoding="utf-8",
    )


def write_untrained_dit(folder: Path) -> None:
    """The denoiser that `musubi train --full` starts from."""
    component = registry.find(ARCH).dit
    torch.manual_seed(0)
    dit = component.build(**DIT)
    for name, parameter in dit.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim >= 2 and "modulation" not in name:
            nn.init.xavier_uniform_(parameter.flatten(1))
    nn.init.normal_(dit.head.head.weight, std=0.02)
    _save("dit", dit, folder / "dit-untrained.safetensors", torch.float32)


def _posterior(vae: nn.Module, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    stream, chunks = Stream(), []
    for chunk in frames.split([1] + [4] * (frames.shape[2] // 4), dim=2):
        chunks.append(vae.encoder(chunk, stream))
        stream.first = False
    mean, logvar = vae.conv1(torch.cat(chunks, dim=2)).chunk(2, dim=1)
    return mean, logvar


def _reconstruct(vae: nn.Module, z: torch.Tensor) -> torch.Tensor:
    stream, chunks = Stream(), []
    for chunk in vae.conv2(z).split(1, dim=2):
        chunks.append(vae.decoder(chunk, stream))
        stream.first = False
    return torch.cat(chunks, dim=2)


def _edges(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    loss = a.new_zeros(())
    for dim in (-1, -2):
        loss = loss + (a.diff(dim=dim) - b.diff(dim=dim)).abs().mean()
    return loss


def _pictures(source: random.Random, batch: int, device: torch.device) -> torch.Tensor:
    scenes = [_any_scene(source) for _ in range(batch)]
    return shapes.draw(scenes, device).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


_FACTS = (
    (*shapes.COLOURS,),
    (*shapes.SHAPES, "star"),
    (*shapes.MOTIONS, "spins"),
    (*shapes.FLOORS,),
)


def _any_scene(source: random.Random) -> shapes.Scene:
    # The encoders know every word and shape, as umT5 and a VAE know more than a denoiser does.
    scene = shapes.random_scene(source)
    star, spin = source.random() < 0.2, source.random() < 0.2
    words = {**({"shape": "star"} if star else {}), **({"motion": "spins"} if spin else {})}
    return shapes.Scene(**{**scene.__dict__, **words})


def _fact_numbers(scene: shapes.Scene) -> list[int]:
    words = (scene.colour, scene.shape, scene.motion, scene.floor)
    return [names.index(word) for names, word in zip(_FACTS, words, strict=True)]


def _save(name: str, module: nn.Module, path: Path, dtype: torch.dtype) -> None:
    layout = registry.find(ARCH).component(name).dialects[0]
    ours = {n: p.detach().to("cpu", dtype).contiguous() for n, p in module.state_dict().items()}
    theirs = {n: ours[s.names[0]] for n, s in layout.writing(ours).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, theirs, {"format": "pt", "licence": LICENCE, "made_by": "musubi.demo.make"})
    _say(json.dumps({"file": path.name, "MB": round(path.stat().st_size / 1e6, 2)}))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    """Do what the first word says, in the folder that the second names."""
    what, folder = sys.argv[1], Path(sys.argv[2])
    {
        "vae": train_vae,
        "text": train_text,
        "clips": write_clips,
        "dit": write_untrained_dit,
    }[what](folder)


if __name__ == "__main__":
    main()
