"""The options of training that decide what is written and shown: checkpoints, logs, previews."""

from __future__ import annotations

from typing import Literal

from musubi.config.options import Options, option

_SAVING = "Saving"
_METADATA = "Metadata"
_PREVIEWS = "Previews and validation"
_LOGGING = "Logging"
_HUB = "Hugging Face hub"


class SavingOptions(Options):
    """Checkpoints and states."""

    output_dir: str = option("output", "Where checkpoints are written.", group=_SAVING)
    output_name: str | None = option(
        None,
        "First part of every file name; the architecture's name and '-lora' when not given.",
        group=_SAVING,
    )
    save_every_n_epochs: int | None = option(
        None, "Save a checkpoint every so many epochs.", group=_SAVING, ge=1
    )
    save_every_n_steps: int | None = option(
        None, "Save a checkpoint every so many steps.", group=_SAVING, ge=1
    )
    save_every_n_minutes: float | None = option(
        None,
        "Save a checkpoint once so many minutes have passed since the last one; named by its step.",
        group=_SAVING,
        gt=0,
    )
    keep_epochs: list[int] | None = option(
        None,
        "Save a checkpoint at the end of these epochs, and never remove it.",
        group=_SAVING,
    )
    save_best: Literal["validation"] | None = option(
        None,
        "Keep the checkpoint with the lowest validation loss so far as …-best.safetensors.",
        group=_SAVING,
    )
    early_stop: int | None = option(
        None,
        "End the run when the validation loss has not fallen below its lowest for so many measurements.",
        group=_SAVING,
        ge=1,
    )
    save_last_n_epochs: int | None = option(
        None, "Keep the newest so many epoch checkpoints.", group=_SAVING, ge=1
    )
    save_last_n_epochs_state: int | None = option(
        None, "The same for states; --save_last_n_epochs when not given.", group=_SAVING, ge=1
    )
    save_last_n_steps: int | None = option(
        None, "Keep step checkpoints of the last so many steps.", group=_SAVING, ge=0
    )
    save_last_n_steps_state: int | None = option(
        None, "The same for states; --save_last_n_steps when not given.", group=_SAVING, ge=0
    )
    save_state: bool = option(
        False, "Save with every checkpoint the state that --resume needs.", group=_SAVING
    )
    save_state_on_train_end: bool = option(
        False, "Save a state at the end, whatever --save_state says.", group=_SAVING
    )
    save_precision: Literal["float", "fp32", "fp16", "bf16"] = option(
        "bf16", "Dtype of the saved weights; training keeps its own.", group=_SAVING
    )
    resume: str | None = option(
        None,
        "Go on from a state: its directory, or 'auto' for the newest of this run.",
        group=_SAVING,
        metavar="auto|PATH",
    )


class MetadataOptions(Options):
    """What the file says about itself."""

    no_metadata: bool = option(
        False, "Leave the training settings out of the file.", group=_METADATA
    )
    training_comment: str | None = option(None, "A remark kept in the file.", group=_METADATA)
    metadata_title: str | None = option(
        None, "Title; the output name when not given.", group=_METADATA
    )
    metadata_author: str | None = option(None, "Author.", group=_METADATA)
    metadata_description: str | None = option(None, "Description.", group=_METADATA)
    metadata_license: str | None = option(None, "Licence.", group=_METADATA)
    metadata_tags: str | None = option(None, "Tags, separated by commas.", group=_METADATA)


class PreviewOptions(Options):
    """What is looked at while training."""

    sample_prompts: str | None = option(
        None,
        "Prompts of the previews: a .txt, .toml or .json file.",
        group=_PREVIEWS,
        metavar="PATH",
    )
    sample_every_n_steps: int | None = option(
        None, "Draw previews every so many steps.", group=_PREVIEWS, ge=1
    )
    sample_every_n_epochs: int | None = option(
        None, "Draw previews every so many epochs.", group=_PREVIEWS, ge=1
    )
    sample_at_first: bool = option(False, "Draw previews before the first step.", group=_PREVIEWS)
    validation_split: float = option(
        0.0,
        "Items held back from training to measure the loss on: a ratio below 1, or a number of items.",
        group=_PREVIEWS,
        ge=0,
    )
    validate_every_n_steps: int | None = option(
        None, "Measure the validation loss every so many steps.", group=_PREVIEWS, ge=1
    )
    validate_every_n_epochs: int | None = option(
        None,
        "Measure the validation loss every so many epochs; 1 when neither is given.",
        group=_PREVIEWS,
        ge=1,
    )
    validation_timesteps: int = option(
        8, "Noise levels at which each held-back item is measured.", group=_PREVIEWS, ge=1
    )


class LoggingOptions(Options):
    """Trackers; `metrics.jsonl` and `report.html` are always written."""

    watch: bool = option(
        False,
        "Serve the page of the run live on this machine while it trains, as `musubi watch` does.",
        group=_LOGGING,
    )
    logging_dir: str | None = option(
        None,
        "Where trackers write; the run's own folder when not given.",
        group=_LOGGING,
    )
    log_with: Literal["tensorboard", "wandb", "all", "none"] | None = option(
        None, "Trackers; tensorboard when it is installed, if not given.", group=_LOGGING
    )
    log_prefix: str | None = option(
        None, "First part of the name of the folder inside --logging_dir.", group=_LOGGING
    )
    log_tracker_name: str | None = option(
        None, "Name of the tracker's project; 'network_train' when not given.", group=_LOGGING
    )
    log_tracker_config: str | None = option(
        None, "A TOML file with a table of arguments for each tracker.", group=_LOGGING
    )
    wandb_run_name: str | None = option(None, "Name of the run in W&B.", group=_LOGGING)
    wandb_api_key: str | None = option(None, "Key to log in to W&B with.", group=_LOGGING)
    log_config: bool = option(False, "Send the settings to the trackers.", group=_LOGGING)


class HubOptions(Options):
    """Upload after each save."""

    huggingface_repo_id: str | None = option(
        None, "Upload every checkpoint to this repository.", group=_HUB, metavar="OWNER/NAME"
    )
    huggingface_repo_type: Literal["model", "dataset", "space"] = option(
        "model", "Kind of the repository.", group=_HUB
    )
    huggingface_path_in_repo: str | None = option(None, "Folder inside the repository.", group=_HUB)
    huggingface_token: str | None = option(
        None, "Access token; the one that you logged in with when not given.", group=_HUB
    )
    huggingface_repo_visibility: Literal["public", "private"] = option(
        "private", "Visibility of a repository that is created.", group=_HUB
    )
    save_state_to_huggingface: bool = option(False, "Upload states too.", group=_HUB)
    resume_from_huggingface: bool = option(
        False,
        "--resume names a state on the hub: user/repo/path, user/repo/path:revision or "
        "user/repo/path:revision:model.",
        group=_HUB,
    )
    async_upload: bool = option(False, "Train on while files are uploaded.", group=_HUB)
