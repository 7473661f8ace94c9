"""Every option name that people know by heart is still an option, or is answered with a line."""

import pytest

from musubi import registry
from musubi.cli.line import own_flags
from musubi.config.commands import COMMANDS
from musubi.config.fields import flags, names

KNOWN = {
    "cache latents": """
        dataset_config vae vae_dtype device batch_size num_workers skip_existing keep_cache
        debug_mode console_width console_back console_num_images vae_cache_cpu
    """,
    "cache text": """
        dataset_config device batch_size num_workers skip_existing keep_cache t5
    """,
    "train": """
        dataset_config sdpa flash_attn sage_attn xformers flash3 split_attn max_train_steps
        max_train_epochs max_data_loader_n_workers persistent_data_loader_workers seed
        gradient_checkpointing gradient_accumulation_steps mixed_precision logging_dir log_with
        log_prefix log_tracker_name wandb_run_name log_tracker_config wandb_api_key log_config
        ddp_timeout ddp_gradient_as_bucket_view ddp_static_graph sample_every_n_steps
        sample_at_first sample_every_n_epochs sample_prompts optimizer_type optimizer_args
        learning_rate max_grad_norm lr_scheduler lr_warmup_steps lr_decay_steps
        lr_scheduler_num_cycles lr_scheduler_power lr_scheduler_timescale
        lr_scheduler_min_lr_ratio lr_scheduler_type lr_scheduler_args guidance_scale
        timestep_sampling discrete_flow_shift sigmoid_scale weighting_scheme logit_mean logit_std
        mode_scale min_timestep max_timestep show_timesteps no_metadata network_weights
        network_module network_dim network_alpha network_dropout network_args training_comment
        dim_from_weights scale_weight_norms base_weights base_weights_multiplier output_dir
        output_name resume save_every_n_epochs save_every_n_steps save_last_n_epochs
        save_last_n_epochs_state save_last_n_steps save_last_n_steps_state save_state
        save_state_on_train_end metadata_title metadata_author metadata_description
        metadata_license metadata_tags huggingface_repo_id huggingface_repo_type
        huggingface_path_in_repo huggingface_token huggingface_repo_visibility
        save_state_to_huggingface resume_from_huggingface async_upload dit vae vae_dtype task t5
        vae_cache_cpu
    """,
    "generate": """
        dit vae vae_dtype t5 ckpt_dir task sample_solver lora_weight lora_multiplier
        include_patterns exclude_patterns save_merged_model prompt negative_prompt video_size
        video_length fps infer_steps save_path seed cpu_noise guidance_scale flow_shift video_path
        trim_tail_frames cfg_skip_mode cfg_apply_ratio slg_layers slg_mode slg_scale slg_start
        slg_end device attn_mode split_attn vae_cache_cpu output_type no_metadata latent_path
        from_file interactive
    """,
    "lora merge": """
        dit dit_in_channels lora_weight lora_multiplier save_merged_model device
    """,
    "lora convert": "input output target",
    "lora ema": "no_sort beta beta2 sigma_rel output_file",
}

# What HunyuanVideo's own commands have beside these.
KNOWN_TOO = {
    "cache latents": "vae_tiling vae_chunk_size vae_spatial_tile_sample_min_size",
    "cache text": "text_encoder1 text_encoder2 text_encoder_dtype",
    "train": """
        dit_dtype dit_in_channels text_encoder1 text_encoder2 text_encoder_dtype vae_tiling
        vae_chunk_size vae_spatial_tile_sample_min_size
    """,
    "generate": """
        dit_in_channels text_encoder1 text_encoder2 embedded_cfg_scale image_path split_uncond
        vae_chunk_size vae_spatial_tile_sample_min_size lycoris video_path strength
        exclude_single_blocks
    """,
}
# What only Wan's commands have.
WAN = {"t5", "vae_cache_cpu", "slg_layers", "slg_mode", "slg_scale", "slg_start", "slg_end"}


def unknown(name: str, architecture: str, known: set[str]) -> list[str]:
    command = next(c for c in COMMANDS if c.name == name)
    options = flags(command.options(registry.find(architecture)))
    understood = set(names(options.values())) | {r.name for r in command.retired()}
    return sorted(known - understood)


@pytest.mark.parametrize("name", KNOWN)
def test_old_names_are_understood(name):
    assert unknown(name, "wan", set(KNOWN[name].split())) == []
    known = set(KNOWN[name].split()) - WAN | set(KNOWN_TOO.get(name, "").split())
    assert unknown(name, "hunyuan_video", known) == []


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
def test_every_option_is_described_and_no_name_is_given_twice(command):
    architecture = None if command.place is None else registry.find("wan")
    options = flags(command.options(architecture))
    for flag in options.values():
        assert flag.help.endswith((".", ")")), flag.name
        assert flag.words == 0 or flag.metavar, flag.name
        assert not {alias.replace("-", "_") for alias in flag.aliases} & set(options)
    assert not {"config_file", *own_flags(command)} & set(options)
