"""Build a run from settings: data, networks, optimizer, state, trackers."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from musubi.config.optimization import literals
from musubi.config.options import own_options
from musubi.config.task import Choice
from musubi.config.train import TrainConfig
from musubi.errors import ConfigError, counted
from musubi.flow.experts import Experts
from musubi.lora.merge import Merging
from musubi.lora.metadata import DENOISER
from musubi.pages.live import LivePage
from musubi.plan import caching, fit, out_of_memory
from musubi.plan.out_of_memory import Where
from musubi.plan.workload import Bucket
from musubi.plugin import Architecture, Policy, Report
from musubi.train import (
    announce,
    dataset,
    denoisers,
    loader,
    log,
    networks,
    optim,
    preview,
    processes,
    schedule,
    seeds,
    state,
)
from musubi.train import metadata as facts
from musubi.train.average import ENDING, Average
from musubi.train.checkpoints import Checkpoints, Names
from musubi.train.dataset import Dataset
from musubi.train.offload import Mirror
from musubi.train.resume import Resumed, settings_of, snapshot
from musubi.train.rounding import Rounding
from musubi.train.signals import Stop
from musubi.train.space import check_space
from musubi.train.step import FlowMatchingLoss
from musubi.train.train_loop import Run
from musubi.train.trainable import Trainable, beside
from musubi.train.update import Update
from musubi.train.upload import Upload
from musubi.train.validation import Validation
from musubi.weights.nets import Nets

if TYPE_CHECKING:
    from accelerate import Accelerator


def output_name(config: TrainConfig, architecture: Architecture) -> str:
    """`--output_name`, or the architecture's name and what is trained."""
    return config.output_name or f"{architecture.name}-{'full' if config.full else 'lora'}"


class Setup:
    """The parts of a run, in the order in which they are made.

    Args:
        config: The settings; later with the chosen seed.
        architecture: Of the networks.
        names: Of the run's files.
        accelerator: The processes and the device.
        report: Shows what is used.
        stop: Set by Ctrl+C.
    """

    def __init__(
        self,
        config: TrainConfig,
        architecture: Architecture,
        names: Names,
        accelerator: Accelerator,
        report: Report,
        stop: Stop,
    ) -> None:
        self.architecture = architecture
        self.names = names
        self.accelerator = accelerator
        self.report = report
        self.stop = stop
        self.group = processes.processes(accelerator, lambda: stop.requested)
        self.started = time.time()
        self.upload: Upload | None = None
        self.merging: Merging | None = None
        self.page: LivePage | None = None
        self.policy = Policy()
        self.buckets: tuple[Bucket, ...] = ()
        self.largest: list[int] = []
        self.resumed = Resumed.find(config, names, report)
        self.config = self.resumed.with_seed(config, accelerator, report)

    def build(self, trackers: list[str]) -> Run:
        """The run.

        Raises:
            MusubiError: Something given cannot be used.
        """
        config, architecture = self.config, self.architecture
        seed = config.seed or 0
        seeds.seed_everything(seed)
        choice = denoisers.choose(config, architecture)
        with caching.explained(config, architecture, choice.task, "train"):
            data = dataset.prepare(
                config,
                architecture,
                choice.task,
                report=self.report,
                pin=self.accelerator.device.type == "cuda",
                device=self.accelerator.device,
            )
        if len(set(self.group.gather(data.digest))) > 1:
            raise ConfigError(
                "The processes of this run do not see the same records.",
                fix="Give all of them the same dataset file and cache directories, on a disk that all "
                "computers share.",
            )
        self.buckets = fit.buckets_of(data.records.items)
        self.largest = fit.largest_batch(data.records.items)
        policy = fit.policy_for(
            config, architecture, trains=True, buckets=self.buckets, report=self.report
        )
        # Free memory differs between processes, but all must train the same network.
        self.policy = processes.shared(policy, self.accelerator)
        nets, self.merging = networks.open_networks(
            config, architecture, self.accelerator.device, self.policy, self.report
        )
        own = own_options(config, architecture)
        experts = Experts(choice.task, own, denoisers.given(config, architecture, choice.task))
        gallery = self._gallery(choice, nets)
        turns = denoisers.turns(config, experts, self.accelerator.device, self.report)
        loaded: dict[str, torch.nn.Module] = {}
        with self.explained("load"):
            for name in experts.intervals:
                loaded[name] = nets[name]
                if turns is not None:
                    turns.add(name, loaded[name])
        self._check_merged()
        if gallery is not None:
            gallery.pipeline.denoisers, gallery.pipeline.turns = loaded, turns
        trainable = denoisers.trainable(config, architecture, loaded, self.report, turns)
        batches = data.batches(seed)
        per_epoch = loader.steps_per_epoch(
            len(batches(1)), config.gradient_accumulation_steps, self.accelerator.num_processes
        )
        total = (
            config.max_train_epochs * per_epoch
            if config.max_train_epochs
            else config.max_train_steps
        )
        update = self._update(trainable, total, config.learning_rate_or_default)
        objective = FlowMatchingLoss(
            runtime=architecture.runtime(architecture, choice.task, own),
            task=choice.task,
            denoisers=loaded,
            experts=experts,
            options=config,
            device=self.accelerator.device,
            autocast=denoisers.autocast(self.accelerator, next(iter(loaded.values())), self.report),
            seed=seed,
            shifts=architecture.shifts,
            base=trainable.base,
            turns=turns,
        )
        position = self.resumed.take_up(
            config, self._identity(trainable), trainable, update, data, self.report
        )
        run = Run(
            config=config,
            report=self.report,
            objective=objective,
            trainable=trainable,
            update=update,
            source=data.records,
            names=[item.name for item in data.records.items],
            batches=batches,
            total=total,
            seed=seed,
            position=position,
            metrics=log.Metrics(self.names.own / "metrics.jsonl"),
            track=lambda values, step: self.accelerator.log(dict(values), step=step),
            checkpoints=Checkpoints(self.names, config, lambda p: None, lambda p: None),
            processes=self.group,
            validation=self._validation(objective, data),
            previews=gallery,
            stop=self.stop,
        )
        about = facts.Facts(
            config=config,
            architecture=architecture,
            choice=choice,
            data=data,
            name=self.names.name,
            started=self.started,
            steps_per_epoch=per_epoch,
            batches_per_epoch=len(batches(1)),
            total=total,
            optimizer=optim.describe(update.optimizer, self._optimizer_arguments()),
            trainable=trainable,
        )
        run.checkpoints = self._checkpoints(run, trainable, data, about)
        if config.find_lr:  # which writes nothing of a run, and tells of itself
            return run
        if self.accelerator.is_main_process:
            run.page = self.page = announce.page(
                run,
                self.names,
                architecture,
                choice,
                data,
                per_epoch=per_epoch,
                started=self.started,
                report=self.report,
            )
        announce.start_trackers(config, self.accelerator, trackers, position.step)
        announce.tell(run, self.names, data, per_epoch=per_epoch, report=self.report)
        if self.accelerator.is_main_process:
            check_space(
                self.names.folder,
                self.config,
                numbers=sum(p.numel() for p in trainable.parameters()),
                steps=total - position.step,
                epochs=-(-total // per_epoch),
                report=self.report,
            )
        return run

    def explained(self, where: Where) -> AbstractContextManager[None]:
        """A context that turns running out of device memory into an error that says what to change."""
        return out_of_memory.explained(
            self.config, self.architecture, where, policy=self.policy, buckets=self.buckets
        )

    def finish(self) -> None:
        """Wait for uploads."""
        if self.upload is not None:
            self.upload.finish()

    # networks

    def _check_merged(self) -> None:
        unused = [] if self.merging is None else list(self.merging.unused)
        if unused:
            self.report.warn(
                f"Not used of --base_weights: {counted(len(unused), 'layer')} that the DiT does not have, such "
                f"as {unused[0]!r}."
            )

    def _gallery(self, choice: Choice, nets: Nets) -> preview.Gallery | None:
        """Prepare the previews before the DiT is loaded.

        So text encoders and DiT are never in memory together.
        """
        if self.config.sample_prompts is None:
            return None
        return preview.open_gallery(
            self.config,
            self.architecture,
            choice,
            nets,
            names=self.names,
            policy=self.policy,
            report=self.report,
            share=slice(self.group.rank, None, self.group.world),
        )

    # training

    def _identity(self, trainable: Trainable) -> dict[str, Any]:
        decay = self.config.ema_decay
        return {
            "architecture": self.architecture.name,
            "optimizer": self.config.optimizer_type.lower(),
            **({} if decay is None else {"ema_decay": decay}),
            **trainable.identity(),
        }

    def _optimizer_arguments(self) -> dict[str, Any]:
        config = self.config
        given = literals(config.optimizer_args, "optimizer_args")
        rate_given = config.learning_rate is not None
        found = optim.settled(config.optimizer_type, given, rate_given=rate_given)
        if rate_given and found.get("relative_step"):
            self.report.warn(
                "Adafactor sets its own rate with relative_step=True, so --learning_rate does not act."
            )
        return found

    def with_rate(self, run: Run, rate: float) -> Update:
        """An optimizer of its own for the run's weights, with another learning rate."""
        return self._update(run.trainable, run.total, rate)

    def _update(self, trainable: Trainable, total: int, rate: float) -> Update:
        config = self.config
        groups = trainable.groups(rate)
        mirror = None
        if config.optimizer_offload:
            mirror = Mirror(trainable.parameters(), report=self.report)
            groups = mirror.groups(groups)
        optimizer = optim.create(
            config.optimizer_type, groups, lr=rate, arguments=self._optimizer_arguments()
        )
        optim.check_beside(config, optimizer, {p.dtype for p in trainable.parameters()})
        group = self.group
        return Update(
            trainable.parameters(),
            optimizer,
            schedule.create(config, optimizer, total),
            self.accelerator.scaler,
            config.max_grad_norm,
            group.world,
            group.step_total,
            mirror,
            Rounding(config.seed or 0) if config.stochastic_rounding else None,
            self._average(trainable),
            config.ema_previews,
        )

    def _average(self, trainable: Trainable) -> Average | None:
        if self.config.ema_decay is None:
            return None
        # Where the optimizer's states lie.
        device = torch.device("cpu") if self.config.optimizer_offload else None
        return Average(trainable, self.config.ema_decay, device)

    def _validation(self, objective: FlowMatchingLoss, data: Dataset) -> Validation | None:
        if not data.held:
            return None
        config, group = self.config, self.group
        high = 1000 if config.max_timestep is None else config.max_timestep
        return Validation(
            objective,
            data.held,
            {i: data.records.items[i].key for i in data.held},
            data.records.load,
            config.validation_timesteps,
            ((config.min_timestep or 0) / 1000, high / 1000),
            group.rank,
            group.world,
            group.total,
        )

    def _checkpoints(
        self, run: Run, trainable: Trainable, data: Dataset, about: facts.Facts
    ) -> Checkpoints:
        config = self.config
        if config.huggingface_repo_id and self.accelerator.is_main_process:
            self.upload = Upload(config, self.report)

        # A single expert's file is named here; with several experts, each adds its own ending.
        only = next(iter(run.objective.denoisers))
        which = {DENOISER: only} if len(run.objective.task.denoisers) > 1 else {}

        def write(path: Path) -> None:
            said = {**about.at(run.position), **which}
            with run.update.as_saved():
                trainable.write(path, said)
            average = run.update.average
            if average is not None:
                with average.shown():
                    trainable.write(
                        beside(path, ENDING), {**said, "ss_ema_decay": str(average.decay)}
                    )

        def write_state(folder: Path) -> None:
            held = snapshot(
                run,
                identity=self._identity(trainable),
                settings=settings_of(config),
                data=data.digest,
            )
            state.write(folder, held)

        endings = list(denoisers.endings(self.architecture, run.objective.denoisers).values())
        if run.update.average is not None:
            endings += [f"{ENDING}{ending}" for ending in endings]
        return Checkpoints(
            self.names,
            config,
            write,
            write_state,
            endings=endings,
            saved=None if self.upload is None else self.upload.checkpoint,
            state_saved=None if self.upload is None else self.upload.state,
        )
