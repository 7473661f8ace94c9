import errno
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from musubi.errors import RunError
from musubi.weights import write
from musubi.weights.header import make_header
from musubi.weights.write import atomic, save, stream, verify

MIXED = {
    "odd": torch.tensor([True, False, True]),
    "turned": torch.arange(6.0).reshape(2, 3).t(),
    "number": torch.tensor(2.5, dtype=torch.float64),
    "nothing": torch.zeros(0, 3),
    "eight": torch.ones(3).to(torch.float8_e4m3fn),
    "half": torch.ones(3, dtype=torch.bfloat16),
}


def _names(folder):
    return [p.name for p in folder.iterdir()]


def test_the_library_reads_what_is_saved(tmp_path):
    path = tmp_path / "deep" / "結び [1].safetensors"
    save(path, MIXED, {"title": "結び", "json": '{"a": 1}'})
    read = load_file(path)
    assert set(read) == set(MIXED)
    for name, tensor in MIXED.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name].float(), tensor.float())
    with safe_open(str(path), "pt") as file:
        assert file.metadata() == {"title": "結び", "json": '{"a": 1}'}
    assert _names(path.parent) == [path.name]
    verify(path)


def test_every_tensor_is_aligned_to_its_size():
    header = make_header([(n, t.dtype, tuple(t.shape)) for n, t in MIXED.items()], None)
    assert len(header.raw) % 256 == 0
    for entry in header.entries.values():
        assert entry.start % entry.dtype.itemsize == 0


def test_streaming_asks_for_one_tensor_at_a_time(tmp_path):
    asked = []

    def produce(name):
        asked.append(name)
        return torch.full((2,), float(len(asked)))

    entries = ((f"t{i}", torch.float32, (2,)) for i in range(3))
    stream(tmp_path / "s.safetensors", entries, produce)
    assert asked == ["t0", "t1", "t2"]
    assert load_file(tmp_path / "s.safetensors")["t2"].tolist() == [3.0, 3.0]


def test_a_tensor_that_was_announced_otherwise_is_refused_and_nothing_is_left(tmp_path):
    with pytest.raises(ValueError, match="'a' was announced as"):
        stream(tmp_path / "s", [("a", torch.float32, (2,))], lambda _: torch.zeros(3))
    with pytest.raises(ValueError, match="two tensors are named 'a'"):
        stream(tmp_path / "s", [("a", torch.float32, (2,))] * 2, lambda _: torch.zeros(2))
    assert not _names(tmp_path)


def test_a_full_disk_names_file_and_bytes_and_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    save(path, {"a": torch.zeros(2)})
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write, "_to_disk", full)
    with pytest.raises(RunError, match="disk is full") as caught:
        save(path, {"a": torch.ones(300)})
    assert str(path) in caught.value.what
    assert "bytes were to be written" in caught.value.what
    assert path.read_bytes() == before
    assert _names(tmp_path) == [path.name]


def test_a_disk_that_fills_up_while_writing_leaves_nothing(tmp_path, monkeypatch):
    opened = Path.open

    def stingy(self, mode="r", *args, **kwargs):
        file = opened(self, mode, *args, **kwargs)
        if mode == "wb":
            whole, written = file.write, []

            def limited(data):
                written.append(len(data))
                if sum(written) > 400:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return whole(data)

            class Limited:
                def __enter__(self):
                    return self

                def __exit__(self, *exc):
                    file.close()

                write = staticmethod(limited)

            return Limited()
        return file

    monkeypatch.setattr(Path, "open", stingy)
    with pytest.raises(RunError, match="disk is full"):
        save(tmp_path / "x.safetensors", {"a": torch.ones(300)})
    assert not _names(tmp_path)


def test_a_folder_that_is_a_file_is_explained(tmp_path):
    (tmp_path / "folder").write_text("")
    with pytest.raises((RunError, FileExistsError)):
        save(tmp_path / "folder" / "x.safetensors", {"a": torch.zeros(1)})


def test_a_file_that_cannot_be_replaced_is_explained(tmp_path, monkeypatch):
    def refused(self, target):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(RunError, match=r"x\.txt could not be written: permission is denied"):  # noqa: SIM117
        with atomic(tmp_path / "x.txt") as temporary:
            temporary.write_text("new")
    assert not _names(tmp_path)


def test_atomic_replaces_only_when_the_block_ends_well(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(KeyError), atomic(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    with pytest.raises(OSError, match="another file"), atomic(path) as temporary:
        raise OSError(errno.ENOENT, "another file", "elsewhere")
    with atomic(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert _names(tmp_path) == ["x.txt"]


def test_names_may_be_as_long_as_the_disk_allows(tmp_path):
    path = tmp_path / ("あ" * 80 + ".safetensors")
    save(path, {"a": torch.zeros(1)})
    assert path.is_file()


def test_verify_notices_a_file_that_was_cut(tmp_path):
    path = tmp_path / "x.safetensors"
    save(path, {"a": torch.zeros(8)})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match=r"did not verify: .*truncated"):
        verify(path)
    path.unlink()
    with pytest.raises(RunError, match="did not verify"):
        verify(path)
