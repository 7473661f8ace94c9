"""The model files of a command that its user did not name: found by content, taken when they are clear."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from musubi.config.models import model_folders
from musubi.config.options import ROLES, Options, paths
from musubi.config.task import Choice, choose_task
from musubi.errors import ConfigError
from musubi.models.find import Found, search
from musubi.plugin import Architecture, Report
from musubi.plugin.option import Command


def filled(config: Options, architecture: Architecture, place: Command, report: Report) -> Options:
    """The options with a path for each model file that the command can use and nobody named.

    Nothing is looked for where no folder is known, and what is not found stays unnamed: the command
    says itself what it cannot do without.

    Args:
        config: As it was typed.
        architecture: Whose files.
        place: The command.
        report: Shows which files were chosen.

    Raises:
        ConfigError: Several files fit equally well, or a folder does not exist.
    """
    folders = model_folders(getattr(config, "models", None))
    if not folders:
        return config
    choice = choose_task(architecture, getattr(config, "task", None))
    given = paths(config, architecture)
    roles = ROLES[place]
    # A file does not say which of several experts it is: these have to be given.
    denoisers = choice.task.denoisers if len(choice.task.denoisers) == 1 else ()
    wanted = [
        name
        for name in (*denoisers, *choice.task.components)
        if name not in given and architecture.component(name).role in roles
        and architecture.component(name).option in type(config).model_fields
    ]  # fmt: skip
    if not wanted:
        return config
    found = list(search(folders, [architecture], report, wanted))
    chosen: dict[str, str] = {}
    for name in wanted:
        fitting = [one for one in found if one.component.name == name and _fits(one, choice)]
        if fitting:
            one = _best(fitting, choice, architecture, name)
            option = architecture.component(name).option
            chosen[option] = str(one.path)
            report.note(f"--{option} {one.path}")
        elif others := [str(one.path) for one in found if one.component.name == name]:
            report.warn(
                f"{', '.join(others)}: the {name} of another size or task than "
                f"{choice.variant.name if choice.variant else choice.task.name}, and not taken. "
                "--task says which is wanted."
            )
    return config.model_copy(update=chosen)


def _fits(one: Found, choice: Choice) -> bool:
    """Whether a file is of the task, as far as its content and its name tell."""
    if one.component.name != one.architecture.dit.name:
        return True
    numbers = one.contents.numbers
    if any(numbers.get(k) != n for k, n in choice.task.requires.items()):
        return False
    return choice.variant is None or choice.variant.name in one.variants


def _best(fitting: Sequence[Found], choice: Choice, architecture: Architecture, name: str) -> Found:
    """The file to take: one of 16 bits before one of 8, a published name before another.

    Raises:
        ConfigError: Files of different content are left.
    """
    published = {Path(p.file).name for p in architecture.publications if p.component == name}

    def rank(one: Found) -> tuple[bool, bool]:
        return one.eight_bits, one.path.name not in published

    best = min(map(rank, fitting))
    left = [one for one in fitting if rank(one) == best]
    kinds = {(one.size, tuple(sorted(one.contents.numbers.items(), key=str))) for one in left}
    if len(kinds) > 1:
        shown = ", ".join(str(one.path) for one in left)
        what = choice.variant.name if choice.variant else choice.task.name
        raise ConfigError(
            f"Several files can be the {name} of {what}: {shown}.", fix=f"Choose one by --{name}."
        )
    return min(left, key=lambda one: str(one.path))
