"""Saving and resuming a run: what a state keeps, and what a resumed run takes from it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musubi.config.train import TrainConfig
from musubi.plugin import Report
from musubi.train import log, processes, seeds, state
from musubi.train.checkpoints import Names
from musubi.train.dataset import Dataset
from musubi.train.train_loop import Run
from musubi.train.trainable import Trainable
from musubi.train.update import Update
from musubi.train.upload import download_state

if TYPE_CHECKING:
    from accelerate import Accelerator

# A resumed run uses the state's values of these, since the optimizer and the schedule hold them.
DECIDED = ("learning_rate", "optimizer_args", "seed")


@dataclass(frozen=True)
class Resumed:
    """The state that a run resumes from, and its folder; both are None if the run starts anew."""

    state: state.State | None = None
    folder: Path | None = None

    @classmethod
    def find(cls, config: TrainConfig, names: Names, report: Report) -> Resumed:
        """Find and read the state that `--resume` means.

        Args:
            config: What was asked for.
            names: Of the run's files.
            report: Gets a message if there is no state.

        Raises:
            ConfigError: The path is no state, or the state is broken.
        """
        asked = config.resume
        if asked is None:
            return cls()
        if config.resume_from_huggingface:
            asked = str(download_state(asked, config.huggingface_token))
        if asked != "auto":
            folder = Path(asked)
            return cls(state.read(folder), folder)
        found = state.newest_whole(names, report.warn)
        if found is None:
            report.note(
                f"There is no state of {names.name!r} in {names.folder} to go on from; "
                "the run starts from the beginning."
            )
            return cls()
        folder, whole = found
        return cls(whole, folder)

    def with_seed(
        self, config: TrainConfig, accelerator: Accelerator, report: Report
    ) -> TrainConfig:
        """Add the seed to the settings: the state's, the requested one, or a random one that all
        processes share.
        """
        seed = config.seed
        if self.state is not None:
            seed = self.state.settings.get("seed", seed)
        if seed is None:
            seed = processes.shared(secrets.randbelow(2**32), accelerator)
        if config.seed is not None and seed != config.seed:
            report.warn(
                f"--seed {config.seed} is not used: a run that goes on keeps {seed}, which its state says."
            )
        return config.model_copy(update={"seed": seed})

    def take_up(
        self,
        config: TrainConfig,
        identity: Mapping[str, Any],
        trainable: Trainable,
        update: Update,
        data: Dataset,
        report: Report,
    ) -> state.Position:
        """Restore everything, and return the position where the run continues.

        Args:
            config: The settings, with the seed.
            identity: What must equal the state's identity.
            trainable: What is trained.
            update: The optimizer and its schedule.
            data: The training data.
            report: Gets a message about each setting that has changed since the state was written.

        Raises:
            ConfigError: The state belongs to another run.
        """
        if self.state is None or self.folder is None:
            return state.Position()
        state.check(self.state, identity, trainable.tensors(), self.folder)
        for sentence in state.changed(self.state, settings_of(config), DECIDED):
            report.warn(sentence)
        kept = self.state.identity.get("ema_decay")
        if kept is not None and "ema_decay" not in identity:
            report.warn(
                f"The state holds an average of the weights, and this run goes on without it: add --ema_decay {kept} "
                "to keep it."
            )
        state.apply(self.state, trainable, update, self.folder)
        position = self.state.position
        if self.state.data != data.digest and position.epoch:
            # The order of batches has changed, so the batches that were already used are unknown.
            ended = position.batch >= position.size
            size = len(data.batches(config.seed or 0)(position.epoch))
            position.batch, position.size = (size if ended else 0), size
            report.warn(
                "The dataset is not the one of the state: "
                + ("the next epoch uses the new one." if ended else "its epoch starts again.")
            )
        report.note(f"Going on from {self.folder}, after step {position.step}.")
        return position


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """The settings that a state and the trackers store: all except secrets."""
    settings = config.model_dump(mode="json")
    return {k: v for k, v in settings.items() if k not in log.SECRETS}


def snapshot(
    run: Run, *, identity: Mapping[str, Any], settings: Mapping[str, Any], data: str
) -> state.State:
    """The current state of a run."""
    return state.State(
        position=run.position,
        identity=identity,
        # Only what a resumed run needs: a state may be uploaded, so it must contain no local path.
        settings={key: settings[key] for key in DECIDED if key in settings},
        data=data,
        weights={n: t.cpu() for n, t in run.trainable.tensors().items()},
        parts=run.update.parts(),
        random=seeds.capture(),
    )
