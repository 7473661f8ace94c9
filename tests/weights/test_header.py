"""Headers are refused as the safetensors library refuses them."""

import json
import struct

import pytest
from safetensors import SafetensorError, safe_open

from musubi.errors import CheckpointError
from musubi.weights.header import read_header

A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
B = {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}


def write(path, header, size=12):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
    return path


REFUSED = {
    "overlapping": {"a": A, "b": {**B, "data_offsets": [4, 8]}, "c": {**B, "data_offsets": [8, 12]}},
    "with a hole": {"a": {**A, "shape": [1], "data_offsets": [0, 4]}, "b": B},
    "not from the start": {"a": {**A, "data_offsets": [4, 12]}},
    "of a negative shape": {"a": {**A, "shape": [-1, -2]}, "b": B},
    "of a shape with a point": {"a": {**A, "shape": [2.0]}, "b": B},
    "of a shape that is true": {"a": {**A, "shape": [True, 2]}, "b": B},
    "of negative offsets": {"a": {**A, "data_offsets": [-8, 0]}, "b": B},
    "backwards": {"a": {**A, "data_offsets": [8, 0]}, "b": B},
    "of three offsets": {"a": {**A, "data_offsets": [0, 4, 8]}, "b": B},
    "of offsets with a point": {"a": {**A, "data_offsets": [0, 8.0]}, "b": B},
    "of a huge shape": {"a": {**A, "shape": [2**62, 2**62]}, "b": B},
    "without offsets": {"a": {"dtype": "F32", "shape": [2]}, "b": B},
    "without a shape": {"a": {"dtype": "F32", "data_offsets": [0, 8]}, "b": B},
    "of a dtype that is a number": {"a": {**A, "dtype": 1}, "b": B},
    "as a list": [A],
    "with numbers as metadata": {"__metadata__": {"a": 1}, "a": A, "b": B},
    "with a list as metadata": {"__metadata__": ["a"], "a": A, "b": B},
    "with a text as tensor": {"a": "x"},
    "that is no UTF-8": b'{"\xff": 1}',
    "that nests": b"[" * 100_000,
    "that nests in objects": b'{"a":' * 50_000,
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_header_is_refused_by_us_and_by_the_library(tmp_path, case):
    path = write(tmp_path / "x.safetensors", REFUSED[case])
    with pytest.raises(SafetensorError), safe_open(str(path), "pt"):
        pass
    with pytest.raises(CheckpointError, match=r"x\.safetensors is"):
        read_header(path)


def test_one_name_twice_is_refused(tmp_path):
    text = f'{{"a": {json.dumps(A)}, "b": {json.dumps(B)}, "b": {json.dumps(B)}}}'.encode()
    with pytest.raises(CheckpointError, match="'b' occurs twice"):
        read_header(write(tmp_path / "x.safetensors", text))


def test_a_number_of_thousands_of_digits_is_refused(tmp_path):
    text = json.dumps({"a": A, "b": B}).replace("[2]", f"[{'9' * 5000}]").encode()
    with pytest.raises(CheckpointError):
        read_header(write(tmp_path / "x.safetensors", text))


def test_what_the_library_takes_is_taken(tmp_path):
    empty = {"dtype": "F32", "shape": [0, 3], "data_offsets": [8, 8]}
    path = write(tmp_path / "x.safetensors", {"b": B, "e": empty, "a": A, "__metadata__": None})
    with safe_open(str(path), "pt") as file:
        assert set(file.keys()) == {"a", "b", "e"}
    assert set(read_header(path).entries) == {"a", "b", "e"}
