"""A dataset with every value decided, and the keys that decide it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from musubi.config.dataset_values import RESOLUTION, Kind
from musubi.plugin.inputs import LOSS_MASK, Input

Extraction = Literal["head", "chunk", "slide", "uniform", "full", "longest"]

MAX_FRAMES = 129
VARIANTS = 8


class SharedKeys(BaseModel):
    """What a dataset may say; `[general]` may give a default for each key that names no path."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    resolution: int | list[int] | None = None
    enable_bucket: bool | None = None
    bucket_no_upscale: bool | None = None
    caption_extension: str | None = None
    batch_size: int | None = Field(None, ge=1, le=100_000)
    num_repeats: int | None = Field(None, ge=1, le=100_000)
    target_frames: list[int] | None = None
    frame_extraction: Extraction | None = None
    frame_stride: int | None = Field(None, ge=1)
    frame_sample: int | None = Field(None, ge=1)
    max_frames: int | None = Field(None, ge=1)
    source_fps: float | None = Field(None, ge=0.001, le=100_000, allow_inf_nan=False)
    alpha_mask: bool | None = None
    weight: float | None = Field(None, gt=0, le=1e6, allow_inf_nan=False)
    caption_prefix: str | None = None
    caption_suffix: str | None = None
    caption_separator: str | None = Field(None, min_length=1)
    captions_by_line: bool | None = None
    shuffle_caption: bool | None = None
    keep_tokens: int | None = Field(None, ge=0, le=10_000)
    caption_tag_dropout_rate: float | None = Field(None, ge=0, lt=1)
    caption_variants: int | None = Field(None, ge=1, le=1000)
    trigger_word: str | None = Field(None, min_length=1)
    class_word: str | None = Field(None, min_length=1)


class DatasetKeys(SharedKeys):
    """What `[[datasets]]` may say."""

    cache_directory: str | None = None
    image_directory: str | None = None
    image_jsonl_file: str | None = None
    video_directory: str | None = None
    video_jsonl_file: str | None = None
    mask_directory: str | None = None
    loss_mask_directory: str | None = None
    is_reg: bool | None = None
    reg_ratio: float | None = Field(None, gt=0, le=1000, allow_inf_nan=False)


PLACES = ("image_directory", "image_jsonl_file", "video_directory", "video_jsonl_file")


@dataclass(frozen=True, kw_only=True)
class CaptionRules:
    """How the captions of a dataset are changed before they are encoded.

    Args:
        prefix: In front of each.
        suffix: Behind each.
        separator: Between tags; a space makes each word a tag.
        by_line: Each line of a caption file is a caption of its own.
        shuffle: Tags in another order in each variant.
        keep: How many tags in front stay where they are.
        tag_dropout: The part of the other tags that a variant lacks.
        variants: How many are made of each caption where they differ.
        trigger: The word that the new thing is called by.
        instead: What stands for it in the captions of what is to be kept.
    """

    prefix: str = ""
    suffix: str = ""
    separator: str = ","
    by_line: bool = False
    shuffle: bool = False
    keep: int = 0
    tag_dropout: float = 0.0
    variants: int = VARIANTS
    trigger: str | None = None
    instead: str | None = None


@dataclass(frozen=True, kw_only=True)
class DatasetEntry:
    """One `[[datasets]]` table with every value decided.

    Args:
        index: Its number in the file, from 0.
        kind: Whether its files are images or videos.
        directory: Where the files lie, or None when they are listed.
        jsonl_file: The list of files, or None.
        inputs: What the task takes beside the clips, and a dataset can name; where the loss counts.
        directories: Name of an input → where its files lie.
        alpha_mask: The loss counts where images are not transparent.
        cache_directory: Where records are kept; no other dataset has the same.
        resolution: Width and height in pixels; with buckets, their product is what counts.
        enable_bucket: Choose among sizes of about one area by aspect ratio.
        bucket_no_upscale: Leave what is smaller than the area at its own size.
        caption_extension: With its dot; None only for listed files.
        batch_size: Most items of a batch.
        num_repeats: How often an epoch visits each item.
        weight: Weight of this dataset, relative to the sum of all weights; None: it is used by its
            size.
        is_reg: Whether this is a regularization dataset, which shows what the model should keep.
        reg_ratio: For regularization datasets: their visits divided by those of the others.
        rules: What becomes of its captions.
        target_frames: Clip lengths at the model's frame rate, ascending, each once.
        frame_extraction: Where in a video clips are cut.
        frame_stride: Frames from one start to the next, for "slide".
        frame_sample: Number of clips, for "uniform".
        max_frames: Longest clip, for "full".
        source_fps: Taken for the frame rate of every video instead of its own time stamps.
        period: Of the task's latents: clips have so many frames, k times, and one.
        options: The architecture's own keys, defaults filled in.
    """

    index: int
    kind: Kind
    cache_directory: Path
    directory: Path | None = None
    jsonl_file: Path | None = None
    inputs: tuple[Input, ...] = ()
    directories: Mapping[str, Path] = field(default_factory=dict)
    alpha_mask: bool = False
    resolution: tuple[int, int] = RESOLUTION
    enable_bucket: bool = False
    bucket_no_upscale: bool = False
    caption_extension: str | None = None
    batch_size: int = 1
    num_repeats: int = 1
    weight: float | None = None
    is_reg: bool = False
    reg_ratio: float = 1.0
    rules: CaptionRules = field(default_factory=CaptionRules)
    target_frames: tuple[int, ...] = (1,)
    frame_extraction: Extraction = "head"
    frame_stride: int = 1
    frame_sample: int = 1
    max_frames: int = MAX_FRAMES
    source_fps: float | None = None
    period: int = 4
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> Path:
        """The directory or the list that its files come from."""
        found = self.directory or self.jsonl_file
        assert found is not None
        return found

    @property
    def masked(self) -> bool:
        """Whether its directories or its alpha channels say where the loss counts."""
        return self.alpha_mask or LOSS_MASK.name in self.directories


@dataclass(frozen=True, kw_only=True)
class DatasetFile:
    """A dataset file that was read and checked.

    Args:
        path: The file.
        datasets: In the order of the file.
        notes: One line for each key that was read differently from how it was written.
    """

    path: Path
    datasets: tuple[DatasetEntry, ...]
    notes: tuple[str, ...] = ()
