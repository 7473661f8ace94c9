"""The metadata of a checkpoint that says how it was trained: the `ss_*` keys that other tools read."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from musubi.config.options import paths
from musubi.config.task import Choice
from musubi.config.train import TrainConfig
from musubi.lora.metadata import modelspec, training_metadata
from musubi.plugin import Architecture
from musubi.plugin.inputs import LOSS_MASK
from musubi.train.dataset import Dataset
from musubi.train.state import Position
from musubi.train.trainable import Trainable

# What a file says about a dataset; directories are written without their parents.
_ALL = ("resolution", "caption_extension", "num_repeats", "enable_bucket", "bucket_no_upscale")
_VIDEO = (
    "frame_extraction",
    "frame_stride",
    "frame_sample",
    "target_frames",
    "max_frames",
    "source_fps",
)

# The names that other tools give to adapters that are no LoRA.
_MODULES: dict[str, tuple[str, dict[str, str]]] = {
    "loha": ("networks.loha", {}),
    "lokr": ("networks.lokr", {}),
    "dora": ("lycoris.kohya", {"algo": "lora", "dora_wd": "True"}),
    "oft": ("lycoris.kohya", {"algo": "diag-oft"}),
    "difference": ("lycoris.kohya", {"algo": "full"}),
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The facts that stay the same during a run.

    Args:
        config: The settings of the run.
        architecture: The architecture that is trained.
        choice: The task, and the variant if it is known.
        data: The training data.
        name: `--output_name`.
        started: Start of the run, in seconds since 1970.
        steps_per_epoch: Optimizer steps per epoch.
        batches_per_epoch: Batches per epoch, over all processes.
        total: Optimizer steps of the whole run.
        optimizer: `module.Class(arguments)`.
        trainable: The trained weights.
        session: A number that is new for every start.
    """

    config: TrainConfig
    architecture: Architecture
    choice: Choice
    data: Dataset
    name: str
    started: float
    steps_per_epoch: int
    batches_per_epoch: int
    total: int
    optimizer: str
    trainable: Trainable
    session: int = field(default_factory=lambda: secrets.randbelow(2**32))

    def at(self, position: Position) -> dict[str, str]:
        """The metadata of a checkpoint that is written at this position."""
        ended = position.batch >= position.size
        now = {
            "training_finished_at": time.time(),
            "steps": position.step,
            # Counted from 1 for a finished epoch, from 0 within one, as readers expect.
            "epoch": position.epoch if ended else max(0, position.epoch - 1),
        }
        found = training_metadata(
            {**self._training(), **now},
            self.architecture,
            network=self._network(),
            minimum=self.config.no_metadata,
        )
        return {**found, **self._modelspec()} if not self.config.full else self._whole(found)

    def _whole(self, found: dict[str, str]) -> dict[str, str]:
        """Remove the keys that only a LoRA has."""
        kept = {k: v for k, v in found.items() if not k.startswith("ss_network_")}
        spec = self._modelspec()
        spec["modelspec.architecture"] = spec["modelspec.architecture"].removesuffix("/lora")
        return {"format": "pt", **kept, **spec}

    def _modelspec(self) -> dict[str, str]:
        config = self.config
        limits = (config.min_timestep, config.max_timestep)
        low, high = limits[0] or 0, 1000 if limits[1] is None else limits[1]
        return modelspec(
            self.architecture,
            title=config.metadata_title or self.name,
            timestep_range=None if limits == (None, None) else (low, high),
            author=config.metadata_author,
            description=config.metadata_description,
            license=config.metadata_license,
            tags=config.metadata_tags,
        )

    def _training(self) -> dict[str, Any]:
        config = self.config
        plain = (
            "gradient_checkpointing",
            "gradient_accumulation_steps",
            "lr_warmup_steps",
            "lr_scheduler",
            "mixed_precision",
            "seed",
            "training_comment",
            "max_grad_norm",
            "weighting_scheme",
            "loss_type",
            "huber_schedule",
            "huber_c",
            "min_snr_gamma",
            "logit_mean",
            "logit_std",
            "mode_scale",
            "timestep_sampling",
            "sigmoid_scale",
            "discrete_flow_shift",
        )
        given = paths(config, self.architecture)
        files = {"sd_model_name": given.get(self.architecture.dit.name)}
        vaes = [c.name for c in self.architecture.components if c.role == "vae"]
        files["vae_name"] = next((given[n] for n in vaes if n in given), None)
        return {
            "session_id": self.session,
            "training_started_at": self.started,
            "output_name": self.name,
            "learning_rate": config.learning_rate_or_default,
            "num_train_items": self.data.visits,
            "num_batches_per_epoch": self.batches_per_epoch,
            "num_epochs": -(-self.total // self.steps_per_epoch),
            "max_train_steps": self.total,
            "optimizer": self.optimizer,
            "fp8_base": config.fp8_base or config.fp8_scaled,
            "int8": config.int8 or config.int8_fast,
            "full_fp16": False,
            "full_bf16": False,
            "datasets": self._datasets(),
            **{name: getattr(config, name) for name in plain},
            **{name: Path(path).name for name, path in files.items() if path is not None},
        }

    def _network(self) -> dict[str, Any]:
        identity = self.trainable.identity()
        pairs = (pair.partition("=") for pair in self.config.network_args or ())
        named = {key: value for key, _, value in pairs}
        module, more = _MODULES.get(identity["kind"], (None, {}))
        return {
            **({} if module is None else {"module": module}),
            "dim": identity.get("rank"),
            "alpha": identity.get("alpha"),
            "dropout": self.config.network_dropout,
            "args": {**more, **named},
        }

    def _datasets(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for entry in self.data.file.datasets:
            names = (*_ALL, *_VIDEO) if entry.kind == "video" else _ALL
            said: dict[str, Any] = {name: getattr(entry, name) for name in names}
            said["batch_size_per_device"] = entry.batch_size
            said["has_control"] = bool(entry.directories.keys() - {LOSS_MASK.name})
            places = {"directory": entry.directory, "jsonl_file": entry.jsonl_file}
            said |= {f"{entry.kind}_{n}": p.name for n, p in places.items() if p is not None}
            for one in entry.inputs:
                if one.directory is not None and one.name in entry.directories:
                    said[one.directory] = entry.directories[one.name].name
            found.append(said)
        return found
