"""Archives in the place of folders: read like these, unpacked once, and never believed."""

import io
import os
import shutil
import tarfile
import zipfile

import pytest

from musubi.data import archives
from musubi.data.sources import scan
from musubi.errors import DataError


@pytest.fixture
def pack(files, tmp_path):
    """Packs the folder of the fixture `files`, and gives the dataset of the archive."""

    files.folder = tmp_path / "media"
    files.folder.mkdir()

    def pack(form="zip", name="clips", top="", add=()):
        path = tmp_path / f"{name}.{form}"
        content = [(f"{top}{p.name}", p.read_bytes()) for p in sorted(files.folder.iterdir())]
        write(path, [*content, *add])
        return files.entry(directory=path, cache_directory=tmp_path / "cache")

    return pack


def write(path, content, kind=tarfile.REGTYPE):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
            for name, data in content:
                out.writestr(name, data)
        return
    with tarfile.open(path, "w") as out:
        for name, data in content:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(data), "/etc/passwd"
            out.addfile(info, io.BytesIO(data))


def leaves_nothing(entry, outside):
    assert not [p for p in entry.cache_directory.parent.rglob("*") if "evil" in p.name]
    assert not (entry.cache_directory / "unpacked").exists()
    assert not list(entry.cache_directory.glob(".musubi-*")) and not outside.exists()


@pytest.mark.parametrize("form", ["zip", "tar"])
@pytest.mark.parametrize("top", ["", "clips/", "./a/b/"])
def test_members_are_read_as_if_they_lay_in_a_folder(files, pack, form, top):
    files.image("a.png", caption="one")
    files.image("ü.png", caption=None)
    plain = scan(files.entry())
    entry = pack(form, top=top, add=[("__MACOSX/._a.png", b"x"), (f"{top}.DS_Store", b"x")])
    found = scan(entry)
    assert [(s.stem, s.caption) for s in found.sources] == [("a", "one")]
    assert [s.reason for s in found.skipped] == [s.reason for s in plain.skipped]
    assert found.sources[0].path.read_bytes() == plain.sources[0].path.read_bytes()


def test_it_is_unpacked_once_and_again_when_it_changes_or_a_file_is_gone(files, pack, monkeypatch):
    files.image("a.png")
    entry = pack()
    times = []
    real = archives._unpack
    monkeypatch.setattr(archives, "_unpack", lambda *a: (times.append(1), real(*a)))
    (first,) = scan(entry).sources
    scan(entry)
    os.utime(entry.directory, (1, 1))  # the same bytes
    scan(entry)
    assert len(times) == 1
    first.path.unlink()
    assert scan(entry).sources[0].path.exists() and len(times) == 2
    files.image("b.png")
    assert [s.stem for s in scan(pack()).sources] == ["a", "b"] and len(times) == 3
    assert [p.name for p in entry.cache_directory.iterdir()] == ["unpacked"]


def test_inputs_have_archives_of_their_own(files, pack, tmp_path):
    files.image("a.png")
    masks = tmp_path / "masks.zip"
    write(masks, [("masks/a.png", (files.folder / "a.png").read_bytes())])
    entry = archives.replace(pack(), directories={"mask": masks})
    assert archives.unpacked(entry).directories["mask"].joinpath("a.png").is_file()


@pytest.mark.parametrize("form", ["zip", "tar"])
@pytest.mark.parametrize(
    "name",
    ["../evil.png", "/tmp/evil.png", "a/../../evil.png", "..\\evil.png", "C:evil.png", "\x01evil"],
)
def test_names_that_lead_out_are_refused(files, pack, tmp_path, form, name):
    files.image("a.png")
    entry = pack(form, add=[(name, b"x")])
    with pytest.raises(DataError, match=r"clips\.\w+ is not unpacked: the name "):
        scan(entry)
    leaves_nothing(entry, tmp_path / "evil.png")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_links_and_devices_of_a_tar_are_refused(files, tmp_path, kind):
    path = tmp_path / "clips.tar"
    write(path, [("a.png", b"")], kind=kind)
    with pytest.raises(DataError, match="is a link, a device"):
        scan(files.entry(directory=path, cache_directory=tmp_path / "cache"))


def test_links_of_a_zip_are_refused(files, tmp_path):
    info = zipfile.ZipInfo("a.png")
    info.external_attr = 0o120777 << 16
    write(tmp_path / "clips.zip", [(info, b"/etc/passwd")])
    with pytest.raises(DataError, match="is a link or a device"):
        scan(files.entry(directory=tmp_path / "clips.zip", cache_directory=tmp_path / "cache"))


def test_bombs_are_refused_before_they_are_written(files, pack, monkeypatch):
    monkeypatch.setattr(archives, "_FREE_BYTES", 1000)
    entry = pack(add=[("evil.png", b"\0" * (8 << 20))])
    with pytest.raises(DataError, match="far more bytes"):
        scan(entry)
    monkeypatch.setattr(archives, "_MOST_FILES", 2)
    with pytest.raises(DataError, match="more than 2 files"):
        scan(pack(add=[(f"{n}.png", b"") for n in range(3)]))
    leaves_nothing(entry, entry.cache_directory / "evil.png")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("form", "add", "says"),
    [
        ("zip", [("b", b"x"), ("b", b"y")], "twice"),
        ("tar", [("b", b"x"), ("b/c", b"y")], "twice"),
        ("zip", [("a/" * 20 + "b", b"x")], "no part, or more"),
        ("tar", [("x" * 300, b"x")], "cannot be read"),
    ],
)
def test_odd_content_is_refused(pack, form, add, says):
    with pytest.raises(DataError, match=says):
        scan(pack(form, add=add))


def test_only_hidden_files(pack):
    with pytest.raises(DataError, match="no files"):
        scan(pack(add=[(".hidden", b"x")]))


@pytest.mark.parametrize("form", ["zip", "tar"])
def test_every_damage_is_a_sentence_or_a_whole_folder(files, pack, form):
    """Bytes changed and files cut off: a refusal that names the file, or all that it held."""
    files.image("a.png")
    entry = pack(form)
    whole = entry.directory.read_bytes()
    step = max(1, len(whole) // 80)
    damaged = [whole[:n] for n in range(0, len(whole), step)]
    damaged += [
        whole[:n] + bytes([whole[n] ^ 0x41]) + whole[n + 1 :] for n in range(0, len(whole), step)
    ]
    refused = 0
    for content in damaged:
        entry.directory.write_bytes(content)
        shutil.rmtree(entry.cache_directory, ignore_errors=True)
        try:
            assert [s.stem for s in scan(entry).sources] == [
                "a"
            ]  # bytes inside, which a tar cannot know
        except DataError as error:
            refused += 1
            assert entry.directory.name in error.what
            assert not (entry.cache_directory / "unpacked").exists()
    assert refused > 30
