"""What goes wrong: before anything is loaded, for one prompt of many, and after denoising."""

import errno
import io
import re
import shlex
import struct
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from musubi.config.generate import GenerateConfig
from musubi.errors import CheckpointError, ConfigError, RunError
from musubi.generate import write
from musubi.generate.make import Generation
from musubi.generate.pipeline import Pipeline
from musubi.plan import beside


@pytest.fixture
def loaded(monkeypatch):
    """Names of the networks that were loaded, in order."""
    from musubi.weights import nets

    names, load = [], nets.load

    def noted(component, *args, **more):
        names.append(component.name)
        return load(component, *args, **more)

    monkeypatch.setattr(nets, "load", noted)
    return names


def truncate(path):
    Path(path).write_bytes(Path(path).read_bytes()[:-8])


def damage(kind, files, tmp_path, name):
    """Another file in the place of one; what is said of it."""
    path = tmp_path / f"other_{name}.safetensors"
    if kind == "missing":
        return str(path), "other_"
    tensors = load_file(files[name])
    if kind == "truncated":
        save_file(tensors, path)
        truncate(path)
        return str(path), "is truncated"
    if kind == "foreign":
        save_file({"something.weight": torch.ones(3)}, path)
        return str(path), f"is not a {name}"
    if kind == "incomplete":
        first = {k: t for k, t in tensors.items() if k != "out.bias" and "blocks.1" not in k}
        assert len(first) < len(tensors) or name == "words"
        save_file({**first, "more": torch.ones(1)}, path)
        return str(path), "has 1 tensor that|lacks"
    if kind == "integers":
        save_file({k: t.to(torch.int32) for k, t in tensors.items()}, path)
        return str(path), "is stored in int32"
    if kind == "no scale":
        save_file({k: t.to(torch.int8) for k, t in tensors.items()}, path)
        return str(path), "is stored in int8 without a scale"
    raw = Path(files[name]).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    first = re.compile(rb'"data_offsets":\[0,(\d+)\]')
    header = raw[8 : 8 + length]
    wrong = first.sub(rb'"data_offsets":[4,\1]', header)
    path.write_bytes(struct.pack("<Q", len(wrong)) + wrong + raw[8 + length :])
    return str(path), "header cannot be understood"


KINDS = ("missing", "truncated", "foreign", "incomplete", "integers", "no scale", "holed")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["dit", "vae", "words"])
def test_every_file_is_looked_at_before_the_first_is_loaded(
    go, files, tmp_path, loaded, kind, name
):
    path, said = damage(kind, files, tmp_path, name)
    with pytest.raises(CheckpointError, match=said):
        go(prompt="a", **{name: path})
    assert loaded == []


def test_a_lora_is_looked_at_before_anything_is_loaded(go, tmp_path, loaded):
    path = tmp_path / "lora.safetensors"
    save_file({"lora_unet_blocks_0.lora_down.weight": torch.ones(2, 4)}, path)
    for write_it in (truncate, lambda p: Path(p).unlink()):
        write_it(path)
        with pytest.raises(CheckpointError, match=r"lora\.safetensors"):
            go(prompt="a", lora_weight=[str(path)])
    assert loaded == []


def test_a_file_that_is_not_read_is_named(go, files, report):
    (made,) = go(prompt="a", output_type="latent")
    assert any(note.startswith("--vae is not read") for note in report.notes)
    go(latent_path=[str(made)])
    assert any(note.startswith("--dit is not read") for note in report.notes)


def broken(monkeypatch, place, name, error, *, only=None):
    """Make a method fail; for prompts that hold `only`, where that is given."""
    whole = getattr(place, name)

    def fails(self, *args, **more):
        if only is None or any(only in getattr(arg, "prompt", "") for arg in args):
            raise error
        return whole(self, *args, **more)

    monkeypatch.setattr(place, name, fails)


FAILURES = (
    RunError("The decoded frames are not finite.", fix="x."),
    ValueError("something odd"),
    OSError(errno.ENOSPC, "No space left on device", "/full/a.mp4"),
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("cuDNN error"),
)


@pytest.mark.parametrize("error", FAILURES, ids=lambda e: type(e).__name__)
def test_after_denoising_every_failure_keeps_the_latents_and_says_what_decodes_them(
    go, files, out, report, error
):
    with pytest.MonkeyPatch.context() as patch:
        broken(patch, Pipeline, "frames", error)
        with pytest.raises(RunError):
            go(prompt="a", seed=3, crf=20, trim_tail_frames=1, video_length=9, loud=True)
    (kept,) = out.glob("*_latent.safetensors")
    (warning,) = (w for w in report.warnings if "The latents are kept in" in w)
    assert str(kept) in warning
    words = shlex.split(warning.splitlines()[-1])
    assert words[:6] == ["musubi", "generate", "--arch", "toy", "--task", "t2v-toy"]
    given = {word: words[i + 1] for i, word in enumerate(words[:-1]) if word.startswith("--")}
    assert given["--latent_path"] == str(kept)
    assert given["--vae"] == files["vae"] and given["--trim_tail_frames"] == "1"
    assert given["--crf"] == "20.0" and given["--output_type"] == "video"
    assert not {"--dit", "--words", "--prompt", "--video_length", "--infer_steps"} & set(words)
    (made,) = go(latent_path=[str(kept)], dit=None, words=None, task=given["--task"])
    assert made.suffix == ".mp4"


def test_what_the_command_says_can_be_typed(go, report, toy, monkeypatch):
    from musubi.cli.line import CommandLine
    from musubi.config.commands import COMMANDS

    monkeypatch.setattr("musubi.registry.find", lambda name: toy)
    with pytest.MonkeyPatch.context() as patch:
        broken(patch, Pipeline, "frames", ValueError("x"))
        with pytest.raises(RunError):
            go(prompt="a", output_type="latent_images", gain=2.0, loud=True, flow_shift=2.0)
    command = next(c for c in COMMANDS if c.name == "generate")
    words = shlex.split(report.warnings[-1].splitlines()[-1])
    line = CommandLine(command, words[2:])
    assert line.architecture is toy
    assert {"--gain", "--loud"} <= set(words) and words[-1] == "images"


def test_stopping_while_decoding_names_the_latents_too(go, out, report):
    with pytest.MonkeyPatch.context() as patch:
        broken(patch, Pipeline, "frames", KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            go(prompt="a")
    assert "The latents are kept in" in report.warnings[-1]
    assert len(list(out.glob("*_latent.safetensors"))) == 1


def test_latents_that_cannot_be_written_are_kept_elsewhere(go, monkeypatch, tmp_path, report):
    real = write.write_latents
    other = tmp_path / "tmp"
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(other))

    def full(latents, path, metadata=None):
        if other not in path.parents:
            raise RunError(f"{path} could not be written: the disk is full.", fix="x.")
        return real(latents, path, metadata)

    monkeypatch.setattr(write, "write_latents", full)
    (video,) = go(prompt="a")
    assert video.suffix == ".mp4"
    assert any("The latents are in" in w for w in report.warnings)


LINES = "a good one --d 1\na bad one --d 2\nanother --d 3\n"
PLACES = ((Pipeline, "latents"), (Generation, "_show"), (Generation, "_denoise"))


@pytest.mark.parametrize("error", FAILURES, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("place", PLACES, ids=lambda p: p[1])
def test_one_bad_prompt_never_ends_a_batch(go, tmp_path, monkeypatch, report, error, place):
    path = tmp_path / "p.txt"
    path.write_text(LINES)
    broken(monkeypatch, *place, error, only="bad")
    with pytest.raises(RunError, match=r"1 of 3 prompts failed: .*line 2\. .*other 2 are done"):
        go(from_file=str(path), output_type="both")
    assert any("p.txt, line 2: " in w for w in report.warnings)


@pytest.mark.parametrize("place", PLACES, ids=lambda p: p[1])
def test_one_bad_prompt_never_ends_a_session(go, monkeypatch, report, place):
    monkeypatch.setattr(sys, "stdin", io.StringIO(LINES))
    broken(monkeypatch, *place, ValueError("odd"), only="bad")
    made = go(interactive=True, output_type="latent")
    assert len(made) >= 2
    assert "1 of 3 prompts failed: a bad one --d 2" in report.warnings[-1]


@pytest.mark.parametrize("name", ["p.toml", "p.json", "p.txt"])
def test_an_entry_that_cannot_be_read_is_left_out_of_every_kind_of_file(go, tmp_path, report, name):
    path = tmp_path / name
    path.write_text(
        {
            "p.toml": '[prompt]\n[[prompt.subset]]\nprompt = "a"\nwidht = 3\n'
            '[[prompt.subset]]\nprompt = "b"\n',
            "p.json": '[{"prompt": "a", "widht": 3}, {"prompt": "b"}]',
            "p.txt": "a --widht 3\nb\n",
        }[name]
    )
    with pytest.raises(RunError, match="1 of 2 prompts failed"):
        go(from_file=str(path), output_type="latent")
    assert any("widht" in w for w in report.warnings)
    assert sum("Wrote" in note for note in report.notes) == 1


def test_a_batch_loads_each_network_once(go, tmp_path, loaded):
    path = tmp_path / "p.txt"
    path.write_text(LINES)
    assert len(go(from_file=str(path))) == 3
    assert loaded == ["words", "dit", "vae"]


def order(report):
    """The order in which videos were denoised (0, 1, …) and written (w)."""
    said = [
        n[1] if re.match(r"\[\d/", n) else "w" if n.startswith("Wrote") else ""
        for n in report.notes
    ]
    return "".join(said)


def test_each_video_is_shown_as_soon_as_memory_allows(go, tmp_path, monkeypatch, report, loaded):
    path = tmp_path / "p.txt"
    path.write_text(LINES)
    for fits, expected in ((True, "1w2w3w"), (False, "123www")):
        report.notes.clear()
        monkeypatch.setattr("musubi.generate.make.decoding_fits", lambda *a, fits=fits: fits)
        go(from_file=str(path))
        assert order(report) == expected
    assert loaded == ["words", "dit", "vae"] * 2


def test_what_does_not_fit_after_all_is_decoded_at_the_end(go, tmp_path, monkeypatch, report):
    path = tmp_path / "p.txt"
    path.write_text(LINES)
    whole, failing = Pipeline.frames, [True]

    def full(self, *args, **more):
        if failing.pop() if failing else False:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(self, *args, **more)

    monkeypatch.setattr("musubi.generate.make.decoding_fits", lambda *a: True)
    monkeypatch.setattr(Pipeline, "frames", full)
    assert len(go(from_file=str(path))) == 3
    assert order(report) == "123www"


def test_room_beside_the_denoiser_is_what_the_plan_and_vram_say(monkeypatch):
    from types import SimpleNamespace

    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(beside, "host_room", lambda: 5)
    assert beside.free_room(SimpleNamespace(vram=None), cpu) == 5
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda d=None: (10 << 30, 24 << 30))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda d=None: 6 << 30)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda d=None: 7 << 30)
    for vram, room in ((None, 11), ("auto", 11), ("8GiB", 2), ("5GiB", -1)):
        assert beside.free_room(SimpleNamespace(vram=vram), gpu) == room << 30


# seeds, bounds


def seeds(made):
    return sorted(int(write.read_latents(p).seed) for p in made)


def test_several_videos_of_a_prompt_count_the_seed_up(go, tmp_path):
    assert seeds(go(prompt="a", seed=7, num_videos=3, output_type="latent")) == [7, 8, 9]
    path = tmp_path / "p.txt"
    path.write_text("a --d 7\na --d 8\n")
    assert seeds(go(from_file=str(path), num_videos=2, output_type="latent")) == [7, 8, 8, 9]


def test_minus_one_is_a_random_seed_everywhere(go, tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("a --d -1\nb --d -1\n")
    found = {*seeds(go(prompt="a", seed=-1, output_type="latent"))}
    found |= {*seeds(go(from_file=str(path), seed=4, output_type="latent"))}
    assert len(found) == 3 and 4 not in found
    first, second = seeds(go(prompt="a", seed=-1, num_videos=2, output_type="latent"))
    assert second == first + 1


def test_seeds_end_somewhere(go):
    with pytest.raises(ConfigError, match="there are no 2 seeds"):
        go(prompt="a", seed=2**63 - 1, num_videos=2)


def test_latents_that_cannot_be_trimmed_are_refused_before_the_vae_is_loaded(go, tmp_path, loaded):
    save_file({"latent": torch.randn(4, 2, 2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match=r"leaves nothing of .*, which is 5 frames"):
        go(latent_path=[str(tmp_path / "x.safetensors")], trim_tail_frames=5)
    assert loaded == []


# latents of another autoencoder


def test_latents_of_another_architecture_are_refused(go, tmp_path, loaded):
    path = tmp_path / "x.safetensors"
    for recipe, said in (
        (
            '{"architecture": "wan", "task": "t2v-14B"}',
            "Wan.*cannot decode.*--arch wan --task t2v-14B",
        ),
        ('{"architecture": "elsewhere"}', "latents of 'elsewhere', and this is Toy"),
    ):
        save_file({"latent": torch.randn(4, 1, 2, 2)}, path, {"musubi": recipe})
        with pytest.raises(ConfigError, match=said):
            go(latent_path=[str(path)])
    assert loaded == []
    save_file({"latent": torch.randn(4, 1, 2, 2)}, path, {"musubi": '{"architecture": "toy"}'})
    assert go(latent_path=[str(path)])


def test_prompts_have_the_bounds_of_flags(go, tmp_path, report):
    from musubi.config.recipe import _LIMITS

    path = tmp_path / "p.txt"
    wrong = ("--mcrr 7", "--mct -1", "--mck -2", "--s 0", "--s 10001", "--fs 0", "--f 0", "--d -2",
             "--w 0", "--g nan", "--fs inf")  # fmt: skip
    path.write_text("".join(f"a {words}\n" for words in wrong) + "a\n")
    with pytest.raises(RunError, match=f"{len(wrong)} of {len(wrong) + 1} prompts failed"):
        go(from_file=str(path), output_type="latent")
    names = {"steps": "infer_steps", "frames": "video_length"}
    for name, (low, high) in _LIMITS.items():
        field = GenerateConfig.model_fields.get(names.get(name, name))
        if field is None or name == "seed":  # -1 is a random one
            continue
        bounds = {k: getattr(m, k) for m in field.metadata for k in ("ge", "le") if hasattr(m, k)}
        assert bounds == {"ge": low, "le": high}, name
