import pytest
import torch
from torch import nn

from musubi.errors import CheckpointError
from musubi.plugin import Component, Fuse, KeyMap, Rename, Swap, Traits
from musubi.weights.write import save


class Toy(nn.Module):
    """Two linears that share nothing, a norm, a tied table, a counter, and a table of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.table = nn.Embedding(5, width)
        self.head = nn.Linear(width, 5, bias=False)
        self.head.weight = self.table.weight
        self.extra = nn.Parameter(torch.zeros(width))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("positions", torch.arange(width), persistent=False)

    def finish(self) -> None:
        if self.extra.is_meta:
            self.extra = nn.Parameter(torch.full((self.norm.weight.shape[0],), 7.0))
        self.positions = torch.arange(self.norm.weight.shape[0])


def infer(shapes):
    if "norm.weight" not in shapes:
        raise CheckpointError("This is no toy.", fix="Give a toy.")
    return {"width": shapes["norm.weight"][0]}


DIALECTS = (
    KeyMap(name="own", marker=("qkv.weight",)),
    KeyMap(
        name="theirs",
        prefix="net.",
        marker=("q.weight",),
        rules=(
            Fuse(theirs=("q.weight", "k.weight", "v.weight"), ours="qkv.weight"),
            Fuse(theirs=("q.bias", "k.bias", "v.bias"), ours="qkv.bias"),
            Swap(theirs="o.weight", ours="out.weight"),
            Rename(theirs="ln.{rest}", ours="norm.{rest}"),
        ),
        drop=("spare.{rest}",),
    ),
)


def component(**changes) -> Component:
    given = {
        "name": "dit",
        "role": "dit",
        "help": "A toy.",
        "build": Toy,
        "infer": infer,
        "dialects": DIALECTS,
        "traits": Traits(fp32=(r"norm\..*",)),
        "dtype": "file",
        "optional": ("extra", r"notes\..*"),
    }
    return Component(**{**given, **changes})


def tensors(width: int = 4, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = {n: torch.randn(t.shape) for n, t in Toy(width).state_dict().items()}
    state["table.weight"] = state["head.weight"]
    state = {n: t.to(dtype) for n, t in state.items()}
    state["count"] = torch.tensor(3)
    return state


@pytest.fixture
def make_component():
    return component


@pytest.fixture
def toy() -> Component:
    return component()


@pytest.fixture
def toy_module() -> Toy:
    with torch.device("meta"):
        return Toy(4)


@pytest.fixture
def toy_tensors():
    return tensors


@pytest.fixture
def write(tmp_path):
    def _write(values, name="toy.safetensors", metadata=None):
        save(tmp_path / name, values, metadata)
        return tmp_path / name

    return _write
