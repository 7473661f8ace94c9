"""The umT5 text encoder, and how captions are cleaned before it reads them."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from types import MethodType
from typing import Any

import torch
from torch import nn

from musubi.encoders import hub_config
from musubi.encoders.sizes import all_there, depth
from musubi.encoders.tokens import check_ids, say_cut
from musubi.errors import CheckpointError
from musubi.plugin import Shapes
from musubi.weights.meta import cpu_device

MAX_TOKENS = 512
DISTANCE = 128
EPS = 1e-6
FEED_FORWARD = "gated-gelu"


class TextEncoder(nn.Module):
    """transformers' umT5 stack with its table of words beside it; each tensor has one name.

    Args:
        vocab_size: Words in the table.
        dim: Width.
        head_dim: Size of an attention head.
        ffn_dim: Width of the feed-forward layers.
        num_layers: Number of blocks.
        num_heads: Number of attention heads.
        num_buckets: Buckets of relative positions.
        max_distance: From where on all positions share one bucket.
        eps: Added to the variance in norms.
        feed_forward: The kind of the gated feed-forward layers, by transformers' name.
    """

    def __init__(  # noqa: PLR0913 - as many as a config.json has
        self,
        *,
        vocab_size: int,
        dim: int,
        head_dim: int,
        ffn_dim: int,
        num_layers: int,
        num_heads: int,
        num_buckets: int,
        max_distance: int = DISTANCE,
        eps: float = EPS,
        feed_forward: str = FEED_FORWARD,
    ) -> None:
        super().__init__()
        with cpu_device():
            from transformers import UMT5Config
            from transformers.models.umt5.modeling_umt5 import UMT5DenseGatedActDense, UMT5Stack

        config = UMT5Config(
            vocab_size=vocab_size,
            d_model=dim,
            d_kv=head_dim,
            d_ff=ffn_dim,
            num_layers=num_layers,
            num_heads=num_heads,
            relative_attention_num_buckets=num_buckets,
            relative_attention_max_distance=max_distance,
            layer_norm_epsilon=eps,
            feed_forward_proj=feed_forward,
            is_encoder_decoder=False,
            use_cache=False,
        )
        self.shared = nn.Embedding(vocab_size, dim)
        self.encoder = UMT5Stack(config)
        for module in self.encoder.modules():
            if isinstance(module, UMT5DenseGatedActDense):
                module.forward = MethodType(_feed_forward, module)  # type: ignore[method-assign]
        del self.encoder.embed_tokens  # a second name of the same table

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Hidden states B L D.

        Args:
            ids: Token numbers, B L.
            mask: 1 where there is a token, B L.
        """
        return self.encoder(inputs_embeds=self.shared(ids), attention_mask=mask).last_hidden_state


def _feed_forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """The gated feed-forward layer; transformers' own rounds its input to the dtype that the last
    matrix is stored in, which may be 8 bits.
    """
    return self.wo(self.act(self.wi_0(hidden_states)) * self.wi_1(hidden_states))


def build(**numbers: Any) -> TextEncoder:
    """A text encoder of these sizes."""
    return TextEncoder(**numbers)


def clean(caption: str) -> str:
    """The caption as Wan's own code cleans it: broken Unicode mended, entities resolved twice
    (captions from the web are often escaped twice), white space collapsed.

    >>> clean("a  cat &amp;amp; a dog ")
    'a cat & a dog'
    """
    import ftfy

    caption = html.unescape(html.unescape(ftfy.fix_text(caption)))
    return re.sub(r"\s+", " ", caption).strip()


def encode(encoder: nn.Module, tokenizer: Any, captions: list[str]) -> list[torch.Tensor]:
    """Each caption's hidden states (L, D), L counting its real tokens, end token included."""
    device = encoder.get_parameter("shared.weight").device
    cleaned = [clean(c) for c in captions]
    tokens = tokenizer(
        cleaned,
        padding=True,
        truncation=True,
        max_length=MAX_TOKENS,
        add_special_tokens=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    mask = tokens["attention_mask"]
    say_cut(tokenizer, cleaned, mask, MAX_TOKENS)
    check_ids(tokens["input_ids"], encoder.get_parameter("shared.weight").shape[0])
    hidden = encoder(tokens["input_ids"].to(device), mask.to(device))
    return [one[:n].clone() for one, n in zip(hidden, mask.sum(1).tolist(), strict=True)]


def infer(shapes: Shapes, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Sizes of a umT5 encoder, from our names and shapes, and from its config.json if it has one.

    Raises:
        CheckpointError: It is something else.
    """
    block = "encoder.block.0.layer.0.SelfAttention"
    last = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
    needed = (
        "shared.weight",
        f"{block}.q.weight",
        f"{block}.relative_attention_bias.weight",
        "encoder.block.0.layer.1.DenseReluDense.wi_0.weight",
    )
    fix = "Give --t5 models_t5_umt5-xxl-enc-bf16.pth or a umT5-XXL encoder of ComfyUI's."
    all_there(shapes, needed, "a umT5 text encoder", fix)
    layers = depth(shapes, "encoder.block.")
    if last.format(layers - 1) not in shapes:
        raise CheckpointError(
            "This is a T5 text encoder, not umT5: its blocks share one table of positions.",
            fix=fix,
        )
    vocab_size, dim = shapes["shared.weight"]
    part = hub_config.part_of(config, "umt5", "")
    buckets, heads = shapes[f"{block}.relative_attention_bias.weight"]
    return {
        "vocab_size": vocab_size,
        "dim": dim,
        "head_dim": shapes[f"{block}.q.weight"][0] // heads,
        "ffn_dim": shapes["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"][0],
        "num_layers": layers,
        "num_heads": heads,
        "num_buckets": buckets,
        **({} if part is None else _configured(part, dim, layers)),
    }


def _configured(part: Mapping[str, Any], dim: int, layers: int) -> dict[str, Any]:
    """What a config.json says otherwise than umT5-XXL's."""
    from transformers import UMT5Config

    config = hub_config.read(UMT5Config, part, {"d_model": dim, "num_layers": layers})
    said = {
        "max_distance": config.relative_attention_max_distance,
        "eps": config.layer_norm_epsilon,
        "feed_forward": config.feed_forward_proj,
    }
    usual = {"max_distance": DISTANCE, "eps": EPS, "feed_forward": FEED_FORWARD}
    return hub_config.beside_default(said, usual)
