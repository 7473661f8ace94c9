"""Windowed decoding: each chunk whole, faded in the order of time, as the official loops do."""

from types import SimpleNamespace

import pytest
import torch

from musubi.architectures.framepack import ARCHITECTURE
from musubi.architectures.framepack.decoding import chunks, soft_appended


def decode(latents):
    """A stand-in for the autoencoder: causal, 4 f - 3 frames, and what a chunk begins with matters."""
    first = latents[:, :3, :1]
    rest = latents[:, :3, 1:].repeat_interleave(4, dim=2)
    frames = torch.cat([first, rest], dim=2)
    steps = torch.arange(frames.shape[2]).float()[:, None, None]
    return frames + 0.1 * steps + latents[:, :3, :1]


def faded(earlier, later, overlap):
    weights = torch.linspace(1, 0, overlap)[None, None, :, None, None]
    middle = earlier[:, :, -overlap:] * weights + later[:, :, :overlap] * (1 - weights)
    return torch.cat([earlier[:, :, :-overlap], middle, later[:, :, overlap:]], dim=2)


def official_inverted(latents, sections, w):
    """The loop of the official code: the video grows to the front."""
    total, video = 0, None
    for i in range(sections):
        last = i == sections - 1
        total += w + last
        made = latents[:, :, -total:]
        if video is None:
            video = decode(made)
        else:
            video = faded(decode(made[:, :, : 2 * w + last]), video, 4 * w - 3)
    return video


def official_forward(latents, sections, w):
    """The loop of the official F1 code: the video grows to the back."""
    total, video = 1, None
    for _ in range(sections):
        total += w
        made = latents[:, :, :total]
        if video is None:
            video = decode(made)
        else:
            video = faded(video, decode(made[:, :, -2 * w :]), 4 * w - 3)
    return video


@pytest.mark.parametrize("w", [1, 4, 9])
@pytest.mark.parametrize("sections", [1, 2, 3, 5])
@pytest.mark.parametrize("forward", [False, True])
def test_agrees_with_the_loop_that_grows_the_video(w, sections, forward):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 16, 1 + sections * w, 2, 3, generator=generator)
    loop = official_forward if forward else official_inverted
    expected = loop(latents, sections, w)
    found = torch.cat(list(soft_appended(decode, latents, w, forward=forward)), dim=2)
    assert found.shape[2] == 4 * sections * w + 1
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("forward", [False, True])
@pytest.mark.parametrize("length", [1, 8, 9, 14, 18, 22, 27])
def test_any_length_decodes_to_its_frames(length, forward):
    """A video in the making has no start image yet, and a file may hold any number of latents."""
    latents = torch.ones(1, 16, length, 2, 3)
    found = torch.cat(list(soft_appended(decode, latents, 9, forward=forward)), dim=2)
    assert found.shape == (1, 3, 4 * length - 3, 2, 3)


@pytest.mark.parametrize("forward", [False, True])
def test_no_piece_is_longer_than_two_sections(forward):
    assert max(end - start for start, end in chunks(1 + 50 * 9, 9, forward=forward)) <= 19
    latents = torch.ones(1, 16, 1 + 20 * 9, 1, 1)
    pieces = list(soft_appended(decode, latents, 9, forward=forward))
    assert max(p.shape[2] for p in pieces) <= 73


class Counting(dict):
    """Networks whose autoencoder stands on a device of its own, and what reached that device."""

    device = torch.device("meta")

    def __init__(self):
        self.decoded = []
        super().__init__(vae=SimpleNamespace(decode=self._decode))

    def _decode(self, latents, pieces):
        assert latents.device == self.device
        self.decoded.append(latents.shape[2])
        return decode(torch.zeros(latents.shape))

    def free(self, name):
        pass


@pytest.mark.parametrize("options", [{}, {"f1": True}])
def test_a_minute_takes_no_more_of_the_device_than_a_few_seconds(options, monkeypatch):
    from musubi.generate.pipeline import Pipeline

    nets, task = Counting(), ARCHITECTURE.task("i2v")
    given = {option.name: option.default for option in ARCHITECTURE.options} | options
    session = Pipeline(ARCHITECTURE, task, given, nets, device="meta")
    moved = []
    move = torch.Tensor.to

    def watched(self, *args, **kwargs):
        found = move(self, *args, **kwargs)
        if found.device.type == "meta" and self.device.type != "meta":
            moved.append(self.shape[2])
        return found

    monkeypatch.setattr(torch.Tensor, "to", watched)
    pieces = session.frames(torch.zeros(16, 1 + 50 * 9, 2, 3))
    count = len(next(pieces))
    # The next chunk is decoded when its pictures are asked for, not before.
    assert len(nets.decoded) <= 2
    count += sum(len(piece) for piece in pieces)
    assert count == 4 * 50 * 9 + 1
    assert len(moved) == 50 and max(moved) <= 19
