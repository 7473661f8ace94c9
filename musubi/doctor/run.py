"""`musubi doctor`: a table of findings, then what to do about each that is amiss."""

from __future__ import annotations

import getpass
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path

from musubi import __version__, registry
from musubi.config.doctor import DoctorConfig
from musubi.doctor.checks import Check, all_checks
from musubi.errors import ConfigError, RunError, system_reason
from musubi.plugin import Report

MARKS = {"good": "good", "absent": "-", "poor": "poor", "bad": "BAD"}


def run(config: DoctorConfig, report: Report) -> None:
    """Look at everything, and say it.

    Raises:
        ConfigError: `--disk` is no folder.
        RunError: Something will fail; or `--report` cannot be written.
    """
    disk = Path(config.disk)
    if not disk.is_dir():
        raise ConfigError(f"--disk {disk} is no folder.", fix="Give a folder on the disk you mean.")
    found: list[Check] = []
    with report.progress("Looking", None, unit="check") as bar:
        for check in all_checks(disk):
            found.append(check)
            bar.advance()
    found = [_nameless(check) for check in found]
    if config.report is not None:
        path = Path(config.report)
        try:
            path.write_text(as_text(found), encoding="utf-8")
        except OSError as error:
            raise RunError(
                f"{path} cannot be written: {system_reason(error)}.", fix="Give another --report."
            ) from error
    if config.json_output:
        facts = {"musubi": __version__, "checks": [asdict(check) for check in found]}
        report.note(json.dumps(facts, ensure_ascii=False, indent=2))
    else:
        _tell(found, report)
    if config.report is not None and not config.json_output:
        report.note(f"The report is in {config.report}: it names no path and no user.")
    bad = [check.name for check in found if check.state == "bad"]
    if bad:
        raise RunError(
            f"{', '.join(bad)}: these will make commands fail.",
            fix="Do what is said above for each.",
        )


def as_text(found: list[Check]) -> str:
    """The report to paste into an issue."""
    lines = [f"musubi {__version__}", f"architectures: {', '.join(registry.names())}", ""]
    lines += [f"{MARKS[c.state]:5} {c.name}: {c.found}" for c in found]
    return "\n".join(lines) + "\n"


def _tell(found: list[Check], report: Report) -> None:
    report.table(
        f"musubi {__version__}", ("state", "what", "found"), [(MARKS[c.state], c.name, c.found) for c in found]
    )  # fmt: skip
    amiss = [c for c in found if c.fix and c.state in ("poor", "bad")]
    if amiss:
        report.table("What helps", ("what", "do this"), [(c.name, c.fix) for c in amiss])
    more = [c for c in found if c.fix and c.state == "absent"]
    if more:
        report.table(
            "Not here, and not needed", ("what", "to have it"), [(c.name, c.fix) for c in more]
        )
    if not amiss:
        report.note("Nothing is amiss.")


def _nameless(check: Check) -> Check:
    """The check without the user's folders and name, which errors of other programs may hold."""
    text = check.found
    for private, word in (
        (str(Path.cwd()), "."),
        (str(Path.home()), "~"),
        (_user(), "USER"),
        (platform.node(), "HOST"),
    ):
        if len(private) > 2:
            text = text.replace(private, word)
    return Check(check.name, check.state, text, check.fix)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a name for its user
        return os.environ.get("USERNAME", "")
