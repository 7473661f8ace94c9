"""LLaVA-Llama3, whose hidden states are read, and the template that captions are wrapped in.

The network is transformers'.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from musubi.encoders import hub_config
from musubi.encoders.sizes import all_there, depth
from musubi.encoders.tokens import check_ids, tokenized
from musubi.errors import CheckpointError, counted
from musubi.plugin import Shapes
from musubi.weights.meta import cpu_device

# Word for word what the model was trained with; images use it too.
BEFORE = (
    "<|start_header_id|>system<|end_header_id|>\n\n"
    "Describe the video by detailing the following aspects: "
    "1. The main content and theme of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects."
    "4. background environment, light, style and atmosphere."
    "5. camera angles, movements, and transitions used in the video:"
    "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
)
AFTER = "<|eot_id|>"
TOKENS = 256
"""Tokens that are kept of a caption, behind the template's own (95 of the real tokenizer)."""
UNUSED = 2
"""Layers at the end whose output is not used: hidden states are taken before them, not normed."""

HEAD = 128
"""Size of an attention head, where no config.json says otherwise."""
EPS = 1e-5
THETA = 500000.0
_ROPE_4 = ("rope_theta", "rope_scaling")  # of transformers 4


class Llama(nn.Module):
    """transformers' Llama without its head.

    Args:
        vocab_size: Words in the table.
        dim: Width.
        ffn_dim: Width of the feed-forward layers.
        num_layers: Number of blocks in the file; the last two never run.
        num_heads: Heads of the queries.
        num_kv_heads: Heads of the keys and values.
        head_dim: Size of a head.
        eps: Added to the variance in norms.
        rope: Rotary embeddings, as transformers' LlamaConfig takes them; None: LLaVA-Llama3's.
        biases: Whether the projections of the attention have biases.
    """

    def __init__(  # noqa: PLR0913 - as many as a config.json has
        self,
        *,
        vocab_size: int,
        dim: int,
        ffn_dim: int,
        num_layers: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int = HEAD,
        eps: float = EPS,
        rope: Mapping[str, Any] | None = None,
        biases: bool = False,
    ) -> None:
        super().__init__()
        with cpu_device():
            from transformers import LlamaConfig, LlamaModel

        # transformers 5 files it elsewhere
        sizes: dict[str, Any] = dict(rope) if rope is not None else {"rope_theta": THETA}
        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=dim,
            intermediate_size=ffn_dim,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            num_key_value_heads=num_kv_heads,
            head_dim=head_dim,
            max_position_embeddings=8192,
            rms_norm_eps=eps,
            **sizes,
            use_cache=False,
            attention_bias=biases,
            tie_word_embeddings=False,
        )
        self.model = LlamaModel(config)
        self._used = config.num_hidden_layers = num_layers - UNUSED

    def trim(self) -> None:
        """Drop what comes after the layers that are used."""
        del self.model.layers[self._used :]
        self.model.norm = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]

    def finish(self) -> None:
        """Make the table of frequencies, which no file holds."""
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        self.model.rotary_emb = LlamaRotaryEmbedding(config=self.model.config)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Hidden states B L D, two layers before the end.

        Args:
            ids: Token numbers, B L.
            mask: 1 where there is a token, B L; padding is on the right.
        """
        found: list[torch.Tensor] = []

        def keep(_: nn.Module, __: object, out: Any) -> None:
            found.append(out[0] if isinstance(out, tuple) else out)  # transformers 4 gives a tuple

        # Asked for, hidden states of every layer would be kept, and the last one would be normed.
        handle = self.model.layers[self._used - 1].register_forward_hook(keep)
        try:
            self.model(input_ids=ids, attention_mask=mask)
        finally:
            handle.remove()
        return found[0]


def instruction(system: str) -> str:
    """What stands before a caption when the model is told `system`."""
    return (
        f"<|start_header_id|>system<|end_header_id|>\n\n{system}"
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
    )


def template_length(tokenizer: Any, before: str = BEFORE) -> int:
    """Tokens before a caption: 95, where the tokenizer is LLaVA-Llama3's and the words are usual."""
    alone: list[int] = tokenizer(before)["input_ids"]
    followed: list[int] = tokenizer(f"{before}a{AFTER}")["input_ids"]
    # A tokenizer may close each text with a token of its own.
    same = (a == b for a, b in zip(alone, followed, strict=False))
    return next((i for i, equal in enumerate(same) if not equal), len(alone))


def encode(
    encoder: nn.Module, tokenizer: Any, captions: list[str], *, before: str | None = None
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each caption its hidden states (256, D), padding included, and its mask (256,), int64.

    Args:
        encoder: The language model.
        tokenizer: Its tokenizer.
        captions: What is encoded.
        before: What stands before each; the words it was trained with when None.
    """
    before = BEFORE if before is None else before
    start = template_length(tokenizer, before)
    tokens = tokenized(tokenizer, [f"{before}{c}{AFTER}" for c in captions], length=start + TOKENS)
    device = next(encoder.parameters()).device
    check_ids(tokens.ids, encoder.get_parameter("model.embed_tokens.weight").shape[0])
    hidden = encoder(tokens.ids.to(device), tokens.mask.to(device))
    return [
        (one[start:].clone(), mask[start:].clone())
        for one, mask in zip(hidden, tokens.mask, strict=True)
    ]


def infer(shapes: Shapes, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Sizes of a Llama, from our names and shapes, and from its config.json where it has one.

    Raises:
        CheckpointError: It is something else.
    """
    block = "model.layers.0"
    needed = (
        "model.embed_tokens.weight",
        f"{block}.self_attn.q_proj.weight",
        f"{block}.self_attn.k_proj.weight",
        f"{block}.mlp.gate_proj.weight",
    )
    fix = "Give --text_encoder1 llava_llama3_fp16.safetensors or a folder with LLaVA-Llama3."
    all_there(shapes, needed, "a Llama language model", fix)
    queries, dim = shapes[f"{block}.self_attn.q_proj.weight"]
    keys = shapes[f"{block}.self_attn.k_proj.weight"][0]
    layers = depth(shapes, "model.layers.")
    biases = f"{block}.self_attn.q_proj.bias" in shapes
    part = hub_config.part_of(config, "llama", "text_config")
    more: dict[str, Any] = {}
    if part is not None:
        more = _configured(part, dim, layers)
    elif queries % HEAD or keys % HEAD or biases:
        raise CheckpointError(
            "This is a language model, but no Llama 3: its heads are not 128 wide, or its "
            "projections have biases; and there is no config.json of a Llama beside it.",
            fix=fix,
        )
    head = more.get("head_dim", HEAD)
    if layers <= UNUSED:
        raise CheckpointError(
            f"This Llama has {counted(layers, 'layer')}; hidden states are taken {UNUSED} before the end.",
            fix=fix,
        )
    return {
        "vocab_size": shapes["model.embed_tokens.weight"][0],
        "dim": dim,
        "ffn_dim": shapes[f"{block}.mlp.gate_proj.weight"][0],
        "num_layers": layers,
        "num_heads": queries // head,
        "num_kv_heads": keys // head,
        **more,
        **({"biases": True} if biases else {}),
    }


def _configured(part: Mapping[str, Any], dim: int, layers: int) -> dict[str, Any]:
    """What a config.json says otherwise than LLaVA-Llama3's."""
    from transformers import LlamaConfig

    sizes = {"hidden_size": dim, "num_hidden_layers": layers}
    config = hub_config.read(LlamaConfig, part, sizes)
    usual = LlamaConfig(rope_theta=THETA)  # pyright: ignore[reportCallIssue]
    head = getattr(config, "head_dim", None) or dim // hub_config.heads(config, dim)
    said = {"head_dim": head, "eps": config.rms_norm_eps, "rope": _rope(config)}
    return hub_config.beside_default(said, {"head_dim": HEAD, "eps": EPS, "rope": _rope(usual)})


def _rope(config: Any) -> dict[str, Any]:
    """The rotary embeddings of transformers' LlamaConfig, as its versions name them."""
    names = ("rope_parameters",) if hasattr(config, "rope_parameters") else _ROPE_4
    return {name: getattr(config, name) for name in names}
