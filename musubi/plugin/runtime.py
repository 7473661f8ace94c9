"""What an architecture does: six verbs. The engine does the rest.

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
    """What a text encoder is given.

    Args:
        text: The caption or prompt.
        pictures: Of the inputs that it sees: name → uint8, each F H W 3 or F H W 4, as they are.
    """

    text: str
    pictures: Mapping[str, tuple[np.ndarray, ...]] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Decoded, resized and cropped frames, ready to be encoded.

    Args:
        name: For messages: the file and where in it.
        frames: uint8, F H W 3, RGB: what the model should learn. No frames when generating, but
            still with the height and the width of what is made.
        length: Frames of the whole clip.
        inputs: What was given beside it, by the name of the input: uint8, each F H W C with 3
            channels, 4 where an image has transparency, 1 for masks.
        target: Whether the frames are what the model should learn; false when generating, where
            the record needs only what conditions the model.
        options: The architecture's own keys of the dataset file, or, when generating, its options.
        mask: Where the loss counts, uint8, F H W 1, with 1 frame or those of the clip; None: all
            over. The engine brings it to the latents' cells, and keeps it in the record.
    """

    name: str
    frames: np.ndarray
    length: int
    inputs: Mapping[str, tuple[np.ndarray, ...]] = field(default_factory=dict[str, Any])
    target: bool = True
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    mask: np.ndarray | None = None

    def input(self, name: str) -> np.ndarray | None:
        """The first that was given of an input: F H W C; None when there is none."""
        given = self.inputs.get(name, ())
        return given[0] if given else None


@dataclass(frozen=True)
class Conditioning:
    """What the DiT is told beside x and t, and, in training, what it should find.

    Args:
        inputs: Whatever this architecture's `predict` reads.
        latents: The clean latents x0 in the model's scale, B C F H W, when the batch has any.
        weight: How much each latent cell counts in the loss: broadcasts to the latents; the loss is
            the mean over what counts. None: all alike.
    """

    inputs: Mapping[str, Any]
    latents: torch.Tensor | None = None
    weight: torch.Tensor | None = None

    def plus(self, **inputs: Any) -> Conditioning:
        """The same with some inputs added or replaced."""
        return replace(self, inputs={**self.inputs, **inputs})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One video to make, with every number decided; written into what is made.

    `options` holds the architecture's own: paths of inputs, settings of its hooks. `flow_shift` is
    None where the task finds its noise levels itself.
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
    """Where a denoising run is.

    Args:
        step: Number of the step, from 0.
        steps: How many there are.
        t: The noise level, from 0 (clean) to 1.
    """

    step: int
    steps: int
    t: float


@dataclass(frozen=True, kw_only=True)
class Section:
    """One run of the solver inside a rollout.

    Args:
        noise: The starting point, B C F H W, float32.
        inputs: Laid over the inputs of both the positive and the negative conditioning.
        clean: Latents to start from instead, shaped like `noise`, in the model's scale: the engine
            mixes the noise into them, up to the level of the first step that is taken.
        strength: With `clean`, the part of the steps that is taken, the last ones; above 0, and 1
            takes all of them and so leaves nothing of `clean`.
        text: Which of the task's texts guides it.
        so_far: The latents of the video as far as it is made; the engine keeps a video of them
            while the section is solved. None: there is nothing yet to show.
    """

    noise: torch.Tensor
    inputs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    clean: torch.Tensor | None = None
    strength: float = 1.0
    text: str = "prompt"
    so_far: torch.Tensor | None = None


class Networks(Protocol):
    """The networks a command has files for; each is loaded when first asked for."""

    device: torch.device

    def __getitem__(self, name: str) -> nn.Module:
        """The component of that name, in place on `device`, in evaluation mode."""
        ...

    def __contains__(self, name: object) -> bool:
        """Whether there is a file for it."""
        ...

    def tokenizer(self, name: str) -> Any:
        """The tokenizer of a text encoder."""
        ...

    def free(self, name: str) -> None:
        """Drop the network; it loads again when asked for."""
        ...


class Runtime(Protocol):
    """The six verbs. One instance serves one command: it is made for a task and its options."""

    def __init__(
        self, architecture: Architecture, task: Task, options: Mapping[str, Any]
    ) -> None: ...

    def encode_text(
        self, nets: Networks, component: str, prompts: Sequence[Prompt]
    ) -> list[Record]:
        """Prompts → one record each, with the fields that this text encoder gives.

        Called once for each text component of the task; the engine joins the records, and frees
        each encoder before it asks for the next. No padding is stored where the schema says varlen.
        A prompt's record must not depend on its neighbours in the call.
        """
        ...

    def encode_media(self, nets: Networks, clips: Sequence[Clip]) -> list[tuple[Record, ...]]:
        """Clips of one size → for each its records: mostly one; several when a clip is trained in
        sections. A clip's records must not depend on its neighbours in the call.
        """
        ...

    def condition(self, batch: Mapping[str, Any]) -> Conditioning:
        """A batch of records (stacked tensors with a batch axis; lists where a field is varlen;
        for each item a list where it is `many`), already on the device, → what `predict` needs, and
        the clean latents when the batch has latents.

        Masks are on the host: reading a length from the device would hold up every step.
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
        """Yield each section to solve, receive its latents, return the latents of the whole."""
        ...

    def decode(
        self, nets: Networks, latents: torch.Tensor, recipe: Recipe | None = None
    ) -> Iterator[torch.Tensor]:
        """Latents B C F H W → frames in [0, 1], float32, B 3 F H W, in one piece or in several in
        the order of time, so that a long video need not be in memory. `recipe` is what they were
        made by, where that is known. The latents may be on the host: what is decoded at once is
        moved to `nets.device` here, so that the rest need not be there.
        """
        ...
