import pytest
import torch
from torch import nn

from musubi.errors import CheckpointError
from musubi.weights import assemble, stream_in
from musubi.weights import load as room
from musubi.weights.files import open_weights
from musubi.weights.load import inspect, load


def _refused(component, path, sentence, **options):
    with pytest.raises(CheckpointError, match=sentence) as caught:
        load(component, path, device="cpu", **options)
    assert caught.value.fix
    return caught.value


def test_a_file_becomes_a_frozen_module_in_place(toy, toy_tensors, write):
    given = toy_tensors()
    path = write(given)
    module = load(toy, path, device="cpu")
    state = module.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in given.items())
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())
    assert all(type(p) is nn.Parameter for p in module.parameters())
    assert module.musubi_component is toy
    assert module.musubi_numbers == {"width": 4}
    assert module.musubi_source == path
    assert module.positions.tolist() == [0, 1, 2, 3]


def test_a_module_does_not_depend_on_its_file(toy, toy_tensors, write):
    given = toy_tensors()
    path = write(given)
    module = load(toy, path, device="cpu")
    with path.open("rb+") as file:
        file.seek(-given["qkv.weight"].numel(), 2)
        file.write(b"\xff" * given["qkv.weight"].numel())
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in given.items())


def test_another_layout_is_fused_swapped_renamed_and_dropped(toy, toy_tensors, write):
    given = toy_tensors()
    theirs = {
        **{
            f"net.{part}.{kind}": piece.clone()
            for kind in ("weight", "bias")
            for part, piece in zip("qkv", given[f"qkv.{kind}"].chunk(3), strict=True)
        },
        "net.o.weight": torch.cat(given["out.weight"].chunk(2)[::-1]),
        "net.ln.weight": given["norm.weight"],
        "net.ln.bias": given["norm.bias"],
        "net.spare.weight": torch.zeros(3),
        "another.model": torch.zeros(3),
        **{f"net.{n}": given[n] for n in ("table.weight", "extra", "count")},
    }
    module = load(toy, write(theirs), device="cpu")
    assert module.head.weight is module.table.weight
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in given.items())
    assert inspect(toy, write(theirs)).dialect.name == "theirs"


def test_what_may_be_absent_and_what_may_be_there(toy, toy_tensors, write):
    given = toy_tensors()
    del given["extra"], given["table.weight"]
    module = load(toy, write({**given, "notes.a": torch.zeros(1)}), device="cpu")
    assert module.extra.tolist() == [7.0] * 4
    assert torch.equal(module.table.weight, given["head.weight"])


def test_an_optional_tensor_that_nobody_makes_is_refused(make_component, toy_tensors, write):
    given = toy_tensors()
    del given["norm.bias"]
    component = make_component(optional=("norm.bias",))
    _refused(component, write(given), "lacks 'norm.bias', and the dit does not make it itself")


# dtypes


def test_the_component_says_the_dtype_and_what_stays_precise(make_component, toy_tensors, write):
    path = write(toy_tensors(dtype=torch.float16))
    module = load(make_component(dtype="bfloat16"), path, device="cpu")
    assert module.qkv.weight.dtype is torch.bfloat16
    assert module.norm.weight.dtype is torch.float32
    assert module.count.dtype is torch.int64
    module = load(make_component(dtype="bfloat16"), path, device="cpu", dtype=torch.float64)
    assert module.qkv.weight.dtype is torch.float64
    module = load(make_component(dtype="file"), path, device="cpu")
    assert module.qkv.weight.dtype is torch.float16
    assert module.norm.weight.dtype is torch.float32


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_plain_fp8_file_is_expanded(toy, toy_tensors, write, kind):
    given = toy_tensors()
    given["qkv.weight"] = given["qkv.weight"].to(kind)
    module = load(toy, write(given), device="cpu")
    assert module.qkv.weight.dtype is torch.bfloat16
    assert torch.equal(module.qkv.weight.float(), given["qkv.weight"].float())
    assert module.out.weight.dtype is torch.float32


@pytest.mark.parametrize(
    ("scale_name", "rest", "scale"),
    [
        ("scale_weight", {"scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}, torch.tensor(0.5)),
        ("scale_weight", {"qkv.scale_input": torch.ones(1)}, torch.tensor([0.5])),
        ("weight_scale", {"qkv.input_scale": torch.tensor(1.0)}, torch.full((12,), 0.5)),
        (
            "weight_scale",
            {"qkv.comfy_quant": torch.zeros(9, dtype=torch.uint8)},
            torch.full((12, 1), 0.5),
        ),
    ],
)
def test_scaled_fp8_is_expanded_with_its_scale(toy, toy_tensors, write, scale_name, rest, scale):
    given = toy_tensors()
    stored = (given["qkv.weight"] * 2).to(torch.float8_e4m3fn)
    path = write({**given, "qkv.weight": stored, f"qkv.{scale_name}": scale, **rest})
    module = load(toy, path, device="cpu", dtype=torch.float32)
    assert torch.equal(module.qkv.weight, stored.float() * 0.5)


def test_scales_of_fused_weights_are_applied_before_they_are_joined(toy, toy_tensors, write):
    given = toy_tensors()
    theirs = {"net.o.weight": given["out.weight"]}
    for name in ("table.weight", "count"):
        theirs[f"net.{name}"] = given[name]
    for i, part in enumerate("qkv"):
        theirs[f"net.{part}.weight"] = torch.ones(4, 4).to(torch.float8_e4m3fn)
        theirs[f"net.{part}.scale_weight"] = torch.tensor(float(i + 1))
        theirs[f"net.{part}.bias"] = torch.zeros(4)
    theirs |= {"net.ln.weight": torch.ones(4), "net.ln.bias": torch.zeros(4)}
    module = load(toy, write(theirs), device="cpu")
    assert module.qkv.weight[:, 0].tolist() == [1.0] * 4 + [2.0] * 4 + [3.0] * 4


def test_other_quantisations_are_refused_by_name(toy, toy_tensors, write):
    given = toy_tensors()
    whole = {**given, "qkv.weight": torch.ones(12, 4, dtype=torch.int8)}
    whole["qkv.weight"] = whole["qkv.weight"].to(torch.int16)
    whole["qkv.weight_scale"] = torch.ones(1)
    _refused(toy, write(whole), r"'qkv.weight' .*int16")
    blocks = {**given, "qkv.weight": torch.ones(12, 4).to(torch.float8_e4m3fn)}
    blocks["qkv.weight_scale"] = torch.ones(3, 2)
    _refused(toy, write(blocks), r"scale of 'qkv.weight' has the shape \(3, 2\)")


# memory


def test_each_byte_is_read_once_and_only_what_is_needed(toy, toy_tensors, write, monkeypatch):
    read = []

    def watched(path):
        weights = open_weights(path)
        inner = weights.readinto

        def readinto(name, room, at=0):
            read.append((name, at, at + len(room)))
            inner(name, room, at)

        weights.readinto = readinto
        return weights

    monkeypatch.setattr(room, "open_weights", watched)
    monkeypatch.setattr(stream_in, "CHUNK", 64)
    given = toy_tensors()
    load(toy, write({**given, "notes.a": torch.zeros(100)}), device="cpu")
    assert {name for name, _, _ in read} == set(given)
    for name, tensor in given.items():
        spans = sorted(span for other, *span in read if other == name)
        assert [span[0] for span in spans] == [0, *(span[1] for span in spans[:-1])]
        assert spans[-1][1] == tensor.nbytes


@pytest.mark.parametrize("dtype", [None, torch.float16])
@pytest.mark.parametrize("transform", [None, lambda name, tensor: tensor * 2])
def test_what_passes_through_buffers_is_the_same(
    toy, toy_tensors, write, monkeypatch, dtype, transform
):
    """As on a device, whatever the order in which threads are done, and however bytes are cut."""
    given = toy_tensors()
    theirs = {f"net.{n}": given[n] for n in ("table.weight", "extra", "count")}
    for part, piece, kind in zip("qkv", given["qkv.weight"].chunk(3), (0, 1, 1), strict=True):
        theirs[f"net.{part}.weight"] = piece.to(torch.float8_e4m3fn) if kind else piece
        theirs[f"net.{part}.bias"] = torch.randn(4)
    theirs["net.k.scale_weight"] = torch.tensor(0.3)
    theirs |= {"net.o.weight": given["out.weight"], "net.ln.weight": given["norm.weight"]}
    path = write({**theirs, "net.ln.bias": given["norm.bias"]})
    plain = load(toy, path, device="cpu", dtype=dtype, transform=transform)
    monkeypatch.setattr(
        assemble, "Order", lambda name, room, **_: stream_in.Order(name, room, False)
    )
    monkeypatch.setattr(stream_in, "CHUNK", 64)
    monkeypatch.setattr(stream_in, "_DISK", 0)
    monkeypatch.setattr(stream_in, "_readers", lambda: 5)
    buffered = load(toy, path, device="cpu", dtype=dtype, transform=transform)
    for name, tensor in plain.state_dict().items():
        found = buffered.state_dict()[name]
        assert found.dtype is tensor.dtype
        assert torch.equal(found, tensor), name


def test_nothing_is_read_from_a_file_that_does_not_fit(toy, toy_tensors, write, monkeypatch):
    def watched(path):
        weights = open_weights(path)
        weights.read = weights.readinto = None
        return weights

    monkeypatch.setattr(room, "open_weights", watched)
    given = toy_tensors()
    del given["qkv.bias"]
    _refused(toy, write(given), "lacks 1 of")


# transform


def test_a_transform_sees_our_names_and_comes_before_the_cast(make_component, toy_tensors, write):
    given = toy_tensors()
    given["out.weight"] = given["out.weight"].to(torch.float8_e4m3fn)
    seen = {}

    def plus(name, tensor):
        seen[name] = tensor.dtype
        return tensor + 0.5 if name == "out.weight" else tensor

    module = load(make_component(), write(given), device="cpu", transform=plus)
    assert seen["out.weight"] is torch.float32
    assert "count" not in seen
    assert torch.equal(module.out.weight, (given["out.weight"].float() + 0.5).to(torch.bfloat16))


# refusals


def test_missing_and_unknown_names_are_counted_and_shown(toy, toy_tensors, write):
    given = toy_tensors()
    del given["qkv.bias"], given["norm.bias"]
    path = write({**given, "blocks.9.mystery": torch.zeros(1)})
    error = _refused(toy, path, "read as a dit in the own layout, lacks 2 of 9 tensors")
    assert "'qkv.bias', 'norm.bias'" in error.what
    assert "has 1 tensor that the dit does not know ('blocks.9.mystery')" in error.what


def test_a_shape_that_does_not_fit_is_named_with_both(toy, toy_tensors, write):
    path = write({**toy_tensors(), "out.weight": torch.zeros(3, 4)})
    _refused(toy, path, r"'out.weight' has the shape \(3, 4\), where .* has \(8, 4\)")


@pytest.mark.parametrize(("bad", "kind"), [(float("nan"), "NaN"), (float("inf"), "an infinity")])
def test_a_weight_that_is_not_finite_is_named(toy, toy_tensors, write, bad, kind):
    given = toy_tensors()
    given["out.weight"][1, 1] = bad
    _refused(toy, write(given), rf"'out.weight' holds {kind}")


def test_a_weight_too_large_for_the_dtype_is_named(toy, toy_tensors, write):
    given = toy_tensors()
    given["out.weight"][1, 1] = 1e6
    _refused(
        toy,
        write(given),
        r"'out.weight' does not fit float16: its largest number is 1e\+06",
        dtype=torch.float16,
    )


def test_a_stranger_is_named_when_somebody_knows_it(make_component, toy_tensors, write):
    dit = make_component(dialects=make_component().dialects[1:])
    vae = make_component(name="vae", role="vae")
    error = _refused(dit, write(toy_tensors()), "is not a dit", others=(dit, vae))
    assert "none of the layouts (theirs) fits the 9 tensors, such as" in error.what
    assert "It seems to be the vae, which --vae takes." in error.what


def test_a_refusal_of_infer_says_the_file_and_what_it_is(make_component, toy_tensors, write):
    def refuse(shapes):
        raise CheckpointError("Too wide.", fix="Give a thin one.")

    path = write(toy_tensors())
    vae = make_component(name="vae", role="vae")
    error = _refused(make_component(infer=refuse), path, r"Too wide\.", others=(vae,))
    assert error.what.startswith(f"{path}: Too wide. It seems to be the vae")
    assert error.fix == "Give a thin one."


def test_a_stranger_that_nothing_installed_reads_is_named(make_component, toy_tensors, write):
    dit = make_component(foreign_keys={"odd.weight": "an odd one"})
    for given in (toy_tensors(), {"other": torch.zeros(1)}):
        path = write({**given, "model.odd.weight": torch.zeros(1)})
        error = _refused(dit, path, r"not a dit.*\. It looks like an odd one\.")
        assert error.fix == "Give --dit another file."


def test_a_lora_is_recognised_as_one(toy, write):
    path = write({"lora_unet_a.lora_down.weight": torch.zeros(1, 1)})
    _refused(toy, path, "It is a LoRA, not a model")


def test_parts_that_do_not_join_are_refused(toy, toy_tensors, write):
    theirs = {f"net.{p}.weight": torch.zeros(4, 4 + (p == "v")) for p in "qkv"}
    _refused(toy, write(theirs), "'qkv.weight' is made of tensors of the shapes .* do not join")


# inspecting, folders


def test_inspecting_reads_no_tensor(toy, toy_tensors, write, monkeypatch):
    path = write({**toy_tensors(dtype=torch.bfloat16), "qkv.scale_weight": torch.ones(1)})
    monkeypatch.setattr("musubi.weights.files._Safetensors.readinto", None)
    found = inspect(toy, path)
    assert found.numbers == {"width": 4}
    assert found.shapes["qkv.weight"] == (12, 4)
    assert found.dtypes["qkv.weight"] is torch.bfloat16
    assert found.scales == {"qkv.weight": "qkv.scale_weight"}
    assert found.dialect.name == "own"


def test_a_snapshot_gives_the_subfolder_of_the_component(toy, toy_tensors, write, tmp_path):
    write({"x": torch.zeros(1)}, "vae/model.safetensors")
    path = write(toy_tensors(), "snap [1]/transformer/diffusion_pytorch_model.safetensors")
    write({"x": torch.zeros(1)}, "snap [1]/vae/model.safetensors")
    module = load(toy, tmp_path / "snap [1]", device="cpu")
    assert module.musubi_source == path.parent
    path.unlink()
    _refused(toy, tmp_path / "snap [1]", r"No subfolder of .* holds a dit; .* in vae/")


def test_a_folder_without_weights_is_refused(toy, tmp_path):
    (tmp_path / "empty").mkdir()
    _refused(toy, tmp_path / "empty", "holds no weights")
