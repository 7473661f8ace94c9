"""Written videos: colours and tags that players need, the index first, and nothing half done."""

import av
import numpy as np
import pytest

from musubi.data.media import probe_video, read_frames
from musubi.data.video_writer import Quality, write_video

GREEN = (0, 176, 64)


def pictures(height=48, width=64, count=4):
    y, x = np.mgrid[0:height, 0:width]
    out = np.zeros((count, height, width, 3), np.uint8)
    out[..., 0], out[..., 1] = x * 255 // width, y * 255 // height
    out[:, 8:40, 16:48] = GREEN
    return out


def seen(path, count=4):
    return np.stack([picture for _, picture in read_frames(probe_video(path), range(count))])


def facts(path):
    with av.open(str(path)) as container:
        (stream,) = container.streams.video
        frame, codec = next(container.decode(stream)), stream.codec_context
        tags = codec.color_primaries, codec.color_trc, frame.colorspace, frame.color_range
        return codec.name, frame.format.name, codec.codec_tag, tuple(int(t) for t in tags), frame


@pytest.mark.parametrize("size", [(48, 64), (720, 1280)], ids=["SD", "HD"])
def test_colours_are_bt709_and_say_so(tmp_path, size):
    path = write_video(pictures(*size), tmp_path / "a.mp4", 16)
    name, layout, tag, tags, frame = facts(path)
    assert (name, layout, tag) == ("h264", "yuv420p", "avc1")
    assert tags == (1, 1, 1, 1)
    # Y, U and V of the green by the formulas of BT.709: 16 + 219 Y', 128 + 224 Cb, 128 + 224 Cr
    y, u, v = (
        np.frombuffer(plane, np.uint8)[20 * plane.line_size // k + 30 // k]
        for plane, k in zip(frame.planes, (1, 2, 2), strict=True)
    )
    luma = 0.7152 * 176 / 255 + 0.0722 * 64 / 255
    expected = 16 + 219 * luma, 128 + 224 * (64 / 255 - luma) / 1.8556, 128 - 224 * luma / 1.5748
    assert np.abs(np.array([y, u, v]) - expected).max() <= 2
    assert np.abs(seen(path)[0, 20, 30].astype(int) - GREEN).max() <= 3
    assert b"colr" in path.read_bytes()


def test_the_index_comes_first(tmp_path):
    content = write_video(pictures(), tmp_path / "a.mp4", 16).read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_quality_is_chosen(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (4, 48, 64, 3), dtype=np.uint8)
    sizes = [
        write_video(noise, tmp_path / f"{crf}.mp4", 16, quality=Quality(crf=crf)).stat().st_size
        for crf in (4, 16, 40)
    ]
    assert sizes[0] > sizes[1] > 2 * sizes[2]
    default = write_video(noise, tmp_path / "default.mp4", 16).stat().st_size
    assert abs(default / sizes[1] - 1) < 0.03  # x264 may choose otherwise in pictures this small


def test_the_default_is_close_to_what_was_made(tmp_path):
    made = pictures()
    difference = np.abs(seen(write_video(made, tmp_path / "a.mp4", 16)).astype(int) - made)
    assert difference.mean() < 4


def test_ten_bits_are_finer_than_eight(tmp_path):
    ramp = np.linspace(20000, 24000, 256).astype(np.uint16)  # 16 levels of 8 bits
    made = np.broadcast_to(ramp[None, None, :, None], (2, 64, 256, 3)).copy()
    quality = Quality(bit_depth=10, crf=1)
    path = write_video(made, tmp_path / "a.mp4", 16, quality=quality)
    name, layout, tag, tags, frame = facts(path)
    assert (name, layout, tag) == ("h264", "yuv420p10le", "avc1")
    assert tags == (1, 1, 1, 1)
    luma = np.frombuffer(frame.planes[0], np.uint16)[:256]
    assert len(np.unique(luma)) > 32
    assert np.abs(seen(path, 2).astype(int) - made // 257).max() <= 2


@pytest.mark.parametrize("size", [(48, 64), (15, 33)])
def test_lossless_is_the_same_pixel_by_pixel(tmp_path, size):
    made = np.random.default_rng(0).integers(0, 256, (4, *size, 3), dtype=np.uint8)
    path = write_video(made, tmp_path / "a.mp4", 16, quality=Quality(lossless=True))
    assert np.array_equal(seen(path), made)


@pytest.mark.parametrize("bits", [8, 10])
def test_odd_sides_gain_a_line(tmp_path, bits):
    odd = np.full((2, 15, 33, 3), 200, np.uint8)
    found = seen(write_video(odd, tmp_path / "a.mp4", 8, quality=Quality(bit_depth=bits)), 2)
    assert found.shape == (2, 16, 34, 3) and np.abs(found.astype(int) - 200).max() <= 3
