"""Checkpoint dialects: rules that read both ways."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musubi.errors import CheckpointError
from musubi.plugin import Fuse, KeyMap, Rename, Squeeze, Swap

MAP = KeyMap(
    name="theirs",
    marker=("blocks.{n}.q.weight",),
    prefix="model.",
    drop=("tokenizer.{rest}",),
    rules=(
        Fuse(
            theirs=("blocks.{n}.q.{kind}", "blocks.{n}.k.{kind}", "blocks.{n}.v.{kind}"),
            ours="layers.{n}.qkv.{kind}",
        ),
        Swap(theirs="head.mod.{kind}", ours="final.mod.{kind}"),
        Squeeze(theirs="mid.q.weight", ours="mid.to_q.weight", ones=3),
        Rename(theirs="blocks.{n}.{rest}", ours="layers.{n}.{rest}"),
    ),
)
NAMES = [
    "model.blocks.0.q.weight",
    "model.blocks.0.k.weight",
    "model.blocks.0.v.weight",
    "model.blocks.0.ffn.0.bias",
    "model.head.mod.weight",
    "model.patch.weight",
]


def test_a_file_is_recognised_by_what_it_holds():
    assert MAP.recognises(NAMES)
    assert not MAP.recognises([n.removeprefix("model.") for n in NAMES])
    assert not MAP.recognises(["model.patch.weight"])


def test_names_are_read():
    read = MAP.reading([*NAMES, "elsewhere.weight", "model.tokenizer.vocab"])
    assert set(read) == {
        "layers.0.qkv.weight",
        "layers.0.ffn.0.bias",
        "final.mod.weight",
        "patch.weight",
    }
    assert read["layers.0.qkv.weight"].operation == "concat"
    assert read["layers.0.qkv.weight"].names == tuple(NAMES[:3])
    assert read["final.mod.weight"].operation == "swap"


def test_writing_undoes_reading():
    written = MAP.writing(MAP.reading(NAMES))
    assert sorted(written) == sorted(NAMES)
    assert [written[n].part for n in NAMES[:3]] == [0, 1, 2]
    assert all(written[n].operation == "split" for n in NAMES[:3])


def test_a_convolution_that_is_a_matrix_loses_its_axes_and_gets_them_back():
    read = MAP.reading(["model.mid.q.weight"])["mid.to_q.weight"]
    assert (read.operation, read.ones) == ("squeeze", 3)
    written = MAP.writing(["mid.to_q.weight"])["model.mid.q.weight"]
    assert (written.operation, written.ones) == ("unsqueeze", 3)


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=8, unique=True), st.sampled_from(["a", "b.c"])
)
def test_renaming_is_its_own_inverse(numbers, rest):
    names = [f"model.blocks.{n}.{rest}.weight" for n in numbers]
    ours = MAP.reading(names)
    assert sorted(MAP.writing(ours)) == sorted(names)
    assert {s.names[0] for s in ours.values()} == set(names)


def test_a_missing_part_is_named():
    with pytest.raises(CheckpointError, match=r"lacks 'blocks\.\{n\}\.v\.\{kind\}'"):
        MAP.reading(NAMES[:2])


def test_two_names_for_one_tensor_are_refused():
    with pytest.raises(CheckpointError, match=r"are both 'layers\.0\.ffn\.0\.bias'"):
        MAP.reading([*NAMES, "model.layers.0.ffn.0.bias"])


def test_writing_two_onto_one_is_refused():
    with pytest.raises(CheckpointError, match="are both"):
        MAP.writing(["layers.0.a", "blocks.0.a"])
