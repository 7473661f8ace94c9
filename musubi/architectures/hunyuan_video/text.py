"""The two text encoders: LLaVA-Llama3, whose hidden states are read, and CLIP-L, pooled.

The networks are transformers'; what each caption is wrapped in and cut to is here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from musubi.errors import CheckpointError
from musubi.plugin import Shapes

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
LLM_TOKENS = 256
"""Tokens that are kept of a caption, behind the template's own (95 of the real tokenizer)."""
LLM_UNUSED = 2
"""Layers at the end whose output is not used: hidden states are taken before them, not normed."""
CLIP_TOKENS = 77

LLM_HEAD = 128
CLIP_HEAD = 64


class Llm(nn.Module):
    """transformers' Llama without its head.

    Args:
        vocab_size: Words in the table.
        dim: Width.
        ffn_dim: Width of the feed-forward layers.
        num_layers: Number of blocks in the file; the last two never run.
        num_heads: Heads of the queries, of size 128.
        num_kv_heads: Heads of the keys and values.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        dim: int,
        ffn_dim: int,
        num_layers: int,
        num_heads: int,
        num_kv_heads: int,
    ) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaModel

        sizes: dict[str, Any] = {"rope_theta": 500000.0}  # transformers 5 files it elsewhere
        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=dim,
            intermediate_size=ffn_dim,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            num_key_value_heads=num_kv_heads,
            head_dim=LLM_HEAD,
            max_position_embeddings=8192,
            rms_norm_eps=1e-5,
            **sizes,
            use_cache=False,
            attention_bias=False,
            tie_word_embeddings=False,
        )
        self.model = LlamaModel(config)
        self._used = config.num_hidden_layers = num_layers - LLM_UNUSED

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


class ClipText(nn.Module):
    """transformers' CLIP text tower.

    Args:
        vocab_size: Words in the table.
        dim: Width.
        ffn_dim: Width of the feed-forward layers.
        num_layers: Number of blocks.
        positions: The longest text.
    """

    def __init__(
        self, *, vocab_size: int, dim: int, ffn_dim: int, num_layers: int, positions: int
    ) -> None:
        super().__init__()
        from transformers import CLIPTextConfig
        from transformers.models.clip import modeling_clip

        config = CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=dim,
            intermediate_size=ffn_dim,
            num_hidden_layers=num_layers,
            num_attention_heads=max(dim // CLIP_HEAD, 1),
            max_position_embeddings=positions,
            hidden_act="quick_gelu",
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


@dataclass(frozen=True)
class Tokens:
    """Numbers of tokens and where they are real, B L each, on the host."""

    ids: torch.Tensor
    mask: torch.Tensor


def template_length(tokenizer: Any) -> int:
    """Tokens before a caption: 95, where the tokenizer is LLaVA-Llama3's."""
    alone: list[int] = tokenizer(BEFORE)["input_ids"]
    followed: list[int] = tokenizer(f"{BEFORE}a{AFTER}")["input_ids"]
    # A tokenizer may close each text with a token of its own.
    same = (a == b for a, b in zip(alone, followed, strict=False))
    return next((i for i, equal in enumerate(same) if not equal), len(alone))


def encode_llm(
    encoder: nn.Module, tokenizer: Any, captions: list[str]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each caption its hidden states (256, D), padding included, and its mask (256,), int64."""
    start = template_length(tokenizer)
    tokens = _tokenized(
        tokenizer, [f"{BEFORE}{c}{AFTER}" for c in captions], length=start + LLM_TOKENS
    )
    device = next(encoder.parameters()).device
    hidden = encoder(tokens.ids.to(device), tokens.mask.to(device))
    return [
        (one[start:].clone(), mask[start:].clone())
        for one, mask in zip(hidden, tokens.mask, strict=True)
    ]


def encode_clip(
    encoder: nn.Module, tokenizer: Any, captions: list[str]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each caption the pooled text (D,) and its mask (77,), int64."""
    tokens = _tokenized(tokenizer, captions, length=CLIP_TOKENS)
    # The padding of CLIP's tokenizer is the end token again: the first one counts.
    ends = (tokens.ids == tokenizer.eos_token_id).int().argmax(dim=1)
    device = next(encoder.parameters()).device
    pooled = encoder(tokens.ids.to(device), ends.to(device))
    return [(one.clone(), mask.clone()) for one, mask in zip(pooled, tokens.mask, strict=True)]


def _tokenized(tokenizer: Any, texts: list[str], *, length: int) -> Tokens:
    found = tokenizer(
        texts,
        padding="max_length",
        padding_side="right",
        truncation=True,
        max_length=length,
        return_attention_mask=True,
        return_tensors="pt",
    )
    return Tokens(found["input_ids"], found["attention_mask"].long())


def infer_llm(shapes: Shapes) -> dict[str, int]:
    """Sizes of a Llama, from our names and shapes.

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
    _all_there(shapes, needed, "a Llama language model", fix)
    queries, dim = shapes[f"{block}.self_attn.q_proj.weight"]
    keys = shapes[f"{block}.self_attn.k_proj.weight"][0]
    if queries % LLM_HEAD or keys % LLM_HEAD or f"{block}.self_attn.q_proj.bias" in shapes:
        raise CheckpointError(
            "This is a language model, but no Llama 3: its heads are not 128 wide, or its "
            "projections have biases.",
            fix=fix,
        )
    depth = _depth(shapes, "model.layers.")
    if depth <= LLM_UNUSED:
        raise CheckpointError(
            f"This Llama has {depth} layers; hidden states are taken {LLM_UNUSED} before the end.",
            fix=fix,
        )
    return {
        "vocab_size": shapes["model.embed_tokens.weight"][0],
        "dim": dim,
        "ffn_dim": shapes[f"{block}.mlp.gate_proj.weight"][0],
        "num_layers": depth,
        "num_heads": queries // LLM_HEAD,
        "num_kv_heads": keys // LLM_HEAD,
    }


def infer_clip(shapes: Shapes) -> dict[str, int]:
    """Sizes of a CLIP text tower, from our names and shapes.

    Raises:
        CheckpointError: It is something else.
    """
    words = "text_model.embeddings.token_embedding.weight"
    places = "text_model.embeddings.position_embedding.weight"
    inner = "text_model.encoder.layers.0.mlp.fc1.weight"
    fix = "Give --text_encoder2 clip_l.safetensors or a folder with CLIP-L."
    _all_there(shapes, (words, places, inner), "a CLIP text encoder", fix)
    vocab_size, dim = shapes[words]
    if shapes[places][0] != CLIP_TOKENS:
        raise CheckpointError(
            f"This is not CLIP-L: it reads {shapes[places][0]} tokens, and CLIP-L {CLIP_TOKENS}.",
            fix=fix,
        )
    return {
        "vocab_size": vocab_size,
        "dim": dim,
        "ffn_dim": shapes[inner][0],
        "num_layers": _depth(shapes, "text_model.encoder.layers."),
        "positions": shapes[places][0],
    }


def _all_there(shapes: Shapes, needed: tuple[str, ...], what: str, fix: str) -> None:
    absent = next((name for name in needed if name not in shapes), None)
    if absent is not None:
        raise CheckpointError(f"This is not {what}: it has no tensor {absent!r}.", fix=fix)


def _depth(shapes: Shapes, stack: str) -> int:
    return len({n.removeprefix(stack).split(".")[0] for n in shapes if n.startswith(stack)})
