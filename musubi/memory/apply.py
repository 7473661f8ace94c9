"""All policies of one network, in their order: storage, residency, recompute, activations, compile.

`PolicyPlacement` acts while a network is loaded: it decides how each weight is stored, and where.
`finish` then puts the rest around its blocks. Adapters come after it, on top of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from musubi.errors import ConfigError
from musubi.memory import (
    activations,
    attention_chunks,
    compiled,
    ffn_chunks,
    quantized,
    recompute,
    residency,
    visitors,
)
from musubi.memory.blocks import stacks
from musubi.memory.compiled import Compiler
from musubi.memory.stream import BlockStream, Home, housed, layout, spread
from musubi.plugin.architecture import Component
from musubi.plugin.policy import Policy
from musubi.plugin.report import Quiet, Report
from musubi.plugin.traits import Traits

_STREAM = "_musubi_stream"
_KINDS = {"fp8": "fp8", "fp8_scaled": "fp8", "int8": "int8"}


class PolicyPlacement:
    """Decides where and how the tensors of one network are stored while the network is loaded.

    Args:
        traits: Traits of the network.
        policy: The memory policy.
        device: Where the network will run.
        strict: Refuse to stream more blocks than there are; otherwise all blocks are streamed.
        compiler: How its blocks are compiled, when the policy says so.
        smallest: Smaller tensors stay on the device: in bytes for activations, in numbers for
            layers outside the blocks. Each has its own default.
        report: Told what cannot be had here.
        pool: Host memory for activations, shared with networks that never run at the same time; its
            own when not given.
    """

    def __init__(
        self,
        traits: Traits,
        policy: Policy,
        device: torch.device,
        *,
        strict: bool = True,
        compiler: Compiler | None = None,
        smallest: int | None = None,
        report: Report | None = None,
        pool: activations.HostPool | None = None,
    ) -> None:
        self.pool = pool
        self.smallest = smallest
        self.strict = strict
        self.traits = traits
        self.policy = policy
        self.device = device
        self.compiler = compiler or Compiler()
        self.report: Report = report or Quiet()
        self._stored: set[str] = set()
        self._homes: dict[int, Home] = {}
        self._visiting: dict[str, Home] = {}
        self._views: dict[str, torch.Tensor] = {}
        self._count = 0

    def prepare(self, module: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
        """Lay out the network, which is on the meta device, before anything of it is read.

        Raises:
            ConfigError: More blocks are to be streamed than there are.
        """
        policy = self.policy
        if policy.storage != "native":
            self._stored = set(
                quantized.convert(
                    module,
                    self.traits,
                    quantized_matmul=self._quantized_matmul(),
                    storage=policy.storage,
                )
            )
        if any(policy.streamed):
            self._lay_out(module, dtypes)

    def stores(self, name: str) -> bool:
        """Whether `store` changes this tensor."""
        return name in self._stored

    def keeps(self, name: str, dtype: torch.dtype) -> bool:
        """Whether an 8-bit weight of the file is kept: only if the policy stores it in that dtype."""
        return name in self._stored and quantized.DTYPES[self.policy.storage] is dtype

    def store(
        self, name: str, tensor: torch.Tensor, scale: torch.Tensor | None
    ) -> Mapping[str, torch.Tensor] | None:
        """The tensor as it is stored, with its scale; None: unchanged."""
        if name not in self._stored:
            return None
        if scale is None:
            tensor, scale = quantized.quantized(tensor, self.policy.storage)
        return {name: tensor, f"{name.rpartition('.')[0]}.{quantized.SCALE}": scale.float()}

    def home(self, name: str) -> torch.Tensor | None:
        """The host memory to fill, for a streamed tensor."""
        return self._views.get(name)

    def finish(self, module: nn.Module) -> nn.Module:
        """Put the policies around the blocks of a network that is in place."""
        stream = None
        if self._homes:
            stream = BlockStream(self._homes, self._count, self.device)
            module.__dict__[_STREAM] = stream
        for name, home in self._visiting.items():
            visitors.apply(module.get_submodule(name), home, self.device)  # type: ignore[arg-type]
        small = activations.SMALLEST if self.smallest is None else self.smallest
        lot = activations.Lot(
            self.device,
            small,
            eight=self.policy.offload_8bit,
            report=self.report,
            pool=self.pool or activations.HostPool(),
        )
        around(module, self.traits, self.policy, self.compiler, stream, lot)
        return module

    def _quantized_matmul(self) -> bool:
        if not self.policy.quantized_matmul:
            return False
        if self.device.type != "cuda" or quantized.multiplies(self.device, self.policy.storage):
            return True
        self.report.warn(
            f"This device does not multiply in {_KINDS[self.policy.storage]}: weights are expanded for "
            "each product."
        )
        return False

    def _lay_out(self, module: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
        names = {id(t): n for n, t in (*module.named_parameters(), *module.named_buffers())}
        made = {id_: dtypes[name] for id_, name in names.items() if name in dtypes}
        for name in self._stored:
            made[id(module.get_parameter(name))] = quantized.DTYPES[self.policy.storage]
            layer = module.get_submodule(name.rpartition(".")[0])
            made[id(layer.get_buffer(quantized.SCALE))] = torch.float32
        first = 0
        for number, stack in enumerate(stacks(module, self.traits)):
            wanted = self.policy.streamed[number] if number < len(self.policy.streamed) else 0
            if not self.strict:
                wanted = min(wanted, len(stack))
            check_swapped(self.traits.stacks[number], wanted, len(stack))
            for place in spread(len(stack), wanted):
                self._homes[first + place] = self._house(stack[place], names, made)
            first += len(stack)
        self._count = first
        small = visitors.SMALLEST if self.smallest is None else self.smallest
        for name, layer in visitors.visitors(module, self.traits, small):
            self._visiting[name] = self._house(layer, names, made)

    def _house(
        self, part: nn.Module, names: Mapping[int, str], made: dict[int, torch.dtype]
    ) -> Home:
        items, size = layout(part, made)
        home = housed(items, size, self.device, self.report)
        self._views |= {names[id(i.tensor)]: i.view(home.buffer) for i in items}
        return home


def check_swapped(stack: str, wanted: int, there: int) -> None:
    """Refuse to stream more blocks of a stack than it has.

    Raises:
        ConfigError: There are fewer.
    """
    if wanted > there:
        raise ConfigError(
            f"--blocks_to_swap would swap {wanted} blocks of {stack!r}, and this network has "
            f"{there} there.",
            fix="Give a smaller --blocks_to_swap.",
        )


def placer(
    policies: Mapping[str, Policy],
    device: torch.device,
    *,
    compiler: Compiler | None = None,
    report: Report | None = None,
) -> Callable[[Component], PolicyPlacement | None]:
    """Make the function that `weights.nets.Nets` calls for each network that it loads.

    Args:
        policies: Component name → its policy; other components are loaded without one.
        device: Where networks run.
        compiler: For those that are compiled.
        report: Told what cannot be had here.
    """
    pool = activations.HostPool()

    def place(component: Component) -> PolicyPlacement | None:
        policy = policies.get(component.name)
        if policy is None or policy == Policy():
            return None
        return PolicyPlacement(
            component.traits,
            policy,
            device,
            strict=component.role == "dit",
            compiler=compiler,
            report=report,
            pool=pool,
        )

    return place


def around(
    module: nn.Module,
    traits: Traits,
    policy: Policy,
    compiler: Compiler,
    stream: BlockStream | None,
    lot: activations.Lot,
) -> None:
    """Put a policy's recomputation, compilation and residency around a network's blocks."""
    if policy.ffn_chunks > 1:
        ffn_chunks.apply(module, traits, policy.ffn_chunks, compiled=policy.compile)
    if policy.attention_chunks > 1 and not policy.compile:
        # Inside of what is computed again.
        attention_chunks.apply(module, traits, policy.attention_chunks)
    if policy.compile:
        compiled.apply(module, traits, compiler, recomputed=policy.recompute)
    elif policy.recompute != "none":
        recompute.apply(module, traits, keep_attention=policy.recompute == "attention")
    if policy.attention_chunks > 1 and policy.compile:
        attention_chunks.apply(module, traits, policy.attention_chunks)
    if stream is not None or policy.offload_activations:
        parked = lot if policy.offload_activations else None
        residency.apply(module, traits, stream=stream, lot=parked)


def park(module: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to another device between uses. Streamed blocks stay on the host, and their
    slots are freed.
    """
    stream: BlockStream | None = module.__dict__.get(_STREAM)
    if stream is not None and device != stream.device:
        stream.leave()
    return module.to(device)


def give_slots_back(module: nn.Module) -> None:
    """Free the device memory that streamed blocks of a network visit, until one of them runs again."""
    stream: BlockStream | None = module.__dict__.get(_STREAM)
    if stream is not None:
        stream.leave()


def at_home(module: nn.Module) -> dict[tuple[int, str], torch.Tensor]:
    """Tensors of a network's streamed blocks, which are empty in place, as host memory has them.

    Args:
        module: The network.

    Returns:
        (`id` of the module that owns it, its name there) → the tensor, which is not to be changed.
    """
    stream: BlockStream | None = module.__dict__.get(_STREAM)
    homes = () if stream is None else stream.homes.values()
    return {
        (id(item.owner), item.leaf): item.view(home.buffer) for home in homes for item in home.items
    }
