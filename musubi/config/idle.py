"""Options that were given but have no effect, because an option that they need was not given.

An option acts, or is refused, or the user is told that it did not act: this is the third case, for
all commands. What contradicts another option is refused where the command's options are checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from musubi.config.generate import (
    GenerateConfig,
    LoraFileOptions,
    OutputOptions,
    PromptOptions,
    SamplingOptions,
    VideoOptions,
)
from musubi.config.options import Options
from musubi.plugin.architecture import Architecture, Role

_PREVIEWS = "sample_every_n_steps or sample_every_n_epochs or sample_at_first"
_UPLOADS = "huggingface_repo_id"
_DRAWN = ("timestep_sampling=sigma", "weighting_scheme=logit_normal")
_TRACKERS = "log_with!=none"
_SETTLED = "lr_scheduler_type"
_CYCLES = "lr_scheduler=cosine_with_restarts,cosine_with_min_lr,warmup_stable_decay"
_LEAST = "lr_scheduler=cosine_with_min_lr,warmup_stable_decay,rex"
_BOUNDS = "min_timestep or max_timestep"
_DYNAMO = "dynamo_backend!=no"
_RATIOS = "magcache_mag_ratios"

NEEDS: Mapping[str, tuple[str, ...]] = {
    # saving
    "save_last_n_epochs": ("save_every_n_epochs",),
    "save_last_n_steps": ("save_every_n_steps",),
    "save_last_n_epochs_state": ("save_every_n_epochs", "save_state"),
    "save_last_n_steps_state": ("save_every_n_steps", "save_state"),
    "training_comment": ("no no_metadata",),
    # previews and validation
    "sample_prompts": (_PREVIEWS,),
    "validation_timesteps": ("validation_split",),
    # trackers and the hub
    "log_prefix": ("logging_dir",),
    "log_tracker_name": (_TRACKERS,),
    "log_tracker_config": (_TRACKERS,),
    "log_config": (_TRACKERS,),
    "wandb_run_name": ("log_with=wandb,all",),
    "wandb_api_key": ("log_with=wandb,all",),
    "huggingface_repo_type": (f"{_UPLOADS} or resume_from_huggingface",),
    "huggingface_token": (f"{_UPLOADS} or resume_from_huggingface",),
    "huggingface_path_in_repo": (_UPLOADS,),
    "huggingface_repo_visibility": (_UPLOADS,),
    "async_upload": (_UPLOADS,),
    # the learning rate over time
    "max_train_steps": ("no max_train_epochs",),
    "lr_scheduler": (f"no {_SETTLED}",),
    "lr_warmup_steps": (f"no {_SETTLED}",),
    "lr_decay_steps": ("lr_scheduler=warmup_stable_decay",),
    "lr_scheduler_num_cycles": (_CYCLES,),
    "lr_scheduler_power": ("lr_scheduler=polynomial",),
    "lr_scheduler_timescale": ("lr_scheduler=inverse_sqrt",),
    "lr_scheduler_min_lr_ratio": (_LEAST,),
    "lr_scheduler_args": (f"lr_scheduler=piecewise_constant,rex or {_SETTLED}",),
    "find_lr_steps": ("find_lr",),
    # noise levels
    "discrete_flow_shift": ("timestep_sampling=sigma,shift",),
    "sigmoid_scale": ("timestep_sampling!=sigma,uniform,logsnr",),
    "logit_mean": (f"{' and '.join(_DRAWN)} or timestep_sampling=logsnr",),
    "logit_std": (f"{' and '.join(_DRAWN)} or timestep_sampling=logsnr",),
    "mode_scale": ("timestep_sampling=sigma and weighting_scheme=mode",),
    "preserve_distribution_shape": (_BOUNDS,),
    # what is trained
    "network_alpha": ("no full", "no dim_from_weights"),
    "lora_format": ("no full",),
    "base_weights_multiplier": ("base_weights",),
    # memory and speed
    "gradient_checkpointing": ("no recompute",),
    "compile_args": ("compile or dynamo_backend!=no or vram",),
    "dynamo_mode": (_DYNAMO, "no compile_args"),
    "dynamo_fullgraph": (_DYNAMO, "no compile_args"),
    "dynamo_dynamic": (_DYNAMO, "no compile_args"),
    # generating
    "lora_mode": ("lora_weight*",),
    "trim_tail_frames": ("output_type!=latent",),
    "continue_video": ("no latent_path",),
    "magcache_mag_ratios": ("no magcache_calibration",),
    "magcache_retention_ratio": (_RATIOS,),
    "magcache_threshold": (_RATIOS,),
    "magcache_k": (_RATIOS,),
    # tools
    "console_width": ("mode=console",),
}
"""Option → what must all be so for it to act. Of each, one of what stands between "or" is enough:
an option that is given, "no" one, or one that has one of these values, or none of them."""

NEEDS_OF: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "LoraResizeConfig": {"device": ("base",)},
    "CachePreviewConfig": {"output": ("mode!=console",)},
    "TrainConfig": {
        "vae_dtype": ("sample_prompts",),
        "text_encoder_dtype": ("sample_prompts",),
        "image_encoder_dtype": ("sample_prompts",),
        "text_encoder_swap": ("sample_prompts",),
    },
}
"""The same where options of several commands share a name: by the model of the command."""

_DTYPES: Mapping[str, Role] = {"image_encoder_dtype": "image", "text_encoder_dtype": "text"}
_ROLES = {"image": "image encoder", "text": "text encoder"}
# Groups of options that mean nothing to a command of another purpose.
_DECODING: tuple[type[Options], ...] = (SamplingOptions, LoraFileOptions, VideoOptions)
_MERGING: tuple[type[Options], ...] = (
    PromptOptions,
    VideoOptions,
    SamplingOptions,
    OutputOptions,
)
_ALWAYS = frozenset(
    {"task", "latent_path", "save_merged_model", "fps", "trim_tail_frames", "prompt"}
)


def idle(config: Options, architecture: Architecture | None = None) -> list[str]:
    """A sentence for each option that was given but has no effect.

    Args:
        config: The checked options of a command.
        architecture: Whose options are among them.
    """
    given = [n for n in type(config).model_fields if is_given(config, n)]
    found = list(_of_another_purpose(config, given))
    if found:
        return found
    rules = dict(NEEDS)
    for kind in type(config).__mro__:
        rules |= NEEDS_OF.get(kind.__name__, {})
    if architecture is not None:
        found += _without_network(given, architecture)
        rules |= _of_architecture(config, architecture)
    for name in given:
        for rule in rules.get(name, ()):
            if not _holds(rule, config):
                found.append(f"--{name} changes nothing {said(rule)}.")
                break
    return found


def _of_architecture(config: Options, architecture: Architecture) -> dict[str, tuple[str, ...]]:
    rules: dict[str, tuple[str, ...]] = {}
    if "sample_prompts" in type(config).model_fields:  # in training, these are for previews
        for component in architecture.components:
            if component.role in ("text", "image"):
                names = (component.option, f"{component.name}_tokenizer", component.fp8 or "")
                rules |= dict.fromkeys(names, ("sample_prompts",))
    if _set(config, "from_file") or _set(config, "interactive"):
        return rules  # each prompt may bring what another option needs
    return rules | {o.name: (o.needs,) for o in architecture.options if o.needs}


def is_given(config: Options, name: str) -> bool:
    """Whether an option was given a value that is not its default."""
    field = type(config).model_fields[name]
    return name in config.model_fields_set and getattr(config, name) != field.get_default(
        call_default_factory=True
    )


def said(rule: str) -> str:
    """What must be so, as the end of a sentence."""
    alternatives = [" and ".join(map(_said, part.split(" and "))) for part in rule.split(" or ")]
    if len(alternatives) == 1 and rule.startswith("no "):
        return f"beside --{rule.removeprefix('no ')}"
    return f"without {' or '.join(alternatives)}"


def _said(condition: str) -> str:
    name, unequal, values = condition.partition("!=")
    if unequal:
        return f"another --{name} than {' or '.join(values.split(','))}"
    name, equal, values = condition.partition("=")
    return f"--{name.rstrip('*')}" + (f" {' or '.join(values.split(','))}" if equal else "")


def _holds(rule: str, config: Options) -> bool:
    """Whether a rule is kept, as far as it is about options that the command has."""
    parts = [
        [
            answer
            for condition in part.split(" and ")
            if (answer := _is_so(condition, config)) is not None
        ]
        for part in rule.split(" or ")
    ]
    known = [part for part in parts if part]
    return not known or any(all(part) for part in known)


def _is_so(condition: str, config: Options) -> bool | None:
    """Whether a condition holds; None when the command does not have its option."""
    known = type(config).model_fields
    if condition.endswith("*"):
        return any(_set(config, name) for name in known if name.startswith(condition[:-1]))
    word = condition.removeprefix("no ")
    name, unequal, values = word.partition("!=")
    if not unequal:
        name, equal, values = word.partition("=")
        if not equal:
            return _set(config, name) == (word == condition) if name in known else None
    if name not in known:
        return None
    return (str(getattr(config, name)).lower() in values.split(",")) != bool(unequal)


def _set(config: Options, name: str) -> bool:
    return bool(getattr(config, name, None))


def _of_another_purpose(config: Options, given: list[str]) -> Iterator[str]:
    """One line for all options of what a command of `generate` does not do this time."""
    if not isinstance(config, GenerateConfig):
        return
    for option, groups, does in (
        ("save_merged_model", _MERGING, "only merges"),
        ("latent_path", _DECODING, "only decodes"),
    ):
        if getattr(config, option) is None:
            continue
        about = {name for group in groups for name in group.model_fields} - _ALWAYS
        unused = [f"--{name}" for name in given if name in about]
        if unused:
            change = "changes" if len(unused) == 1 else "change"
            yield f"{', '.join(unused)} {change} nothing: --{option} {does}."
        return


def _without_network(given: list[str], architecture: Architecture) -> Iterator[str]:
    roles = {component.role for component in architecture.components}
    for name, role in _DTYPES.items():
        if name in given and role not in roles:
            yield f"--{name} changes nothing: {architecture.title} has no {_ROLES[role]}."
