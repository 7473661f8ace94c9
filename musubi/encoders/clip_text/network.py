"""CLIP-L's text tower, pooled. The network is transformers'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from musubi.encoders import hub_config
from musubi.encoders.sizes import all_there, depth
from musubi.encoders.tokens import check_ids, tokenized
from musubi.errors import CheckpointError
from musubi.plugin import Shapes
from musubi.weights.meta import cpu_device

TOKENS = 77
HEAD = 64
EPS = 1e-5
ACTIVATION = "quick_gelu"


class ClipText(nn.Module):
    """transformers' CLIP text tower.

    Args:
        vocab_size: Words in the table.
        dim: Width.
        ffn_dim: Width of the feed-forward layers.
        num_layers: Number of blocks.
        positions: The longest text.
        heads: Attention heads; None: as many of 64 as the width has room for.
        activation: Of the feed-forward layers, by transformers' name.
        eps: Added to the variance in norms.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        dim: int,
        ffn_dim: int,
        num_layers: int,
        positions: int,
        heads: int | None = None,
        activation: str = ACTIVATION,
        eps: float = EPS,
    ) -> None:
        super().__init__()
        with cpu_device():
            from transformers import CLIPTextConfig
            from transformers.models.clip import modeling_clip

        config = CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=dim,
            intermediate_size=ffn_dim,
            num_hidden_layers=num_layers,
            num_attention_heads=heads or max(dim // HEAD, 1),
            max_position_embeddings=positions,
            hidden_act=activation,
            layer_norm_eps=eps,
            # Not looked at: `forward` is told where texts end. Any toy's vocabulary has these.
            bos_token_id=0,
            pad_token_id=1,
            eos_token_id=2,
        )
        # transformers 5 has no tower inside its model: the model is the tower.
        tower = getattr(modeling_clip, "CLIPTextTransformer", modeling_clip.CLIPTextModel)
        self.text_model = tower(config)

    def finish(self) -> None:
        """Count the positions, which a file need not hold."""
        embeddings = self.text_model.embeddings
        count = embeddings.position_embedding.num_embeddings
        embeddings.register_buffer("position_ids", torch.arange(count)[None], persistent=False)

    def forward(self, ids: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """The last hidden states at the end tokens, B D.

        Args:
            ids: Token numbers, B L. Attention is causal: what lies behind the end is not seen.
            ends: Index of each end token, (B,).
        """
        hidden = self.text_model(input_ids=ids).last_hidden_state
        return hidden[torch.arange(len(ids), device=ids.device), ends]


def encode(
    encoder: nn.Module, tokenizer: Any, captions: list[str]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each caption the pooled text (D,) and its mask (77,), int64."""
    tokens = tokenized(tokenizer, captions, length=TOKENS)
    # The padding of CLIP's tokenizer is the end token again: the first one counts.
    ends = (tokens.ids == tokenizer.eos_token_id).int().argmax(dim=1)
    device = next(encoder.parameters()).device
    check_ids(
        tokens.ids, encoder.get_parameter("text_model.embeddings.token_embedding.weight").shape[0]
    )
    pooled = encoder(tokens.ids.to(device), ends.to(device))
    return [(one.clone(), mask.clone()) for one, mask in zip(pooled, tokens.mask, strict=True)]


def infer(shapes: Shapes, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Sizes of a CLIP text tower, from our names and shapes, and from its config.json if it has one.

    Raises:
        CheckpointError: It is something else.
    """
    words = "text_model.embeddings.token_embedding.weight"
    places = "text_model.embeddings.position_embedding.weight"
    inner = "text_model.encoder.layers.0.mlp.fc1.weight"
    fix = "Give --text_encoder2 clip_l.safetensors or a folder with CLIP-L."
    all_there(shapes, (words, places, inner), "a CLIP text encoder", fix)
    vocab_size, dim = shapes[words]
    if shapes[places][0] != TOKENS:
        raise CheckpointError(
            f"This is not CLIP-L: it reads {shapes[places][0]} tokens, and CLIP-L {TOKENS}.",
            fix=fix,
        )
    layers = depth(shapes, "text_model.encoder.layers.")
    part = hub_config.part_of(config, "clip_text_model", "text_config")
    return {
        "vocab_size": vocab_size,
        "dim": dim,
        "ffn_dim": shapes[inner][0],
        "num_layers": layers,
        "positions": shapes[places][0],
        **(_configured(part, dim, layers) if part is not None else {}),
    }


def _configured(part: Mapping[str, Any], dim: int, layers: int) -> dict[str, Any]:
    """What a config.json says otherwise than CLIP-L's."""
    from transformers import CLIPTextConfig

    sizes = {"hidden_size": dim, "num_hidden_layers": layers}
    config = hub_config.read(CLIPTextConfig, part, sizes)
    said = {
        "heads": hub_config.heads(config, dim),
        "activation": config.hidden_act,
        "eps": config.layer_norm_eps,
    }
    usual = {"heads": max(dim // HEAD, 1), "activation": ACTIVATION, "eps": EPS}
    return hub_config.beside_default(said, usual)
