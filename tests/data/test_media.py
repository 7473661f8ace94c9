"""What Pillow and FFmpeg read, as it is meant to be seen."""

import struct

import numpy as np
import pytest
from PIL import Image

from musubi.data import media
from musubi.data.media import image_size, probe_video, read_frames, read_image
from musubi.errors import DataError


def saved(path, image, **more):
    image.save(path, **more)
    return path


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (20, 10), "blue")
    image.paste("red", (0, 0, 5, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    path = saved(tmp_path / "a.png", image, exif=exif)
    assert image_size(path) == (10, 20)
    out = read_image(path)
    assert out.shape == (20, 10, 3)
    assert out[2, 5].tolist() == [255, 0, 0] and out[15, 5].tolist() == [0, 0, 255]


def test_sixteen_bit_greys_are_scaled(tmp_path):
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    out = read_image(saved(tmp_path / "a.png", Image.fromarray(values)))
    assert out[0, :, 0].tolist() == [0, 1, 128, 255]
    assert out.shape == (1, 4, 3)


def test_palette_grey_and_cmyk(tmp_path):
    image = Image.new("RGB", (4, 4), (200, 30, 10))
    palette = read_image(
        saved(tmp_path / "p.png", image.convert("P", palette=Image.Palette.ADAPTIVE))
    )
    assert palette[0, 0].tolist() == [200, 30, 10]
    assert (
        read_image(saved(tmp_path / "l.png", Image.new("L", (4, 4), 99)))[0, 0].tolist() == [99] * 3
    )
    assert (
        read_image(saved(tmp_path / "1.png", Image.new("1", (4, 4), 1)))[0, 0].tolist() == [255] * 3
    )
    cmyk = read_image(saved(tmp_path / "c.jpg", image.convert("CMYK"), quality=100))
    assert np.abs(cmyk[0, 0].astype(int) - [200, 30, 10]).max() < 12


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_shows_white_and_controls_keep_it(tmp_path, mode):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0)).convert(mode)
    path = saved(tmp_path / "a.png", image)
    assert (read_image(path) == 255).all()
    kept = read_image(path, alpha=True)
    assert kept.shape == (4, 4, 4) and (kept[..., 3] == 0).all()


def test_a_transparent_palette_colour_shows_white(tmp_path):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30] + [0] * 765)
    path = saved(tmp_path / "a.png", image, transparency=0)
    assert (read_image(path) == 255).all()


@pytest.mark.parametrize("cut", [0, 30, 0.5])
def test_broken_images_are_named(tmp_path, cut):
    path = saved(tmp_path / "a.png", Image.effect_noise((64, 64), 50))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * cut) if isinstance(cut, float) else cut])
    with pytest.raises(DataError, match=r"a\.png"):
        read_image(path)


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png", Image.new("L", (64, 64)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"a\.png has more pixels"):
        image_size(path)


def test_an_absent_file(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_image(tmp_path / "a.png")
    with pytest.raises(DataError, match="does not exist"):
        probe_video(tmp_path / "a.mp4")


# videos


@pytest.mark.parametrize("name", ["a.mp4", "a [1] 猫.mkv", "a.mov", "a.avi", "a.webm.mp4", "a.flv"])
def test_containers(files, numbers, name):
    info = probe_video(files.video(name, 12))
    assert (info.frames, info.width, info.height, info.varies) == (12, 64, 48, False)
    assert info.fps == pytest.approx(16, rel=0.01)
    out = dict(read_frames(info, range(12)))
    assert numbers(np.stack([out[i] for i in range(12)])) == list(range(12))


def test_only_the_frames_asked_for_in_one_pass(files, numbers):
    info = probe_video(files.video("a.mp4", 12))
    out = list(read_frames(info, [7, 2, 2]))
    assert [i for i, _ in out] == [2, 7]
    assert numbers(np.stack([f for _, f in out])) == [2, 7]


def test_keyframes_are_used_to_skip(files, numbers, monkeypatch):
    info = probe_video(files.video("a.mp4", 30, gop=5))
    monkeypatch.setattr(media, "_SEEK", 2)
    out = list(read_frames(info, [3, 13, 14, 28]))
    assert numbers(np.stack([f for _, f in out])) == [3, 13, 14, 28]


def test_varying_rate(files):
    times = [0, 100, 200, 600, 700]
    info = probe_video(files.video("a.mkv", 5, times=times))
    assert info.varies
    assert np.round(info.times * 1000).tolist() == times


def test_looking_only_at_the_head(files):
    path = files.video("a.mp4", 200, gop=10)
    info = probe_video(path, frames=20)
    assert not info.complete and 20 <= info.frames < 200
    assert np.allclose(info.times, np.arange(info.frames) / 16)
    info = probe_video(path, seconds=1.0)
    assert not info.complete and 16 <= info.frames < 200


def rotated(path):
    """Write a quarter turn into the track header of an mp4."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 20 + 8 + 8 + 4
    matrix = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    content[at : at + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(content)


def test_rotation_is_applied(files):
    pictures = np.zeros((3, 48, 64, 3), np.uint8)
    pictures[:, :, :32] = 255  # white on the left
    path = files.video("a.mp4", pictures)
    rotated(path)
    info = probe_video(path)
    assert (info.width, info.height) == (48, 64)
    (_, picture), *_ = read_frames(info, [0])
    # the matrix turns clockwise, as a phone held upright writes it: left becomes top
    assert picture.shape == (64, 48, 3)
    assert picture[5, 24, 0] > 200 and picture[58, 24, 0] < 50


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5])
def test_truncated_videos_are_named(files, share):
    path = files.video("a.mp4", 40)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=r"a\.mp4"):
        probe_video(path)


def test_a_video_that_ends_before_it_says(files):
    noise = np.random.default_rng(0).integers(0, 256, (64, 48, 64, 3), dtype=np.uint8)
    path = files.video("a.mp4", noise, options={"movflags": "faststart"})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.mp4"):
        list(read_frames(probe_video(path), range(64)))


def test_sound_without_pictures(tmp_path):
    import av

    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DataError, match=r"a\.mp4 has no video in it, only sound"):
        probe_video(tmp_path / "a.mp4")


def test_a_folder_of_images(files, numbers):
    info = probe_video(files.folder_of_images("take.one", 6))
    assert (info.frames, info.width, info.fps) == (6, 64, None)
    assert numbers(np.stack([f for _, f in read_frames(info, [1, 4])])) == [1, 4]


def test_an_empty_folder(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="no images"):
        probe_video(tmp_path / "a")
