"""The options of `musubi cache caption`."""

from __future__ import annotations

from musubi.config.options import Options, Retired, option

MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"
PROMPT = (
    "Describe this {kind} in one paragraph of plain sentences, for somebody who cannot see it: who or "
    "what is in it, what happens, where it is, the light, the colours, and how the camera moves. "
    "Do not begin with 'The {kind} shows'."
)
_MODEL = "Model"
_TEXT = "Captions"


class CaptionConfig(Options):
    """`musubi cache caption`."""

    folder: list[str] = option(
        ..., "The folder of clips and pictures.", group=_TEXT, metavar="FOLDER"
    )
    model: str = option(
        MODEL,
        "A vision-language model: a folder, or a repository on the hub.",
        group=_MODEL,
        metavar="PATH",
    )
    prompt: str = option(
        PROMPT,
        "The question for the model; {kind} is replaced by 'video' or 'picture'.",
        group=_TEXT,
    )
    trigger: str | None = option(None, "A trigger word to put before each caption.", group=_TEXT)
    max_tokens: int = option(
        160,
        "Longest caption, in tokens; an incomplete last sentence is removed.",
        group=_TEXT,
        ge=8,
    )
    overwrite: bool = option(
        False, "Replace existing captions; without it they are kept.", group=_TEXT
    )
    caption_extension: str = option(".txt", "Extension of the caption files.", group=_TEXT)
    frames: int = option(
        8, "How many frames of a clip the model sees, at even distances.", group=_MODEL, ge=1, le=64
    )
    side: int = option(
        448,
        "Longer side of the frames that the model sees, in pixels; more shows finer detail.",
        group=_MODEL,
        ge=56,
    )
    device: str | None = option(
        None, "Device of the model: `cuda`, `cuda:1`, `cpu`; cuda when there is one.", group=_MODEL
    )
    dtype: str = option("bf16", "dtype of the model: bf16, fp16, fp32.", group=_MODEL)


RETIRED: tuple[Retired, ...] = ()
