"""The account of a dataset, and pictures of what will be trained."""

from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from musubi.data import check, preview
from musubi.errors import DataError
from musubi.plugin import Quiet


class Config(SimpleNamespace):
    """A command's options, of which none is the architecture's own."""

    own = frozenset()


@pytest.fixture
def dataset(files):
    """Writes the dataset file and gives the config of a command."""

    def call(text: str = "", kind: str = "image", **more):
        path = files.folder.parent / "data.toml"
        path.write_text(
            f"[[datasets]]\n{kind}_directory = '{files.folder.as_posix()}'\n"
            f"cache_directory = '{(files.folder.parent / 'cache').as_posix()}'\n"
            f"caption_extension = '.txt'\nresolution = [64, 48]\n{text}",
            encoding="utf-8",
        )
        keys = {"dataset_config": str(path), "task": None, "num_workers": 1, "batch_size": None}
        return Config(**{**keys, **more})

    return call


@pytest.fixture
def files(files, tmp_path):
    files.folder = tmp_path / "media"
    files.folder.mkdir()
    return files


def told(config, wan, run=check.run):
    report = Quiet()
    run(config, wan, report)
    return "\n".join(report.notes + report.warnings)


def test_every_file_is_accounted_for(files, dataset, wan):
    for name in ("a.png", "b.png", "c.png"):
        files.image(name)
    files.image("d.png", caption=None)
    (files.folder / "e.png").write_bytes(b"")
    files.caption(files.folder / "e.png", "x")
    (files.folder / "notes.md").write_text("x")
    said = told(dataset("num_repeats = 2\nbatch_size = 4\n"), wan)
    assert "1 | d.png | d.png has no caption: there is no d.txt." in said
    assert "1 | e.png | e.png is empty (0 bytes)" in said
    assert "1 | notes.md |" in said
    assert "1 | 64x48 | 1 | 0 | 3 | 6 | 2" in said
    assert "An epoch is 2 batches" in said


def test_videos_with_their_rates_and_lengths(files, dataset, wan):
    files.video("a.mp4", 20, fps=32)
    files.video("b.mp4", 3)
    said = told(dataset("target_frames = [1, 5, 24]\n", kind="video"), wan)
    assert "24 to 21" in said
    assert "1 video at 32 fps converted to 16 fps" in said
    assert "1 of 2 videos gives no clip of 5 frames; the longest of these has 3 at 16 fps" in said
    assert "1 | 64x48 | 5 | 0 | 1 | 1 | 1" in said and "1 | 64x48 | 1 | 0 | 2 | 2 | 2" in said


def test_a_bucket_smaller_than_the_batch(files, dataset, wan):
    files.image("a.png")
    assert "fewer than the batch size, 4" in told(dataset("batch_size = 4\n"), wan)
    assert "fewer than the batch size, 3" in told(dataset(batch_size=3), wan)


@pytest.mark.parametrize(
    ("prepare", "kind", "fragment"),
    [
        (lambda f: None, "image", "holds no file"),
        (lambda f: f.image("x/a.png"), "image", "The folder x is not looked into"),
        (lambda f: f.video("a.mp4", 2), "image", "video_directory"),
        (lambda f: f.image("a.png"), "video", "image_directory"),
        (lambda f: f.image("a.png", caption=None), "image", "ending in '.txt'"),
        (lambda f: f.video("a.mp4", 2), "video", "2 frames.*target_frames is 5"),
    ],
)
def test_nothing_to_train_on_says_why(files, dataset, wan, prepare, kind, fragment):
    prepare(files)
    text = "target_frames = [5]\n" if kind == "video" else ""
    with pytest.raises(DataError, match=fragment):
        told(dataset(text, kind=kind), wan)


# previews


def shown(config, **more):
    keys = {"mode": "image", "console_width": 20, "console_num_images": None}
    return Config(**{**vars(config), **keys, **more})


def test_sheets(files, dataset, wan, tmp_path):
    for i in range(14):
        files.image(f"{i:02d} 猫.png", caption="猫 and more")
    said = told(shown(dataset(), output=str(tmp_path / "out")), wan, preview.run)
    sheets = sorted((tmp_path / "out").iterdir())
    assert [p.name for p in sheets] == ["dataset1_001.png", "dataset1_002.png"]
    picture = np.asarray(Image.open(sheets[0]))
    assert picture.std() > 10
    assert "files written" in said and said.endswith(": 2.")


def test_clips(files, dataset, wan, tmp_path):
    files.video("a.mp4", 9)
    files.video("control/a.mp4", 9, caption=None)
    control = f"control_directory = '{(files.folder / 'control').as_posix()}'\n"
    config = dataset("target_frames = [5]\n" + control, kind="video")
    told(shown(config, mode="video", output=str(tmp_path / "out")), wan, preview.run)
    (path,) = (tmp_path / "out").iterdir()
    assert path.name == "dataset1_a_00000-005.mp4"
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        assert len(frames) == 5 and (frames[0].width, frames[0].height) == (128, 48)
        assert container.streams.video[0].average_rate == 16


def test_the_terminal(files, dataset, wan):
    files.image("a.png", caption="a red ball")
    files.image("b.png", caption="another")
    config = shown(dataset(), mode="console", output="", console_num_images=1)
    said = told(config, wan, preview.run)
    assert "a.png (64x48 to 64x48): a red ball" in said and "another" not in said
    lines = [line for line in said.splitlines() if "▀" in line]
    assert len(lines) == 7 and all(line.count("▀") == 20 for line in lines)


@pytest.mark.parametrize("size", [(1, 1), (3, 100), (100, 3), (20, 20)])
def test_half_blocks_of_any_shape(size):
    lines = preview.half_blocks(np.zeros((size[1], size[0], 3), np.uint8), 20)
    assert lines and len({line.count("▀") for line in lines}) == 1


def test_a_file_that_fails_to_decode_is_said(files, dataset, wan, tmp_path):
    files.image("a.png")
    for name, share in (("b.png", 0.01), ("c.png", 0.9)):
        path = files.image(name)
        Image.effect_noise((64, 64), 50).save(path)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    said = told(shown(dataset(), output=str(tmp_path / "out")), wan, preview.run)
    assert "b.png" in said and "c.png" in said


def test_a_directory_that_cannot_be_made(files, dataset, wan, tmp_path):
    from musubi.errors import RunError

    files.image("a.png")
    (tmp_path / "out").write_text("")
    with pytest.raises(RunError, match="out"):
        told(shown(dataset(), output=str(tmp_path / "out")), wan, preview.run)
