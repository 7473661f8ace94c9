"""What a player shows: display matrices, pixels that are not square, interlacing, covers, containers."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from musubi.data import clips, shown
from musubi.data.media import probe_video, read_frames
from musubi.errors import DataError

ONE = 1 << 16
F = np.zeros((48, 64), np.uint8)  # a letter that no turn and no mirror leaves as it is
F[4:44, 8:20] = F[4:14, 8:52] = F[22:30, 8:40] = 255
MATRICES = {
    "none": ((ONE, 0, 0, ONE), F),
    "left and right": ((-ONE, 0, 0, ONE), F[:, ::-1]),
    "top and bottom": ((ONE, 0, 0, -ONE), F[::-1]),
    "half turn": ((-ONE, 0, 0, -ONE), F[::-1, ::-1]),
    "clockwise": ((0, ONE, -ONE, 0), np.rot90(F, -1)),
    "counter-clockwise": ((0, -ONE, ONE, 0), np.rot90(F)),
    "transposed": ((0, ONE, ONE, 0), F.T),
    "the other diagonal": ((0, -ONE, -ONE, 0), F[::-1, ::-1].T),
}


def letters(count=3):
    return np.broadcast_to(F[None, ..., None], (count, *F.shape, 3)).copy()


@pytest.mark.parametrize("name", MATRICES)
def test_display_matrices(files, name):
    (a, b, c, d), expected = MATRICES[name]
    path = files.video("a.mp4", letters())
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 20 + 8 + 8 + 4
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    info = probe_video(path)
    assert (info.height, info.width) == expected.shape
    picture = dict(read_frames(info, [1]))[1]
    assert np.abs(picture[..., 0].astype(int) - expected).mean() < 2


@pytest.mark.parametrize(
    ("aspect", "size"),
    [("4/3", (85, 48)), ("1/2", (64, 96)), ("1/1", (64, 48)), ("1/1000", (64, 48))],
)
def test_pixels_that_are_not_square(tmp_path, aspect, size):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        for picture in letters():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    info = probe_video(path)
    assert (info.width, info.height) == size
    picture = dict(read_frames(info, [0]))[0]
    assert picture.shape == (size[1], size[0], 3)
    # the stem of the letter is where it was, as a part of the whole
    assert picture[size[1] // 2, size[0] * 14 // 64, 0] > 230
    assert picture[size[1] // 3, size[0] * 32 // 64, 0] < 25


def test_pixels_are_stretched_before_the_picture_is_turned():
    assert shown.square(np.zeros((48, 64, 3), np.uint8), Fraction(2)).shape == (48, 128, 3)


@pytest.mark.parametrize("name", ["a.ts", "a.m4v", "a.mts", "a.m2ts", "a.webm", "a.wmv", "a.mpg"])
def test_more_containers(files, numbers, name):
    codec = {"webm": "libvpx", "wmv": "wmv2", "mpg": "mpeg2video"}.get(
        name.split(".")[1], "libx264"
    )
    kind = {"ts": "mpegts", "mts": "mpegts", "m2ts": "mpegts", "m4v": "mp4", "wmv": "asf"}
    kind |= {"mpg": "vob"}
    path = files.folder / name
    with av.open(str(path), "w", format=kind.get(name.split(".")[1])) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.bit_rate = 2_000_000
        for picture in files.greys(12):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    info = probe_video(path)
    assert (info.frames, info.width, info.height, info.varies) == (12, 64, 48, False)
    assert info.fps == pytest.approx(25, rel=0.05)
    out = dict(read_frames(info, range(12)))
    assert numbers(np.stack([out[i] for i in range(12)])) == list(range(12))


def test_interlaced_videos_are_named(files):
    path = files.folder / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16, options={"x264-params": "tff=1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for picture in files.greys(9):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    files.caption(path, "a ball")
    info = probe_video(path)
    assert [r.split(",")[0] for r in info.remarks] == ["interlaced"]
    plan = clips.ClipPlan(
        source=clips.Source(kind="video", path=path, stem="a", captions=("b",)),
        bucket=(64, 48),
        size=(64, 48),
        video=info,
    )
    entry = files.entry("video", target_frames=(9,))
    (said,) = clips.conversions([plan], entry, 16)
    assert said.startswith("a.mp4: interlaced")


def cover(container):
    """Add a picture of one frame that is no video."""
    stream = container.add_stream("mjpeg", rate=1)
    stream.width, stream.height, stream.pix_fmt = 32, 32, "yuvj420p"
    stream.disposition = 0x400
    return stream


def test_a_cover_beside_sound_is_no_video(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        sound, picture = container.add_stream("aac", rate=44100), cover(container)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 44100
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
        art = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        container.mux(picture.encode(art))
        container.mux(picture.encode())
    with pytest.raises(DataError, match="no video in it, only sound and a cover picture"):
        probe_video(path)


def test_a_cover_before_a_video_is_passed_over(files, numbers):
    path = files.folder / "a.mp4"
    with av.open(str(path), "w") as container:
        picture = cover(container)
        stream = container.add_stream("libx264", rate=16, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        art = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        container.mux(picture.encode(art))
        container.mux(picture.encode())
        for grey in files.greys(6):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    info = probe_video(path)
    assert (info.frames, info.width) == (6, 64)
    assert numbers(np.stack([p for _, p in read_frames(info, [0, 5])])) == [0, 5]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi", "a.mov"])
def test_one_frame_has_no_rate(files, name):
    path = files.video(name, 1)
    info = probe_video(path)
    assert (info.frames, info.fps) == (1, None)
    assert 0.03 < info.end <= 1
    plan = clips.ClipPlan(
        source=clips.Source(kind="video", path=path, stem="a", captions=("b",)),
        bucket=(64, 48),
        size=(64, 48),
        video=info,
    )
    assert clips.conversions([plan], files.entry("video", target_frames=(1,)), 16) == []
