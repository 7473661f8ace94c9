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

    output_dir: str = option("output", "Folder for checkpoints.", group=_SAVING)
    output_name: str | None = option(
        None,
        "First part of every file name; the architecture's name and '-lora' when not given.",
        group=_SAVING,
    )
    save_every_n_epochs: int | None = option(
        None, "Save a checkpoint every N epochs.", group=_SAVING, ge=1
    )
    save_every_n_steps: int | None = option(
        None, "Save a checkpoint every N steps.", group=_SAVING, ge=1
    )
    save_every_n_minutes: float | None = option(
        None,
        "Save a checkpoint when this many minutes have passed since the last one; its name has "
        "the step.",
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
        "End the run if the validation loss has had no new lowest value for this many validations.",
        group=_SAVING,
        ge=1,
    )
    save_last_n_epochs: int | None = option(
        None, "Keep only the newest N epoch checkpoints.", group=_SAVING, ge=1
    )
    save_last_n_epochs_state: int | None = option(
        None,
        (
            "Keep only the states of the newest N epoch checkpoints; --save_last_n_epochs when "
            "not given."
        ),
        group=_SAVING,
        ge=1,
    )
    save_last_n_steps: int | None = option(
        None, "Keep only the step checkpoints of the last N steps.", group=_SAVING, ge=0
    )
    save_last_n_steps_state: int | None = option(
        None,
        "Keep only the states of the last N steps; --save_last_n_steps when not given.",
        group=_SAVING,
        ge=0,
    )
    save_state: bool = option(
        False, "With every checkpoint, also save the state that --resume needs.", group=_SAVING
    )
    save_state_on_train_end: bool = option(
        False, "Save a state at the end of the run, even without --save_state.", group=_SAVING
    )
    save_precision: Literal["float", "fp32", "fp16", "bf16"] = option(
        "bf16",
        "Dtype of the saved weights; it does not change the dtype in training.",
        group=_SAVING,
    )
    resume: str | None = option(
        None,
        "Resume from a state: its directory, or 'auto' for the newest state of this run.",
        group=_SAVING,
        metavar="auto|PATH",
    )


class MetadataOptions(Options):
    """What the file says about itself."""

    no_metadata: bool = option(
        False, "Do not write the training settings into the file.", group=_METADATA
    )
    training_comment: str | None = option(None, "A comment to store in the file.", group=_METADATA)
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
        None, "Make previews every N steps.", group=_PREVIEWS, ge=1
    )
    sample_every_n_epochs: int | None = option(
        None, "Make previews every N epochs.", group=_PREVIEWS, ge=1
    )
    sample_at_first: bool = option(False, "Make previews before the first step.", group=_PREVIEWS)
    validation_split: float = option(
        0.0,
        "Items to hold back from training, for measuring the validation loss: a ratio below 1, "
        "or a number of items.",
        group=_PREVIEWS,
        ge=0,
    )
    validate_every_n_steps: int | None = option(
        None, "Measure the validation loss every N steps.", group=_PREVIEWS, ge=1
    )
    validate_every_n_epochs: int | None = option(
        None,
        "Measure the validation loss every N epochs; 1 when neither this nor the number of steps "
        "is given.",
        group=_PREVIEWS,
        ge=1,
    )
    validation_timesteps: int = option(
        8, "How many noise levels to measure each held-back item at.", group=_PREVIEWS, ge=1
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
        "Folder for the trackers' files; the run's own folder when not given.",
        group=_LOGGING,
    )
    log_with: Literal["tensorboard", "wandb", "all", "none"] | None = option(
        None, "The trackers. When not given: tensorboard, if it is installed.", group=_LOGGING
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
    log_config: bool = option(False, "Also send the settings to the trackers.", group=_LOGGING)


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
    async_upload: bool = option(False, "Continue training while files are uploaded.", group=_HUB)
