"""Each file used or left out for one reason, whatever its name."""

import json

import pytest

from musubi.data.sources import scan
from musubi.errors import DataError


def names(found):
    return [s.path.name for s in found.sources]


def reasons(found):
    return {s.path.name: s.reason for s in found.skipped}


def listed(files, *rows, name="list.jsonl"):
    path = files.folder / name
    path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("folder", ["a [1] (x)", "猫 と 犬", "100% {a}"])
def test_names_that_are_patterns_elsewhere(files, tmp_path, folder):
    files.folder = tmp_path / folder
    files.image("a [0].png", caption=" 猫 \n")
    files.image("ü.JPG")
    found = scan(files.entry())
    assert names(found) == ["a [0].png", "ü.JPG"]
    assert [s.caption for s in found.sources] == ["猫", "a ball"]
    assert [s.stem for s in found.sources] == ["a [0]", "ü"]


def test_captions_missing_empty_and_not_utf8(files):
    files.image("missing.png", caption=None)
    files.image("empty.png", caption=" \n")
    files.image("latin.png").with_suffix(".txt").write_bytes("café".encode("latin-1"))
    files.image("bom.png").with_suffix(".txt").write_bytes(b"\xef\xbb\xbfa cat")
    found = scan(files.entry())
    assert [(s.path.name, s.caption) for s in found.sources] == [("bom.png", "a cat")]
    said = reasons(found)
    assert "no missing.txt" in said["missing.png"]
    assert "empty.txt" in said["empty.png"] and "is empty" in said["empty.png"]
    assert "latin.txt" in said["latin.png"] and "UTF-8" in said["latin.png"]


def test_another_caption_extension_is_pointed_out(files):
    files.image("a.png", caption=None)
    (files.folder / "a.caption").write_text("a ball", encoding="utf-8")
    assert "caption_extension is '.caption'" in reasons(scan(files.entry()))["a.png"]
    assert names(scan(files.entry(caption_extension=".caption"))) == ["a.png"]


def test_two_files_of_one_stem(files):
    files.image("a.webp")
    files.image("a.png")
    found = scan(files.entry())
    assert names(found) == ["a.png"]
    assert "a.webp has the same name as a.png" in reasons(found)["a.webp"]


def test_what_is_of_no_use_is_told_but_not_a_fault(files):
    files.image("a.png")
    files.image("inside/b.png")
    files.video("c.mp4", 2, caption=None)
    for name in ("alone.txt", "notes.md", "a_wan.safetensors", ".hidden"):
        (files.folder / name).write_text("x")
    found = scan(files.entry())
    assert not found.skipped
    said = {s.path.name: s.reason for s in found.others}
    assert set(said) == {"inside", "c.mp4", "alone.txt", "notes.md"}
    assert "video_directory" in said["c.mp4"] and "caption of nothing" in said["alone.txt"]


def test_ten_thousand_files_need_one_pass(files, monkeypatch):
    import os

    for i in range(300):
        (files.folder / f"{i}.png").write_bytes(b"")
        (files.folder / f"{i}.txt").write_text("x")
    seen = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda p: seen.append(p) or real(p))
    assert len(scan(files.entry()).sources) == 300
    assert len(seen) == 1


def test_videos_and_folders_of_frames(files):
    files.video("a.mp4", 2)
    files.folder_of_images("take.1", 3)
    files.folder_of_images("no caption", 2, caption=None)
    found = scan(files.entry("video"))
    assert [(s.path.name, s.stem) for s in found.sources] == [("a.mp4", "a"), ("take.1", "take")]
    assert any("no caption" in s.reason for s in found.others)


# controls


def test_control_images_by_stem_then_by_number(files):
    for name in ("cat.png", "cat_1.png", "dog.png"):
        files.image(name)
    for name in (
        "cat_10.png",
        "cat_2.jpg",
        "cat.png",
        "cat_1.png",
        "dog_0.png",
        "bird.png",
        "catfish.png",
    ):
        files.image(f"control/{name}", caption=None)
    found = scan(files.entry(control_directory=files.folder / "control"))
    pairs = {s.stem: [c.name for c in s.inputs["control"]] for s in found.sources}
    assert pairs == {
        "cat": ["cat.png", "cat_2.jpg", "cat_10.png"],
        "cat_1": ["cat_1.png"],
        "dog": ["dog_0.png"],
    }
    assert {s.path.name for s in found.others} == {"bird.png", "catfish.png"}


def test_a_file_without_a_control_is_left_out(files):
    files.image("a.png")
    files.image("b.png")
    files.image("control/a.png", caption=None)
    found = scan(files.entry(control_directory=files.folder / "control"))
    assert names(found) == ["a.png"]
    assert "b.png has no control file" in reasons(found)["b.png"]


def test_control_videos_by_name_then_folder_then_ending(files):
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        files.video(name, 2)
    files.video("control/a.mp4", 2, caption=None)
    files.video("control/a.mkv", 2, caption=None)
    files.folder_of_images("control/b", 2, caption=None)
    files.video("control/b.mkv", 2, caption=None)
    files.video("control/c.mkv", 2, caption=None)
    found = scan(files.entry("video", control_directory=files.folder / "control"))
    assert [s.inputs["control"][0].name for s in found.sources] == ["a.mp4", "b", "c.mkv"]


# lists


def test_a_list_with_relative_paths_and_controls(files):
    for name in ("b.png", "a.png", "c0.png", "c10.png"):
        files.image(name, caption=None)
    controls = {"control_path_10": "c10.png", "control_path_0": "c0.png"}
    rows = [{"image_path": f"{n}.png", "caption": f" {n} ", **controls} for n in "ba"]
    found = scan(files.entry(jsonl_file=listed(files, *rows)))
    assert [(s.stem, s.caption) for s in found.sources] == [("a", "a"), ("b", "b")]
    assert [c.name for c in found.sources[0].inputs["control"]] == ["c0.png", "c10.png"]


def test_a_list_leaves_out_what_cannot_be_used(files):
    for name in ("a.png", "b.png", "d.png", "x/a.png", "n.txt"):
        files.image(name, caption=None) if name.endswith("png") else None
    (files.folder / "n.txt").write_text("x")
    rows = [
        {"image_path": "a.png", "caption": "a", "control_path": "b.png"},
        {"image_path": "b.png", "caption": "b"},
        {"image_path": "gone.png", "caption": "c"},
        {"image_path": "d.png", "caption": ""},
        {"image_path": "x/a.png", "caption": "a", "control_path": "b.png"},
        {"image_path": "n.txt", "caption": "n"},
    ]
    found = scan(files.entry(jsonl_file=listed(files, *rows)))
    assert names(found) == ["a.png"]
    said = " ".join(s.reason for s in found.skipped)
    for fragment in (
        "no control_path",
        "gone.png",
        "line 3 does not exist",
        "line 4",
        "same name",
        "n.txt",
    ):
        assert fragment in said
    assert len(found.skipped) == 5


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ('{"image_path"', "line 1 is not JSON"),
        ("[]", "line 1 is not an object"),
        ('\n{"image": "a.png", "caption": "a"}', "line 2 has no 'image_path'"),
    ],
)
def test_a_line_that_cannot_be_understood(files, text, fragment):
    path = files.folder / "list.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=fragment):
        scan(files.entry(jsonl_file=path))


def test_a_file_that_is_listed_twice_is_told_as_one(files):
    path = files.image("a.png")
    rows = [{"image_path": str(path), "caption": "a"}, {"image_path": "a.png", "caption": "b"}]
    found = scan(files.entry(jsonl_file=listed(files, *rows)))
    assert [s.caption for s in found.sources] == ["a"]
    (one,) = found.skipped
    assert one.reason == "a.png is listed more than once; its first line is used."
