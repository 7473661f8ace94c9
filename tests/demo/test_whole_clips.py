"""What the making of the world rests on: whole clips equal chunks, and latents can be rescaled."""

import make_vae
import pytest
import torch
from graphs import orthogonal
from make import architecture
from whole_clips import WholeClips


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return architecture().component("vae").build(dim=4, z_dim=16).eval().requires_grad_(False)


@pytest.mark.parametrize("count", [1, 5, 9])
def test_whole_clips_are_what_chunks_are(vae, count):
    frames = torch.rand(2, 3, count, 16, 24) * 2 - 1
    whole = WholeClips(vae)
    latents = vae.encode(frames)
    shift, scale = vae._normalisation(latents.device)
    raw = latents * scale + shift
    torch.testing.assert_close(whole.encode(frames), raw, rtol=1e-5, atol=1e-5)
    back = whole.decode(raw).clamp(-1, 1)
    torch.testing.assert_close(back, vae.decode(latents), rtol=1e-5, atol=2e-5)


def test_latents_are_brought_to_a_spread_of_one_and_frames_come_back_as_before(vae):
    clips = make_vae._clips(2, 5, torch.device("cpu"))[0][:, :5]
    frames, whole = make_vae._signed(clips), WholeClips(vae)
    before = whole.decode(whole.encode(frames)).clamp(-1, 1)
    make_vae.standardise(vae, clips)
    latents = vae.encode(frames)
    spread = latents.std(dim=(0, 2, 3, 4))
    assert latents.mean(dim=(0, 2, 3, 4)).abs().max() < 1e-4
    torch.testing.assert_close(spread, torch.ones(16), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(vae.decode(latents), before, rtol=1e-4, atol=1e-4)


def test_before_training_every_frame_is_a_picture_of_its_own(vae):
    make_vae._begin(vae)
    one = torch.rand(1, 3, 1, 16, 16) * 2 - 1
    held, whole = one.expand(-1, -1, 5, -1, -1), WholeClips(vae)
    once = whole.decode(whole.encode(one))
    torch.testing.assert_close(
        whole.decode(whole.encode(held)), once.expand_as(held), rtol=1e-4, atol=1e-5
    )


def test_steps_of_matrices_have_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((3, 8, 40), (2, 40, 8)):
        sizes = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert sizes.min() > 0.6 and sizes.max() < 1.3
    assert not orthogonal(torch.zeros(1, 4, 6)).any()
