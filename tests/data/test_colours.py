"""Colours against the formulas of the standards: matrices, ranges, depths, tone mapping, transparency."""

import hashlib

import av
import numpy as np
import pytest

from musubi.data import colours
from musubi.data.media import probe_video, read_frames
from musubi.errors import DataError

SHARES = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
COLOURS = [(0, 176, 64), (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (90, 91, 92)]


def stored(rgb, matrix, full, bits):
    """Y, U and V as the standards' formulas round them."""
    red, blue = SHARES[matrix]
    r, g, b = (x / 255 for x in rgb)
    y = red * r + (1 - red - blue) * g + blue * b
    u, v = (b - y) / (2 * (1 - blue)), (r - y) / (2 * (1 - red))
    most, step = 2**bits - 1, 2 ** (bits - 8)
    if full:
        values = y * most, u * most + 2 ** (bits - 1), v * most + 2 ** (bits - 1)
    else:
        values = step * (16 + 219 * y), step * (128 + 224 * u), step * (128 + 224 * v)
    return [min(max(round(value), 0), most) for value in values]


def flat(layout, values, *, bits=8, width=48, height=32):
    """A frame of one colour."""
    frame = av.VideoFrame(width, height, layout)
    kind = np.uint8 if bits == 8 else np.uint16
    shift = 6 if layout == "p010le" else 0
    y, u, v = (value << shift for value in values)
    planes = [np.frombuffer(plane, kind) for plane in frame.planes]
    if layout == "uyvy422":
        planes[0][0::4], planes[0][2::4], planes[0][1::2] = u, v, y
    elif len(planes) == 2:
        planes[0][:], planes[1][0::2], planes[1][1::2] = y, u, v
    else:
        for plane, value in zip(planes, (y, u, v), strict=False):
            plane[:] = value
    return frame


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", [1, 6, 9], ids=["709", "601", "2020"])
@pytest.mark.parametrize(
    ("layout", "bits"),
    [
        ("yuv420p", 8),
        ("yuv422p", 8),
        ("yuv444p", 8),
        ("yuv420p10le", 10),
        ("yuv422p10le", 10),
        ("yuv444p12le", 12),
        ("uyvy422", 8),
        ("nv12", 8),
        ("p010le", 10),
    ],
)
def test_known_colours(layout, bits, matrix, full):
    for rgb in COLOURS:
        frame = flat(layout, stored(rgb, matrix, full, bits), bits=bits)
        frame.colorspace, frame.color_range = matrix, 2 if full else 1
        found = colours.to_rgb(frame)
        assert found.shape == (32, 48, 3) and found.dtype == np.uint8
        assert np.abs(found.astype(int) - rgb).max() <= 1, rgb


def test_greys():
    frame = flat("gray", (16 + 219, 0, 0))
    frame.color_range = 1
    assert (colours.to_rgb(frame) == 255).all()
    frame.color_range = 2
    assert (colours.to_rgb(frame) == 235).all()


def test_rgb_is_left_as_it_is():
    picture = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    for layout in ("rgb24", "gbrp", "bgr0"):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=layout)
        assert np.array_equal(colours.to_rgb(frame), picture), layout


def test_what_is_transparent_is_laid_over_white():
    frame = flat("yuva420p", stored((255, 0, 0), 6, False, 8))
    np.frombuffer(frame.planes[3], np.uint8)[:] = 0
    frame.colorspace, frame.color_range = 6, 1
    assert (colours.to_rgb(frame) == 255).all()
    np.frombuffer(frame.planes[3], np.uint8)[:] = 255
    assert np.abs(colours.to_rgb(frame).astype(int) - (255, 0, 0)).max() <= 1


@pytest.mark.parametrize(("size", "matrix"), [((640, 480), 6), ((1280, 720), 1), ((432, 768), 1)])
def test_a_video_without_tags_is_read_as_players_do(size, matrix):
    frame = flat("yuv420p", stored((0, 176, 64), matrix, False, 8), width=size[0], height=size[1])
    assert np.abs(colours.to_rgb(frame)[9, 9].astype(int) - (0, 176, 64)).max() <= 1


def test_the_tags_of_the_stream_stand_in_for_a_frame_without():
    frame = flat("yuv420p", stored((0, 176, 64), 1, True, 8))
    found = colours.to_rgb(frame, matrix=1, full=True)
    assert np.abs(found.astype(int) - (0, 176, 64)).max() <= 1


def test_unknown_matrices_are_refused_by_name():
    frame = flat("yuv420p", (16, 128, 128))
    with pytest.raises(DataError, match="ICtCp"):
        colours.to_rgb(frame, matrix=14)


def test_ycgco():
    r, g, b = (x / 255 for x in (0, 176, 64))
    y, green, orange = (r + 2 * g + b) / 4, (2 * g - r - b) / 4, (r - b) / 2
    values = [round(16 + 219 * y), round(128 + 224 * green), round(128 + 224 * orange)]
    frame = flat("yuv444p", values)
    frame.color_range = 1
    assert np.abs(colours.to_rgb(frame, matrix=8).astype(int) - (0, 176, 64)).max() <= 1


def test_chroma_lies_on_a_line_between_its_samples():
    frame = flat("yuv420p", (126, 128, 128), width=8, height=2)
    frame.colorspace, frame.color_range = 6, 1
    v = np.frombuffer(frame.planes[2], np.uint8)
    v[:4] = [128, 148, 148, 128]
    red = colours.to_rgb(frame)[0, :, 0].astype(int)
    step = 10 * 255 / 224 * 2 * (1 - 0.299)  # of half the way
    grey = (126 - 16) * 255 / 219
    assert np.abs(red - (grey + step * np.array([0, 1, 2, 2, 2, 1, 0, 0]))).max() <= 1
    red = colours.to_rgb(frame, centred=True)[0, :, 0].astype(int)
    assert np.abs(red - (grey + step / 2 * np.array([0, 1, 3, 4, 4, 3, 1, 0]))).max() <= 1


def test_pixels_are_the_same_with_every_decoder():
    """When this digest must change, raise `DECODING_VERSION`: records of videos become stale."""
    digest = hashlib.sha256()
    for layout, bits in (("yuv420p", 8), ("yuv422p10le", 10), ("yuvj420p", 8), ("yuv411p", 8)):
        frame = av.VideoFrame(66, 50, layout)
        for plane in frame.planes:
            values = np.frombuffer(plane, np.uint8 if bits == 8 else np.uint16)
            width = plane.line_size // values.itemsize
            rows = values[: width * plane.height].reshape(plane.height, width)
            y, x = np.mgrid[0 : plane.height, 0:width]
            rows[:] = (37 * x + 11 * y * y) % (1 << bits)
        for centred in (False, True):
            digest.update(colours.to_rgb(frame, matrix=1, centred=centred).tobytes())
    assert digest.hexdigest() == DIGEST


DIGEST = "c8aa6f230f62de75dbf83ba5faad279ec7c47fb0d289331dbe273f61e0b755eb"


# high dynamic range


def pq(light):
    """SMPTE ST 2084: light in cd/m² to a code of 0 to 1."""
    power = (light / 10000) ** (2610 / 16384)
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def ten_bits(code):
    return round(64 + 876 * code), 512, 512


@pytest.mark.parametrize("transfer", [16, 18], ids=["PQ", "HLG"])
def test_tone_mapping_keeps_greys_grey_and_in_order(transfer):
    found = []
    for code in np.linspace(0, 1, 33):
        frame = flat("yuv420p10le", ten_bits(code), bits=10)
        frame.colorspace, frame.color_range = 9, 1
        pixel = colours.to_rgb(frame, transfer=transfer)[9, 9].astype(int)
        assert pixel.max() - pixel.min() <= 1
        found.append(pixel[0])
    assert found[0] == 0 and found[-1] == 255
    assert found == sorted(found)


def test_tone_mapping_of_known_lights():
    # 40 cd/m² lies below the knee: its share of the white of 203, through a display's gamma of 2.4
    for light, expected in ((40, 255 * (40 / 203) ** (1 / 2.4)), (1000, 255)):
        frame = flat("yuv420p10le", ten_bits(pq(light)), bits=10)
        frame.colorspace = 9
        assert abs(int(colours.to_rgb(frame, transfer=16)[9, 9, 0]) - expected) <= 2
    # HLG's reference white is 75 % of the signal and 203 cd/m², as PQ's is 58 %
    frames = (
        flat("yuv420p10le", ten_bits(0.75), bits=10),
        flat("yuv420p10le", ten_bits(pq(203)), bits=10),
    )
    hlg, white = (
        int(colours.to_rgb(f, matrix=9, transfer=t)[9, 9, 0])
        for f, t in zip(frames, (18, 16), strict=True)
    )
    assert abs(hlg - white) <= 2 and 220 <= white <= 240


def test_red_of_bt709_in_hdr_comes_back_red():
    light = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.088, 0.8956]])
    code = pq(light @ np.array([60.0, 0, 0]))
    pixel = colours.tone_mapped(code[None, None].astype(np.float32), 16)[0, 0]
    assert pixel[0] > 0.55 and pixel[1:].max() < 0.08


# through files


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", [1, 6], ids=["709", "601"])
@pytest.mark.parametrize(("layout", "bits"), [("yuv420p", 8), ("yuv420p10le", 10)])
def test_known_colours_in_files(tmp_path, layout, bits, matrix, full):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16, options={"crf": "0"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, layout
        codec = stream.codec_context
        codec.colorspace, codec.color_range = matrix, 2 if full else 1
        for rgb in COLOURS[:3]:
            frame = flat(layout, stored(rgb, matrix, full, bits), bits=bits)
            frame.colorspace, frame.color_range = matrix, 2 if full else 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for (_, picture), rgb in zip(read_frames(probe_video(path), range(3)), COLOURS, strict=False):
        assert np.abs(picture.astype(int) - rgb).max() <= 1


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_files_are_mapped_and_said(tmp_path, transfer, name):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p10le"
        codec = stream.codec_context
        codec.color_primaries, codec.color_trc, codec.colorspace, codec.color_range = (
            9,
            transfer,
            9,
            1,
        )
        for _ in range(3):
            frame = flat("yuv420p10le", ten_bits(pq(203)), bits=10, width=64, height=64)
            frame.colorspace, frame.color_range = 9, 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    info = probe_video(path)
    assert info.remarks == (f"HDR ({name}), tone-mapped to BT.709",)
    picture = dict(read_frames(info, [1]))[1]
    expected = colours.to_rgb(frame, matrix=9, transfer=transfer)
    assert np.abs(picture.astype(int) - expected).max() <= 3
