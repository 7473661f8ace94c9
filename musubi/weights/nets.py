"""The networks that a command has files for: each is loaded when first asked for, and can be freed."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from musubi.errors import ConfigError
from musubi.plugin.architecture import Architecture, Component
from musubi.plugin.report import Quiet, Report
from musubi.weights.load import Transform, load
from musubi.weights.placement import Placement
from musubi.weights.tokenizer import load_tokenizer


class NetworkPlacement(Placement, Protocol):
    """A `Placement` that has the last word on a network that is in place."""

    def finish(self, module: nn.Module) -> nn.Module:
        """Put what goes around its blocks around them."""
        ...


class Nets:
    """`plugin.Networks`, from files.

    Args:
        architecture: The architecture of the components.
        paths: Component name to its file or folder.
        device: Where networks are loaded to.
        dtypes: Component name to dtype, where it differs from the component's own.
        tokenizers: Component name to the tokenizer that the user gave.
        transforms: Component name to what is done to its tensors while loading.
        place: Says for a component how it is stored and where; None where nothing is special.
        loaded: Called with the name and the network after each loading.
        report: Shows what is loaded.
    """

    def __init__(  # noqa: PLR0913 - where each kind of thing comes from
        self,
        architecture: Architecture,
        paths: Mapping[str, Path],
        *,
        device: torch.device,
        dtypes: Mapping[str, torch.dtype] | None = None,
        tokenizers: Mapping[str, Path] | None = None,
        transforms: Mapping[str, Transform] | None = None,
        place: Callable[[Component], NetworkPlacement | None] = lambda component: None,
        loaded: Callable[[str, nn.Module], None] = lambda name, module: None,
        report: Report | None = None,
    ) -> None:
        self.architecture = architecture
        self.device = torch.device(device)
        self._paths = {name: Path(path) for name, path in paths.items()}
        self._dtypes = dict(dtypes or {})
        self._given_tokenizers = dict(tokenizers or {})
        self._transforms = dict(transforms or {})
        self._place = place
        self._loaded = loaded
        self._report: Report = report or Quiet()
        self._modules: dict[str, nn.Module] = {}
        self._tokenizers: dict[str, Any] = {}

    def __getitem__(self, name: str) -> nn.Module:
        """The component of that name, loaded when it was not.

        Raises:
            ConfigError: No file was given for it.
            CheckpointError: Its file cannot be used.
        """
        if name not in self._modules:
            component = self._component(name)
            path = self._path(component)
            self._report.note(f"Loading the {name} from {path}.")
            place = self._place(component)
            module = load(
                component,
                path,
                device=self.device,
                dtype=self._dtypes.get(name),
                transform=self._transforms.get(name),
                others=self.architecture.components,
                placement=place,
            )
            module = module if place is None else place.finish(module)
            self._loaded(name, module)
            self._modules[name] = module
        return self._modules[name]

    def __contains__(self, name: object) -> bool:
        return name in self._modules or name in self._paths

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the networks that are in memory."""
        return tuple(self._modules)

    def put(self, name: str, module: nn.Module) -> None:
        """Use this module for that name: one that was made or placed elsewhere."""
        self._component(name)
        self._modules[name] = module

    def free(self, name: str) -> None:
        """Forget a network and give its memory back; it is loaded again when asked for."""
        if self._modules.pop(name, None) is not None:
            self._give_back()

    def free_all(self) -> None:
        """Forget every network."""
        if self._modules:
            self._modules.clear()
            self._give_back()

    def tokenizer(self, name: str) -> Any:
        """The tokenizer of a text encoder; it stays when the encoder is freed.

        Raises:
            ConfigError: No file was given for the encoder, or no tokenizer can be found.
        """
        if name not in self._tokenizers:
            component = self._component(name)
            self._tokenizers[name] = load_tokenizer(
                component, self._given_tokenizers.get(name), self._paths.get(name)
            )
        return self._tokenizers[name]

    def _component(self, name: str) -> Component:
        try:
            return self.architecture.component(name)
        except KeyError:
            known = ", ".join(c.name for c in self.architecture.components)
            raise ConfigError(
                f"{self.architecture.title} has no network {name!r}.", fix=f"It has: {known}."
            ) from None

    def _path(self, component: Component) -> Path:
        return self.architecture.path_of(component.name, self._paths)

    def _give_back(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self.device.type == "mps":
            torch.mps.empty_cache()
        elif self.device.type == "xpu":
            torch.xpu.empty_cache()
