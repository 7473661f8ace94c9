"""From settings to a run that is ready to start: data, networks, optimizer, state, trackers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from musubi.config.optimization import literals
from musubi.config.options import expert_ending, needed, own_options, paths
from musubi.config.task import Choice, choose_task
from musubi.config.train import TrainConfig
from musubi.errors import ConfigError
from musubi.flow.experts import Experts
from musubi.generate.pipeline import Pipeline, compute_dtype
from musubi.lora.merge import Merging
from musubi.lora.metadata import DENOISER
from musubi.pages import account
from musubi.pages.live import LivePage
from musubi.pages.run import REPORT
from musubi.plan import caching, fit, out_of_memory
from musubi.plan.out_of_memory import Where
from musubi.plan.workload import Bucket
from musubi.plugin import Architecture, Policy, Report, Task
from musubi.train import (
    adapters,
    dataset,
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
from musubi.train.checkpoints import Checkpoints, Names
from musubi.train.dataset import Dataset
from musubi.train.offload import Mirror
from musubi.train.resume import Resumed, settings_of, snapshot
from musubi.train.signals import Stop
from musubi.train.space import check_space
from musubi.train.step import FlowMatchingLoss
from musubi.train.train_loop import Run
from musubi.train.trainable import FullModel, Several, Trainable
from musubi.train.update import Update
from musubi.train.upload import Upload
from musubi.train.validation import Validation
from musubi.weights.dtypes import dtype_name, parse_dtype
from musubi.weights.load import inspect
from musubi.weights.nets import Nets

if TYPE_CHECKING:
    from accelerate import Accelerator

Autocast = Callable[[], AbstractContextManager[Any]]


def output_name(config: TrainConfig, architecture: Architecture) -> str:
    """`--output_name`, or the architecture's name and what is trained."""
    return config.output_name or f"{architecture.name}-{'full' if config.full else 'lora'}"


class Setup:
    """Everything a run is made of, in the order it is made.

    Args:
        config: What was asked for; afterwards with the seed that was chosen.
        architecture: Of the networks.
        names: Of the run's files.
        accelerator: The processes and the device.
        report: Told what is used.
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
        choice = self._choose_task()
        with (
            processes.first_alone(self.accelerator),
            caching.explained(config, architecture, choice.task, "train"),
        ):
            data = dataset.prepare(
                config,
                architecture,
                choice.task,
                report=self.report,
                pin=self.accelerator.device.type == "cuda",
                device=self.accelerator.device,
            )
        self.buckets = fit.buckets_of(data.records.items)
        self.largest = fit.largest_batch(data.records.items)
        policy = fit.policy_for(
            config, architecture, trains=True, buckets=self.buckets, report=self.report
        )
        # What is free differs from process to process, and all must train the same network.
        self.policy = processes.shared(policy, self.accelerator)
        nets, self.merging = networks.open_networks(
            config, architecture, self.accelerator.device, self.policy, self.report
        )
        own = own_options(config, architecture)
        experts = Experts(choice.task, own, self._given(choice.task))
        gallery = self._gallery(choice, nets)
        with self.explained("load"):
            denoisers = {name: nets[name] for name in experts.intervals}
        dit = next(iter(denoisers.values()))
        self._check_merged()
        if gallery is not None:
            gallery.pipeline.denoisers = denoisers
        trainable = self._trainable(denoisers)
        batches = data.batches(seed)
        per_epoch = loader.steps_per_epoch(
            len(batches(1)), config.gradient_accumulation_steps, self.accelerator.num_processes
        )
        total = (
            config.max_train_epochs * per_epoch
            if config.max_train_epochs
            else config.max_train_steps
        )
        update = self._update(trainable, total)
        objective = FlowMatchingLoss(
            runtime=architecture.runtime(architecture, choice.task, own),
            task=choice.task,
            denoisers=denoisers,
            experts=experts,
            options=config,
            device=self.accelerator.device,
            autocast=self._autocast(dit),
            seed=seed,
            shifts=architecture.shifts,
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
            processes=processes.processes(self.accelerator),
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
        run.page = self.page = self._page(run, choice, data, per_epoch)
        self._start_trackers(trackers, position.step)
        self._tell(trainable, data, per_epoch, total)
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
        """Inside, running out of device memory becomes an error that says what to change."""
        return out_of_memory.explained(
            self.config, self.architecture, where, policy=self.policy, buckets=self.buckets
        )

    def finish(self) -> None:
        """Wait for uploads."""
        if self.upload is not None:
            self.upload.finish()

    # networks

    def _choose_task(self) -> Choice:
        architecture = self.architecture
        given = paths(self.config, architecture)
        own = own_options(self.config, architecture)
        denoisers = [c for c in architecture.components if c.role == "dit" and c.name in given]
        if not denoisers:
            needed(architecture, architecture.dit.name, given)
        choices = [
            choose_task(
                architecture,
                self.config.task,
                inspect(one, given[one.name]).numbers,
                given[one.name],
                given=given,
                options=own,
            )
            for one in denoisers
        ]
        for one in denoisers:
            if one.name not in choices[0].task.denoisers:
                raise ConfigError(
                    f"The task {choices[0].task.name!r} has no {one.name}.",
                    fix=f"Leave out --{one.name}, or give another --task.",
                )
        return choices[0]

    def _given(self, task: Task) -> list[str]:
        """The denoisers of the task that have a file: these are trained."""
        given = paths(self.config, self.architecture)
        return [name for name in task.denoisers if name in given]

    def _check_merged(self) -> None:
        unused = [] if self.merging is None else list(self.merging.unused)
        if unused:
            self.report.warn(
                f"{len(unused)} layers of --base_weights are not in the DiT, such as {unused[0]!r}."
            )

    def _trainable(self, denoisers: Mapping[str, nn.Module]) -> Trainable:
        parts = {name: self._part(name, dit) for name, dit in denoisers.items()}
        if len(parts) == 1:
            return next(iter(parts.values()))
        if self.config.network_weights is not None:
            raise ConfigError(
                "--network_weights is one file, and several denoisers are trained.",
                fix=f"Train them one after the other, or leave it out: {', '.join(parts)}.",
            )
        return Several(parts, self._endings(denoisers))

    def _part(self, name: str, dit: nn.Module) -> Trainable:
        config = self.config
        dtype = parse_dtype(config.save_precision)
        component = self.architecture.component(name)
        if config.full:
            return FullModel(dit, save_dtype=dtype, fp32=component.traits.fp32)
        return adapters.create(
            dit,
            config,
            self.architecture,
            component=component,
            save_dtype=dtype,
            report=self.report,
        )

    def _endings(self, denoisers: Iterable[str]) -> dict[str, str]:
        """What stands behind the names of the files of each; nothing where there is one."""
        names = list(denoisers)
        if len(names) == 1:
            return {names[0]: ""}
        parts = {name: self.architecture.component(name) for name in names}
        return {name: expert_ending(self.architecture, part) for name, part in parts.items()}

    def _autocast(self, dit: nn.Module) -> Autocast:
        if self.accelerator.mixed_precision != "no":
            return cast(Autocast, self.accelerator.autocast)
        # Weights in half precision compute in it; without autocast they would meet float32.
        dtype = compute_dtype(dit)
        if dtype == torch.float32:
            return nullcontext
        self.report.note(f"The DiT's weights are {dtype_name(dtype)}, and so it computes.")
        return lambda: torch.autocast(self.accelerator.device.type, dtype=dtype)

    def _gallery(self, choice: Choice, nets: Nets) -> preview.Gallery | None:
        """Previews, their prompts encoded; before the DiT is loaded, so that both never meet."""
        config, architecture = self.config, self.architecture
        if config.sample_prompts is None or not self.accelerator.is_main_process:
            return None
        self._check_preview_files(choice)
        options = own_options(config, architecture)
        prompts = preview.read_prompts(
            config.sample_prompts,
            architecture,
            choice,
            options,
            seed=config.seed or 0,
            report=self.report,
        )
        pipeline = Pipeline(
            architecture,
            choice.task,
            options,
            nets,
            device=self.accelerator.device,
            report=self.report,
        )
        pipeline.prepare([prompt.recipe for prompt in prompts])
        pipeline.park = True  # the text encoders are gone; the VAE, which is small, stays at hand
        return preview.Gallery(
            pipeline,
            prompts,
            self.names.folder / "sample",
            self.names.name,
            facts={"architecture": architecture.name, "task": choice.task.name},
            report=self.report,
            explained=lambda where, recipe: out_of_memory.explained(
                config,
                architecture,
                where,
                policy=self.policy,
                buckets=(Bucket(recipe.width, recipe.height, recipe.frames),),
            ),
        )

    def _check_preview_files(self, choice: Choice) -> None:
        given = paths(self.config, self.architecture)
        for name in choice.task.components:
            component = self.architecture.component(name)
            if name not in given and component.role in ("vae", "text", "image"):
                raise ConfigError(
                    f"Previews need --{name}: {component.help}",
                    fix=f"Add --{name} PATH, or leave out --sample_prompts.",
                )

    # training

    def _identity(self, trainable: Trainable) -> dict[str, Any]:
        return {
            "architecture": self.architecture.name,
            "optimizer": self.config.optimizer_type.lower(),
            **trainable.identity(),
        }

    def _optimizer_arguments(self) -> dict[str, Any]:
        return literals(self.config.optimizer_args, "optimizer_args")

    def _update(self, trainable: Trainable, total: int) -> Update:
        config = self.config
        rate = config.learning_rate_or_default
        groups = trainable.groups(rate)
        mirror = None
        if config.optimizer_offload:
            mirror = Mirror(trainable.parameters(), report=self.report)
            groups = mirror.groups(groups)
        optimizer = optim.create(
            config.optimizer_type, groups, lr=rate, arguments=self._optimizer_arguments()
        )
        group = processes.processes(self.accelerator)
        return Update(
            trainable.parameters(),
            optimizer,
            schedule.create(config, optimizer, total),
            self.accelerator.scaler,
            config.max_grad_norm,
            group.world,
            group.total,
            mirror,
        )

    def _validation(self, objective: FlowMatchingLoss, data: Dataset) -> Validation | None:
        if not data.held:
            return None
        config, group = self.config, processes.processes(self.accelerator)
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

        # A file of one expert says whose it is; several write it themselves.
        only = next(iter(run.objective.denoisers))
        which = {DENOISER: only} if len(run.objective.task.denoisers) > 1 else {}

        def write(path: Path) -> None:
            with optim.averaged(run.update.optimizer):
                trainable.write(path, {**about.at(run.position), **which})

        def write_state(folder: Path) -> None:
            held = snapshot(
                run,
                identity=self._identity(trainable),
                settings=settings_of(config),
                data=data.digest,
            )
            state.write(folder, held)

        return Checkpoints(
            self.names,
            config,
            write,
            write_state,
            endings=list(self._endings(run.objective.denoisers).values()),
            saved=None if self.upload is None else self.upload.checkpoint,
            state_saved=None if self.upload is None else self.upload.state,
        )

    # telling

    def _page(self, run: Run, choice: Choice, data: Dataset, per_epoch: int) -> LivePage | None:
        """The page of the run; not begun."""
        if not self.accelerator.is_main_process:
            return None
        items = [data.records.items[i] for i in (*data.training, *data.held)]
        entries = data.file.datasets
        thumbs, more = account.shown(entries)
        device = self.accelerator.device
        noted = account.Account(
            name=self.names.name,
            architecture=self.architecture.name,
            task=choice.variant.name if choice.variant else choice.task.name,
            trained=run.trainable.title,
            total=run.total,
            per_epoch=per_epoch,
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
            started=self.started,
            resumed_at=run.position.step,
            datasets=account.datasets(entries, Counter(item.dataset for item in items)),
            buckets=account.buckets(items),
            items=thumbs,
            more=more,
            held=len(data.held),
        )
        return LivePage(self.names.own, noted, self.report)

    def _start_trackers(self, trackers: list[str], step: int) -> None:
        config = self.config
        log.wandb_login(config, trackers)
        if not trackers or not self.accelerator.is_main_process:
            return
        settings = log.plain(settings_of(config)) if config.log_config else None
        self.accelerator.init_trackers(
            config.log_tracker_name or "network_train",
            config=settings,
            init_kwargs=log.tracker_arguments(config, step=step),
        )

    def _tell(self, trainable: Trainable, data: Dataset, per_epoch: int, total: int) -> None:
        figures: Mapping[str, object] = {
            "trained": trainable.title,
            **dataset.summary(data, per_epoch),
            "steps": total,
            "epochs": -(-total // per_epoch),
            "processes": self.accelerator.num_processes,
            "seed": self.config.seed,
            "checkpoints": self.names.final(),
            "page": self.names.own / REPORT,
        }
        self.report.table("Training", ("", ""), figures.items())
