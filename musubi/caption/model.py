"""A vision-language model through transformers: pictures and a question in, a paragraph out."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from musubi.errors import CheckpointError

# How these models are asked, for a folder whose tokenizer does not say it.
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SENTENCE = re.compile(r"[.!?。！？][\"'”’)]*(?=\s|$)|[。！？]")


class Captioner:
    """The model, loaded: of the layout of Qwen2-VL, Qwen2.5-VL and Qwen3-VL.

    Its processor is put together here, since transformers' own wants torchvision, for videos.

    Args:
        name: A folder, or a repository on the hub.
        device: Where it runs.
        dtype: Of its weights.

    Raises:
        CheckpointError: It cannot be loaded, or is no such model.
    """

    def __init__(self, name: str, device: torch.device, dtype: torch.dtype) -> None:
        import transformers
        from packaging.version import Version

        # The name of the argument changed with transformers 4.56.
        new = Version(transformers.__version__) >= Version("4.56")
        given = {("dtype" if new else "torch_dtype"): dtype, "use_safetensors": True}
        local = {"local_files_only": Path(name).is_dir()}
        try:
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(name, **local)
            self.images: Any = transformers.AutoImageProcessor.from_pretrained(
                name, use_fast=False, **local
            )
            self.model: Any = transformers.AutoModelForImageTextToText.from_pretrained(
                name, **local, **given
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise _unusable(name, " ".join(str(error).split())[:300]) from error
        self.pad = getattr(self.model.config, "image_token_id", None)
        self.merged: Any = getattr(self.images, "merge_size", None)
        if self.pad is None or self.merged is None:
            raise _unusable(name, "it is not of the layout of Qwen2.5-VL")
        self.model.to(device).eval()
        self.device = device

    @torch.no_grad()
    def caption(self, pictures: Sequence[np.ndarray], question: str, most: int) -> str:
        """What the model says of pictures: frames of one clip in order, or a single one.

        Args:
            pictures: uint8, H W 3 each.
            question: What it is asked.
            most: Tokens of the answer at most; a sentence that is cut off there is left out.
        """
        seen = self.images(images=[Image.fromarray(one) for one in pictures], return_tensors="pt")
        ids = self._ids(question, seen["image_grid_thw"].prod(-1) // self.merged**2)
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **seen}
        if "mm_token_type_ids" in inspect.signature(self.model.forward).parameters:
            given["mm_token_type_ids"] = (ids == self.pad).long()
        given = {name: tensor.to(self.device) for name, tensor in given.items()}
        made = self.model.generate(**given, max_new_tokens=most, do_sample=False)
        new = made[0, ids.shape[1] :]
        said = self.tokenizer.decode(new, skip_special_tokens=True)
        return tidy(said, cut=len(new) >= most)

    def _ids(self, question: str, counts: torch.Tensor) -> torch.Tensor:
        """The question as tokens, 1 L: each picture has as many places as the network sees of it."""
        shown = [{"type": "image"} for _ in counts]
        asked = [{"role": "user", "content": [*shown, {"type": "text", "text": question}]}]
        text = self.tokenizer.apply_chat_template(
            asked,
            chat_template=self.tokenizer.chat_template or _TEMPLATE,
            tokenize=False,
            add_generation_prompt=True,
        )
        left = iter(counts.tolist())
        ids: list[int] = []
        for token in self.tokenizer(text)["input_ids"]:
            ids += [token] * (next(left, 1) if token == self.pad else 1)
        return torch.tensor([ids])


def _unusable(name: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"The vision-language model {name} cannot be used: {reason}.",
        fix="Give --model a folder of such a model, or a repository such as "
        "Qwen/Qwen2.5-VL-3B-Instruct.",
    )


def tidy(text: str, *, cut: bool) -> str:
    r"""A caption on one line.

    Args:
        text: As the model said it.
        cut: Whether it was stopped: then it ends with its last whole sentence, if it has one.

    >>> tidy(" A cat.\n\nIt walks and ", cut=True)
    'A cat.'
    """
    line = " ".join(text.split())
    if cut:
        ends = [match.end() for match in _SENTENCE.finditer(line)]
        line = line[: ends[-1]] if ends else line
    return line
