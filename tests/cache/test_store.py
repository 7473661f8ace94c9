import dataclasses
import json
import random

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from toy_cache import ARCHITECTURE

from musubi.cache import store
from musubi.cache.header import RecordHeader, parse
from musubi.errors import DataError
from musubi.plugin import Field

FIELDS = (
    Field(name="latents", dims="CFHW", sizes=(("C", 16),)),
    Field(name="latents_image", dims="CFHW"),
    Field(name="latents_clean_2x", dims="CFHW"),
    Field(name="clip", dims="LD"),
    Field(name="latent_indices", dims="N"),
    Field(name="llm_mask", dims="L"),
    Field(name="t5", dims="LD", varlen=True),
)


def record(frames: int = 3) -> dict[str, torch.Tensor]:
    return {
        "latents": torch.randn(16, frames, 6, 8, dtype=torch.bfloat16),
        "latents_image": torch.randn(20, frames, 6, 8, dtype=torch.bfloat16),
        "latents_clean_2x": torch.randn(16, 2, 6, 8, dtype=torch.float16),
        "clip": torch.randn(5, 7, dtype=torch.float16),
        "latent_indices": torch.arange(frames),
        "llm_mask": torch.ones(4, dtype=torch.bool),
        "t5": torch.randn(9, 4, dtype=torch.bfloat16),
    }


HEADER = RecordHeader(
    kind="media", stem="cat", source="cat.mp4", bucket=(64, 48), start=4, length=9
)


def written(path, values=None, header=HEADER):
    values = record() if values is None else values
    header = dataclasses.replace(header, fields=tuple(sorted(values)))
    metadata = store.metadata_of(ARCHITECTURE, header, size=(64, 48), frames=9)
    store.write_record(path, values, FIELDS, metadata)
    return header


def test_keys_are_those_of_the_old_tool(tmp_path):
    written(tmp_path / "x.safetensors")
    assert set(load_file(tmp_path / "x.safetensors")) == {
        "latents_3x6x8_bfloat16",
        "latents_image_3x6x8_bfloat16",
        "latents_clean_2x_3x6x8_float16",
        "clip_float16",
        "latent_indices_int64",
        "llm_mask",
        "varlen_t5_bfloat16",
    }


def test_metadata_are_the_old_ones_and_the_header(tmp_path):
    header = written(tmp_path / "x.safetensors")
    with safe_open(str(tmp_path / "x.safetensors"), "pt") as file:
        metadata = file.metadata()
    found = parse(metadata.pop("musubi"))
    assert found == header and found.digest.startswith("crc32:")
    assert metadata == {
        "architecture": "toy",
        "format_version": "1.0.1",
        "width": "64",
        "height": "48",
        "frame_count": "9",
    }


def test_text_metadata():
    header = RecordHeader(kind="text", stem="cat")
    metadata = store.metadata_of(ARCHITECTURE, header, caption="ein Kätzchen")
    assert json.loads(metadata.pop("musubi"))["kind"] == "text"
    assert metadata == {
        "architecture": "toy",
        "format_version": "1.0.1",
        "caption1": "ein Kätzchen",
    }


def test_a_record_comes_back_whole(tmp_path):
    values = record()
    header = written(tmp_path / "x.safetensors", values)
    back, found = store.read_record(tmp_path / "x.safetensors")
    assert found == header and back.keys() == values.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in values.items())
    assert all(back[name].dtype == tensor.dtype for name, tensor in values.items())
    some, _ = store.read_record(tmp_path / "x.safetensors", lambda name: name in ("clip", "absent"))
    assert list(some) == ["clip"]


def test_the_head_is_read_without_tensors(tmp_path):
    header = written(tmp_path / "x.safetensors")
    head = store.read_head(tmp_path / "x.safetensors")
    assert head.header == header == store.read_header(tmp_path / "x.safetensors")
    assert head.shapes["latents_image"] == (20, 3, 6, 8)
    assert head.shapes["t5"] == (9, 4)
    assert head.belongs_to(ARCHITECTURE)


def test_a_head_longer_than_the_first_read(tmp_path):
    header = dataclasses.replace(HEADER, signature="s" * 10_000)
    header = written(tmp_path / "x.safetensors", header=header)
    assert store.read_header(tmp_path / "x.safetensors") == header


def test_another_header_leaves_the_tensors(tmp_path):
    written(tmp_path / "x.safetensors")
    before = load_file(tmp_path / "x.safetensors")
    other = dataclasses.replace(HEADER, signature="new")
    store.rewrite_header(tmp_path / "x.safetensors", other)
    head = store.read_head(tmp_path / "x.safetensors")
    assert head.header == other and head.metadata["frame_count"] == "9"
    after = load_file(tmp_path / "x.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_a_record_of_the_old_tool_has_no_header(tmp_path):
    tensors = {"latents_1x6x8_float32": torch.zeros(16, 1, 6, 8)}
    save_file(
        tensors, tmp_path / "x.safetensors", {"architecture": "toy", "format_version": "1.0.1"}
    )
    head = store.read_head(tmp_path / "x.safetensors")
    assert head.header is None and head.belongs_to(ARCHITECTURE)
    assert list(store.read_record(tmp_path / "x.safetensors")[0]) == ["latents"]


def test_a_dtype_in_the_key_that_the_tensor_does_not_have(tmp_path):
    save_file({"clip_bfloat16": torch.zeros(2, dtype=torch.float16)}, tmp_path / "x.safetensors")
    back, _ = store.read_record(tmp_path / "x.safetensors")
    assert back["clip"].dtype == torch.float16


def test_one_field_in_two_dtypes_is_refused(tmp_path):
    tensors = {"llm_float16": torch.zeros(2).half(), "llm_float32": torch.zeros(2)}
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(DataError, match=r"x\.safetensors.*'llm' twice"):
        store.read_record(tmp_path / "x.safetensors")


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_truncated_record_is_refused(tmp_path, cut):
    path = tmp_path / "x.safetensors"
    written(path)
    path.write_bytes(path.read_bytes()[:cut])
    for read in (store.read_head, store.read_record):
        with pytest.raises(DataError, match=r"x\.safetensors.*(truncated|damaged)"):
            read(path)


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"<!DOCTYPE html><html>" * 100)
    with pytest.raises(DataError, match="damaged"):
        store.read_head(path)
    with pytest.raises(DataError, match="absent"):
        store.read_head(tmp_path / "absent.safetensors")


def test_names():
    assert store.media_name("a b", (1920, 1080), "hv") == "a b_1920x1080_hv.safetensors"
    name = store.media_name("a", (64, 48), "wan", span=(0, 81))
    assert name == "a_00000-081_0064x0048_wan.safetensors"
    name = store.media_name("a", (64, 48), "fp", span=(0, 73), section=1)
    assert name == "a_00000-073-0001_0064x0048_fp.safetensors"
    assert store.text_name("猫", "wan") == "猫_wan_te.safetensors"


def test_the_empty_caption_is_nobodys_item():
    name = store.empty_caption_name("wan")
    assert not name.endswith(("_wan.safetensors", "_wan_te.safetensors"))


def test_what_the_schema_does_not_say_is_refused():
    with pytest.raises(DataError, match=r"cat\.mp4.*'depth'"):
        store.check_record({"depth": torch.zeros(1)}, FIELDS, "cat.mp4", complete=False)
    with pytest.raises(DataError, match="lacks 'latents'"):
        store.check_record({}, FIELDS, "cat.mp4")
    with pytest.raises(DataError, match=r"C.*16"):
        store.check_record({"latents": torch.zeros(4, 1, 2, 2)}, FIELDS, "x", complete=False)
    with pytest.raises(DataError, match=r"cat\.mp4.*not finite"):
        bad = {"clip": torch.tensor([[1.0, float("inf")]])}
        store.check_record(bad, FIELDS, "cat.mp4", complete=False)


def test_a_header_of_another_version_is_unknown():
    values = json.loads(HEADER.to_json())
    assert parse(json.dumps(values)) == HEADER
    assert parse(json.dumps({**values, "version": 99})) is None
    assert parse("no json") is None and parse("[]") is None


def test_a_change_of_any_byte_is_found(tmp_path):
    path = tmp_path / "x.safetensors"
    written(path)
    whole = path.read_bytes()
    assert store.is_whole(path)
    for place in random.Random(0).sample(range(len(whole)), 300):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        # Spaces fill the header up, and what was ours may have become another tool's.
        known = store.is_whole(path) and store.read_head(path).header is not None
        assert not known or whole[place : place + 1] == b" ", place
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match="damaged"):
        store.read_record(path)


def test_a_record_without_a_digest_is_read(tmp_path):
    """As earlier versions wrote them."""
    path = tmp_path / "x.safetensors"
    header = written(path)
    tensors = load_file(path)
    facts = json.loads(header.to_json())
    del facts["digest"]
    metadata = {"architecture": "toy", "format_version": "1.0.1", "musubi": json.dumps(facts)}
    save_file(tensors, path, metadata)
    back, found = store.read_record(path)
    assert found == header and len(back) == len(tensors) and store.is_whole(path)


def test_a_copy_by_another_writer_is_as_whole(tmp_path):
    path = tmp_path / "x.safetensors"
    written(path)
    with safe_open(str(path), "pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, metadata)
    assert store.is_whole(path) and store.read_head(path).header.digest


@pytest.mark.parametrize(
    "change",
    [
        {"parts": 10**9},
        {"clips": -1},
        {"clip": 1.5},
        {"bucket": [1, "a"]},
        {"fields": [1]},
        {"encoders": []},
        {"dtypes": {"vae": 1}},
        {"digest": "md5:0"},
        {"stem": None},
        {"adopted": 1},
        {"start": 2**70},
    ],
)
def test_a_header_of_other_kinds_of_values_is_none(change):
    facts = json.loads(HEADER.to_json())
    assert parse(json.dumps(facts)) == HEADER
    assert parse(json.dumps({**facts, **change})) is None
