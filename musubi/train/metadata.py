"""What a checkpoint says about how it was made: the `ss_*` keys that the field's tools read."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from musubi.config.options import paths
from musubi.config.task import Choice
from musubi.config.train import TrainConfig
from musubi.spec import Architecture
from musubi.train.dataset import Dataset
from musubi.train.state import Position
from musubi.train.trainee import Trainee

# Of a dataset, what files say; names of directories lose their parents.
_ALL = ("resolution", "caption_extension", "num_repeats", "enable_bucket", "bucket_no_upscale")
_VIDEO = (
    "frame_extraction",
    "frame_stride",
    "frame_sample",
    "target_frames",
    "max_frames",
    "source_fps",
)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What does not change while a run lasts.

    Args:
        config: Of the run.
        architecture: That is trained.
        choice: The task, and the variant when known.
        data: What it is trained on.
        name: `--output_name`.
        started: Seconds since 1970.
        steps_per_epoch: Optimizer steps.
        batches_per_epoch: Of all processes.
        total: Optimizer steps.
        optimizer: `module.Class(arguments)`.
        trainee: What is trained.
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
    trainee: Trainee
    session: int = field(default_factory=lambda: secrets.randbelow(2**32))

    def at(self, position: Position) -> dict[str, str]:
        """The metadata of a checkpoint that is written now."""
        values = {
            **self._training(),
            **self._network(),
            "ss_training_finished_at": time.time(),
            "ss_steps": position.step,
            "ss_epoch": position.epoch
            if position.batch >= position.size
            else max(0, position.epoch - 1),
        }
        values |= self._modelspec() if self.config.full else {}
        if self.config.no_metadata:
            kept = ("base_model_version", "network_module", "network_dim", "network_alpha")
            names = {f"ss_{name}" for name in (*kept, "network_args")}
            values = {k: v for k, v in values.items() if k in names or k.startswith("modelspec.")}
        return {k: v if isinstance(v, str) else str(v) for k, v in values.items()}

    def _modelspec(self) -> dict[str, Any]:
        """For a whole network; a LoRA's own are added when it is written."""
        config = self.config
        architecture, implementation = self.architecture.modelspec
        given = {
            "title": config.metadata_title or self.name,
            "author": config.metadata_author,
            "description": config.metadata_description,
            "license": config.metadata_license,
            "tags": config.metadata_tags,
            "sai_model_spec": "1.0.0",
            "architecture": architecture,
            "implementation": implementation,
            "resolution": "1280x720",
            "date": datetime.now().replace(microsecond=0).isoformat(),
        }
        return {f"modelspec.{key}": value for key, value in given.items() if value}

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
            "logit_mean",
            "logit_std",
            "mode_scale",
            "timestep_sampling",
            "sigmoid_scale",
            "discrete_flow_shift",
        )
        given = paths(config, self.architecture)
        files = {"ss_sd_model_name": given.get(self.architecture.dit.name)}
        vaes = [c.name for c in self.architecture.components if c.role == "vae"]
        files["ss_vae_name"] = next((given[n] for n in vaes if n in given), None)
        return {
            "ss_session_id": self.session,
            "ss_training_started_at": self.started,
            "ss_output_name": self.name,
            "ss_learning_rate": config.learning_rate_or_default,
            "ss_num_train_items": self.data.visits,
            "ss_num_batches_per_epoch": self.batches_per_epoch,
            "ss_num_epochs": -(-self.total // self.steps_per_epoch),
            "ss_max_train_steps": self.total,
            "ss_base_model_version": self.architecture.name,
            "ss_optimizer": self.optimizer,
            "ss_fp8_base": False,
            "ss_full_fp16": False,
            "ss_full_bf16": False,
            "ss_datasets": json.dumps(self._datasets(), ensure_ascii=False),
            **{f"ss_{name}": getattr(config, name) for name in plain},
            **{name: Path(path).name for name, path in files.items() if path is not None},
        }

    def _network(self) -> dict[str, Any]:
        config = self.config
        if config.full:
            return {}
        modules = self.architecture.network_modules
        found: dict[str, Any] = {
            "ss_network_module": modules[0] if modules else "networks.lora",
            "ss_network_dropout": config.network_dropout,
        }
        identity = self.trainee.identity()
        found["ss_network_dim"] = identity.get("rank")
        found["ss_network_alpha"] = identity.get("alpha")
        if config.network_args:
            pairs = (pair.partition("=") for pair in config.network_args)
            found["ss_network_args"] = json.dumps({key: value for key, _, value in pairs})
        return found

    def _datasets(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for entry in self.data.file.datasets:
            names = (*_ALL, *_VIDEO) if entry.kind == "video" else _ALL
            said: dict[str, Any] = {name: getattr(entry, name) for name in names}
            said["batch_size_per_device"] = entry.batch_size
            said["has_control"] = entry.control_directory is not None
            places = {"directory": entry.directory, "jsonl_file": entry.jsonl_file}
            said |= {f"{entry.kind}_{n}": p.name for n, p in places.items() if p is not None}
            if entry.control_directory is not None:
                said["control_directory"] = entry.control_directory.name
            found.append(said)
        return found
