"""What an architecture says and does: plain data and protocols, free of torch.

Read `architecture.py` (what it says about itself), then `runtime.py` (the six verbs it performs).
"""

from musubi.plugin.architecture import (
    Architecture,
    Component,
    Lazy,
    Numbers,
    Publication,
    Sampling,
    Shapes,
    Task,
    Tokenizer,
    Variant,
)
from musubi.plugin.keys import Fuse, KeyMap, Rename, Squeeze, Swap, TensorSource, renamed
from musubi.plugin.option import Option
from musubi.plugin.policy import Policy
from musubi.plugin.record import Field, Schema, is_mask
from musubi.plugin.report import Progress, Quiet, Report
from musubi.plugin.runtime import Clip, Conditioning, Networks, Recipe, Record, Runtime, Section
from musubi.plugin.traits import LoraTargets, Preset, Traits

__all__ = [
    "Architecture",
    "Clip",
    "Component",
    "Conditioning",
    "Field",
    "Fuse",
    "KeyMap",
    "Lazy",
    "LoraTargets",
    "Networks",
    "Numbers",
    "Option",
    "Policy",
    "Preset",
    "Progress",
    "Publication",
    "Quiet",
    "Recipe",
    "Record",
    "Rename",
    "Report",
    "Runtime",
    "Sampling",
    "Schema",
    "Section",
    "Shapes",
    "Squeeze",
    "Swap",
    "Task",
    "TensorSource",
    "Tokenizer",
    "Traits",
    "Variant",
    "is_mask",
    "renamed",
]
