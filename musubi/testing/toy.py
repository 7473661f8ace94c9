"""An architecture that has everything the plugin surface can say, at the size of a few thousand numbers.

Two denoisers for two ranges of noise, a picture encoder, a text encoder that sees pictures, a
control video with a mask, references of any number and size, a prompt for each section of a
rollout, its own guidance and its own noise levels. It is registered by tests only.
"""

from __future__ import annotations

from musubi.plugin import (
    Architecture,
    Component,
    Field,
    Geometry,
    Input,
    KeyMap,
    Lazy,
    LoraTargets,
    Option,
    Sampling,
    Schema,
    Task,
    Traits,
    Variant,
)

_HERE = "musubi.testing.toy_networks"
WIDTH = 16

_DENOISER = Traits(
    stacks=("blocks",),
    quantize=(r"blocks\.\d+\.inner\.weight",),
    lora=LoraTargets(include=(r"blocks\.\d+\.inner",)),
)


def _component(name: str, role, build: str, **more) -> Component:
    return Component(
        name=name,
        role=role,
        help=f"The toy's {name}: a safetensors file.",
        build=Lazy(f"{_HERE}:Toy{build}"),
        infer=Lazy(f"{_HERE}:infer_{build.lower()}"),
        dialects=(KeyMap(name="official", marker=(f"{build.lower()}.weight",)),),
        dtype="float32",
        tiny={"width": WIDTH},
        full={"width": WIDTH},
        **more,
    )


def _denoiser(name: str) -> Component:
    return _component(name, "dit", "Denoiser", traits=_DENOISER)


INPUTS = (
    Input(
        name="start",
        kind="image",
        help="The picture that the video starts from.",
        flag="start_path",
        letter="i",
        required=True,
    ),
    Input(
        name="reference",
        kind="image",
        help="Pictures of what is shown, of any number and size; the text encoder sees them too.",
        flag="reference_path",
        letter="ref",
        column="reference_path",
        directory="reference_directory",
        many=True,
        fit="as_is",
        seen_by_text=True,
    ),
    Input(
        name="motion",
        kind="video",
        help="A video whose motion is followed.",
        flag="motion_path",
        letter="m",
        column="motion_path",
        directory="motion_directory",
    ),
    Input(
        name="area",
        kind="mask",
        help="Where the motion counts: white.",
        beside="motion",
        flag="area_path",
        letter="a",
        column="area_path",
        directory="area_directory",
    ),
)

_LATENTS = {"dims": "CFHW", "sizes": (("C", 4),)}

ARCHITECTURE = Architecture(
    name="toy",
    title="Toy",
    components=(
        _denoiser("dit"),
        _denoiser("dit_high_noise"),
        _component("vae", "vae", "Folder"),
        _component("eye", "image", "Eye"),
        _component("words", "text", "Words"),
    ),
    tasks=(
        Task(
            name="all",
            title="Everything at once",
            requires={"width": WIDTH},
            components=("vae", "eye", "words"),
            denoisers=("dit", "dit_high_noise"),
            schema=Schema(
                media=(
                    Field(name="latents", **_LATENTS),
                    Field(name="latents_start", dims="CFHW", sizes=(("C", 4), ("F", 1))),
                    Field(name="latents_motion", optional=True, **_LATENTS),
                    Field(name="latents_reference", many=True, optional=True, **_LATENTS),
                    Field(name="area", dims="FHW", optional=True),
                    Field(name="seen", dims="D", usual=(("D", WIDTH),)),
                ),
                text=(
                    Field(name="words", dims="LD", varlen=True, usual=(("L", 8), ("D", "width"))),
                ),
            ),
            sampling=Sampling(
                steps=4,
                flow_shift=None,
                guidance_scale=2.0,
                frames=9,
                solver="euler",
                solvers=("euler",),
                solver_names={"euler": "vanilla"},
                negative_prompt="nothing",
                size=(48, 32),
            ),
            inputs=INPUTS,
            check=Lazy(f"{_HERE}:check"),
            texts=Lazy(f"{_HERE}:texts"),
            guidance=Lazy(f"{_HERE}:guided"),
            sigmas=Lazy(f"{_HERE}:sigmas"),
            intervals=Lazy(f"{_HERE}:intervals"),
        ),
    ),
    variants=(Variant(name="all-tiny", task="all", numbers={"width": WIDTH}),),
    runtime=Lazy(f"{_HERE}:ToyRuntime"),
    suffix="toy",
    geometry=Geometry(channels=4, stride=(4, 8, 8), frame_rate=8.0),
    options=(
        Option(
            name="boundary",
            type=float,
            default=0.5,
            help="The noise level from which the denoiser for much noise works.",
            commands=("train", "generate"),
        ),
        Option(
            name="outside",
            type=float,
            default=0.1,
            help="How much the loss counts where the area is black.",
            commands=("train",),
        ),
    ),
    modelspec=("toy", "https://example.org/toy"),
)
