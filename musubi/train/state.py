"""The state of a run: everything that a resumed run needs to give the same result as one without a break."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from musubi.errors import ConfigError, MusubiError, RunError, system_fix, system_reason
from musubi.train import seeds
from musubi.train.checkpoints import Names
from musubi.train.trainable import Trainable
from musubi.train.update import Update
from musubi.untrusted import parse_json, read_text
from musubi.weights import temporary as temporaries
from musubi.weights.digest import Digest, file_digest
from musubi.weights.write import folder_to_disk
from musubi.weights.write import save as save_tensors

FORMAT = 2
_WITHOUT_DIGESTS = 1  # the previous format, which has no digests to check
_MOST = 2**53
_FACTS, _WEIGHTS, _OPTIMIZER, _RANDOM = (
    "state.json",
    "weights.safetensors",
    "optimizer.pt",
    "random.pt",
)


@dataclass(kw_only=True)
class Position:
    """The position in a run.

    Args:
        step: Optimizer steps done.
        epoch: Epoch of the last step, from 1; 0 before the first step.
        batch: How many batches of that epoch have been used, over all processes.
        size: How many batches the epoch has.
        window: The losses in the running average.
        best: The lowest validation loss so far, or None.
        best_step: The step of the lowest validation loss.
        worse: How many validations there were since then.
        judged: The step of the last validation.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    size: int = 0
    window: list[float] = field(default_factory=list)
    best: float | None = None
    best_step: int = 0
    worse: int = 0
    judged: int = 0


@dataclass(frozen=True, kw_only=True)
class State:
    """The content of a state directory.

    Args:
        position: The position in the run.
        identity: What must be equal to resume: architecture, kind, rank, alpha, optimizer.
        settings: All settings, used to report what has changed.
        data: Digest of the training set.
        weights: The trained tensors by name.
        parts: State dictionaries by part; see `Update.parts`.
        random: States of the random generators; see `seeds.capture`.
    """

    position: Position
    identity: Mapping[str, Any]
    settings: Mapping[str, Any]
    data: str
    weights: Mapping[str, torch.Tensor]
    parts: Mapping[str, Any]
    random: Mapping[str, Any]


def write(folder: Path, state: State) -> None:
    """Write a state. The directory gets its name only when it is complete.

    Raises:
        RunError: The state could not be written; an older state of this name is untouched.
    """
    temporary = temporaries.new_name(folder.parent)
    try:
        temporary.mkdir(parents=True)
        temporaries.sweep(folder.parent)
        digests = {
            _WEIGHTS: save_tensors(temporary / _WEIGHTS, dict(state.weights), {"format": "pt"}),
            _OPTIMIZER: _save_pickled(temporary / _OPTIMIZER, dict(state.parts)),
            _RANDOM: _save_pickled(temporary / _RANDOM, dict(state.random)),
        }
        facts = {
            "format": FORMAT,
            "position": asdict(state.position),
            "identity": dict(state.identity),
            "settings": dict(state.settings),
            "data": state.data,
            "digests": digests,
        }
        facts = json.loads(json.dumps(facts))  # as they are read again
        with (temporary / _FACTS).open("w", encoding="utf-8") as file:
            json.dump({**facts, "digest": _digest_of(facts)}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        folder_to_disk(temporary)
        _replace(temporary, folder)
        folder_to_disk(folder.parent)
    except RunError as error:
        raise RunError(f"The state {folder} was not saved. {error.what}", fix=error.fix) from error
    except OSError as error:
        raise RunError(
            f"The state {folder} was not saved: {system_reason(error)}.",
            fix=f"{system_fix(error)} Then go on from the last state with --resume auto.",
        ) from error
    finally:
        temporaries.forget(temporary)


def read(folder: Path) -> State:
    """Read a state, and check its files against their digests.

    Raises:
        ConfigError: The directory is absent, incomplete or broken.
    """
    facts = _facts(folder)
    try:
        if facts["format"] != _WITHOUT_DIGESTS:
            for name in (_WEIGHTS, _OPTIMIZER, _RANDOM):
                if file_digest(folder / name) != facts["digests"][name]:
                    raise _broken(folder, f"the content of {name} is not what was saved")
        return State(
            position=_position(facts["position"]),
            identity=_table(facts["identity"]),
            settings=_settings(facts["settings"]),
            data=str(facts["data"]),
            weights=load_file(folder / _WEIGHTS),
            parts=_table(_load_pickled(folder / _OPTIMIZER)),
            random=_table(_load_pickled(folder / _RANDOM)),
        )
    except OSError as error:
        raise _broken(folder, system_reason(error)) from error
    except (KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        raise _broken(folder, error) from error


def find(names: Names, asked: str) -> Path | None:
    """The state that `--resume` means: a path, or for "auto" the newest of this run.

    Returns:
        None when "auto" finds nothing: the run starts from the beginning.

    Raises:
        ConfigError: The path is no state.
    """
    if asked != "auto":
        _facts(Path(asked))
        return Path(asked)
    return next((folder for folder, error in _newest_first(names) if error is None), None)


def newest_whole(names: Names, tell: Callable[[str], None]) -> tuple[Path, State] | None:
    """The newest state of a run whose files are all as they were saved.

    Args:
        names: Of the run's files.
        tell: Called with a message for each newer state that is broken.

    Returns:
        The folder and the state; None if there is no intact state.
    """
    for folder, error in _newest_first(names):
        if error is None:
            try:
                return folder, read(folder)
            except ConfigError as found:
                error = found
        tell(f"{error.what} An older state is looked for.")
    return None


def tidy(names: Names) -> None:
    """Finish replacing a state, if a run was killed while doing that."""
    for folder in list(names.states()):
        found = re.fullmatch(r"\.(.+)\.\d+\.old", folder.name)
        if found is None:
            continue
        whole = folder.with_name(found[1])
        if whole.exists():
            shutil.rmtree(folder, ignore_errors=True)
        else:
            folder.rename(whole)


def _newest_first(names: Names) -> list[tuple[Path, MusubiError | None]]:
    """The states of a run, newest first, each with its error or None; folders that are no states come first."""
    found: list[tuple[int, float, Path]] = []
    odd: list[tuple[Path, MusubiError | None]] = []
    for folder in sorted(names.states()):
        try:
            step = _position(_facts(folder)["position"]).step
            found.append((step, (folder / _FACTS).stat().st_mtime, folder))
        except ConfigError as error:
            odd.append((folder, error))
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            odd.append((folder, _broken(folder, error)))
    return odd + [(folder, None) for _, _, folder in sorted(found, reverse=True)]


def check(
    state: State,
    identity: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    folder: Path,
) -> None:
    """Refuse a state that this run cannot resume from.

    Args:
        state: As read.
        identity: The identity of this run.
        tensors: The trained tensors of this run, by name.
        folder: Folder of the state, for the error message.

    Raises:
        ConfigError: Another architecture, another rank, other modules, other shapes.
    """
    for key, ours in identity.items():
        theirs = state.identity.get(key)
        if theirs != ours:
            raise ConfigError(
                f"The state {folder} was made with {key} {theirs!r}, and this run has {ours!r}.",
                fix="Give the settings it was made with, or start without --resume.",
            )
    names = set(tensors)
    if names != set(state.weights):
        odd = sorted(names ^ set(state.weights))
        raise ConfigError(
            f"The state {folder} trains other modules than this run, such as {odd[0]!r} "
            f"({len(odd)} differ).",
            fix="Give the --network_args it was made with, or start without --resume.",
        )
    for name, tensor in tensors.items():
        theirs = state.weights[name]
        if theirs.shape != tensor.shape:
            raise ConfigError(
                f"The state {folder} has {name!r} of the shape {tuple(theirs.shape)}, and this run "
                f"trains {tuple(tensor.shape)}.",
                fix="Give the settings it was made with, or start without --resume.",
            )


def apply(state: State, trainable: Trainable, update: Update, folder: Path) -> None:
    """Restore weights, optimizer, schedule, scaler and generators. The caller restores the
    position.

    Raises:
        ConfigError: One of them does not fit.
    """
    trainable.load(state.weights)
    try:
        update.load(state.parts)
        seeds.restore(state.random)
    except Exception as error:  # each optimizer refuses what does not fit in a way of its own
        raise _broken(folder, error) from error


def changed(state: State, settings: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """Messages about settings whose requested value differs from the state's value, which is used."""
    return [
        f"--{key} {_shown(settings.get(key))} is not used: a run that goes on keeps "
        f"{_shown(state.settings[key])}, which its state says. To change --{key}, start a new run with "
        "--network_weights."
        for key in keys
        if key in state.settings and state.settings[key] != settings.get(key)
    ]


def _shown(value: Any) -> str:
    return "(not given)" if value is None else str(value)


def _facts(folder: Path) -> dict[str, Any]:
    try:
        facts = parse_json(read_text(folder / _FACTS))
        known = facts["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        fix = "Give the directory whose name ends in '-state', or 'auto'."
        if (folder / "optimizer.bin").exists():
            fix = "It was saved by musubi-tuner; start from its LoRA file with --network_weights."
        raise ConfigError(f"{folder} is not the state of a run.", fix=fix) from error
    if known == _WITHOUT_DIGESTS and type(known) is int:
        return facts
    if known != FORMAT:
        raise ConfigError(
            f"The state {folder} has format {known!r:.40}, and this version reads {FORMAT}.",
            fix="Resume with the version that wrote it.",
        )
    digest = facts.pop("digest", None)
    if digest != _digest_of(facts):
        raise _broken(folder, f"the content of {_FACTS} is not what was saved")
    return facts


def _digest_of(facts: Mapping[str, Any]) -> str:
    digest = Digest()
    digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.text


def _position(values: Mapping[str, Any]) -> Position:
    """Read a position, and check that its numbers are possible.

    Raises:
        TypeError, ValueError: A number is not possible.
    """
    position = Position(**values)
    for name in ("step", "epoch", "batch", "size", "best_step", "worse", "judged"):
        number = getattr(position, name)
        if type(number) is not int or not 0 <= number < _MOST:
            raise ValueError(f"its position has {name} = {number!r:.40}")
    losses = position.window
    if not isinstance(losses, list) or not all(
        isinstance(loss, (int, float)) and math.isfinite(loss) for loss in losses
    ):
        raise ValueError("the losses of its position are not all numbers")
    best = position.best
    if best is not None and not (isinstance(best, (int, float)) and math.isfinite(best)):
        raise ValueError(f"its position has best = {best!r:.40}")
    return position


def _settings(values: Any) -> dict[str, Any]:
    settings = _table(values)
    seed = settings.get("seed")
    if seed is not None and (type(seed) is not int or not 0 <= seed < 2**64):
        raise ValueError(f"its seed is {seed!r:.40}")
    return settings


def _table(values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise TypeError(f"a table is missing, and there is a {type(values).__name__}")
    return values


class _Told:
    """A file that keeps the system's error: torch's archive writer reports only that it failed.

    Args:
        file: Open for writing.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None
        self.digest = Digest()

    def write(self, data: bytes) -> int:
        """Write to the file."""
        try:
            count = self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        return count

    def flush(self) -> None:
        """Flush the file."""
        self.file.flush()


def _save_pickled(path: Path, value: Any) -> str:
    """Write a file with `torch.save`, and return its digest."""
    with path.open("wb") as file:
        told = _Told(file)
        try:
            torch.save(value, told)  # type: ignore[arg-type]  # all it asks for is write and flush
        except RuntimeError as error:
            if told.error is None:
                raise
            raise told.error from error
        file.flush()
        os.fsync(file.fileno())
    return told.digest.text


def _load_pickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for broken files and for code in them
        raise _broken(path.parent, error) from error


def _broken(folder: Path, reason: Exception | str) -> ConfigError:
    first = str(reason).strip().partition("\n")[0].rstrip(".")[:200]
    return ConfigError(
        f"The state {folder} is broken, or not written by musubi: {first}.",
        fix="Resume from an older one, or with --resume auto from the newest that is whole.",
    )


def _replace(temporary: Path, folder: Path) -> None:
    """Replace a directory by another one; the old one is removed only after the rename."""
    if not folder.exists():
        temporary.rename(folder)
        return
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
