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
        PROMPT, "What the model is asked; {kind} is 'video' or 'picture'.", group=_TEXT
    )
    trigger: str | None = option(
        None, "A word that is put before each caption, to call what was learned.", group=_TEXT
    )
    max_tokens: int = option(
        160, "Longest caption in tokens; a sentence that is cut off is left out.", group=_TEXT, ge=8
    )
    overwrite: bool = option(
        False, "Replace captions that are there; they are kept when not.", group=_TEXT
    )
    caption_extension: str = option(".txt", "Ending of the captions' names.", group=_TEXT)
    frames: int = option(
        8, "Frames of a clip that the model sees, evenly taken.", group=_MODEL, ge=1, le=64
    )
    side: int = option(
        448, "Longer side of what it sees, in pixels; more shows finer detail.", group=_MODEL, ge=56
    )
    device: str | None = option(
        None, "Where it runs: `cuda`, `cuda:1`, `cpu`; cuda when there is one.", group=_MODEL
    )
    dtype: str = option("bf16", "dtype of the model: bf16, fp16, fp32.", group=_MODEL)


RETIRED: tuple[Retired, ...] = ()
