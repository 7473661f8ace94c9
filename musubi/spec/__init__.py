"""What an architecture says and does: plain data and protocols, free of torch.

Read `architecture.py` (what it says about itself), then `runtime.py` (the six verbs it performs).
"""

from musubi.spec.architecture import (
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
from musubi.spec.keys import Fuse, KeyMap, Rename, Source, Squeeze, Swap, renamed
from musubi.spec.option import Option
from musubi.spec.policy import Policy
from musubi.spec.record import Field, Schema, is_mask
from musubi.spec.report import Progress, Quiet, Report
from musubi.spec.runtime import Clip, Conditioning, Networks, Recipe, Record, Runtime, Section
from musubi.spec.traits import LoraNames, LoraTargets, Preset, Traits

__all__ = [
    "Architecture",
    "Clip",
    "Component",
    "Conditioning",
    "Field",
    "Fuse",
    "KeyMap",
    "Lazy",
    "LoraNames",
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
    "Source",
    "Squeeze",
    "Swap",
    "Task",
    "Tokenizer",
    "Traits",
    "Variant",
    "is_mask",
    "renamed",
]
