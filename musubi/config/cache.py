"""The options of `musubi cache latents`, `cache text`, `cache check` and `cache preview`."""

from __future__ import annotations

from typing import Literal

from musubi.config.memory import EncoderMemoryOptions
from musubi.config.options import Options, Retired, option

_DATA = "Data"
_ENCODING = "Encoding"
_RECORDS = "Records"


class DatasetOptions(Options):
    """What every cache command reads."""

    dataset_config: str = option(
        ..., "The dataset file, TOML or JSON.", group=_DATA, metavar="PATH"
    )
    task: str | None = option(
        None,
        "The task or published variant to cache for. When not given: the first task that uses "
        "all given model files and all inputs that the dataset file names.",
        group=_DATA,
    )
    num_workers: int | None = option(
        None,
        "Threads that read and decode files; all cores but one, at most 8, when not given.",
        group=_DATA,
        ge=1,
    )


class EncodingOptions(DatasetOptions):
    """What both encoding commands share."""

    device: str | None = option(
        None, "Where to encode: `cuda`, `cuda:1`, `cpu`; cuda when there is one.", group=_ENCODING
    )
    skip_existing: bool = option(
        False,
        "Skip items that have a record, even if the record is out of date.",
        group=_RECORDS,
    )
    keep_cache: bool = option(
        False, "Keep records that the dataset file no longer names.", group=_RECORDS
    )
    strict: bool = option(
        False,
        "Stop at the first file that cannot be used, instead of leaving it out.",
        group=_RECORDS,
    )


class CacheLatentsConfig(EncodingOptions):
    """The model of `musubi cache latents`."""

    vae_dtype: str | None = option(
        None, "dtype of the VAE: bf16, fp16, fp32; its own default when not given.", group=_ENCODING
    )
    image_encoder_dtype: str | None = option(
        None,
        "dtype of the image encoder: bf16, fp16, fp32; its own default when not given.",
        group=_ENCODING,
    )


class CacheTextConfig(EncoderMemoryOptions, EncodingOptions):
    """The model of `musubi cache text`."""

    text_encoder_dtype: str | None = option(
        None,
        "dtype of the text encoders: bf16, fp16, fp32; their own defaults when not given.",
        group=_ENCODING,
    )


class CacheCheckConfig(DatasetOptions):
    """The model of `musubi cache check`."""

    batch_size: int | None = option(
        None, "Batch size of datasets without one, for counting steps.", group=_DATA, ge=1
    )


class CachePreviewConfig(DatasetOptions):
    """The model of `musubi cache preview`."""

    mode: Literal["image", "html", "console", "video"] = option(
        "image",
        "Contact sheets, one page for the browser, coloured text in the terminal, or clips as video "
        "files.",
        group="Preview",
        aliases=("debug_mode",),
    )
    output: str = option(
        "preview",
        "Directory that sheets and clips are written into.",
        group="Preview",
        metavar="DIR",
    )
    console_width: int = option(80, "Columns of a picture in the terminal.", group="Preview", ge=8)
    console_num_images: int | None = option(
        None,
        "Show at most this many pictures of each dataset; all when not given.",
        group="Preview",
        ge=1,
    )


RETIRED: tuple[Retired, ...] = (
    Retired(
        "batch_size",
        "clips and captions are encoded one by one, so that a record depends on nothing else.",
    ),
    Retired(
        "debug_mode",
        "`musubi cache preview --mode` shows what will be trained; this command encodes.",
    ),
    Retired("console_width", "it belongs to `musubi cache preview`."),
    Retired("console_num_images", "it belongs to `musubi cache preview`."),
    Retired("console_back", "a background was never drawn."),
)
