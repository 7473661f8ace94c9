"""The keys of a dataset that say what becomes of its captions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from musubi.config.dataset_entry import CaptionRules
from musubi.errors import ConfigError

_NAMES = {
    "caption_prefix": "prefix",
    "caption_suffix": "suffix",
    "caption_separator": "separator",
    "captions_by_line": "by_line",
    "shuffle_caption": "shuffle",
    "keep_tokens": "keep",
    "caption_tag_dropout_rate": "tag_dropout",
    "caption_variants": "variants",
    "trigger_word": "trigger",
    "class_word": "instead",
}


def rules_of(given: Mapping[str, Any], where: str, *, listed: bool) -> CaptionRules:
    """The rules for the captions of a dataset.

    Args:
        given: Its keys and values.
        where: What to call it.
        listed: Whether its files are listed.

    Raises:
        ConfigError: A key means nothing without another.
    """
    rules = CaptionRules(**{field: given[key] for key, field in _NAMES.items() if key in given})
    if not rules.shuffle and not rules.tag_dropout:
        for key in ("keep_tokens", "caption_separator", "caption_variants"):
            if key in given:
                raise ConfigError(
                    f"{where}: {key} means nothing where tags stay as they are.",
                    fix="Give shuffle_caption or caption_tag_dropout_rate too, or leave it out.",
                )
    if listed and rules.by_line:
        raise ConfigError(
            f"{where}: captions_by_line means nothing for a list of files.",
            fix='Write several captions into its lines: "caption": ["one", "another"].',
        )
    if (rules.trigger is None) != (rules.instead is None):
        key, other = "trigger_word", "class_word"
        key, other = (other, key) if rules.trigger is None else (key, other)
        raise ConfigError(
            f"{where}: {key} means nothing without {other}.",
            fix=f"Give {other} too, or leave it out.",
        )
    return rules
