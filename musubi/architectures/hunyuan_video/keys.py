"""The layouts in which the denoiser is published, as key maps. Plain data: no torch in this file."""

from musubi.plugin import Fuse, KeyMap, Rename, Swap, renamed


def _fused(names: str, *, theirs: str, ours: str, ratio: tuple[int, ...] = ()) -> Fuse:
    parts = tuple(f"{theirs}{name}.{{rest}}" for name in names.split())
    return Fuse(theirs=parts, ours=f"{ours}.{{rest}}", ratio=ratio)


_REFINER = "txt_in.individual_token_refiner.blocks.{n}."

# ComfyUI renames as it loads, after the modules it shares with FLUX, and saves what it renamed.
_COMFY_RULES = (
    *renamed(
        {
            "time_in.in_layer": "time_in.mlp.0",
            "time_in.out_layer": "time_in.mlp.2",
            "guidance_in.in_layer": "guidance_in.mlp.0",
            "guidance_in.out_layer": "guidance_in.mlp.2",
            "txt_in.t_embedder.in_layer": "txt_in.t_embedder.mlp.0",
            "txt_in.t_embedder.out_layer": "txt_in.t_embedder.mlp.2",
            "txt_in.c_embedder.in_layer": "txt_in.c_embedder.linear_1",
            "txt_in.c_embedder.out_layer": "txt_in.c_embedder.linear_2",
            "single_blocks.{n}.modulation.lin": "single_blocks.{n}.modulation.linear",
        }
    ),
    *renamed(
        {
            "self_attn.qkv": "self_attn_qkv",
            "self_attn.proj": "self_attn_proj",
            "mlp.0": "mlp.fc1",
            "mlp.2": "mlp.fc2",
        },
        theirs=_REFINER,
        ours=_REFINER,
    ),
    *(
        rule
        for side in ("img", "txt")
        for rule in renamed(
            {
                "mod.lin": "mod.linear",
                "attn.qkv": "attn_qkv",
                "attn.proj": "attn_proj",
                "mlp.0": "mlp.fc1",
                "mlp.2": "mlp.fc2",
            },
            theirs=f"double_blocks.{{n}}.{side}_",
            ours=f"double_blocks.{{n}}.{side}_",
        )
    ),
    # `scale` is what files hold; `weight` is what newer versions call it.
    *(
        Rename(theirs=f"{block}norm.{word}_norm.{leaf}", ours=f"{ours}{word[0]}_norm.weight")
        for block, ours in (
            ("double_blocks.{n}.img_attn.", "double_blocks.{n}.img_attn_"),
            ("double_blocks.{n}.txt_attn.", "double_blocks.{n}.txt_attn_"),
            ("single_blocks.{n}.", "single_blocks.{n}."),
        )
        for word in ("query", "key")
        for leaf in ("scale", "weight")
    ),
)

_REFINER_THEIRS = "context_embedder.token_refiner.refiner_blocks.{n}."
_DOUBLE_THEIRS = "transformer_blocks.{n}."
_SINGLE_THEIRS = "single_transformer_blocks.{n}."

_DIFFUSERS_RULES = (
    *renamed(
        {
            "x_embedder.proj": "img_in.proj",
            "time_text_embed.timestep_embedder.linear_1": "time_in.mlp.0",
            "time_text_embed.timestep_embedder.linear_2": "time_in.mlp.2",
            "time_text_embed.guidance_embedder.linear_1": "guidance_in.mlp.0",
            "time_text_embed.guidance_embedder.linear_2": "guidance_in.mlp.2",
            "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
            "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
            "context_embedder.proj_in": "txt_in.input_embedder",
            "context_embedder.time_text_embed.timestep_embedder.linear_1": "txt_in.t_embedder.mlp.0",
            "context_embedder.time_text_embed.timestep_embedder.linear_2": "txt_in.t_embedder.mlp.2",
            "context_embedder.time_text_embed.text_embedder.linear_1": "txt_in.c_embedder.linear_1",
            "context_embedder.time_text_embed.text_embedder.linear_2": "txt_in.c_embedder.linear_2",
            "proj_out": "final_layer.linear",
        }
    ),
    # diffusers scales first and shifts second.
    Swap(theirs="norm_out.linear.{rest}", ours="final_layer.adaLN_modulation.1.{rest}"),
    _fused(
        "attn.to_q attn.to_k attn.to_v", theirs=_REFINER_THEIRS, ours=f"{_REFINER}self_attn_qkv"
    ),
    *renamed(
        {
            "norm1": "norm1",
            "norm2": "norm2",
            "attn.to_out.0": "self_attn_proj",
            "ff.net.0.proj": "mlp.fc1",
            "ff.net.2": "mlp.fc2",
            "norm_out.linear": "adaLN_modulation.1",
        },
        theirs=_REFINER_THEIRS,
        ours=_REFINER,
    ),
    _fused(
        "attn.to_q attn.to_k attn.to_v",
        theirs=_DOUBLE_THEIRS,
        ours="double_blocks.{n}.img_attn_qkv",
    ),
    _fused(
        "attn.add_q_proj attn.add_k_proj attn.add_v_proj",
        theirs=_DOUBLE_THEIRS,
        ours="double_blocks.{n}.txt_attn_qkv",
    ),
    *renamed(
        {
            "norm1.linear": "img_mod.linear",
            "norm1_context.linear": "txt_mod.linear",
            "attn.norm_q": "img_attn_q_norm",
            "attn.norm_k": "img_attn_k_norm",
            "attn.norm_added_q": "txt_attn_q_norm",
            "attn.norm_added_k": "txt_attn_k_norm",
            "attn.to_out.0": "img_attn_proj",
            "attn.to_add_out": "txt_attn_proj",
            "ff.net.0.proj": "img_mlp.fc1",
            "ff.net.2": "img_mlp.fc2",
            "ff_context.net.0.proj": "txt_mlp.fc1",
            "ff_context.net.2": "txt_mlp.fc2",
        },
        theirs=_DOUBLE_THEIRS,
        ours="double_blocks.{n}.",
    ),
    _fused(
        "attn.to_q attn.to_k attn.to_v proj_mlp",
        theirs=_SINGLE_THEIRS,
        ours="single_blocks.{n}.linear1",
        ratio=(1, 1, 1, 4),
    ),
    *renamed(
        {
            "norm.linear": "modulation.linear",
            "attn.norm_q": "q_norm",
            "attn.norm_k": "k_norm",
            "proj_out": "linear2",
        },
        theirs=_SINGLE_THEIRS,
        ours="single_blocks.{n}.",
    ),
)

_OFFICIAL = ("img_in.proj.weight", "double_blocks.{n}.img_attn_qkv.weight")
# Without the refiner this would be FLUX.
_COMFY = (
    "img_in.proj.weight",
    "double_blocks.{n}.img_attn.qkv.weight",
    "txt_in.individual_token_refiner.blocks.{n}.self_attn.qkv.weight",
)
_CHECKPOINT = "model.diffusion_model."

DIT = (
    KeyMap(name="official", marker=_OFFICIAL),
    # Comfy-Org's files keep the path of the module that was saved.
    KeyMap(name="comfyui", marker=_COMFY, rules=_COMFY_RULES, prefix="model.model."),
    KeyMap(name="comfyui-checkpoint", marker=_COMFY, rules=_COMFY_RULES, prefix=_CHECKPOINT),
    KeyMap(name="comfyui-plain", marker=_COMFY, rules=_COMFY_RULES),
    KeyMap(name="official-checkpoint", marker=_OFFICIAL, prefix=_CHECKPOINT),
    KeyMap(
        name="diffusers",
        marker=(
            "x_embedder.proj.weight",
            "transformer_blocks.{n}.attn.to_q.weight",
            "single_transformer_blocks.{n}.proj_mlp.weight",
        ),
        rules=_DIFFUSERS_RULES,
    ),
)
