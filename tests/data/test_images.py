"""Every kind of picture and animation that is taken, and what is refused."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from musubi.data import images
from musubi.data.media import probe_video, read_frames
from musubi.data.sources import scan
from musubi.errors import DataError

LETTER = np.zeros((10, 20, 3), np.uint8)
LETTER[1:9, 2:6] = LETTER[1:3, 2:16] = 255
SEEN = {
    1: LETTER,
    2: LETTER[:, ::-1],
    3: LETTER[::-1, ::-1],
    4: LETTER[::-1],
    5: LETTER.transpose(1, 0, 2),
    6: np.rot90(LETTER, -1),
    7: LETTER[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(LETTER),
}


@pytest.mark.parametrize("orientation", SEEN)
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif", "a.tiff"])
def test_all_orientations(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    more = {"quality": 100} if name == "a.jpg" else {}
    if name == "a.webp":
        more["lossless"] = True
    Image.fromarray(LETTER).save(tmp_path / name, exif=exif, **more)
    expected = SEEN[orientation]
    assert images.image_size(tmp_path / name) == (expected.shape[1], expected.shape[0])
    found = images.read_image(tmp_path / name)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 6


@pytest.mark.parametrize("ending", sorted(images.image_extensions() - {".jxl"}))
def test_every_ending_is_read(tmp_path, ending):
    Image.new("RGB", (16, 8), (200, 40, 60)).save(tmp_path / f"a{ending}")
    found = images.read_image(tmp_path / f"a{ending}")
    assert found.shape == (8, 16, 3)
    assert np.abs(found[4, 8].astype(int) - (200, 40, 60)).max() < 8


def test_gif_and_tiff_are_among_them():
    assert {".gif", ".tif", ".tiff"} <= images.image_extensions()


def test_only_pictures_are_opened(tmp_path, monkeypatch):
    """EPS would start Ghostscript from the PATH."""

    def started(*args, **kwargs):
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.Popen", started)
    monkeypatch.setattr("subprocess.check_call", started)
    path = tmp_path / "a.png"
    path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 10\n%%EndComments\nshowpage\n%%EOF\n"
    )
    for read in (images.read_image, images.image_size):
        with pytest.raises(DataError, match=r"a\.png is not an image"):
            read(path)


def test_a_tiff_that_cannot_be_read_says_so(tmp_path):
    path = tmp_path / "a.tif"
    Image.new("RGB", (4, 4)).save(path)
    plain, logluv = b"\x06\x01\x03\0\x01\0\0\0", (32845).to_bytes(4, "little")
    at = path.read_bytes().index(plain) + len(plain)
    content = bytearray(path.read_bytes())
    content[at : at + 4] = logluv  # how its colours are meant
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.tif is a TIFF of a kind that cannot be read here"):
        images.read_image(path)


# animations


def animation(path, count=6, duration=50, **more):
    """Greys, and a quarter that is transparent."""
    frames = []
    for i in range(count):
        picture = np.full((48, 64, 4), 255, np.uint8)
        picture[..., :3] = 8 * i + 8
        picture[:24, :32, 3] = 0
        frames.append(Image.fromarray(picture))
    if path.suffix in (".webp", ".apng"):
        more |= {"lossless": True} if path.suffix == ".webp" else {"format": "PNG"}
    else:
        frames = [f.convert("RGB") for f in frames]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=duration, loop=0, **more)
    return path


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.apng"])
def test_animations_are_videos(tmp_path, numbers, name):
    info = probe_video(animation(tmp_path / name))
    assert (info.frames, info.width, info.height, info.varies) == (6, 64, 48, False)
    assert info.fps == pytest.approx(20)
    assert np.allclose(info.times, np.arange(6) / 20)
    found = dict(read_frames(info, [4, 1, 1]))
    assert list(found) == [1, 4]
    assert numbers(np.stack([found[1], found[4]])) == [1, 4]
    if name != "a.gif":
        assert (found[1][:20, :30] == 255).all()  # what is transparent, over white


def test_frames_of_a_gif_last_as_long_as_they_say(tmp_path):
    info = probe_video(animation(tmp_path / "a.gif", 4, duration=[40, 120, 40, 200]))
    assert info.varies
    assert np.allclose(info.times, [0, 0.04, 0.16, 0.2]) and info.end == pytest.approx(0.4)


def test_a_gif_in_a_hurry_is_shown_as_browsers_do(tmp_path):
    info = probe_video(animation(tmp_path / "a.gif", 4, duration=0))
    assert info.fps == pytest.approx(10)


def test_looking_only_at_the_head_of_an_animation(tmp_path):
    path = animation(tmp_path / "a.webp", 12)
    info = probe_video(path, frames=3)
    assert not info.complete and 3 <= info.frames < 12


def test_a_broken_animation_is_named(tmp_path):
    path = animation(tmp_path / "a.webp")
    path.write_bytes(path.read_bytes()[:80])
    with pytest.raises(DataError, match=r"a\.webp"):
        probe_video(path)


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_an_animation_is_no_image(tmp_path, name):
    path = animation(tmp_path / name)
    for read in (images.read_image, images.image_size):
        with pytest.raises(DataError, match=rf"{name} is not one picture but an animation of 6"):
            read(path)


def test_what_a_webp_is_shows_where_it_belongs(files):
    animation(files.folder / "moves.webp")
    Image.new("RGB", (8, 8)).save(files.folder / "still.webp")
    for name in ("moves", "still"):
        (files.folder / f"{name}.txt").write_text("a ball")
    for kind, mine, other in (("image", "still", "moves"), ("video", "moves", "still")):
        found = scan(files.entry(kind, **({"target_frames": (1,)} if kind == "video" else {})))
        assert [s.stem for s in found.sources] == [mine]
        reasons = {s.path.name: s.reason for s in found.others}
        wrong = "videos" if kind == "image" else "images"
        assert f"{other}.webp is one of the {wrong}" in reasons[f"{other}.webp"]


def test_the_reference_of_orientations_agrees():
    image = Image.fromarray(LETTER)
    for orientation, expected in SEEN.items():
        image.getexif()[0x0112] = orientation
        assert np.array_equal(np.asarray(ImageOps.exif_transpose(image)), expected)
