"""`musubi init`: looks at the clips, asks what it cannot see, writes three files, says what to type."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import torch

from musubi import registry
from musubi.config.init import Goal, InitConfig
from musubi.config.models import model_folders
from musubi.config.options import for_architecture, paths
from musubi.config.sizes import parse_bytes
from musubi.config.task import Choice, choose_task
from musubi.config.train import TrainConfig
from musubi.errors import ConfigError, MusubiError, RunError, counted, did_you_mean, system_reason
from musubi.init import size, write
from musubi.init.clips import Folder, look, middle
from musubi.models import pick
from musubi.plugin import Architecture, Quiet, Report
from musubi.untrusted import name_fault
from musubi.weights.write import atomic

Ask = Callable[[str], str]


def run(config: InitConfig, report: Report, ask: Ask | None = None) -> None:
    """Write the files.

    Args:
        config: What was given.
        report: Shows what was found and written.
        ask: Asks the user; the terminal when None, and nobody where there is none.

    Raises:
        ConfigError: An architecture, a task or a size that cannot be; files are there already.
        DataError: The folder holds no clips.
        RunError: The files cannot be written.
    """
    if len(config.folder) != 1:
        raise ConfigError(
            "`musubi init` takes one folder.",
            fix="Give one, and write further datasets into data.toml.",
        )
    if ask is None and not config.no_ask and sys.stdin.isatty():
        ask = input
    question = _Question(None if config.no_ask else ask, report)
    found = look(Path(config.folder[0]))
    home = Path(config.to)
    targets = [home / name for name in ("data.toml", "train.toml", "prompts.txt")]
    there = [path for path in targets if path.exists()]
    if there and not config.force:
        names = ", ".join(str(path) for path in there)
        raise ConfigError(f"{names} exists already.", fix="Add --force to replace it, or --to DIR.")
    _tell(found, report)
    architecture = registry.find(question("architecture", config.arch, registry.names()))
    variants = [v.name for v in architecture.variants] or [t.name for t in architecture.tasks]
    choice = choose_task(architecture, question("task", config.task, variants, strict=False))
    goal = cast(Goal, question("goal", config.goal, get_args(Goal)))
    vram = _vram(config.vram, question)
    name = config.name or _name(found)
    fault = name_fault(name)
    if fault is not None:
        raise ConfigError(f"--name {name!r}: {fault}.", fix="Give another name.")
    chosen = size.choose(
        architecture,
        choice,
        area=middle([f.width * f.height for f in found.videos or found.images]),
        seconds=middle([f.seconds for f in found.videos]),
        vram=vram,
        motion=goal == "motion",
        report=report,
    )
    plan = write.Plan(
        folder=found,
        architecture=architecture,
        choice=choice,
        goal=goal,
        size=chosen,
        vram=vram,
        name=name,
        look_in=None if _known_folders() else "models",
        models=_models(architecture, choice_name=write_task(choice), report=report),
    )
    data, train, prompts = targets
    _write(data, write.data_toml(plan))
    _write(train, write.train_toml(plan, data, prompts))
    _write(prompts, write.prompts_txt(plan))
    fits = "fits, by the planner" if chosen.planned else "was not checked against a card"
    report.note(
        f"{chosen.width}x{chosen.height} with {chosen.frames} frame{'s' * (chosen.frames > 1)} {fits}."
    )
    report.note(f"Wrote {data}, {train} and {prompts}. Look at them; then type:")
    for line in commands(plan, data, train):
        report.note(f"  {line}")


def commands(plan: write.Plan, data: Path, train: Path) -> list[str]:
    """What to type next."""
    arch = plan.architecture.name
    lines = []
    absent = [n for n in (plan.architecture.dit.name, *plan.choice.task.components) if n not in plan.models]  # fmt: skip
    if absent:
        place = _shell(known[0]) if (known := _known_folders()) else "models"
        lines.append(f"musubi models fetch {arch} --task {plan.task} --to {place}")
    if any(not f.caption for f in plan.folder.files):
        lines.append(f"musubi cache caption {_shell(plan.folder.path)}")
    lines.append(f"musubi cache preview --arch {arch} --dataset_config {_shell(data)} --mode html")
    lines.append(f"musubi train --config {_shell(train)} --watch")
    return lines


def write_task(choice: Choice) -> str:
    """The name of a task or variant."""
    return choice.variant.name if choice.variant else choice.task.name


class _Question:
    """Asks for values that were not given, if there is a terminal."""

    def __init__(self, ask: Ask | None, report: Report) -> None:
        self.ask = ask
        self.report = report

    def __call__(
        self, what: str, given: str | None, known: Sequence[str], *, strict: bool = True
    ) -> str:
        if given is None and self.ask is not None:
            return self._asked(what, known)
        if given is None:
            self.report.note(f"{what}: {known[0]}, since none was given.")
            return known[0]
        if strict and given not in known:
            raise ConfigError(
                f"There is no {what} {given!r}.", fix=did_you_mean(given, list(known))
            )
        return given

    def _asked(self, what: str, known: Sequence[str]) -> str:
        assert self.ask is not None
        for number, name in enumerate(known, 1):
            self.report.note(f"  {number}  {name}")
        for _ in range(5):
            try:
                answer = self.ask(f"{what} [1]: ").strip() or "1"
            except EOFError:
                answer = "1"
            if answer.isdecimal() and 1 <= int(answer) <= len(known):
                return known[int(answer) - 1]
            if answer in known:
                return answer
            self.report.note(f"{answer!r} is none of these.")
        raise ConfigError(f"No {what} was chosen.", fix=f"Give --{what} NAME.")


def _vram(given: str | None, question: _Question) -> str | None:
    here = torch.cuda.is_available()
    if given is None and question.ask is not None and not here:
        try:
            given = question.ask("memory of the card, such as 12GiB [unknown]: ").strip() or None
        except EOFError:
            given = None
    if given is None:
        return "auto" if here else None
    if given.lower() == "auto":
        if not here:
            raise ConfigError(
                "--vram auto: no card is seen here.", fix="Give a size, such as 12GiB."
            )
        return "auto"
    parse_bytes(given)
    return given


def _models(architecture: Architecture, *, choice_name: str, report: Report) -> dict[str, str]:
    """Model files that are found on this computer, by option."""
    try:
        model: Any = for_architecture(TrainConfig, architecture, "train")
        config = model(task=choice_name)
        filled = pick.filled(config, architecture, "train", Quiet())
    except MusubiError as error:
        report.warn(f"Model files were not looked for: {error.what}")
        return {}
    return {name: str(path) for name, path in paths(filled, architecture).items()}


def _known_folders() -> list[Path]:
    try:
        return model_folders()
    except ConfigError:
        return []


def _tell(found: Folder, report: Report) -> None:
    """What the folder holds."""
    rows: list[tuple[str, object]] = []
    for kind, files in (("clips", found.videos), ("pictures", found.images)):
        if not files:
            continue
        sizes = sorted({(f.width, f.height) for f in files}, key=lambda s: s[0] * s[1])
        rows.append((kind, len(files)))
        rows.append((f"{kind}, sizes", _span([f"{w}x{h}" for w, h in sizes])))
        if kind == "clips":
            lengths = sorted(f.seconds for f in files)
            rows.append((f"{kind}, seconds", _span([f"{s:.1f}" for s in lengths])))
    rows.append(("captions", f"{sum(bool(f.caption) for f in found.files)} of {len(found.files)}"))
    report.table(f"{found.path}", ("what", "found"), rows)
    for name, reason in found.broken:
        report.warn(f"{name} is left out: {reason}")
    absent = [f.path.name for f in found.files if not f.caption]
    if absent:
        report.warn(
            f"No caption for {counted(len(absent), 'file')}, such as {absent[0]}: "
            "`musubi cache caption` writes captions, or write a text file beside each clip."
        )


def _span(names: Sequence[str]) -> str:
    return names[0] if names[0] == names[-1] else f"{names[0]} to {names[-1]}"


def _name(found: Folder) -> str:
    name = found.path.resolve().name
    return name if name_fault(name) is None else "lora"


def _shell(path: Path) -> str:
    text = path.as_posix()
    return f'"{text}"' if any(c in text for c in " ()[]&;'$") else text


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {system_reason(error)}.", fix="Give another --to."
        ) from error
