"""Published sizes are those that follow from the shapes: within a twentieth."""

from collections import defaultdict

import pytest
import torch

from musubi import registry
from musubi.weights.meta import on_meta

# Millions of numbers in files of which our networks read a part: all 32 layers and the head of the
# language model, the last layer and the pooling of image encoders, and the text half of the checkpoint
# that Wan publishes whole.
WHOLE = {
    "text_encoder1": 8030,
    "image_encoder": 428,
    "clip_vision_h": 632,
    "models_clip": 1193,
}
# Kept in 16 bits in files of 8: embeddings of text encoders, and the head.
WIDE = {"t5": 1.05e9, "text_encoder1": 1.05e9}


def published():
    """Each component of each variant: the files of one publication together, since some are shards."""
    for name in registry.names():
        architecture = registry.find(name)
        whole = defaultdict(float)
        for p in architecture.publications:
            stem = p.file.split("-0000")[0]
            whole[p.component, p.repo, stem, p.variants] += p.size
        for (component, repo, stem, variants), size in whole.items():
            yield pytest.param(
                architecture, component, stem, variants, size, id=f"{name} {repo} {stem}"
            )


def numbers(architecture, component, stem, variants):
    """How many numbers the file holds."""
    for key, millions in WHOLE.items():
        if key == component or key in stem:
            return millions * 1e6
    found = architecture.component(component)
    sizes = found.full
    if found.role == "dit":
        named = [v for v in architecture.variants if not variants or v.name in variants]
        sizes = named[0].numbers
    module = on_meta(found, sizes, torch.bfloat16)
    return sum(p.numel() for p in module.parameters())


def bytes_each(stem):
    """What the name says that a number takes; without a word, 16 or 32 bits."""
    if "fp8" in stem:
        return (1,)
    return (2,) if "bf16" in stem or "fp16" in stem else (2, 4)


@pytest.mark.parametrize(
    ("architecture", "component", "stem", "variants", "size"), list(published())
)
def test_a_published_size_follows_from_the_shapes(architecture, component, stem, variants, size):
    count = numbers(architecture, component, stem, variants)
    expected = [count * each / 1e9 for each in bytes_each(stem)]
    if "fp8" in stem:
        expected[0] += WIDE.get(component, 0) / 1e9
    assert any(size == pytest.approx(e, rel=0.05) for e in expected), expected


def test_every_publication_is_named_once():
    for name in registry.names():
        files = [(p.component, p.repo, p.file) for p in registry.find(name).publications]
        assert len(files) == len(set(files))
