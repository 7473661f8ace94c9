"""A LoRA as the loop trains it: adapters on a frozen DiT."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from musubi.config.train import TrainConfig
from musubi.errors import ConfigError, did_you_mean
from musubi.lora.adapter import Adapters
from musubi.lora.files import read_lora, write_lora
from musubi.spec import Architecture, Report
from musubi.train.trainee import refuse_broken

DEFAULT_RANK = 4
_NUMBERS = ("loraplus_lr_ratio", "rank_dropout", "module_dropout")
_LISTS = ("include_patterns", "exclude_patterns", "groups")
