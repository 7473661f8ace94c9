"""Finding a tokenizer: where the user says, beside the weights, in the hub's cache, on the hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from musubi.errors import ConfigError
from musubi.plugin.architecture import Component, Tokenizer

_FILES = ("tokenizer.json", "tokenizer_config.json")
_SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def load_tokenizer(component: Component, explicit: Path | None, weights_path: Path | None) -> Any:
    """The tokenizer of a text encoder.

    Looked for in this order: `explicit`; the folder of the weights, its `tokenizer` and the folder
    that the publication keeps it in, and the same one folder up; the hub's cache; the hub, unless
    `HF_HUB_OFFLINE` is set.

    Args:
        component: The text encoder.
        explicit: A folder, or a file in it, that the user named.
        weights_path: The encoder's file or folder.

    Raises:
        ConfigError: There is none, or it cannot be read.
    """
    flag = f"--{component.name}_tokenizer"
    if explicit is not None:
        if not Path(explicit).exists():
            raise ConfigError(
                f"The tokenizer {explicit} of {flag} does not exist.",
                fix=f"Give {flag} a folder with tokenizer.json and tokenizer_config.json.",
            )
        return _opened(Path(explicit), flag)
    published = component.tokenizer
    if weights_path is not None:
        for folder in _nearby(component, Path(weights_path), published):
            if _is_tokenizer(folder):
                return _opened(folder, flag)
    if published is None:
        raise ConfigError(
            f"The {component.name} needs a tokenizer, and none is beside {weights_path}.",
            fix=f"Give {flag} PATH.",
        )
    return _from_hub(component, published, weights_path, flag)


def _nearby(component: Component, weights: Path, published: Tokenizer | None) -> Iterator[Path]:
    home = weights if weights.is_dir() else weights.parent
    # text_encoder_2 of a snapshot has its tokenizer in tokenizer_2, beside it.
    number = "".join(c for c in home.name if c.isdigit()) if home.name.startswith("text_") else ""
    sibling = f"tokenizer_{number}" if number else "tokenizer"
    for folder in (home, home.parent):
        yield folder / f"{component.name}_tokenizer"
        if published is not None and published.subfolder:
            yield folder / published.subfolder
            yield folder / Path(published.subfolder).name
        yield folder / sibling
        yield folder / "tokenizer"
        if folder == home:
            yield folder


def _is_tokenizer(folder: Path) -> bool:
    # A bare spiece.model does not count: it does not say how texts begin, end and are padded.
    return any((folder / name).is_file() for name in _FILES)


def _opened(path: Path, flag: str) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = path if path.is_dir() else path.parent
    try:
        if (folder / "tokenizer_config.json").is_file():
            return AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        file = path if path.is_file() else folder / "tokenizer.json"
        if file.suffix == ".json" and file.is_file():
            return _with_special(PreTrainedTokenizerFast(tokenizer_file=str(file)))
    except Exception as error:  # transformers raises whatever its many formats raise
        raise ConfigError(
            f"The tokenizer {path} cannot be read: {_line(error)}.",
            fix=f"Give {flag} a folder with tokenizer.json and tokenizer_config.json.",
        ) from error
    raise ConfigError(
        f"The tokenizer {path} has no tokenizer_config.json beside it.",
        fix=f"Give {flag} a folder with tokenizer.json and tokenizer_config.json.",
    )


def _with_special(tokenizer: Any) -> Any:
    """A bare tokenizer.json says nothing of padding; the usual names are used where it has them."""
    vocabulary = tokenizer.get_vocab()
    for role, token in _SPECIAL.items():
        if getattr(tokenizer, role, None) is None and token in vocabulary:
            setattr(tokenizer, role, token)
    return tokenizer


def _from_hub(component: Component, published: Tokenizer, weights: Path | None, flag: str) -> Any:
    from transformers import AutoTokenizer

    def fetch(local: bool) -> Any:
        return AutoTokenizer.from_pretrained(
            published.repo,
            subfolder=published.subfolder,
            local_files_only=local,
            trust_remote_code=False,
        )

    place = f"{published.repo}/{published.subfolder}".rstrip("/")
    try:
        return fetch(True)
    except Exception as error:  # absent from the cache, or half there: the hub decides
        first = error
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    try:
        if not offline:
            return fetch(False)
        reason = "HF_HUB_OFFLINE is set"
    except Exception as error:  # no network, no such repository, a proxy's page: all mean the same
        first, reason = error, _line(error)
    beside = f" beside {weights}" if weights is not None else ""
    raise ConfigError(
        f"The {component.name} needs a tokenizer: none is{beside} or in the hub's cache, and "
        f"{place} could not be downloaded: {reason}.",
        fix=f"Download the folder {place} from the hub and give {flag} its path.",
    ) from first


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
