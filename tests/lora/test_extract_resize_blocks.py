"""The difference of two checkpoints as a LoRA, other ranks, sums, and blocks."""

import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from musubi import registry
from musubi.config.lora import (
    LoraBlocksConfig,
    LoraExtractConfig,
    LoraMergeConfig,
    LoraResizeConfig,
)
from musubi.config.options import for_architecture
from musubi.errors import CheckpointError, ConfigError
from musubi.lora import blocks, extract, lowrank, merge, resize
from musubi.lora.adapter import Adapters
from musubi.lora.blocks import weighted
from musubi.lora.delta import Difference, Pair
from musubi.lora.files import read_lora, write_lora
from musubi.lora.fresh import Kind
from musubi.lora.lowrank import Size
from musubi.plugin import Quiet
from musubi.testing import twins

WAN, HUNYUAN = registry.find("wan"), registry.find("hunyuan_video")


def adapters(kind=None, rank=3, seed=0, architecture=WAN):
    dit = architecture.dit
    torch.manual_seed(seed)
    made = Adapters.create(
        twins.build_twin(dit), dit.traits.lora, rank=rank, alpha=2.0, kind=Kind(name=kind or "lora")
    )
    for parameter in made.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return made.tensors()


def merged(tmp_path, dit, lora, name="tuned.safetensors", architecture=WAN, **options):
    model = for_architecture(LoraMergeConfig, architecture, "lora merge")
    out = tmp_path / name
    config = model(
        dit=str(dit),
        lora_weight=[str(lora)],
        save_merged_model=str(out),
        device="cpu",
        **options,
    )
    merge.run(config, architecture, Quiet())
    return out


@pytest.fixture
def pair_file(tmp_path):
    write_lora(tmp_path / "a.safetensors", adapters(), dtype=torch.float32)
    return tmp_path / "a.safetensors"


@pytest.mark.parametrize("dialect", ["official", "diffusers"])
def test_what_was_merged_comes_out_again(tmp_path, pair_file, dialect):
    base = twins.write_twin(WAN.dit, tmp_path)
    tuned = merged(tmp_path, base, pair_file)
    # The two may be laid out differently.
    other = twins.write_twin(WAN.dit, tmp_path / "other", dialect=dialect)
    report = Quiet()
    out = tmp_path / "out.safetensors"
    extract.run(
        LoraExtractConfig(
            base=str(other), tuned=str(tuned), output=str(out), rank=3, save_precision="fp32"
        ),
        report,
    )
    found, expected = read_lora(out, WAN).deltas, read_lora(pair_file, WAN).deltas
    assert found.keys() == expected.keys() and not report.warnings
    for name, delta in expected.items():
        assert found[name].rank == 3
        torch.testing.assert_close(found[name].matrix(), delta.matrix(), atol=1e-5, rtol=1e-3)
    assert any("| 0.0" in note and note.startswith("all") for note in report.notes)


def test_energy_ranks_and_the_rest(tmp_path):
    base = twins.write_twin(WAN.dit, tmp_path)
    tensors = load_file(base)
    torch.manual_seed(0)
    tuned = {n: t + 0.1 * torch.randn_like(t) for n, t in tensors.items()}
    save_file(tuned, tmp_path / "tuned.safetensors")
    options = {"base": str(base), "tuned": str(tmp_path / "tuned.safetensors")}
    report = Quiet()
    out = tmp_path / "out.safetensors"
    extract.run(
        LoraExtractConfig(**options, output=str(out), energy=0.5, save_precision="fp32"), report
    )
    for name, delta in read_lora(out, WAN).deltas.items():
        change = tuned[name] - tensors[name]
        values = torch.linalg.svdvals(change).double().square()
        held = values.cumsum(0) / values.sum()
        assert held[delta.rank - 1] >= 0.5 > held[delta.rank - 2]
        lost = (change - delta.matrix()).norm() ** 2 / change.norm() ** 2
        assert float(lost) == pytest.approx(1 - float(held[delta.rank - 1]), abs=1e-4)
    assert "--rest" in report.warnings[0]
    extract.run(
        LoraExtractConfig(
            **options, output=str(out), rest=True, all_layers=True, save_precision="fp32"
        ),
        Quiet(),
    )
    deltas = read_lora(out, WAN).deltas
    assert deltas.keys() == set(tensors)
    assert isinstance(deltas["blocks.0.modulation"], Difference)
    assert isinstance(deltas["time_embedding.0.weight"], Pair)
    name = "blocks.0.norm3.weight"
    torch.testing.assert_close(deltas[name].matrix(), tuned[name] - tensors[name])


def test_checkpoints_that_do_not_belong_together(tmp_path, pair_file):
    base = twins.write_twin(WAN.dit, tmp_path)
    other = load_file(base)
    other["blocks.0.ffn.0.bias"] = torch.ones(3)
    save_file(other, tmp_path / "other.safetensors")
    out = str(tmp_path / "out.safetensors")
    with pytest.raises(CheckpointError):
        extract.run(
            LoraExtractConfig(
                base=str(base), tuned=str(tmp_path / "other.safetensors"), output=out
            ),
            Quiet(),
        )
    with pytest.raises(ConfigError, match="do not differ"):
        extract.run(LoraExtractConfig(base=str(base), tuned=str(base), output=out), Quiet())
    with pytest.raises(CheckpointError, match="no denoiser"):
        extract.run(LoraExtractConfig(base=str(pair_file), tuned=str(base), output=out), Quiet())


def test_a_random_start_finds_the_same_as_all_singular_values():
    torch.manual_seed(0)
    matrix = torch.randn(1300, 40) @ torch.diag(0.8 ** torch.arange(40.0)) @ torch.randn(40, 1200)
    for size in (Size(8), Size(None, 0.9), Size(4, 0.9)):
        pair, total, left = lowrank.approximated(matrix, size)
        values = torch.linalg.svdvals(matrix).double().square()
        assert total == pytest.approx(float(values.sum()), rel=1e-4)
        assert left == pytest.approx(float(values[pair.rank :].sum()), rel=1e-3, abs=total * 1e-9)


def test_several_files_are_summed_exactly(tmp_path):
    files = []
    for seed, rank in ((0, 2), (1, 3)):
        path = tmp_path / f"{seed}.safetensors"
        write_lora(path, adapters(rank=rank, seed=seed), dtype=torch.float32)
        files.append(str(path))
    out = tmp_path / "sum.safetensors"
    config = LoraResizeConfig(
        files=files, lora_multiplier=[0.5], output=str(out), save_precision="fp32"
    )
    resize.run(config, Quiet())
    found = read_lora(out, WAN)
    parts = [read_lora(path, WAN).deltas for path in files]
    for name, delta in found.deltas.items():
        expected = 0.5 * parts[0][name].matrix() + parts[1][name].matrix()
        assert delta.rank == 5
        torch.testing.assert_close(delta.matrix(), expected, atol=1e-6, rtol=1e-5)
    assert found.form == "kohya"
    small = tmp_path / "small.safetensors"
    report = Quiet()
    config = LoraResizeConfig(files=[str(out)], output=str(small), rank=2, save_precision="fp32")
    resize.run(config, report)
    lost = 0.0
    for name, delta in read_lora(small, WAN).deltas.items():
        whole = found.deltas[name].matrix()
        u, s, v = torch.linalg.svd(whole, full_matrices=False)
        best = u[:, :2] * s[:2] @ v[:2]
        torch.testing.assert_close(delta.matrix(), best, atol=1e-5, rtol=1e-4)
        lost += float(s[2:].square().sum())
    norm = sum(float(d.matrix().square().sum()) for d in found.deltas.values())
    (row,) = [note for note in report.notes if note.startswith("all layers")]
    assert row.endswith(f"{(lost / norm) ** 0.5:.2%}")


@pytest.mark.parametrize("kind", ["loha", "lokr", "dora", "oft"])
def test_other_kinds_become_pairs(tmp_path, kind):
    dit = twins.write_twin(WAN.dit, tmp_path)
    deltas = adapters(kind, rank=2)
    write_lora(tmp_path / "a.safetensors", deltas, dtype=torch.float32)
    options = {
        "files": [str(tmp_path / "a.safetensors")],
        "output": str(tmp_path / "b.safetensors"),
        "save_precision": "fp32",
        "device": "cpu",
    }
    if kind in ("dora", "oft"):
        with pytest.raises(ConfigError, match="--base PATH"):
            resize.run(LoraResizeConfig(**options), Quiet())
        options["base"] = str(dit)
    resize.run(LoraResizeConfig(**options), Quiet())
    found = read_lora(tmp_path / "b.safetensors", WAN).deltas
    base = dict(twins.build_twin(WAN.dit).named_parameters())
    for name, delta in deltas.items():
        assert isinstance(found[name], Pair)
        torch.testing.assert_close(
            found[name].matrix(), delta.change(base[name]), atol=1e-4, rtol=1e-3
        )


def test_blocks_as_words_and_as_a_picture(tmp_path, pair_file):
    report = Quiet()
    picture = tmp_path / "a.png"
    blocks.run(LoraBlocksConfig(files=[str(pair_file)], picture=str(picture)), report)
    deltas = read_lora(pair_file, WAN).deltas
    for number in (0, 1):
        squares = sum(
            float(d.matrix().square().sum()) for n, d in deltas.items() if f"blocks.{number}." in n
        )
        (line,) = [n for n in report.notes if n.startswith(f"blocks.{number} ")]
        assert f"{squares**0.5:.4g}" in line and "█" in line
    with Image.open(picture) as image:
        assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 2


def test_strengths_by_block(tmp_path, pair_file):
    dit = twins.write_twin(WAN.dit, tmp_path)
    before = load_file(dit)
    out = merged(
        tmp_path, dit, pair_file, lora_block_weights=["blocks.1=0.25"], lora_multiplier=[2.0]
    )
    after = load_file(out)
    for name, delta in read_lora(pair_file, WAN).deltas.items():
        strength = 0.5 if name.startswith("blocks.1.") else 2.0
        torch.testing.assert_close(
            after[name] - before[name], strength * delta.matrix(), atol=1e-5, rtol=1e-4
        )
    file = read_lora(pair_file, WAN)
    for words in ("0,0.5", "blocks.0=0,blocks.1=0.5", "blocks.0-0=0, blocks.1-=0.5"):
        chosen = weighted(file, words, WAN)
        assert all(n.startswith("blocks.1.") for n in chosen.deltas)
        assert set(chosen.strengths.values()) == {0.0, 0.5}
    made = Adapters.from_deltas(
        twins.build_twin(WAN.dit), chosen.deltas, strengths=chosen.strengths
    )
    assert {a.strength for a in made.modules_by_path.values()} == {0.5}


def test_blocks_of_several_stacks(tmp_path):
    path = tmp_path / "a.safetensors"
    write_lora(path, adapters(architecture=HUNYUAN), form="comfy", dtype=torch.float32)
    file = read_lora(path, HUNYUAN)
    chosen = weighted(file, "single_blocks=0,double_blocks.1=3", HUNYUAN)
    assert {n.split(".")[0] for n in chosen.deltas} == {"double_blocks"}
    assert chosen.strengths["double_blocks.1.img_attn_qkv.weight"] == 3.0
    assert weighted(file, "1,1,0,0", HUNYUAN).deltas.keys() == chosen.deltas.keys()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("1,2,3", "3 numbers, and the network has 2 blocks"),
        ("block.0=1", "no stack of blocks"),
        ("blocks.5=1", "has the blocks 0 to 1"),
        ("blocks.1-0=1", "has the blocks 0 to 1"),
        ("blocks.0=x", "not a number"),
        ("blocks.0", "1 number"),
        ("blocks.0=1,2", "not a block and a strength"),
    ],
)
def test_odd_block_weights(pair_file, words, says):
    with pytest.raises(ConfigError, match=says):
        weighted(read_lora(pair_file, WAN), words, WAN)


class Peak(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make inside, as long as they live."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        before = {
            t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if is_tensor(t)
        }
        for tensor in filter(is_tensor, tree_leaves(found)):
            if tensor.untyped_storage().data_ptr() not in before:  # no view, and not in place
                size = tensor.untyped_storage().nbytes()
                self.now += size
                self.most = max(self.most, self.now)
                weakref.finalize(tensor, self.gone, size)
        return found

    def gone(self, size):
        self.now -= size


def is_tensor(value):
    return isinstance(value, torch.Tensor)


@pytest.fixture(scope="module")
def deep_and_shallow(tmp_path_factory):
    """Number of layers → a checkpoint and a tuned one, with every weight changed."""
    found = {}
    for layers in (2, 12):
        folder = tmp_path_factory.mktemp(f"{layers} layers")
        numbers = {**twins.numbers_for(WAN.task("t2v")), "num_layers": layers}
        base = twins.write_twin(WAN.dit, folder, numbers=numbers)
        torch.manual_seed(0)
        tuned = {n: t + 0.1 * torch.randn_like(t) for n, t in load_file(base).items()}
        save_file(tuned, folder / "tuned.safetensors")
        found[layers] = (base, folder / "tuned.safetensors")
    return found


def test_memory_is_one_tensor_however_many_there_are(deep_and_shallow, tmp_path):
    peaks, sizes = {}, {}
    for layers, (base, tuned) in deep_and_shallow.items():
        made, smaller = tmp_path / f"{layers}.safetensors", tmp_path / f"{layers} small.safetensors"
        options = {"arch": "wan", "device": "cpu", "save_precision": "fp32"}
        with Peak() as extracting:
            extract.run(
                LoraExtractConfig(
                    base=str(base), tuned=str(tuned), output=str(made), rank=1, **options
                ),
                Quiet(),
            )
        with Peak() as resizing:
            resize.run(
                LoraResizeConfig(files=[str(made)], output=str(smaller), rank=1, **options), Quiet()
            )
        peaks[layers] = extracting.most, resizing.most
        sizes[layers] = base.stat().st_size, made.stat().st_size
    model, lora = (deep - shallow for shallow, deep in zip(*sizes.values(), strict=True))
    extra = [deep - shallow for shallow, deep in zip(*peaks.values(), strict=True)]
    assert max(extra) < 4 * lora < model / 3  # what is made is held, and no more of what is read
    largest = max(t.numel() * 4 for t in load_file(deep_and_shallow[12][0]).values())
    assert largest < peaks[2][0] < 16 * largest
