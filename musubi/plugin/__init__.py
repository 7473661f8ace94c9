"""The plugin surface: data and protocols that describe an architecture. No import of torch.

Read `architecture.py` (an architecture's description), then `runtime.py` (its six methods).
"""

from musubi.plugin.architecture import (
    Architecture,
    Component,
    Numbers,
    Publication,
    Sampling,
    Shapes,
    Shift,
    Task,
    Tokenizer,
    Variant,
)
from musubi.plugin.geometry import Geometry
from musubi.plugin.inputs import Input
from musubi.plugin.keys import Fuse, KeyMap, Rename, Squeeze, Swap, TensorSource, renamed
from musubi.plugin.lazy import Lazy
from musubi.plugin.option import Option
from musubi.plugin.policy import Policy
from musubi.plugin.record import Field, Schema, declared, is_mask, lacking, numbered
from musubi.plugin.report import Progress, Quiet, Report
from musubi.plugin.runtime import (
    Clip,
    Conditioning,
    Moment,
    Networks,
    Prompt,
    Recipe,
    Record,
    Runtime,
    Section,
)
from musubi.plugin.traits import LoraTargets, Preset, Traits

__all__ = [
    "Architecture",
    "Clip",
    "Component",
    "Conditioning",
    "Field",
    "Fuse",
    "Geometry",
    "Input",
    "KeyMap",
    "Lazy",
    "LoraTargets",
    "Moment",
    "Networks",
    "Numbers",
    "Option",
    "Policy",
    "Preset",
    "Progress",
    "Prompt",
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
    "Shift",
    "Squeeze",
    "Swap",
    "Task",
    "TensorSource",
    "Tokenizer",
    "Traits",
    "Variant",
    "declared",
    "is_mask",
    "lacking",
    "numbered",
    "renamed",
]
