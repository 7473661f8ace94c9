"""What an architecture does: six methods. The engine does the rest.

Axes are written B (batch), C (channels), F (frames), H, W, L (tokens), D (features).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from musubi.plugin.architecture import Architecture, Task

    Record = dict[str, torch.Tensor]
else:
    Record = dict


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """The input of a text encoder.

    Args:
        text: The caption or prompt.
        pictures: The inputs that the text encoder sees: name → pictures, uint8, each F H W 3 or F H
            W 4, not resized.
    """

    text: str
    pictures: Mapping[str, tuple[np.ndarray, ...]] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Decoded, resized and cropped frames, ready to be encoded.

    Args:
        name: For messages: the file and where in it.
        frames: uint8, F H W 3, RGB: what the model should learn. When generating, F is 0, but H and
            W are those of the video that is made.
        length: How many frames the whole clip has.
        inputs: Name of an input → the pictures or videos given for it: uint8, each F H W C with 3
            channels, 4 if an image has transparency, 1 for masks.
        target: True in training: the frames are what the model should learn. False when generating:
            the record needs only what conditions the model.
        options: The architecture's own keys of the dataset file, or, when generating, its options.
        mask: Where the loss counts, uint8, F H W 1, with 1 frame or as many as the clip has; None:
            everywhere. The engine resizes the mask to the latents, and stores it in the record.
    """

    name: str
    frames: np.ndarray
    length: int
    inputs: Mapping[str, tuple[np.ndarray, ...]] = field(default_factory=dict[str, Any])
    target: bool = True
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    mask: np.ndarray | None = None

    def input(self, name: str) -> np.ndarray | None:
        """The first picture or video of an input: F H W C; None if the input was not given."""
        given = self.inputs.get(name, ())
        return given[0] if given else None


@dataclass(frozen=True)
class Conditioning:
    """What the DiT gets in addition to x and t, and, in training, the clean latents.

    Args:
        inputs: What this architecture's `predict` reads, by name.
        latents: The clean latents x0 in the model's scale, B C F H W, when the batch has any.
        weight: How much each latent cell counts in the loss, broadcast to the latents; the loss is
            the weighted mean. None: all cells count the same.
    """

    inputs: Mapping[str, Any]
    latents: torch.Tensor | None = None
    weight: torch.Tensor | None = None

    def plus(self, **inputs: Any) -> Conditioning:
        """A copy with some inputs added or replaced."""
        return replace(self, inputs={**self.inputs, **inputs})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of one video to generate. They are also written into the video file.

    `options` holds the architecture's own options: paths of inputs, settings of its hooks.
    `flow_shift` is None if the task computes its noise levels itself.
    """

    prompt: str
    negative_prompt: str
    width: int
    height: int
    frames: int
    fps: float
    seed: int
    steps: int
    solver: str
    flow_shift: float | None
    guidance_scale: float
    cpu_noise: bool = False
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, kw_only=True)
class Moment:
    """The position in a denoising loop.

    Args:
        step: Number of the step, counted from 0.
        steps: How many steps there are.
        t: The noise level, from 0 (clean) to 1.
    """

    step: int
    steps: int
    t: float


@dataclass(frozen=True, kw_only=True)
class Section:
    """One denoising loop inside a rollout.

    Args:
        noise: The starting point, B C F H W, float32.
        inputs: Inputs that override those of the positive and of the negative conditioning.
        clean: Latents to start from, shaped like `noise`, in the model's scale. The engine adds the
            noise to them, at the noise level of the first step that is made.
        strength: With `clean`, the share of the steps that is made; these are the last steps. Above
            0; with 1 all steps are made, and nothing of `clean` is left.
        text: Name of the text (see `Task.texts`) that this section uses.
        so_far: The latents of the video made so far. The engine saves a video of them while it
            works on this section. None: there is nothing to show yet.
    """

    noise: torch.Tensor
    inputs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    clean: torch.Tensor | None = None
    strength: float = 1.0
    text: str = "prompt"
    so_far: torch.Tensor | None = None


class Networks(Protocol):
    """The networks that a command has files for. Each is loaded on first use."""

    device: torch.device

    def __getitem__(self, name: str) -> nn.Module:
        """The network of this component, on `device`, in evaluation mode."""
        ...

    def __contains__(self, name: object) -> bool:
        """Whether there is a file for this component."""
        ...

    def tokenizer(self, name: str) -> Any:
        """The tokenizer of a text encoder."""
        ...

    def free(self, name: str) -> None:
        """Drop the network from memory; it is loaded again on the next use."""
        ...


class Runtime(Protocol):
    """The six methods. There is one instance for each command, made for a task and its options."""

    def __init__(
        self, architecture: Architecture, task: Task, options: Mapping[str, Any]
    ) -> None: ...

    def encode_text(
        self, nets: Networks, component: str, prompts: Sequence[Prompt]
    ) -> list[Record]:
        """Encode prompts: one record for each, with the fields that this text encoder fills.

        Called once for each text component of the task. The engine joins the records, and frees
        each encoder before it loads the next. If the schema says varlen, no padding is stored. A
        prompt's record must not depend on the other prompts in the call.
        """
        ...

    def encode_media(self, nets: Networks, clips: Sequence[Clip]) -> list[tuple[Record, ...]]:
        """Encode clips of one size. Each clip gives one record, or several if clips are trained in
        sections. A clip's records must not depend on the other clips in the call.
        """
        ...

    def condition(self, batch: Mapping[str, Any]) -> Conditioning:
        """Turn a batch of records into what `predict` needs, and the clean latents if there are any.

        The batch is on the device. A field is a stacked tensor with a batch axis; a list of tensors
        if the field is varlen; a list of lists if the field is `many`. Masks are on the host:
        reading a length from the device would make every step wait.
        """
        ...

    def predict(
        self, dit: nn.Module, x: torch.Tensor, t: torch.Tensor, given: Conditioning
    ) -> torch.Tensor:
        """The velocity (noise - x0), shaped like x: B C F H W. `t` is (B,), 0 clean to 1 noise."""
        ...

    def rollout(
        self, recipe: Recipe, given: Conditioning, device: torch.device
    ) -> Generator[Section, torch.Tensor, torch.Tensor]:
        """Yield each section to denoise, receive its latents, and return the latents of the whole video."""
        ...

    def decode(
        self, nets: Networks, latents: torch.Tensor, recipe: Recipe | None = None
    ) -> Iterator[torch.Tensor]:
        """Decode latents B C F H W to frames in [0, 1], float32, B 3 F H W. The frames come in one
        piece, or in several pieces in the order of time, so that a long video need not fit in
        memory. `recipe` is the recipe of the latents, if known. The latents may be on the host:
        this method moves only the part that it decodes to `nets.device`.
        """
        ...
