"""`musubi models fetch`: the published files of a task, from the hub into a folder, checked."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from musubi import registry
from musubi.config.models import FetchConfig, model_folders
from musubi.config.task import Choice, choose_task
from musubi.errors import ConfigError, MusubiError, RunError, did_you_mean, system_reason
from musubi.models.download import download
from musubi.plugin import Architecture, Publication, Report
from musubi.plugin.report import Progress

STAGE = ".fetching"
"""Folder below the target in which files grow; an interrupted fetch goes on from it."""
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "spiece.model",
             "vocab.json", "merges.txt", "chat_template.jinja")  # fmt: skip
_AT_ONCE = 3
_MB = 1e6


@dataclass(frozen=True, kw_only=True)
class Remote:
    """One file on the hub and where it goes.

    Args:
        repo: `owner/name`.
        file: Its path in the repository.
        target: The path here.
        licence: As published.
        size: In bytes, as the hub says.
        sha256: Of its content, where the hub says it; None for small files.
    """

    repo: str
    file: str
    target: Path
    licence: str
    size: int
    sha256: str | None

    @property
    def there(self) -> bool:
        """Whether it is here already, whole."""
        return self.target.is_file() and self.target.stat().st_size == self.size


def run(config: FetchConfig, report: Report) -> None:
    """Say what is needed, and fetch what is not there.

    Raises:
        ConfigError: There is no such architecture, task or component.
        RunError: The hub cannot be reached or refuses a file, a hash differs, the disk is full.
    """
    if len(config.name) != 1:
        raise ConfigError("One architecture at a time.", fix="Write `musubi models fetch NAME`.")
    architecture = registry.find(config.name[0])
    choice = choose_task(architecture, config.task or _first(architecture))
    folder = _target(config)
    chosen = choose(architecture, choice, config.only, config.file or ())
    remotes = [
        _ask(p.repo, p.file, folder / architecture.name / place(p, architecture), p.licence, config)
        for p in chosen
    ]
    remotes += _tokenizers(architecture, {p.component for p in chosen}, folder, config)
    report.table(
        f"Files of {architecture.title} for {_name(choice)}",
        ("size", "licence", "repository", "file", "on disk"),
        [
            (_size(r.size), r.licence, r.repo, r.file, "is there" if r.there else "")
            for r in remotes
        ],
    )
    left = [r for r in remotes if not r.there]
    total = sum(r.size for r in left)
    if config.dry_run:
        report.note(f"{_size(total)} would be fetched into {folder}.")
        return
    _room(folder, total)
    _fetch(left, folder, config, report)
    report.note(f"All files are in {folder / architecture.name}.")
    if config.to is not None:
        report.note(f"Commands find them with --models {folder}, or with MUSUBI_MODELS={folder}.")


def choose(
    architecture: Architecture,
    choice: Choice,
    only: Sequence[str] | None,
    words: Sequence[str],
) -> list[Publication]:
    """One published file, or set of shards, for each component of a task.

    Args:
        architecture: Whose files.
        choice: The task and variant.
        only: Components; None is all of the task.
        words: Files with one of these in their name are preferred.

    Raises:
        ConfigError: A component that the task does not have, or no file is published for it.
    """
    names = list(dict.fromkeys((*choice.task.denoisers, *choice.task.components)))
    for name in only or ():
        if name not in names:
            raise ConfigError(
                f"{_name(choice)} has no component {name!r}.", fix=did_you_mean(name, names)
            )
    found: list[Publication] = []
    for name in only or names:
        fitting = [
            p
            for p in architecture.publications
            if p.component == name and (not p.variants or _name(choice) in p.variants)
        ]
        if not fitting:
            raise ConfigError(
                f"{architecture.title} names no published file for --{name} of {_name(choice)}.",
                fix=f"`musubi models show {architecture.name}` lists the files that are known.",
            )
        preferred = [p for p in fitting if any(word in p.file for word in words)]
        first = (preferred or fitting)[0]
        found += [p for p in fitting if _set(p) == _set(first)]
    return found


def place(one: Publication, architecture: Architecture) -> Path:
    """Where a published file goes below the folder of its architecture.

    In a folder of its repository where other repositories have a file of that name.
    """
    name = Path(one.file).name
    alike = {
        p.repo
        for p in architecture.publications
        if p.component == one.component and Path(p.file).name == name
    }
    home = Path(one.component)
    return home / name if len(alike) == 1 else home / one.repo.rpartition("/")[2] / name


def _set(one: Publication) -> tuple[str, str]:
    """Shards of one checkpoint have this in common."""
    name, mark, _ = one.file.partition("-of-")
    return one.repo, name.rpartition("-")[0] if mark else one.file


def _first(architecture: Architecture) -> str | None:
    return architecture.variants[0].name if architecture.variants else None


def _name(choice: Choice) -> str:
    return choice.variant.name if choice.variant else choice.task.name


def _target(config: FetchConfig) -> Path:
    if config.to is not None:
        return Path(config.to)
    known = model_folders()
    return known[0] if known else Path("models")


def _tokenizers(
    architecture: Architecture, components: set[str], folder: Path, config: FetchConfig
) -> list[Remote]:
    """The tokenizers of the text encoders, to lie where these look for them."""
    found: list[Remote] = []
    for component in architecture.components:
        published = component.tokenizer
        if component.name not in components or published is None:
            continue
        home = folder / architecture.name / f"{component.name}_tokenizer"
        start = f"{published.subfolder}/" if published.subfolder else ""
        for name in TOKENIZER:
            try:
                found.append(_ask(published.repo, start + name, home / name, "as its model", config, quiet=True))  # fmt: skip
            except _AbsentError:
                continue
    return found


class _AbsentError(RunError):
    """The repository has no such file."""


def _ask(
    repo: str, file: str, target: Path, licence: str, config: FetchConfig, *, quiet: bool = False
) -> Remote:
    """What the hub says about a file."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    with _explained(repo, file):
        url = hf_hub_url(repo, file, revision=config.revision)
        told = get_hf_file_metadata(url)
    etag = told.etag or ""
    return Remote(
        repo=repo,
        file=file,
        target=target,
        licence=licence,
        size=int(told.size or 0),
        sha256=etag if len(etag) == 64 else None,
    )


@contextmanager
def _explained(repo: str, file: str) -> Iterator[None]:
    """Turn what the hub refuses inside into an error that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise RunError(
            f"{repo} is gated: its owner wants to know who downloads it.",
            fix=f"Accept its licence at https://huggingface.co/{repo}, run `hf auth login` with a token "
            "of that account, and run this again.",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise RunError(
            f"The hub has no repository {repo}, or it is private.",
            fix="Log in with `hf auth login` when it is yours; else fetch another file with --file.",
        ) from error
    except (errors.EntryNotFoundError, errors.RevisionNotFoundError) as error:
        raise _AbsentError(
            f"{repo} has no file {file}.", fix="Leave out --revision, or choose another by --file."
        ) from error
    except MusubiError:
        raise
    except OSError as error:
        reason = system_reason(error) if error.strerror else str(error).splitlines()[0]
        raise RunError(
            f"{file} of {repo} cannot be fetched: {reason}.",
            fix="Run this again, and it goes on where it was; HF_ENDPOINT names a mirror of the hub.",
        ) from error
    except Exception as error:  # the client library has errors of its own for networks
        if not type(error).__module__.startswith(
            ("huggingface_hub", "httpx", "requests", "urllib3")
        ):
            raise
        raise RunError(
            f"{file} of {repo} cannot be fetched: {(str(error) or repr(error)).splitlines()[0]}",
            fix="Run this again, and it goes on where it was; HF_ENDPOINT names a mirror of the hub.",
        ) from error


def _room(folder: Path, needed: int) -> None:
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise RunError(
            f"{_size(needed)} are needed, and the disk of {folder} has {_size(free)} free.",
            fix="Make room, or give another folder by --to.",
        )


def _fetch(left: Sequence[Remote], folder: Path, config: FetchConfig, report: Report) -> None:
    if not left:
        return
    stage = folder / STAGE
    total = sum(r.size for r in left)
    with report.progress("Fetching", max(1, round(total / _MB)), unit="MB") as bar:
        told = _Megabytes(bar)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for _ in pool.map(lambda r: _one(r, stage, config, told), left):
                pass
    shutil.rmtree(stage, ignore_errors=True)


class _Megabytes:
    """Moves a bar of megabytes by bytes, from several threads."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._lock = threading.Lock()
        self._bytes = self._shown = 0

    def __call__(self, count: int) -> None:
        with self._lock:
            self._bytes += count
            now = round(self._bytes / _MB)
            if now > self._shown:
                self._bar.advance(now - self._shown)
                self._shown = now


def _one(remote: Remote, stage: Path, config: FetchConfig, told: _Megabytes) -> None:
    """Fetch a file, compare its hash, and put it in its place."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    page = hf_hub_url(remote.repo, remote.file, revision=config.revision)

    def address() -> str:
        return get_hf_file_metadata(page).location or page

    known = remote.sha256 or hashlib.sha256(page.encode()).hexdigest()
    part = stage / f"{known}.part"
    with _explained(remote.repo, remote.file):
        location = address()
        own = urlsplit(location).netloc == urlsplit(page).netloc
        headers = build_hf_headers()
        if not own:  # a signed address elsewhere; the token is not its business
            headers.pop("authorization", None)
        try:
            download(
                address, part, size=remote.size, sha256=remote.sha256, headers=headers, grown=told
            )
        except RunError as error:
            raise RunError(
                f"{remote.file} of {remote.repo}: {error.what}", fix=error.fix
            ) from error
        remote.target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(remote.target)


def _size(size: float) -> str:
    if size >= 1e8:
        return f"{size / 1e9:.2f} GB"
    return f"{size / 1e6:.2f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
