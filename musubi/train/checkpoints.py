"""Checkpoints of a run: their names, which are kept, and the order in which files are written."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from musubi.config.saving import SavingOptions
from musubi.errors import MusubiError, RunError
from musubi.stopping import command_line
from musubi.train.trainable import beside
from musubi.weights.write import verify


@dataclass(frozen=True)
class Names:
    """The file names of a run.

    Args:
        folder: `--output_dir`.
        name: `--output_name`.
    """

    folder: Path
    name: str

    @property
    def own(self) -> Path:
        """The folder for all files of the run that are no checkpoints."""
        return self.folder / self.name

    def command(self) -> str:
        """The command that resumes the run from its newest state."""
        config = str(self.own / "config.toml")
        return command_line(["musubi", "train", "--config", config, "--resume", "auto"])

    def epoch(self, epoch: int) -> Path:
        """Path of the checkpoint at the end of an epoch, counted from 1."""
        return self.folder / f"{self.name}-{epoch:06d}.safetensors"

    def step(self, step: int) -> Path:
        """Path of the checkpoint after a step, counted from 1."""
        return self.folder / f"{self.name}-step{step:08d}.safetensors"

    def best(self) -> Path:
        """Path of the checkpoint with the lowest validation loss."""
        return self.folder / f"{self.name}-best.safetensors"

    def final(self) -> Path:
        """Path of the checkpoint at the end of the run."""
        return self.folder / f"{self.name}.safetensors"

    @staticmethod
    def state(checkpoint: Path) -> Path:
        """The state directory that belongs to a checkpoint."""
        return checkpoint.with_name(checkpoint.name.removesuffix(".safetensors") + "-state")

    def states(self) -> Iterator[Path]:
        """Every state directory of this run, in no order, including one whose replacement was interrupted."""
        name = re.escape(self.name) + r"(-\d{6,}|-step\d{8,})?-state"
        pattern = re.compile(rf"{name}|\.{name}\.\d+\.old")
        if self.folder.is_dir():
            yield from (
                p for p in self.folder.iterdir() if p.is_dir() and pattern.fullmatch(p.name)
            )

    def numbered(self, kind: str, suffix: str) -> Iterator[tuple[int, Path]]:
        """(number, path) of checkpoints or states: kind "epoch" or "step", suffix ".safetensors" or "-state"."""
        middle = "-step" if kind == "step" else "-"
        width = 8 if kind == "step" else 6
        pattern = re.compile(
            re.escape(self.name + middle) + rf"(\d{{{width},}})" + re.escape(suffix)
        )
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                found = pattern.fullmatch(path.name)
                if found:
                    yield int(found[1]), path


@dataclass(frozen=True)
class Checkpoints:
    """Writes checkpoints and states, and removes old ones once the new one is known to be good.

    Args:
        names: The file names of the run.
        options: The options that say what is saved and kept.
        write: A function that writes the weights to a path.
        write_state: A function that writes the state to a directory.
        endings: The ending that is added to the name of each file of a checkpoint; there are
            several files if several networks are trained.
        saved: Called with the path of each checkpoint once it is complete.
        state_saved: Called with the path of each state once it is complete.
    """

    names: Names
    options: SavingOptions
    write: Callable[[Path], None]
    write_state: Callable[[Path], None]
    endings: Sequence[str] = ("",)
    saved: Callable[[Path], None] | None = None
    state_saved: Callable[[Path], None] | None = None

    def due(
        self, *, step: int, epoch: int, epoch_ends: bool, last: bool, now: bool = False
    ) -> list[tuple[str, Path]]:
        """(kind, path) of the checkpoints to write after a step; `now`: one is due by the clock."""
        found: list[tuple[str, Path]] = []
        options = self.options
        by_step = options.save_every_n_steps and step % options.save_every_n_steps == 0
        if by_step or (now and not last):
            found.append(("step", self.names.step(step)))
        every = options.save_every_n_epochs
        by_epoch = (every and epoch % every == 0) or epoch in (options.keep_epochs or ())
        if by_epoch and epoch_ends and not last:
            found.append(("epoch", self.names.epoch(epoch)))
        if last:
            found.append(("final", self.names.final()))
        return found

    def save(self, kind: str, path: Path, *, number: int) -> None:
        """Write one checkpoint, and its state if the options ask for it; then remove old ones.

        Args:
            kind: "step", "epoch", "final" or "best", which has no state.
            path: Path of the checkpoint.
            number: The step or the epoch; it decides which old files are removed.

        Raises:
            RunError: The checkpoint could not be written; earlier checkpoints are untouched.
        """
        self._written(path)
        if self.saved is not None:
            for file in self._files(path):
                self.saved(file)
        if kind == "best":
            return
        state = self.options.save_state
        if kind == "final":
            state = state or self.options.save_state_on_train_end
        if state:
            self._write_state(self.names.state(path))
        self._prune(kind, number, state=state)

    def save_state(self, step: int) -> Path:
        """Write only the state, for a run that is being stopped. Returns its directory."""
        path = self.names.state(self.names.step(step))
        self._write_state(path)
        return path

    def _write_state(self, folder: Path) -> None:
        self.write_state(folder)
        if self.state_saved is not None:
            self.state_saved(folder)

    def _written(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.write(path)
            for file in self._files(path):
                verify(file)
        except MusubiError as error:
            kept = max(
                (p for p in self.names.folder.glob("*.safetensors") if p not in self._files(path)),
                key=lambda p: p.stat().st_mtime,
                default=None,
            )
            still = f" The previous checkpoint, {kept}, is intact." if kept else ""
            raise RunError(f"{error.what}{still}", fix=error.fix) from error
        except OSError as error:
            raise RunError(
                f"The checkpoint {path} cannot be written: {error.strerror or error}.",
                fix="Check that the folder of --output_dir may be written and its disk has room.",
            ) from error

    def _prune(self, kind: str, number: int, *, state: bool) -> None:
        if kind == "final":
            return
        options = self.options
        keep = options.save_last_n_steps if kind == "step" else options.save_last_n_epochs
        own = (
            options.save_last_n_steps_state if kind == "step" else options.save_last_n_epochs_state
        )
        self._remove(kind, ".safetensors", number, keep)
        if state:
            self._remove(kind, "-state", number, keep if own is None else own)

    def _remove(self, kind: str, suffix: str, number: int, keep: int | None) -> None:
        if keep is None:
            return
        # For "step", files of the last `keep` steps are kept; for "epoch", the newest `keep` files.
        span = keep if kind == "step" else keep * (self.options.save_every_n_epochs or 1) - 1
        for found, path in list(self.names.numbered(kind, suffix)):
            named = kind == "epoch" and found in (self.options.keep_epochs or ())
            if found < number - span and not (named and suffix == ".safetensors"):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    for file in self._files(path):
                        file.unlink(missing_ok=True)

    def _files(self, path: Path) -> list[Path]:
        """The files of a checkpoint."""
        return [beside(path, ending) for ending in self.endings]
