"""Captions by a tiny model of the Qwen2.5-VL layout, made here: what is written, and what is kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from musubi.caption import run as caption
from musubi.caption.model import Captioner, tidy
from musubi.config.caption import CaptionConfig
from musubi.errors import CheckpointError, ConfigError, DataError, RunError
from musubi.plugin import Quiet
from musubi.testing import media

CLIP = np.random.default_rng(0).integers(0, 255, (9, 64, 96, 3), dtype=np.uint8)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
           "<|image_pad|>", "<|video_pad|>"]  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Its folder, as the hub has such models."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
    )

    folder = tmp_path_factory.mktemp("qwen")
    words = ["<unk>", *SPECIAL, *"abcdefghijklmnopqrstuvwxyz .,'{}"]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="<unk>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL,
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    numbers = {word: tokenizer.convert_tokens_to_ids(word) for word in SPECIAL}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(words), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
            "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2], "rope_type": "default"},
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32,
            "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        image_token_id=numbers["<|image_pad|>"], video_token_id=numbers["<|video_pad|>"],
        vision_start_token_id=numbers["<|vision_start|>"], vision_end_token_id=numbers["<|vision_end|>"],
    )  # fmt: skip
    torch.manual_seed(1)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    size = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16}
    picture = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14, "merge_size": 2,
               "temporal_patch_size": 2, "min_pixels": 56 * 56, "max_pixels": 28 * 28 * 16, "size": size}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(
        json.dumps({**picture, "processor_class": "Qwen2_5_VLProcessor"})
    )
    return folder


@pytest.fixture
def clips(tmp_path):
    folder = tmp_path / "clips"
    media.write_video(folder / "a.mp4", CLIP)
    media.write_image(folder / "b.png", CLIP[0])
    media.write_image(folder / "c.png", CLIP[1])
    (folder / "c.txt").write_text("mine", encoding="utf-8")
    return folder


def write(folder: Path, model: Path, **more: object) -> Quiet:
    said = Quiet()
    given = {"dtype": "fp32", "device": "cpu", "max_tokens": 12, "frames": 3, **more}
    caption.run(CaptionConfig(folder=[str(folder)], model=str(model), **given), said)
    return said


def test_every_file_without_a_caption_gets_one(clips, model):
    said = write(clips, model, trigger="zxc")
    for name in ("a", "b"):
        text = (clips / f"{name}.txt").read_text("utf-8")
        assert text.startswith("zxc, ") and len(text) > 6 and text.count("\n") == 1
    assert (clips / "c.txt").read_text() == "mine"
    assert any("1 caption found" in note for note in said.notes)
    before = (clips / "a.txt").stat().st_mtime_ns
    write(clips, model)  # nothing is left to do
    assert (clips / "a.txt").stat().st_mtime_ns == before
    write(clips, model, overwrite=True, caption_extension=".txt")
    assert (clips / "c.txt").read_text() != "mine"


def test_it_is_what_the_model_itself_says(clips, model):
    """The same words as transformers' own generation from the same picture and question."""
    from PIL import Image
    from transformers import (
        AutoImageProcessor,
        AutoTokenizer,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
    )

    class Processor(Qwen2_5_VLProcessor):  # that of videos wants torchvision
        def __init__(self, images, tokenizer):
            self.image_processor, self.tokenizer, self.video_processor = images, tokenizer, None
            self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
            self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids(SPECIAL[-2:])

    processor = Processor(
        AutoImageProcessor.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    )
    whole = Qwen2_5_VLForConditionalGeneration.from_pretrained(model).eval()
    text = f"<|im_start|>user {'<|vision_start|><|image_pad|><|vision_end|>' * 2}what is it<|im_end|><|im_start|>assistant "
    given = processor(text=[text], images=[Image.fromarray(f) for f in CLIP[:2]], return_tensors="pt")  # fmt: skip
    made = whole.generate(**given, max_new_tokens=12, do_sample=False)[0, given["input_ids"].shape[1] :]  # fmt: skip
    words = processor.batch_decode([made], skip_special_tokens=True)[0]
    ours = Captioner(str(model), torch.device("cpu"), torch.float32)
    assert ours.caption(list(CLIP[:2]), "what is it", 12) == tidy(words, cut=len(made) >= 12) != ""


def test_a_caption_that_was_cut_ends_with_its_last_sentence():
    assert tidy("A cat walks. It is a", cut=True) == "A cat walks."
    assert tidy("猫が歩く。草の", cut=True) == "猫が歩く。"
    assert tidy("no end at all", cut=True) == "no end at all"
    assert tidy("two\nlines", cut=False) == "two lines"
    assert tidy("It costs 3.5 dollars. Or", cut=True) == "It costs 3.5 dollars."


def test_a_broken_file_does_not_stop_the_others(clips, model):
    (clips / "a.mp4").write_bytes(b"no video")
    with pytest.raises(RunError, match=r"a\.mp4"):
        write(clips, model)
    assert (clips / "b.txt").exists() and not (clips / "a.txt").exists()


def test_what_cannot_be_is_refused(clips, model, tmp_path):
    with pytest.raises(DataError, match="no folder"):
        write(tmp_path / "none", model)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no clips"):
        write(tmp_path / "empty", model)
    with pytest.raises(ConfigError, match="caption_extension"):
        write(clips, model, caption_extension=".png")
    with pytest.raises(ConfigError, match="--device"):
        write(clips, model, device="toaster")
    with pytest.raises(CheckpointError, match="cannot be used"):
        write(clips, tmp_path / "empty")
