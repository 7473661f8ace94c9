"""The state of a run: everything that a resumed run needs to end where the undisturbed one ends."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from musubi.errors import ConfigError, RunError
from musubi.train import seeds
from musubi.train.checkpoints import Names
from musubi.train.trainee import Trainee
from musubi.train.update import Update
from musubi.weights.write import save as save_tensors

FORMAT = 1
_FACTS, _WEIGHTS, _OPTIMIZER, _RANDOM = (
    "state.json",
    "weights.safetensors",
    "optimizer.pt",
    "random.pt",
)


@dataclass(kw_only=True)
class Position:
    """Where a run is.

    Args:
        step: Optimizer steps made.
        epoch: Of the last step, from 1; 0 before the first.
        batch: Batches of that epoch used up, over all processes.
        size: Batches that the epoch has.
        window: The losses that the running average is taken over.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    size: int = 0
    window: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class State:
    """What a state directory holds.

    Args:
        position: Where the run was.
        identity: What must be equal to go on: architecture, kind, rank, alpha, optimizer.
        settings: The resolved options, to say what has changed.
        data: Digest of the training set.
        weights: The trained tensors by name.
        parts: State dictionaries: "optimizer", "schedule", "scaler".
        random: See `seeds.capture`.
    """

    position: Position
    identity: Mapping[str, Any]
    settings: Mapping[str, Any]
    data: str
    weights: Mapping[str, torch.Tensor]
    parts: Mapping[str, Any]
    random: Mapping[str, Any]


def write(folder: Path, state: State) -> None:
    """Write a state whole: the directory appears under its name only when everything is in it.

    Raises:
        RunError: It could not be written; a state that was there before is untouched.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_tensors(temporary / _WEIGHTS, dict(state.weights), {"format": "pt"})
        _save_pickled(temporary / _OPTIMIZER, dict(state.parts))
        _save_pickled(temporary / _RANDOM, dict(state.random))
        facts = {
            "format": FORMAT,
            "position": asdict(state.position),
            "identity": dict(state.identity),
            "settings": dict(state.settings),
            "data": state.data,
        }
        with (temporary / _FACTS).open("w", encoding="utf-8") as file:
            json.dump(facts, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        _replace(temporary, folder)
    except RunError as error:
        raise RunError(f"The state {folder} was not saved. {error.what}", fix=error.fix) from error
    except (OSError, RuntimeError) as error:
        # torch.save reports a full disk as a RuntimeError of its archive writer.
        raise RunError(
            f"The state {folder} was not saved: {error}.",
            fix="Make room on the disk, then go on from the last state with --resume auto.",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read(folder: Path) -> State:
    """Read a state.

    Raises:
        ConfigError: The directory is absent, incomplete or broken.
    """
    facts = _facts(folder)
    try:
        return State(
            position=Position(**facts["position"]),
            identity=facts["identity"],
            settings=facts["settings"],
            data=facts["data"],
            weights=load_file(folder / _WEIGHTS),
            parts=_load_pickled(folder / _OPTIMIZER),
            random=_load_pickled(folder / _RANDOM),
        )
    except (OSError, KeyError, TypeError, SafetensorError) as error:
        raise _broken(folder, error) from error


def find(names: Names, asked: str) -> Path | None:
    """The state that `--resume` means: a path, or for "auto" the newest complete one of this run.

    Returns:
        None when "auto" finds nothing: the run starts from the beginning.

    Raises:
        ConfigError: The path is no state.
    """
    if asked != "auto":
        _facts(Path(asked))
        return Path(asked)
    found: list[tuple[int, float, Path]] = []
    for folder in names.states():
        try:
            facts = _facts(folder)
            found.append((facts["position"]["step"], (folder / _FACTS).stat().st_mtime, folder))
        except (ConfigError, KeyError, TypeError):
            continue
    return max(found)[2] if found else None


def check(state: State, identity: Mapping[str, Any], names: Iterable[str], folder: Path) -> None:
    """Refuse a state that this run cannot go on from.

    Args:
        state: As read.
        identity: Of this run.
        names: Of the tensors that this run trains.
        folder: For the message.

    Raises:
        ConfigError: Another architecture, another rank, other modules.
    """
    for key, ours in identity.items():
        theirs = state.identity.get(key)
        if theirs != ours:
            raise ConfigError(
                f"The state {folder} was made with {key} {theirs!r}, and this run has {ours!r}.",
                fix="Give the settings it was made with, or start without --resume.",
            )
    names = set(names)
    if names != set(state.weights):
        odd = sorted(names ^ set(state.weights))
        raise ConfigError(
            f"The state {folder} trains other modules than this run, such as {odd[0]!r} "
            f"({len(odd)} differ).",
            fix="Give the --network_args it was made with, or start without --resume.",
        )


def apply(state: State, trainee: Trainee, update: Update) -> None:
    """Put weights, optimizer, schedule, scaler and generators back; the position is the caller's."""
    trainee.load(state.weights)
    update.optimizer.load_state_dict(state.parts["optimizer"])
    update.schedule.load_state_dict(state.parts["schedule"])
    if update.scaler is not None and "scaler" in state.parts:
        update.scaler.load_state_dict(state.parts["scaler"])
    seeds.restore(state.random)


def changed(state: State, settings: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """Sentences about settings that a state decides and that were asked for otherwise."""
    return [
        f"{key} stays {state.settings[key]!r} as in the state, not {settings.get(key)!r}; "
        "start a new run with --network_weights to change it."
        for key in keys
        if key in state.settings and state.settings[key] != settings.get(key)
    ]


def _facts(folder: Path) -> dict[str, Any]:
    try:
        facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        known = facts["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        fix = "Give the directory whose name ends in '-state', or 'auto'."
        if (folder / "optimizer.bin").exists():
            fix = "It was saved by musubi-tuner; start from its LoRA file with --network_weights."
        raise ConfigError(f"{folder} is not the state of a run.", fix=fix) from error
    if known != FORMAT:
        raise ConfigError(
            f"The state {folder} has format {known}, and this version reads {FORMAT}.",
            fix="Resume with the version that wrote it.",
        )
    return facts


def _save_pickled(path: Path, value: Any) -> None:
    with path.open("wb") as file:
        torch.save(value, file)
        file.flush()
        os.fsync(file.fileno())


def _load_pickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for broken files and for code in them
        raise _broken(path.parent, error) from error


def _broken(folder: Path, error: Exception) -> ConfigError:
    first = str(error).strip().partition("\n")[0]
    return ConfigError(
        f"The state {folder} is broken, or not written by musubi: {first}.",
        fix="Resume from an older one.",
    )


def _replace(temporary: Path, folder: Path) -> None:
    """Rename a directory over another; only then is the old one gone."""
    if not folder.exists():
        temporary.rename(folder)
        return
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
