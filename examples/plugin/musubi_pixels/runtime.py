"""The six verbs of `pixels`."""

import torch

from musubi.plugin import Conditioning, Section

LENGTH = 32


class PixelsRuntime:
    """Text to video and nothing else."""

    def __init__(self, architecture, task, options):
        self.task = task

    def encode_text(self, nets, component, prompts):
        records = []
        for prompt in prompts:
            letters = list(prompt.text.encode("utf-8"))[:LENGTH] or [0]
            ids = torch.tensor(letters, device=nets.device)
            records.append({"words": nets[component](ids)})
        return records

    def encode_media(self, nets, clips):
        records = []
        for clip in clips:
            frames = (
                torch.from_numpy(clip.frames).to(nets.device).permute(3, 0, 1, 2)[None] / 127.5 - 1
            )
            records.append(({"latents": nets["vae"].encode(frames)[0]},))
        return records

    def condition(self, batch):
        padded = [torch.nn.functional.pad(w, (0, 0, 0, LENGTH - len(w))) for w in batch["words"]]
        return Conditioning({"text": torch.stack(padded)}, latents=batch.get("latents"))

    def predict(self, dit, x, t, given):
        return dit(x, t, given.inputs["text"])

    def rollout(self, recipe, given, device):
        shape = (1, *self.task.shape.latent_shape(recipe.width, recipe.height, recipe.frames))
        source = torch.Generator("cpu" if recipe.cpu_noise else device).manual_seed(recipe.seed)
        noise = torch.randn(shape, generator=source, device=source.device).to(device)
        return (yield Section(noise=noise))

    def decode(self, nets, latents, recipe=None):
        frames = nets["vae"].decode(latents.to(nets.device).float())
        yield ((frames + 1) / 2).clamp(0, 1)
