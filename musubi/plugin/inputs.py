"""Pictures and videos that a prompt or a dataset item may have in addition to its text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from musubi.plugin.lazy import Lazy


@dataclass(frozen=True, kw_only=True)
class Input:
    """Pictures or videos that a task takes.

    The engine derives from it: a flag of `generate`, a letter of prompt lines, keys of prompt files
    and of datasets, the checks before anything is loaded, and the comparison with cache records.

    Args:
        name: The key in `Clip.inputs`: "image", "end_image", "control".
        kind: "image": one frame each; "video": frames of a video file, or of a folder of images in
            the order of their names; "mask": one grey channel, of an image or of a video.
        help: One sentence for `--help`.
        flag: The option of `generate`, with underscores: "image_path". None: there is no option.
        letter: The letter in prompt lines: "i" for `--i cat.png`.
        aliases: Other names of the flag in prompt files in TOML and JSON.
        column: The key in the lines of a dataset's JSONL file; with `many`, numbered keys
            (`control_path_0`, `control_path_1`) too. None: there is no such key.
        directory: The key of `[[datasets]]` that names a directory of files with the same names as
            the clips. None: there is no such key.
        many: The user may give any number of pictures or videos, in order.
        required: Generation and training need this input. If a dataset cannot name it (no `column`,
            no `directory`), it is taken from the clip itself, for example as the first frame.
        beside: The name of another input that must be given too: this input means nothing alone.
        fit: "bucket": the input is resized to cover the size of the clip, and cropped to it.
            "area": the input is unchanged, and a generated video takes its proportions, at the
            requested area. "as_is": the input is unchanged.
        leads: A flag of the architecture. If the flag is given, the generated video takes the
            proportions of this picture, at the requested area, whatever `fit` says.
        alpha: Keep the transparency of images as a fourth channel.
        hold: True: the last frame of a video that is too short is repeated. False: a video that is
            too short is refused.
        seen_by_text: The text encoder gets the unchanged input too, so the digest of the text
            record includes the digest of the input. Needs a `column` or a `directory`.
        paths: `(text) -> list of paths`, for flags whose value is more than one path.
    """

    name: str
    kind: Literal["image", "video", "mask"]
    help: str
    flag: str | None = None
    letter: str | None = None
    aliases: tuple[str, ...] = ()
    column: str | None = None
    directory: str | None = None
    many: bool = False
    required: bool = False
    beside: str | None = None
    fit: Literal["bucket", "area", "as_is"] = "bucket"
    leads: str | None = None
    alpha: bool = False
    hold: bool = True
    seen_by_text: bool = False
    paths: Lazy | None = None

    @property
    def in_datasets(self) -> bool:
        """Whether a dataset can name this input."""
        return self.column is not None or self.directory is not None


LOSS_MASK = Input(
    name="loss_mask",
    kind="mask",
    help="Mask of the loss: the loss counts in white parts, and not in black ones.",
    column="mask_path",
    directory="mask_directory",
)
"""An input that every task takes in training and that only the engine reads: see `Clip.mask`."""
