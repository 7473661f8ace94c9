import io
import json
import pickle
import struct
import zipfile

import pytest
import torch

from musubi.errors import CheckpointError
from musubi.weights import files
from musubi.weights.files import open_weights
from musubi.weights.write import save

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


def _same(path):
    with open_weights(path) as weights:
        assert set(weights.names) == set(TENSORS) == set(weights.shapes) == set(weights.dtypes)
        assert weights.shapes["a.weight"] == (2, 3)
        assert weights.dtypes["b"] is torch.bfloat16
        for name, tensor in TENSORS.items():
            assert torch.equal(weights.read(name), tensor)
        return weights


def _refused(path, sentence):
    with pytest.raises(CheckpointError, match=sentence) as caught:
        open_weights(path)
    assert caught.value.fix
    return caught.value


def test_a_safetensors_file_with_an_awkward_name(tmp_path):
    path = tmp_path / "モデル [v1] final*.safetensors"
    save(path, TENSORS, {"note": "x"})
    assert _same(path).metadata == {"note": "x"}
    assert _same(str(path)).path == path


def test_names_come_in_the_order_of_the_bytes(tmp_path):
    save(tmp_path / "x.safetensors", {"half": TENSORS["b"], "wide": TENSORS["a.weight"]})
    with open_weights(tmp_path / "x.safetensors") as weights:
        assert weights.names == ("wide", "half")


@pytest.mark.parametrize("level", [None, "module", "state_dict", "model"])
def test_torch_files_with_and_without_a_top_level(tmp_path, level):
    values = TENSORS if level is None else {level: TENSORS, "step": 3}
    torch.save(values, tmp_path / "x.pth")
    assert _same(tmp_path / "x.pth").metadata == {}


def test_old_torch_files_and_wrong_endings_are_read_by_content(tmp_path):
    torch.save(TENSORS, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    _same(tmp_path / "old.pt")
    save(tmp_path / "really.bin", TENSORS)
    _same(tmp_path / "really.bin")
    torch.save(TENSORS, tmp_path / "pickled.safetensors")
    _same(tmp_path / "pickled.safetensors")


def test_torch_files_are_mapped_and_not_read(tmp_path, monkeypatch):
    asked = []
    load = torch.load

    def spy(*args, **kwargs):
        asked.append((kwargs["mmap"], kwargs["weights_only"]))
        return load(*args, **kwargs)

    monkeypatch.setattr(files.torch, "load", spy)
    torch.save(TENSORS, tmp_path / "new.pt")
    torch.save(TENSORS, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    _same(tmp_path / "new.pt")
    _same(tmp_path / "old.pt")
    assert asked == [(True, True), (False, True)]


def test_opening_safetensors_reads_only_the_header(tmp_path, monkeypatch):
    save(tmp_path / "x.safetensors", TENSORS)
    monkeypatch.setattr(files._Safetensors, "read", None)
    with open_weights(tmp_path / "x.safetensors") as weights:
        assert len(weights.names) == 2


# what is refused


def test_a_missing_file_names_the_nearest(tmp_path):
    save(tmp_path / "wan_2.1_vae.safetensors", TENSORS)
    error = _refused(tmp_path / "wan_21_vae.safetensors", "There is no file")
    assert "wan_2.1_vae.safetensors" in error.fix
    _refused(tmp_path / "q", "holds wan_2.1_vae.safetensors")
    _refused(tmp_path / "no" / "x.pt", r"The folder .*no does not exist either")


def test_what_the_system_refuses_is_named(tmp_path, monkeypatch):
    save(tmp_path / "x.safetensors", TENSORS)

    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(files, "read_header", refused)
    _refused(tmp_path / "x.safetensors", r"x\.safetensors cannot be read: permission is denied\.")
    _refused(tmp_path / ("x" * 5000), "cannot be read")


def test_an_empty_file(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"")
    _refused(tmp_path / "x.safetensors", "is empty: it has 0 bytes")


def test_a_truncated_file_says_both_sizes(tmp_path):
    path = tmp_path / "x.safetensors"
    save(path, TENSORS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    _refused(
        path, f"truncated: its header says {len(whole)} bytes, and the file has {len(whole) - 5}"
    )
    path.write_bytes(whole[:100])
    _refused(path, "truncated: its header has 248 bytes, and the file ends after 100")
    path.write_bytes(whole[:5])
    _refused(path, "not a safetensors file")
    path.write_bytes(whole + b"more")
    _refused(path, "damaged: its header says")


def test_a_header_that_lies(tmp_path):
    def write(facts):
        text = facts if isinstance(facts, bytes) else json.dumps(facts).encode()
        (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))

    write(b"{nonsense")
    _refused(tmp_path / "x.safetensors", "header cannot be understood")
    write({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}})
    _refused(tmp_path / "x.safetensors", "'a' has the wrong number of bytes")
    write({"a": {"dtype": "F4", "shape": [16], "data_offsets": [0, 8]}})
    _refused(tmp_path / "x.safetensors", "stores 'a' in a dtype that this torch does not have")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"GGUF\x03\x00\x00\x00", "GGUF"),
        (b'{"a": 1}', "JSON text"),
        (b"[general]\nresolution = 5", "a TOML file of settings"),
        (b"# mine\n[[datasets]]", "a TOML file of settings"),
        (b"\x00\x01\x02 whatever this may be", "is not a checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path, content, sentence):
    (tmp_path / "x.pt").write_bytes(content)
    _refused(tmp_path / "x.pt", sentence)


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("new", [True, False])
def test_pickled_code_is_not_run(tmp_path, new):
    mark = tmp_path / "ran"
    values = {"a": torch.zeros(1), "b": Bomb(str(mark))}
    torch.save(values, tmp_path / "x.pt", _use_new_zipfile_serialization=new)
    error = _refused(tmp_path / "x.pt", "carries Python code .*nothing in it was run")
    assert "open" in error.what
    assert "safetensors" in error.fix
    assert not mark.exists()


def test_pickles_without_tensors_and_cut_ones(tmp_path):
    torch.save({"step": 1}, tmp_path / "x.pt")
    _refused(tmp_path / "x.pt", "holds no named tensors")
    torch.save([torch.zeros(1)], tmp_path / "x.pt")
    _refused(tmp_path / "x.pt", "holds no named tensors")
    torch.save(TENSORS, tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes((tmp_path / "x.pt").read_bytes()[:-300])
    _refused(tmp_path / "x.pt", "truncated or damaged")
    (tmp_path / "x.pt").write_bytes(pickle.dumps({"a": 1})[:6])
    _refused(tmp_path / "x.pt", "something else than plain tensors; .*nothing in it was run")
    (tmp_path / "x.pt").write_bytes(pickle.dumps({"a": 1}, protocol=2)[:8])
    _refused(tmp_path / "x.pt", "truncated or damaged")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "x")
    (tmp_path / "x.pt").write_bytes(buffer.getvalue())
    _refused(tmp_path / "x.pt", "truncated or damaged")


def test_a_tensor_that_is_not_there(tmp_path):
    save(tmp_path / "x.safetensors", TENSORS)
    torch.save(TENSORS, tmp_path / "x.pt")
    for name in ("x.safetensors", "x.pt"):
        with open_weights(tmp_path / name) as weights, pytest.raises(CheckpointError, match="'c'"):
            weights.read("c")


# shards and folders


def _shards(folder, stem="model"):
    folder.mkdir(exist_ok=True)
    names = [f"{stem}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for file, (name, tensor) in zip(names, TENSORS.items(), strict=True):
        save(folder / file, {name: tensor})
    table = dict(zip(TENSORS, names, strict=True))
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    return folder, names


def test_shards_are_one_checkpoint_however_they_are_named(tmp_path):
    folder, names = _shards(tmp_path / "set [x]")
    for path in (folder, folder / names[0], folder / names[1]):
        assert len(_same(path).parts) == 2
    _same(folder / "model.safetensors.index.json")


def test_a_missing_shard_is_named(tmp_path):
    folder, names = _shards(tmp_path / "set")
    (folder / names[1]).unlink()
    for path in (folder, folder / names[0], folder / "model.safetensors.index.json"):
        _refused(path, f"{names[1]} is missing")


def test_indexes_and_shards_that_contradict(tmp_path):
    folder, names = _shards(tmp_path / "set")
    save(folder / names[1], {"a.weight": TENSORS["b"]})
    _refused(folder, "'a.weight' is both in")
    (folder / "model.safetensors.index.json").write_text("[]")
    _refused(folder / "model.safetensors.index.json", "no readable 'weight_map'")


def test_folders_prefer_safetensors_and_the_published_name(tmp_path):
    save(tmp_path / "diffusion_pytorch_model.safetensors", TENSORS)
    save(tmp_path / "diffusion_pytorch_model.fp16.safetensors", {"other": TENSORS["b"]})
    torch.save({"other": TENSORS["b"]}, tmp_path / "diffusion_pytorch_model.bin")
    _same(tmp_path)


def test_folders_without_weights_or_with_too_many(tmp_path):
    (tmp_path / "readme.txt").write_text("x")
    _refused(tmp_path, r"holds no weights.* holds readme.txt")
    save(tmp_path / "one.safetensors", TENSORS)
    _same(tmp_path)
    save(tmp_path / "two.safetensors", TENSORS)
    _refused(tmp_path, r"more than one set of weights: one.safetensors, two.safetensors")
