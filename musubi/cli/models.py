"""`musubi models`: what is installed, and the files that each architecture needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from musubi import registry
from musubi.errors import ConfigError

if TYPE_CHECKING:
    from musubi.plugin.architecture import Architecture, Publication, Task
    from musubi.plugin.report import Report


def list_all() -> None:
    """Architectures, tasks and files; one that cannot be imported is listed with its reason."""
    from musubi.cli.report import terminal

    report = terminal()
    tasks: list[tuple[str, ...]] = []
    found: list[Architecture] = []
    broken: list[str] = []
    for name in registry.names():
        try:
            architecture = registry.find(name)
        except ConfigError as error:
            broken.append(f"{error.what} {error.fix}")
            tasks.append((name, "broken", "see below", ""))
            continue
        tasks += [(name, t.name, _variants(architecture, t), _needs(architecture, t))
                  for t in architecture.tasks]  # fmt: skip
        found.append(architecture)
    report.table("Architectures", ("--arch", "Task", "--task", "Files it needs"), tasks)
    for architecture in found:
        _files(architecture, report)
    for reason in broken:
        report.warn(reason)
    if not tasks:
        report.note("No architecture is installed.")


def show_one(name: str) -> None:
    """All that is registered under one name."""
    from musubi.cli.report import terminal

    architecture = registry.find(name)
    report = terminal()
    shape = architecture.geometry
    report.note(
        f"{architecture.title} (--arch {name}): trained at {shape.frame_rate:g} frames per "
        f"second, lengths of {shape.period}k+1 frames, sides in steps of {shape.side} pixels."
    )
    report.table(
        "Tasks",
        ("Task", "--task", "Files it needs", "Steps", "Flow shift", "Guidance", "Frames"),
        [_task_row(architecture, t) for t in architecture.tasks],
    )
    _files(architecture, report)
    presets = [
        (v.name, p.name, " ".join(f"--{k} {w}" for k, w in p.settings.items()), p.measured)
        for v in architecture.variants
        for p in v.presets
    ]
    if presets:
        report.table("Presets", ("--task", "Preset", "Options", "Measured"), presets)
    if architecture.options:
        report.table(
            "Options of its own",
            ("Option", "Commands", "Meaning"),
            [(f"--{o.name}", ", ".join(o.commands), o.help) for o in architecture.options],
        )


def _files(architecture: Architecture, report: Report) -> None:
    """What to download, below the repository and the option it fills."""
    if not architecture.publications:
        report.note(f"\n{architecture.title} names no published files.")
        return
    report.note(f"\nFiles of {architecture.title} (--arch {architecture.name})")
    home: tuple[str, str] | None = None
    for file in sorted(architecture.publications, key=lambda f: _place(architecture, f)):
        if home != (file.component, file.repo):
            home = (file.component, file.repo)
            report.note(f"  --{file.component}  {file.repo}  ({file.licence})")
        whose = f"  [{', '.join(file.variants)}]" if file.variants else ""
        report.note(f"    {file.size:6.2f} GB  {file.file}{whose}")
    report.note(f"  To fetch those of a task: musubi models fetch {architecture.name} --task NAME")


def _place(architecture: Architecture, file: Publication) -> tuple[int, int]:
    names = [c.name for c in architecture.components]
    repos = [f.repo for f in architecture.publications if f.component == file.component]
    return names.index(file.component), repos.index(file.repo)


def _task_row(architecture: Architecture, task: Task) -> tuple[Any, ...]:
    defaults = task.sampling
    return (
        task.title,
        _variants(architecture, task),
        _needs(architecture, task),
        defaults.steps,
        "by size" if defaults.flow_shift is None else f"{defaults.flow_shift:g}",
        f"{defaults.guidance_scale:g}",
        defaults.frames,
    )


def _variants(architecture: Architecture, task: Task) -> str:
    names = [v.name for v in architecture.variants if v.task == task.name]
    return ", ".join(names) or task.name


def _needs(architecture: Architecture, task: Task) -> str:
    return " ".join(f"--{n}" for n in dict.fromkeys((*task.denoisers, *task.components)))
