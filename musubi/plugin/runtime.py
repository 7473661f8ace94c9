"""What an architecture does: six verbs. The engine does the rest.

Axes are written B (batch), C (channels), F (frames), H, W, L (tokens), D (features).
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
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
class Clip:
    """Decoded, resized and cropped frames, ready to be encoded.

    Args:
        name: For messages: the file and where in it.
        frames: uint8, F H W 3, RGB. When `target` is false, only the frames that were given
            (the start image, say).
        length: Frames of the whole clip; equal to len(frames) when `target` is true.
        controls: uint8, each F H W 3 or F H W 4.
        video: uint8, F H W 3: when generating, the video that denoising starts from.
        target: Whether the frames are what the model should learn; false when generating, where
            the record needs only what conditions the model.
        options: The architecture's own keys of the dataset file.
    """

    name: str
    frames: np.ndarray
    length: int
    controls: tuple[np.ndarray, ...] = ()
    video: np.ndarray | None = None
    target: bool = True
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Conditioning:
    """What the DiT is told beside x and t, and, in training, what it should find.

    Args:
        inputs: Whatever this architecture's `predict` reads.
        latents: The clean latents x0 in the model's scale, B C F H W, when the batch has any.
    """

    inputs: Mapping[str, Any]
    latents: torch.Tensor | None = None

    def plus(self, **inputs: Any) -> Conditioning:
        """The same with some inputs added or replaced."""
        return replace(self, inputs={**self.inputs, **inputs})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One video to make, with every number decided; written into what is made.

    `options` holds the architecture's own: image paths, control paths, step-cache settings.
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
    flow_shift: float
    guidance_scale: float
    cpu_noise: bool = False
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])


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
    """

    noise: torch.Tensor
    inputs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    clean: torch.Tensor | None = None
    strength: float = 1.0


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
        """Forget a network and give its memory back; it is loaded again when asked for."""
        ...


class Runtime(Protocol):
    """The six verbs. One instance serves one command: it is made for a task and its options."""

    def __init__(
        self, architecture: Architecture, task: Task, options: Mapping[str, Any]
    ) -> None: ...

    def encode_text(self, nets: Networks, component: str, captions: Sequence[str]) -> list[Record]:
        """Captions → one record each, with the fields that this text encoder gives.

        Called once for each text component of the task; the engine joins the records, and frees
        each encoder before it asks for the next. No padding is stored where the schema says varlen.
        """
        ...

    def encode_media(self, nets: Networks, clips: Sequence[Clip]) -> list[tuple[Record, ...]]:
        """Clips of one size → for each its records: mostly one; several when a clip is trained in
        sections. A clip's records must not depend on its neighbours in the call.
        """
        ...

    def condition(self, batch: Mapping[str, Any]) -> Conditioning:
        """A batch of records (stacked tensors with a batch axis; lists where varlen), already on
        the device, → what `predict` needs, and the clean latents when the batch has latents.

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

    def decode(self, nets: Networks, latents: torch.Tensor) -> torch.Tensor:
        """Latents B C F H W → frames in [0, 1], float32, B 3 F H W."""
        ...
