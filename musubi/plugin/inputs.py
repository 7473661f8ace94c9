"""What a prompt or a dataset item may bring beside its text: declared once, never named by the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from musubi.plugin.lazy import Lazy


@dataclass(frozen=True, kw_only=True)
class Input:
    """Pictures or videos that a task takes.

    From this follow a flag of `generate`, a letter of prompt lines, keys of prompt files and of
    datasets, what is checked before anything is loaded, and what records are compared with.

    Args:
        name: What the runtime finds it under in `Clip.inputs`: "image", "end_image", "control".
        kind: "image": one frame each; "video": frames of a video file, or of a folder of images in
            the order of their names; "mask": one grey channel, of an image or of a video.
        help: One sentence for `--help`.
        flag: The option of `generate`, with underscores: "image_path". None has no such option.
        letter: In prompt lines: "i" for `--i cat.png`.
        aliases: Other keys of prompt files in TOML and JSON that mean the flag.
        column: The key in the lines of a dataset's JSONL file; where `many`, numbered keys
            (`control_path_0`, `control_path_1`) as well. None: lines bring none.
        directory: The key of `[[datasets]]` that names a directory of files with the same names as
            the clips. None: there is no such key.
        many: Any number of them, in order.
        required: Generating and training do nothing without it. Where a dataset cannot name it
            (no `column`, no `directory`) the clip itself has it, as the first frame, say.
        beside: The name of the input that it belongs to, without which it means nothing.
        fit: "bucket": resized to cover the size of the clip, and cropped to it; "area": as it is,
            and when generating the video takes its proportions, at the area that was asked for;
            "as_is": as it is.
        leads: A plain option of the architecture: when it is given, what is made takes the
            proportions of this picture, at the area that was asked for, whatever `fit` says.
        alpha: Keep the transparency of images that have some, as a fourth channel.
        hold: A video that is too short stands still at its last frame; else it is refused.
        seen_by_text: The text encoder sees it too, as it is: its digest is part of the text
            record's. It needs a `column` or a `directory`.
        paths: `(text) -> list of paths`, where the flag's value is more than a path.
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
        """Whether a dataset can name it."""
        return self.column is not None or self.directory is not None


LOSS_MASK = Input(
    name="loss_mask",
    kind="mask",
    help="Where the loss counts: white does, black does not.",
    column="mask_path",
    directory="mask_directory",
)
"""What every task takes in training, and the engine alone reads: see `Clip.mask`."""
