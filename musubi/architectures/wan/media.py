"""What Wan's media records hold: the clip's latents, and what its task gives beside the noise.

A task's recorder is a function `(encoders, clip) -> record` without the clip's own latents; it is
the same in caching, in training and when generating.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from musubi.architectures.wan import pictures
from musubi.architectures.wan.hooks import one_frame
from musubi.encoders.clip_vision.network import encode as encode_pictures
from musubi.errors import DataError, counted
from musubi.plugin import Clip, Networks, Record


@dataclass(frozen=True)
class Encoders:
    """The networks that make media records.

    Args:
        nets: The command's networks.
        vae: The name of the autoencoder.
        settings: How it encodes and decodes.
    """

    nets: Networks
    vae: str
    settings: Mapping[str, Any]

    def latents(self, video: torch.Tensor) -> torch.Tensor:
        """Pixels 3 F H W to latents C F' H' W', in the autoencoder's dtype."""
        vae: Any = self.nets[self.vae]
        found = vae.encode(video[None].to(self.nets.device), **self.settings)
        return found[0].to(vae.dtype)

    def features(self, *given: torch.Tensor) -> torch.Tensor:
        """CLIP's features of pictures 3 H W, each at its own size: N L D."""
        return encode_pictures(self.nets["clip"], list(given))


Recorder = Callable[[Encoders, Clip], Record]


def _picture(clip: Clip, name: str) -> torch.Tensor | None:
    given = clip.input(name)
    return None if given is None else _pixels(given)[:, 0]


def _pixels(frames: Any) -> torch.Tensor:
    return pictures.pixels(torch.from_numpy(frames))


def _first(clip: Clip) -> torch.Tensor:
    """The picture that the clip begins with: what was given, else its own first frame."""
    given = _picture(clip, "image")
    if given is not None:
        return given
    if not clip.target:
        raise DataError(f"{clip.name} has no image to start from.", fix="Give --image_path PATH.")
    return _pixels(clip.frames[:1])[:, 0]


def _last(clip: Clip) -> torch.Tensor | None:
    """The picture that the clip ends with, where one is given; in training, its own last frame."""
    given = _picture(clip, "end_image")
    if given is None and clip.target:
        return _pixels(clip.frames[-1:])[:, 0]
    return given


def _size(clip: Clip) -> tuple[int, int]:
    return int(clip.frames.shape[1]), int(clip.frames.shape[2])


def _conditioned(
    encoders: Encoders, start: torch.Tensor, clip: Clip, *, end: torch.Tensor | None = None
) -> torch.Tensor:
    """Mask and latents of a video whose first frame is given, and its last one where `end` is."""
    height, width = _size(clip)
    start = pictures.resized(start, height, width)
    if end is not None:
        end = pictures.covering(end, height, width)
    latents = encoders.latents(pictures.filled(start, clip.length, end))
    return torch.cat([pictures.frame_mask(latents, last=end is not None), latents])


def _with_appended_end(
    encoders: Encoders, record: torch.Tensor, clip: Clip, end: torch.Tensor
) -> torch.Tensor:
    """The same with one latent frame more, of the end image: for models that never saw one."""
    still = encoders.latents(pictures.covering(end, *_size(clip))[:, None])
    mask = pictures.frame_mask(still)
    return torch.cat([record, torch.cat([mask, still])], dim=1)


def text_only(encoders: Encoders, clip: Clip) -> Record:
    """Nothing but the text conditions these; the video that denoising starts from."""
    record: Record = {}
    video = clip.input("video")
    if video is not None:
        record["latents_video"] = encoders.latents(_pixels(video))
    return record


def from_image(encoders: Encoders, clip: Clip) -> Record:
    """The first frame, as latents with a mask and as CLIP features."""
    record = without_clip(encoders, clip)
    record["clip"] = encoders.features(_first(clip))[0]
    return record


def without_clip(encoders: Encoders, clip: Clip) -> Record:
    """The first frame, as latents with a mask; an end image takes a latent frame of its own."""
    joined = _conditioned(encoders, _first(clip), clip)
    end = _picture(clip, "end_image")
    if end is not None:
        joined = _with_appended_end(encoders, joined, clip, end)
    return {"latents_image": joined}


def from_ends(encoders: Encoders, clip: Clip) -> Record:
    """The first and the last frame, as latents with a mask and as CLIP features."""
    start, end = _first(clip), _last(clip)
    if end is None:
        raise DataError(f"{clip.name} has no end image.", fix="Give --end_image_path PATH.")
    if clip.length == 1:
        raise DataError(
            f"{clip.name} is one frame, which cannot be the first and the last of a video.",
            fix="Give videos of 5 frames or more; --one_frame makes single frames.",
        )
    return {
        "latents_ends": _conditioned(encoders, start, clip, end=end),
        "clip_ends": encoders.features(start, end),
    }


def controlled(encoders: Encoders, clip: Clip) -> Record:
    """The control video."""
    control = clip.input("control")
    if control is None:
        raise DataError(
            f"{clip.name} has no control video.",
            fix="Name control_directory in the dataset, or control_path in the lines of its list; "
            "when generating, give --control_path.",
        )
    return {"latents_control": encoders.latents(_pixels(control))}


def controlled_image(encoders: Encoders, clip: Clip) -> Record:
    """The control video, the first frame, and what else Fun-Control takes."""
    record = controlled(encoders, clip)
    reference = _picture(clip, "reference")
    start = _first(clip) if clip.target or clip.input("image") is not None else None
    if start is not None:
        record["latents_image"] = _conditioned(encoders, start, clip)
    end = _picture(clip, "end_image")
    if end is not None:
        record["latents_end"] = encoders.latents(pictures.covering(end, *_size(clip))[:, None])
    if reference is not None:
        record["latents_reference"] = encoders.latents(reference[:, None])
    seen = reference if reference is not None else start
    if seen is not None:
        record["clip"] = encoders.features(seen)[0]
    return record


def first_frame(encoders: Encoders, clip: Clip) -> Record:
    """The image that Wan2.2's 5B model starts from; a clip has it as its first latent frame."""
    image = clip.input("image")
    if image is None or clip.target:
        return {}
    covered = pictures.covering_smoothly(image[0], *_size(clip))
    return {"latents_image": encoders.latents(covered[:, None])}


def single_frame(encoders: Encoders, clip: Clip) -> Record:
    """The control images and the target's place among them, all in the order of time."""
    height, width = _size(clip)
    given = [_pixels(frames)[:, 0] for frames in clip.inputs.get("control_images", ())]
    ends = [p for name in ("image", "end_image") if (p := _picture(clip, name)) is not None]
    where = _places(clip, len(given))
    stills = [encoders.latents(picture[:, None]) for picture in given]
    masks = _masks(clip, stills)
    blank = encoders.latents(torch.full((3, 1, height, width), pictures.GREY))
    latents = pictures.interleaved(
        [still * mask for still, mask in zip(stills, masks, strict=True)], blank, where
    )
    record = {
        "latents_image": torch.cat([pictures.slot_mask(latents, where), latents]),
        "clip": encoders.features(*(ends or given)),
        "f_indices": torch.tensor(where.positions, dtype=torch.int32),
    }
    if clip.target:
        target = encoders.latents(_pixels(clip.frames))
        record["latents"] = pictures.interleaved(stills, target, where)
        ones = torch.ones_like(target[:1])
        record["latents_weight"] = pictures.interleaved([m[:1] for m in masks], ones, where)
    return record


def _places(clip: Clip, count: int) -> pictures.Layout:
    if count == 0:
        raise DataError(
            f"{clip.name} has no control image.",
            fix="Name control_directory in the dataset, or control_path in the lines of its list.",
        )
    if clip.target:
        controls = clip.options.get("fp_1f_clean_indices")
        target = clip.options.get("fp_1f_target_index")
        source = "fp_1f_clean_indices"
        if target is None:
            raise DataError(
                f"{clip.name}: the dataset does not say for which place in time the frame is.",
                fix="Add fp_1f_target_index = 1 to the dataset, say.",
            )
    else:
        asked = one_frame(clip.options.get("one_frame_inference") or "")
        controls, target, source = asked.controls, asked.target, "control_index"
    controls = list(controls) if controls is not None else [0]
    if len(controls) != count:
        raise DataError(
            f"{clip.name} has {counted(count, 'control image')}, and {source} names "
            f"{counted(len(controls), 'place')}.",
            fix=f"Give as many numbers in {source} as there are control images.",
        )
    return pictures.layout(controls, target)


def _masks(clip: Clip, stills: list[torch.Tensor]) -> list[torch.Tensor]:
    """How far each cell of each control image is seen, from 0 to 1, like its latents C 1 H W."""
    given = clip.inputs.get("control_masks", ())
    images = clip.inputs.get("control_images", ())
    found: list[torch.Tensor] = []
    for number, still in enumerate(stills):
        channel = None
        if number < len(given):
            channel = given[number][0, :, :, 0]
        elif number < len(images) and images[number].shape[-1] == 4:
            channel = images[number][0, :, :, 3]
        if channel is None:
            found.append(torch.ones_like(still))
            continue
        seen = torch.from_numpy(channel.copy()).float()[None, None] / 255
        small = torch.nn.functional.interpolate(seen, size=still.shape[-2:], mode="area")
        found.append(small.to(still).expand_as(still))
    return found


def changed(encoders: Encoders, clip: Clip) -> Record:
    """VACE: what is kept, what is made anew and where, behind the reference images."""
    height, width = _size(clip)
    vae: Any = encoders.nets[encoders.vae]
    control, mask = clip.input("control"), clip.input("mask")
    video = torch.full((3, clip.length, height, width), pictures.GREY)
    given = torch.ones(clip.length, height, width)
    if control is not None:
        video = _pixels(control)
    if mask is not None:
        given = torch.from_numpy(mask[..., 0].copy()).float() / 255
        given = given.expand(clip.length, -1, -1).contiguous()
    # Pixels are kept or made anew; the mask itself is told as it was given, greys included.
    new = (given > 0.5).float()
    kept, anew = video * (1 - new), video * new
    latents = torch.cat([encoders.latents(kept), encoders.latents(anew)])
    cells = pictures.change_mask(given, (4, vae.spatial, vae.spatial)).to(latents)
    record = {"latents_vace": torch.cat([latents, cells])}
    references = [
        encoders.latents(pictures.within(_pixels(one)[:, 0], height, width)[:, None])
        for one in clip.inputs.get("references", ())
    ]
    if references:
        before = torch.cat(references, dim=1)
        padded = torch.nn.functional.pad(before, (0, 0, 0, 0, 0, 0, 0, 16 + len(cells)))
        record["latents_vace"] = torch.cat([padded, record["latents_vace"]], dim=1)
        if clip.target:
            own = encoders.latents(_pixels(clip.frames))
            record["latents"] = torch.cat([before, own], dim=1)
    return record


RECORDERS: Mapping[str, Recorder] = {
    "t2v": text_only,
    "t2i": text_only,
    "t2v-2.2": text_only,
    "i2v": from_image,
    "i2v-2.2": without_clip,
    "flf2v": from_ends,
    "t2v-FC": controlled,
    "i2v-FC": controlled_image,
    "one_frame": single_frame,
    "one_frame_flf2v": single_frame,
    "ti2v": first_frame,
    "ti2v-image": first_frame,
    "vace": changed,
}
"""Task → what makes its records."""
