"""Everything that the architecture `pixels` says about itself. Plain data: no torch in this file."""

from musubi.plugin import (
    Architecture,
    Component,
    Field,
    Geometry,
    KeyMap,
    Lazy,
    LoraTargets,
    Sampling,
    Schema,
    Task,
    Traits,
    Variant,
)

DIT = Component(
    name="dit",
    role="dit",
    help="The denoiser: one safetensors file.",
    build=Lazy("musubi_pixels.networks:Denoiser"),
    infer=Lazy("musubi_pixels.networks:infer_denoiser"),
    dialects=(KeyMap(name="official", marker=("blocks.{n}.attention.qkv.weight",)),),
    traits=Traits(
        stacks=("blocks",),
        fp32=(r".*norm.*",),
        quantize=(r"blocks\.\d+\.(attention|mlp)\..*weight",),
        lora=LoraTargets(
            include=(r"blocks\.\d+\..*",),
            groups={
                "attention": (r"blocks\.\d+\.attention\..*",),
                "mlp": (r"blocks\.\d+\.mlp\..*",),
            },
        ),
    ),
    tiny={"width": 64, "depth": 2, "text_width": 32},
)

VAE = Component(
    name="vae",
    role="vae",
    help="The autoencoder: pixels folded into channels, and a linear map.",
    build=Lazy("musubi_pixels.networks:Folder"),
    infer=Lazy("musubi_pixels.networks:infer_folder"),
    dialects=(KeyMap(name="official", marker=("fold.weight", "unfold.weight")),),
    dtype="float32",
    tiny={"channels": 8},
)

WORDS = Component(
    name="words",
    role="text",
    help="The text encoder: a table with a row for each byte. It needs no tokenizer.",
    build=Lazy("musubi_pixels.networks:Words"),
    infer=Lazy("musubi_pixels.networks:infer_words"),
    dialects=(KeyMap(name="official", marker=("table.weight",)),),
    dtype="float32",
    tiny={"text_width": 32},
)

ARCHITECTURE = Architecture(
    name="pixels",
    title="Pixels",
    components=(DIT, VAE, WORDS),
    tasks=(
        Task(
            name="t2v",
            title="Text to video",
            requires={},
            components=("vae", "words"),
            schema=Schema(
                media=(Field(name="latents", dims="CFHW", sizes=(("C", 8),)),),
                text=(
                    Field(
                        name="words",
                        dims="LD",
                        varlen=True,
                        usual=(("L", 64), ("D", "text_width")),  # for `musubi plan`
                    ),
                ),
            ),
            sampling=Sampling(
                steps=8,
                flow_shift=1.0,
                guidance_scale=1.0,
                frames=5,
                solver="vanilla",
                solvers=("vanilla",),
            ),
        ),
    ),
    variants=(Variant(name="t2v-tiny", task="t2v", numbers=DIT.tiny),),
    runtime=Lazy("musubi_pixels.runtime:PixelsRuntime"),
    suffix="px",
    geometry=Geometry(channels=8, stride=(4, 8, 8), frame_rate=8.0),
    modelspec=("pixels", "https://example.org/pixels"),
)
