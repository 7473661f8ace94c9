"""Every kind against LyCORIS' own modules: outputs, gradients, merged weights, and its files."""

import copy
import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from musubi.lora.adapter import Adapter, Adapters
from musubi.lora.delta import Delta
from musubi.lora.files import read_lora
from musubi.lora.fresh import Kind, factors
from musubi.lora.keys import assembled, grouped, written
from musubi.lora.merge import merging_transform
from musubi.lora.peft import PeftConfig

pytestmark = pytest.mark.parity
lycoris = pytest.importorskip("lycoris.modules")

LAYERS = {
    "linear": lambda: nn.Linear(12, 20),
    "conv": lambda: nn.Conv3d(6, 8, (1, 2, 2), stride=(1, 2, 2), padding=(0, 1, 1)),
}
INPUTS = {"linear": (2, 5, 12), "conv": (2, 6, 3, 6, 6)}
CASES = {
    "lora": ("LoConModule", {}, "linear"),
    "lora, rank stabilized": ("LoConModule", {"rs_lora": True}, "linear"),
    "lora, convolution": ("LoConModule", {}, "conv"),
    "lora, convolution with a core": ("LoConModule", {"use_tucker": True}, "conv"),
    "loha": ("LohaModule", {}, "linear"),
    "loha, convolution": ("LohaModule", {}, "conv"),
    "loha, convolution with a core": ("LohaModule", {"use_tucker": True}, "conv"),
    "lokr": ("LokrModule", {"factor": 4}, "linear"),
    "lokr, both in products": ("LokrModule", {"factor": -1, "decompose_both": True}, "linear"),
    "lokr, whole": ("LokrModule", {"factor": 2, "full_matrix": True}, "linear"),
    "lokr, unbalanced": ("LokrModule", {"factor": 2, "unbalanced_factorization": True}, "linear"),
    "lokr, convolution": ("LokrModule", {"factor": 2, "lora_dim": 1}, "conv"),
    "lokr, convolution with a core": (
        "LokrModule",
        {"factor": 2, "lora_dim": 1, "use_tucker": True},
        "conv",
    ),
    "dora": ("LoConModule", {"weight_decompose": True}, "linear"),
    "dora, of columns": ("LoConModule", {"weight_decompose": True, "wd_on_out": False}, "linear"),
    "dora, convolution": ("LoConModule", {"weight_decompose": True}, "conv"),
    "dora of loha": ("LohaModule", {"weight_decompose": True}, "linear"),
    "dora of lokr": ("LokrModule", {"factor": 4, "weight_decompose": True}, "linear"),
    "oft": ("DiagOFTModule", {"lora_dim": 4}, "linear"),
    "oft, bounded and rescaled": (
        "DiagOFTModule",
        {"lora_dim": 4, "constraint": 0.01, "rescaled": True},
        "linear",
    ),
    "oft, convolution": ("DiagOFTModule", {"lora_dim": 4}, "conv"),
    "boft": ("ButterflyOFTModule", {"lora_dim": 4}, "conv"),
    "full": ("FullModule", {}, "linear"),
}


@pytest.fixture(params=CASES)
def case(request):
    name, options, shape = CASES[request.param]
    torch.manual_seed(0)
    layer = LAYERS[shape]()
    theirs = copy.deepcopy(layer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"lora_dim": 2, "alpha": 3.0, **options}
        module = getattr(lycoris, name)("x", theirs, 1.0, **options)
    with torch.no_grad():
        for n, parameter in module.named_parameters():
            if "dora_scale" in n or "rescale" in n:
                parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))
    module.apply_to()
    tensors = {f"x.{n}": t.detach().clone() for n, t in module.state_dict().items()}
    tensors = {n: t for n, t in tensors.items() if not n.endswith("scalar")}
    return layer, theirs, module, tensors, torch.randn(INPUTS[shape])


def deltas_of(tensors) -> dict[str, Delta]:
    groups, stray = grouped("x", tensors)
    assert not stray
    return dict(assembled("x", groups["x"], tensors.__getitem__, PeftConfig()))


def test_the_output_beside_the_layer_and_merged_into_it(case):
    layer, theirs, _, tensors, x = case
    found = deltas_of(tensors)
    with torch.no_grad():
        expected = theirs(x)
        adapter = Adapter(found["weight"], found.get("bias"))
        torch.testing.assert_close(adapter(layer, x, layer(x)), expected, atol=2e-5, rtol=1e-5)
        for place, delta in found.items():
            parameter = getattr(layer, place)
            assert delta.fits(tuple(parameter.shape)) and not delta.fits((3, *parameter.shape[1:]))
            parameter.add_(delta.change(parameter))
        torch.testing.assert_close(layer(x), expected, atol=2e-5, rtol=1e-5)


def test_gradients(case, request):
    layer, theirs, module, tensors, x = case
    found = deltas_of(tensors)
    if "dora" in request.node.name:
        pytest.skip("LyCORIS goes back through the norm; the paper, peft and we do not")
    adapter = Adapter(found["weight"], found.get("bias"))
    layer.requires_grad_(False)
    x.requires_grad_()
    weights = torch.randn_like(layer(x))
    (adapter(layer, x, layer(x)) * weights).sum().backward()
    ours, to_x = dict(adapter.named_parameters()), x.grad.clone()
    x.grad = None
    (theirs(x) * weights).sum().backward()
    torch.testing.assert_close(to_x, x.grad, atol=1e-4, rtol=1e-5)
    words = written("weight", found["weight"])
    for n, parameter in module.named_parameters():
        if parameter.grad is None or n == "scalar" or n == "weight" or n == "bias":
            continue
        field = next(f for f, p in ours.items() if p.shape == parameter.shape and _word(f) in n)
        torch.testing.assert_close(ours[field].grad, parameter.grad, atol=1e-4, rtol=1e-4)
    assert words


def _word(field: str) -> str:
    return {"down": "lora_down", "up": "lora_up", "mid": "lora_mid", "blocks": "oft_blocks"}.get(
        field, field
    )


def test_what_is_written_is_what_was_read(case):
    *_, tensors, _ = case
    for place, delta in deltas_of(tensors).items():
        for word, tensor in written(place, delta).items():
            if not (word == "alpha" and f"x.{word}" not in tensors):
                torch.testing.assert_close(
                    tensor.float(), tensors[f"x.{word}"].float().reshape(tensor.shape)
                )


@pytest.mark.parametrize("most", [-1, 2, 4, 5, 8, 16, 100])
def test_factors(most):
    from lycoris.functional import factorization

    for number in (*range(1, 130), 250, 360, 512, 1024, 1536, 5120, 8960, 13824):
        assert factors(number, most) == factorization(number, most), number


FRESH = {
    "lora": ("LoConModule", {}),
    "loha": ("LohaModule", {}),
    "lokr": ("LokrModule", {"factor": 4}),
    "oft": ("DiagOFTModule", {}),
}


@pytest.mark.parametrize("kind", FRESH)
@pytest.mark.parametrize("both", [False, True])
def test_fresh_ones_have_their_shapes_and_change_nothing(kind, both):
    name, options = FRESH[kind]
    layer = nn.Linear(24, 48)
    theirs = getattr(lycoris, name)(
        "x", copy.deepcopy(layer), 1.0, 2, 1.0, decompose_both=both, **options
    )
    net = nn.ModuleDict({"x": layer})
    from musubi.plugin import LoraTargets

    made = Adapters.create(
        net,
        LoraTargets(include=(".*",)),
        rank=2,
        alpha=1.0,
        kind=Kind(name=kind, factor=options.get("factor", -1), decompose_both=both),
    )
    (adapter,) = made.modules_by_path.values()
    own = sorted(tuple(p.shape) for p in adapter.parameters())
    assert own == sorted(tuple(p.shape) for n, p in theirs.named_parameters() if n != "scalar")
    x = torch.randn(3, 24)
    assert torch.equal(adapter(layer, x, layer(x)), layer(x))


def test_a_whole_file_through_the_reader(tmp_path, case):
    """Under kohya's prefix, into a network that has the layer."""
    layer, theirs, _, tensors, x = case

    class Arch:
        name, title, variants = "one", "One", ()

        class dit:  # noqa: N801
            dialects, tiny = (), None
            traits = type("T", (), {"stacks": (), "lora": None})

    save_file(
        {f"lora_unet_{n}": t.contiguous() for n, t in tensors.items()}, tmp_path / "x.safetensors"
    )
    shapes = {f"x.{n}": tuple(p.shape) for n, p in layer.named_parameters()}
    file = read_lora(tmp_path / "x.safetensors", Arch, shapes)
    assert not file.unknown
    merging = merging_transform([(file, 1.0)])
    with torch.no_grad():
        for n, parameter in layer.named_parameters():
            parameter.copy_(merging(f"x.{n}", parameter.clone()))
        torch.testing.assert_close(layer(x), theirs(x), atol=2e-5, rtol=1e-5)
