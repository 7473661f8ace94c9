"""One typed command with its architecture, its file and its options, ready to run or to explain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from musubi import registry
from musubi.cli import help
from musubi.cli.words import Words, canonical, value_of
from musubi.config.commands import Command, belongs_elsewhere
from musubi.errors import ConfigError

if TYPE_CHECKING:
    from musubi.config.fields import Flag
    from musubi.config.resolve import ConfigFile
    from musubi.plugin.architecture import Architecture


RUNS = (("train",), ("plan",))
"""Commands that accept several runs in one file."""


def own_flags(command: Command) -> dict[str, Flag]:
    """The options that belong to the command line itself."""
    from musubi.config.fields import Flag

    own = (
        Flag(
            name="arch",
            words=1,
            metavar="NAME",
            help="The architecture; `musubi models` lists all.",
        ),
        Flag(
            name="config",
            words=1,
            metavar="PATH",
            help="TOML file of options, in any sections; flags override it.",
            aliases=("config_file",),
        ),
        Flag(
            name="run",
            words=1,
            metavar="NAME",
            help="For a file with several [[run]] tables: the output_name of the run to make.",
        ),
        Flag(
            name="notify",
            words=1,
            metavar="bell|URL",
            help=(
                "When the command ends, ring the terminal's bell, or send a message to an "
                "address, such as https://ntfy.sh/NAME or a webhook."
            ),
        ),
        Flag(name="debug", words=0, help="Show the traceback of a failure."),
        Flag(name="help", words=0, help="Show this help; `--help all` shows every option."),
    )
    left = set() if command.place is not None else {"arch"}
    left |= set() if command.words in RUNS else {"run"}
    return {f.name: f for f in own if f.name not in left}


class CommandLine:
    """The options that were typed after a command.

    Args:
        command: The command.
        words: The words after the name of the command.
        lenient: Refuse nothing: only help or completions are wanted.

    Raises:
        ConfigError: A word that the command does not know.
    """

    def __init__(self, command: Command, words: Sequence[str], *, lenient: bool = False) -> None:
        from musubi.config.fields import flags, names

        self.command = command
        self.typed = list(words)
        self.lenient = lenient
        self.file = self._file(words)
        self.architecture = self._architecture(words)
        self.flags = flags(command.options(self.architecture))
        self.known = {**self.flags, **own_flags(command)}
        self.words = Words(args=list(words))
        if not lenient:
            self.words = canonical(
                words,
                self.known,
                aliases=names(self.known.values()),
                retired=command.retired(),
                refuse=self._refuse,
                bare=command.positional is not None,
            )

    def help(self, *, whole: bool = True) -> str:
        """The text of `--help`.

        Args:
            whole: Every option; else those that most people need, and the model files.
        """
        unknown = self.command.place is not None and self.architecture is None
        own = own_flags(self.command).values()
        names = registry.names() if unknown else ()
        main = self.command.main
        if whole or not main:
            return help.of_command(self.command, self.flags, own, names)
        shown = {n: f for n, f in self.flags.items() if n in main or f.group == "Models"}
        left = len(self.flags) - len(shown)
        return help.of_command(self.command, shown, own, names, left=left)

    def completions(self, flag: Flag) -> tuple[str, ...]:
        """The values that a shell offers behind an option."""
        if flag.name == "arch":
            return tuple(registry.names())
        if flag.name == "card":
            from musubi.estimate.cards import CARDS

            # Without blanks, which a shell would take for the end of the word.
            return tuple(card.name.replace(" ", "-") for card in CARDS)
        if flag.name == "task" and self.architecture is not None:
            every = (*self.architecture.variants, *self.architecture.tasks)
            return tuple(dict.fromkeys(t.name for t in every))
        return flag.choices

    def run(self, given: Mapping[str, Any]) -> None:
        """Check the options and call what the command calls.

        Args:
            given: Option → its words, unread; None or empty where it was not typed.

        Raises:
            ConfigError: An option that is missing, or a value that cannot be used.
        """
        from musubi.cli.report import terminal
        from musubi.config.resolve import Notes, resolve
        from musubi.config.task import choose_task

        if self.file is not None and self.file.runs and self.file.run is None:
            self._all_runs(self.file)
            return
        values = {
            name: flag.read(given[name])
            for name, flag in self.flags.items()
            if given.get(name) not in (None, [], ())
        }
        self._demand(values)
        notes = Notes(list(self.words.notes))
        config = resolve(
            self.command.options(self.architecture),
            values | dict.fromkeys(self.words.off, False),
            self.file,
            retired=self.command.retired(),
            elsewhere=self._elsewhere,
            notes=notes,
        )
        if self.architecture is not None:
            choose_task(self.architecture, getattr(config, "task", None))
        report = terminal()
        for line in notes.lines:
            report.note(line)
        from musubi.config.idle import idle
        from musubi.config.outputs import check_outputs

        if self.command.place != "plan":  # which takes the options of other commands
            for line in idle(config, self.architecture):
                report.warn(line)
        check_outputs(config)
        if self.command.place is None or self.architecture is None:
            self.command.run(config, report)
            return
        if "models" in type(config).model_fields:
            from musubi.models.pick import filled

            config = filled(config, self.architecture, self.command.place, report)
        self.command.run(config, self.architecture, report)

    def _all_runs(self, file: ConfigFile) -> None:
        """Make every run of the file.

        Raises:
            ConfigError: The command makes one, or one name was given for all.
        """
        from musubi.cli import several
        from musubi.cli.report import terminal

        first = file.runs[0]
        if self.command.words != ("train",):
            raise ConfigError(
                f"{file.path} has several runs, and `musubi {self.command.name}` looks at one.",
                fix=f"Name one: --run {first}."
                if self.command.words in RUNS
                else "Give a file without [[run]].",
            )
        if any(word.startswith(("--output_name", "--output-name")) for word in self.typed):
            raise ConfigError(
                f"--output_name names one run, and {file.path} has {len(file.runs)}.",
                fix=f"Leave it out, or make one run: --run {first}.",
            )
        several.run_all(self.typed, file.runs, terminal())

    def _demand(self, values: Mapping[str, Any]) -> None:
        """What no default can stand for: the architecture, and the bare words of some commands."""
        command = self.command
        if command.place is not None and self.architecture is None:
            raise ConfigError(
                f"`musubi {command.name}` must know the architecture.",
                fix="Add "
                + (" or ".join(f"`--arch {name}`" for name in registry.names()) or "`--arch NAME`")
                + ".",
            )
        bare = command.positional
        if bare is not None and self.flags[bare].required and bare not in values:
            flag = self.flags[bare]
            raise ConfigError(
                f"{flag.metavar} is needed: {flag.help}",
                fix=f"Write `musubi {command.name} {flag.metavar}`.",
            )

    def _elsewhere(self, key: str) -> str | None:
        return belongs_elsewhere(key, self.command, self.architecture)

    def _refuse(self, name: str, typed: str) -> ConfigError:
        from musubi.config.resolve import unknown

        place = f"`musubi {self.command.name}`"
        return unknown(name, self.known, place=place, shown_as=typed, elsewhere=self._elsewhere)

    def _file(self, words: Sequence[str]) -> ConfigFile | None:
        path = value_of(words, "config", "config_file")
        if path is None:
            return None
        from musubi.config.resolve import read_file

        try:
            run = value_of(words, "run") if self.command.words in RUNS else None
            return read_file(path, run)
        except ConfigError:
            if self.lenient:
                return None
            raise

    def _architecture(self, words: Sequence[str]) -> Architecture | None:
        name = value_of(words, "arch") or (self.file.arch if self.file is not None else None)
        if name is None or self.command.place is None:
            return None
        try:
            return registry.find(name)
        except ConfigError:
            if self.lenient:
                return None
            raise
