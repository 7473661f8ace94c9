"""The Hugging Face hub: upload checkpoints after each save, and download a state to resume from."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

from musubi.config.saving import HubOptions
from musubi.errors import ConfigError, MissingPackageError
from musubi.plugin.report import Report


class Upload:
    """Uploads files. Failures are reported, and training goes on.

    Args:
        options: The repository, and how to upload.
        report: Told of what failed.

    Raises:
        ConfigError: The repository cannot be reached or made, before anything is trained.
    """

    def __init__(self, options: HubOptions, report: Report) -> None:
        self.options = options
        self.report = report
        self.waiting: list[tuple[Path, Future[Any]]] = []
        self._api = _hub().HfApi(token=options.huggingface_token)
        try:
            self._api.create_repo(
                options.huggingface_repo_id,
                repo_type=options.huggingface_repo_type,
                private=options.huggingface_repo_visibility == "private",
                exist_ok=True,
            )
        except Exception as error:  # the hub's client raises many kinds
            raise ConfigError(
                f"--huggingface_repo_id {options.huggingface_repo_id} cannot be used: {error}",
                fix="Check the name and --huggingface_token, or leave the upload out.",
            ) from error

    def checkpoint(self, path: Path) -> None:
        """Upload a checkpoint, and its state if the options ask for that."""
        self._send(path)

    def state(self, folder: Path) -> None:
        """Upload a state, if the options ask for that."""
        if self.options.save_state_to_huggingface:
            self._send(folder)

    def finish(self) -> None:
        """Wait for uploads that are still running."""
        for path, future in self.waiting:
            try:
                future.result()
            except Exception as error:  # see above
                self._failed(path, error)
        self.waiting = []

    def _send(self, path: Path) -> None:
        prefix = self.options.huggingface_path_in_repo
        there = f"{prefix.strip('/')}/{path.name}" if prefix else path.name
        to = {
            "repo_id": self.options.huggingface_repo_id,
            "repo_type": self.options.huggingface_repo_type,
            "path_in_repo": there,
            "run_as_future": self.options.async_upload,
        }
        try:
            if path.is_dir():
                sent = self._api.upload_folder(folder_path=str(path), **to)
            else:
                sent = self._api.upload_file(path_or_fileobj=str(path), **to)
        except Exception as error:  # see above
            self._failed(path, error)
            return
        if self.options.async_upload:
            self.waiting.append((path, sent))

    def _failed(self, path: Path, error: Exception) -> None:
        self.report.warn(f"{path} was not uploaded: {error} It is safe on this disk.")


def download_state(place: str, token: str | None = None) -> Path:
    """Fetch a state directory.

    Args:
        place: `{user}/{repo}/{path}:{revision}:{repo_type}`; the last two may be left out.
        token: Access token.

    Returns:
        The local folder.

    Raises:
        ConfigError: The place is not written correctly, or there is no state.
    """
    where, _, rest = place.partition(":")
    revision, _, kind = rest.partition(":")
    user, _, tail = where.partition("/")
    repo, _, path = tail.partition("/")
    if not (user and repo and path):
        raise ConfigError(
            f"--resume {place!r} names no state on the hub.",
            fix="Write user/repo/path, user/repo/path:revision or user/repo/path:revision:model.",
        )
    try:
        root = _hub().snapshot_download(
            f"{user}/{repo}",
            repo_type=kind or "model",
            revision=revision or None,
            allow_patterns=[f"{path.strip('/')}/*"],
            token=token,
        )
    except Exception as error:  # see above
        raise ConfigError(
            f"The state {place} cannot be fetched: {error}",
            fix="Check the name, the revision and --huggingface_token.",
        ) from error
    return Path(root) / path


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingPackageError(
            "Uploading needs huggingface_hub, which is not installed.",
            fix="Run `pip install huggingface_hub`.",
        ) from error
    return huggingface_hub
