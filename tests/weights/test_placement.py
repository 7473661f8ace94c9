import pytest
import torch
from torch import nn

from musubi.errors import CheckpointError
from musubi.weights.finite import Truths
from musubi.weights.load import load
from musubi.weights.meta import ModuleMap

FP8 = torch.float8_e4m3fn


class Rows(nn.Linear):
    """A linear layer with a scale a row."""


class Placed:
    """A policy: what is in `homes` lives there, what is in `kinds` is stored as its function says."""

    def __init__(self, *, homes=None, stored=None, kept=()):
        self.homes = homes or {}
        self.stored = stored or {}
        self.kept = kept
        self.module = None
        self.dtypes = {}
        self.asked = []
        self.seen = {}

    def prepare(self, module, dtypes):
        self.module = module
        self.dtypes = dict(dtypes)
        assert all(tensor.is_meta for tensor in module.state_dict().values())
        for name in [*self.stored, *self.kept]:
            layer = module.get_submodule(name.rpartition(".")[0])
            layer.__class__ = Rows
            layer.register_buffer("scale", torch.empty(layer.out_features, 1, device="meta"))

    def keeps(self, name, dtype):
        self.asked.append(name)
        return name in self.kept

    def stores(self, name):
        return name in self.stored

    def store(self, name, tensor, scale):
        self.seen[name] = (tensor, scale)
        if name in self.stored:
            return self.stored[name](name, tensor)
        return {name: tensor, name.replace("weight", "scale"): scale}

    def home(self, name):
        return self.homes.get(name)


def by_row(name, tensor):
    scale = tensor.float().abs().amax(1, keepdim=True) / 448
    return {name: (tensor.float() / scale).to(FP8), name.replace("weight", "scale"): scale}


def test_prepare_sees_an_empty_module_and_what_each_tensor_becomes(
    make_component, toy_tensors, write
):
    given = toy_tensors(dtype=torch.float16)
    given["out.weight"] = given["out.weight"].to(FP8)
    placed = Placed()
    module = load(make_component(dtype="file"), write(given), device="cpu", placement=placed)
    assert placed.module is module
    assert placed.dtypes == {
        **dict.fromkeys(("qkv.weight", "qkv.bias", "extra"), torch.float16),
        **dict.fromkeys(("norm.weight", "norm.bias"), torch.float32),
        **dict.fromkeys(("table.weight", "head.weight"), torch.float16),
        "out.weight": torch.bfloat16,
        "count": torch.int64,
    }
    placed = Placed()
    load(make_component(), write(given), device="cpu", dtype=torch.bfloat16, placement=placed)
    assert placed.dtypes["qkv.weight"] is torch.bfloat16


def test_a_policy_that_wants_nothing_changes_nothing(toy, toy_tensors, write):
    given = toy_tensors(dtype=torch.bfloat16)
    given["out.weight"] = given["out.weight"].to(FP8)
    path = write(given)
    with_one, without = (
        load(toy, path, device="cpu", placement=Placed()),
        load(toy, path, device="cpu"),
    )
    for name, tensor in without.state_dict().items():
        found = with_one.state_dict()[name]
        assert found.dtype is tensor.dtype
        assert torch.equal(found, tensor)
    assert with_one.head.weight is with_one.table.weight


def test_a_stored_weight_and_its_scale_are_placed_and_not_demanded_from_the_file(
    toy, toy_tensors, write
):
    given = toy_tensors(dtype=torch.bfloat16)
    placed = Placed(stored={"qkv.weight": by_row})
    module = load(toy, write(given), device="cpu", placement=placed)
    assert type(module.qkv) is Rows
    expected = by_row("qkv.weight", given["qkv.weight"])
    assert module.qkv.weight.dtype is FP8
    assert torch.equal(module.qkv.weight.float(), expected["qkv.weight"].float())
    assert torch.equal(module.qkv.scale, expected["qkv.scale"])
    assert module.out.weight.dtype is torch.bfloat16


def test_store_sees_the_transformed_tensor_before_the_cast_and_may_decline(toy, toy_tensors, write):
    given = toy_tensors()
    given["out.weight"] = given["out.weight"].to(FP8)
    placed = Placed(stored={"out.weight": lambda name, tensor: None}, kept=("qkv.weight",))
    module = load(
        toy,
        write({n: t for n, t in given.items() if n != "extra"}),
        device="cpu",
        dtype=torch.float16,
        transform=lambda name, tensor: tensor + 1,
        placement=Placed(stored={"qkv.weight": by_row}),
    )
    assert torch.equal(
        module.qkv.weight.float(), by_row("x.weight", given["qkv.weight"] + 1)["x.weight"].float()
    )
    with pytest.raises(CheckpointError, match=r"lacks 'qkv\.scale'"):
        load(toy, write(given), device="cpu", placement=placed)
    seen, scale = placed.seen["out.weight"]
    assert seen.dtype is torch.float32
    assert scale is None
    assert placed.asked == ["out.weight"]


def test_a_kept_weight_goes_to_store_as_it_is(toy, toy_tensors, write):
    given = toy_tensors(dtype=torch.bfloat16)
    given["qkv.weight"] = given["qkv.weight"].to(FP8)
    given["out.weight"] = given["out.weight"].to(FP8)
    given["out.scale_weight"] = torch.tensor(0.5)
    placed = Placed(kept=("qkv.weight", "out.weight"))
    module = load(toy, write(given), device="cpu", placement=placed)
    assert placed.seen["qkv.weight"][1].tolist() == [[1.0]] * 12
    seen, scale = placed.seen["out.weight"]
    assert seen.dtype is FP8
    assert scale.dtype is torch.float32
    assert scale.tolist() == [[0.5]] * 8
    assert torch.equal(module.out.weight.float(), given["out.weight"].float())
    assert torch.equal(module.out.scale, scale)


def test_kept_parts_are_joined_with_a_scale_a_row(toy, toy_tensors, write):
    given = toy_tensors(dtype=torch.bfloat16)
    theirs = {f"net.{n}": given[n] for n in ("table.weight", "count")}
    parts = [part.to(FP8) for part in given["qkv.weight"].chunk(3)]
    for part, piece in zip("qkv", parts, strict=True):
        theirs[f"net.{part}.weight"] = piece
        theirs[f"net.{part}.bias"] = torch.zeros(4)
    theirs["net.q.scale_weight"] = torch.tensor([2.0])
    theirs["net.k.scale_weight"] = torch.arange(4.0)
    theirs["net.o.weight"] = given["out.weight"].to(FP8)
    theirs |= {"net.ln.weight": torch.ones(4), "net.ln.bias": torch.zeros(4)}
    path = write(theirs)
    placed = Placed(kept=("qkv.weight",))
    module = load(toy, path, device="cpu", placement=placed)
    assert module.qkv.scale.flatten().tolist() == [2.0] * 4 + [0.0, 1.0, 2.0, 3.0] + [1.0] * 4
    assert torch.equal(module.qkv.weight.float(), torch.cat([p.float() for p in parts]))
    assert placed.asked == ["qkv.weight"], "halves that change places are expanded"
    plain = load(toy, path, device="cpu", dtype=torch.float32)
    assert torch.equal(module.qkv.weight.float() * module.qkv.scale, plain.qkv.weight)


def test_nothing_is_kept_under_a_transform_or_in_other_8_bits(toy, toy_tensors, write):
    given = toy_tensors()
    given["out.weight"] = given["out.weight"].to(FP8)
    placed = Placed(kept=())
    load(toy, write(given), device="cpu", transform=lambda name, t: t, placement=placed)
    assert not placed.asked
    theirs = {f"net.{n}": given[n] for n in ("table.weight", "count")}
    for part, kind in zip("qkv", (FP8, torch.float8_e5m2, FP8), strict=True):
        theirs[f"net.{part}.weight"] = torch.ones(4, 4).to(kind)
        theirs[f"net.{part}.bias"] = torch.zeros(4)
    theirs |= {"net.o.weight": torch.ones(8, 4), "net.ln.weight": torch.ones(4)}
    load(toy, write({**theirs, "net.ln.bias": torch.ones(4)}), device="cpu", placement=placed)
    assert not placed.asked


def test_homes_become_the_parameters(toy, toy_tensors, write):
    given = toy_tensors(dtype=torch.bfloat16)
    arena = torch.zeros(1000, dtype=torch.uint8)
    homes = {
        "qkv.bias": arena[:24].view(torch.bfloat16),  # straight
        "norm.weight": torch.zeros(4),  # cast
        "qkv.weight": arena[64:112].view(FP8).view(12, 4),  # stored
        "qkv.scale": torch.zeros(12, 1),
        "table.weight": torch.zeros(5, 4, dtype=torch.bfloat16),  # tied
        "count": torch.zeros((), dtype=torch.int64),
    }
    placed = Placed(stored={"qkv.weight": by_row}, homes=homes)
    module = load(toy, write(given), device="cpu", placement=placed)
    for name, home in homes.items():
        tensor = module.get_submodule(name.rpartition(".")[0])
        tensor = getattr(tensor, name.rpartition(".")[2])
        assert tensor.data_ptr() == home.data_ptr(), name
        assert tensor.dtype is home.dtype
    assert module.head.weight is module.table.weight
    assert torch.equal(module.qkv.bias, given["qkv.bias"])
    assert torch.equal(module.norm.weight, given["norm.weight"].float())
    assert module.count == 3
    expected = by_row("qkv.weight", given["qkv.weight"])
    assert torch.equal(module.qkv.weight.float(), expected["qkv.weight"].float())
    assert module.qkv.bias.requires_grad is False


def test_what_was_placed_stays_and_what_the_module_made_moves(toy_module):
    module_map = ModuleMap(toy_module)
    home = torch.ones(12, 4)
    module_map.place("qkv.weight", home)
    module_map.place("table.weight", torch.ones(5, 4))
    toy_module.extra = nn.Parameter(torch.zeros(4))
    toy_module.positions = torch.arange(4)
    module_map.bring_rest(torch.device("meta"))
    assert toy_module.qkv.weight.data_ptr() == home.data_ptr()
    assert toy_module.head.weight is toy_module.table.weight
    assert torch.equal(toy_module.table.weight, torch.ones(5, 4))
    assert toy_module.extra.is_meta
    assert type(toy_module.extra) is nn.Parameter
    assert toy_module.positions.is_meta


@pytest.mark.parametrize("home", [None, torch.zeros(8, 4), torch.zeros(8, 4).half()])
@pytest.mark.parametrize(("bad", "kind"), [(float("nan"), "NaN"), (float("inf"), "an infinity")])
def test_a_weight_that_is_not_finite_is_named_wherever_it_goes(
    toy, toy_tensors, write, home, bad, kind
):
    given = toy_tensors()
    given["out.weight"][7, 3] = bad
    homes = {} if home is None else {"out.weight": home}
    dtype = None if home is None else home.dtype
    with pytest.raises(CheckpointError, match=rf"'out\.weight' holds {kind}"):
        load(toy, write(given), device="cpu", dtype=dtype, placement=Placed(homes=homes))


def test_a_weight_that_does_not_fit_what_it_is_stored_in_is_named(toy, toy_tensors, write):
    given = toy_tensors()
    given["out.weight"][0, 0] = 1e6
    bare = {"out.weight": lambda name, t: {name: t.half(), "out.scale": torch.ones(8, 1)}}
    with pytest.raises(
        CheckpointError, match=r"'out\.weight' does not fit float16: its largest .* 1e\+06"
    ):
        load(toy, write(given), device="cpu", placement=Placed(stored=bare))
    with pytest.raises(CheckpointError, match=r"'out\.weight' holds NaN"):
        given["out.weight"] = torch.full((8, 4), float("nan")).to(FP8)
        load(toy, write(given), device="cpu", placement=Placed(kept=("out.weight",)))


def test_truths_are_looked_at_once_and_named():
    truths = Truths()
    truths.add("a", torch.tensor(True))
    truths.add("b", torch.tensor(False))
    truths.add("c", False)
    truths.add("d", True)
    assert sorted(truths.false()) == ["b", "c"]


def test_a_file_in_int8_is_kept_or_expanded(toy, toy_tensors, write):
    given = toy_tensors(dtype=torch.bfloat16)
    given["out.weight"] = torch.randint(-127, 128, (8, 4), dtype=torch.int8)
    given["out.weight_scale"] = torch.rand(8, 1)
    path = write(given)
    exact = given["out.weight"].float() * given["out.weight_scale"]
    for dtype, expected in ((None, torch.bfloat16), (torch.float32, torch.float32)):
        plain = load(toy, path, device="cpu", dtype=dtype)
        assert plain.out.weight.dtype is expected
        assert torch.equal(plain.out.weight, exact.to(expected))
    placed = Placed(kept=("out.weight",))
    module = load(toy, path, device="cpu", placement=placed)
    assert module.out.weight.dtype is torch.int8
    assert torch.equal(module.out.weight, given["out.weight"])
    assert torch.equal(module.out.scale, given["out.weight_scale"])
    given["out.weight_scale"][3] = float("nan")
    with pytest.raises(CheckpointError, match=r"'out\.weight' holds NaN"):
        load(toy, write(given), device="cpu", placement=Placed(kept=("out.weight",)))
