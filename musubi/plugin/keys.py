"""Checkpoint dialects: rules between a file's tensor names and ours, used in both directions.

A rule is a pair of templates. `{n}` (any word) stands for one part between dots, `{rest}` for
everything that is left. So the same rule works in both directions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from musubi.errors import CheckpointError, counted


@dataclass(frozen=True, kw_only=True)
class Rename:
    """Their name becomes ours; the tensor is unchanged."""

    theirs: str
    ours: str


@dataclass(frozen=True, kw_only=True)
class Swap:
    """Their name becomes ours, and the two halves of axis 0 are swapped (shift and scale)."""

    theirs: str
    ours: str


@dataclass(frozen=True, kw_only=True)
class Squeeze:
    """Their name becomes ours, and axes of length 1 are removed: a convolution that is a matrix.

    `ones` is the number of such axes: 3 for a 1x1x1 convolution. They are the last axes, or, with
    `leading`, the first ones (a table of positions with a batch axis, say).
    """

    theirs: str
    ours: str
    ones: int
    leading: bool = False


@dataclass(frozen=True, kw_only=True)
class Fuse:
    """Several of their tensors, joined along axis 0 in this order, are one of ours.

    `ratio` gives the relative lengths of the parts; it is needed to split our tensor again.
    """

    theirs: tuple[str, ...]
    ours: str
    ratio: tuple[int, ...] = ()

    @property
    def weights(self) -> tuple[int, ...]:
        """`ratio`, or equal parts."""
        return self.ratio or (1,) * len(self.theirs)


Rule = Rename | Swap | Squeeze | Fuse
Operation = Literal["copy", "swap", "squeeze", "unsqueeze", "concat", "split"]


@dataclass(frozen=True, kw_only=True)
class TensorSource:
    """How one tensor is made from tensors of a file.

    Args:
        names: The source tensors.
        operation: `copy`; `swap` the halves of axis 0; `squeeze`: remove `ones` axes of length 1;
            `unsqueeze`: put them back; `concat` along axis 0; or `split`: cut axis 0 in the
            proportions `ratio`, and take part number `part`.
        ratio: Relative lengths for `concat` and `split`.
        part: Which part, for `split`.
        ones: How many axes of length 1, for `squeeze` and `unsqueeze`.
        leading: For `squeeze` and `unsqueeze`: the axes are the first ones instead of the last.
    """

    names: tuple[str, ...]
    operation: Operation = "copy"
    ratio: tuple[int, ...] = ()
    part: int = 0
    ones: int = 0
    leading: bool = False


@dataclass(frozen=True, kw_only=True)
class KeyMap:
    """One dialect of checkpoint names.

    Args:
        name: What people call it: "official", "comfyui", "diffusers".
        marker: Templates of names; a file has this dialect if each template matches a name in it.
        rules: The first rule that matches a name is used. A name that no rule matches is kept.
        prefix: Removed when reading, and added when writing. Names without the prefix are ignored.
        drop: Templates of names to ignore (an embedded tokenizer, say).
    """

    name: str
    marker: tuple[str, ...]
    rules: tuple[Rule, ...] = ()
    prefix: str = ""
    drop: tuple[str, ...] = ()

    def recognises(self, names: Iterable[str]) -> bool:
        """Whether a file with these names has this dialect."""
        return not self.lacking(names)

    def lacking(self, names: Iterable[str]) -> tuple[str, ...]:
        """The markers that match none of these names."""
        stripped = list(self._strip(names).values())
        return tuple(m for m in self.marker if all(_match(m, n) is None for n in stripped))

    def reading(self, names: Iterable[str]) -> dict[str, TensorSource]:
        """Our name → how that tensor is made from a file with these `names`.

        Raises:
            CheckpointError: Two of their names become the same name of ours, or a part of a fused
                tensor is absent.
        """
        found: dict[str, TensorSource] = {}
        parts: dict[str, dict[int, str]] = {}
        fused: dict[str, Fuse] = {}
        for name, bare in self._strip(names).items():
            if any(_match(d, bare) is not None for d in self.drop):
                continue
            ours, rule, index = self._read_one(bare)
            if isinstance(rule, Fuse):
                fused[ours] = rule
                clash = ours in found or index in parts.setdefault(ours, {})
                parts.setdefault(ours, {})[index] = name
            else:
                clash = ours in found or ours in parts
                found[ours] = _whole(name, rule, reading=True)
            if clash:
                raise CheckpointError(
                    f"Two tensors of the {self.name} layout, {name!r} among them, are both {ours!r}.",
                    fix="The file mixes two layouts; download it again.",
                )
        for ours, rule in fused.items():
            absent = [t for i, t in enumerate(rule.theirs) if i not in parts[ours]]
            if absent:
                raise CheckpointError(
                    f"{ours!r} is made of {counted(len(rule.theirs), 'tensor')}, and the file lacks {absent[0]!r}.",
                    fix="The file is incomplete; download it again.",
                )
            order = tuple(parts[ours][i] for i in range(len(rule.theirs)))
            found[ours] = TensorSource(names=order, operation="concat", ratio=rule.weights)
        return found

    def writing(self, names: Iterable[str]) -> dict[str, TensorSource]:
        """Their name → how that tensor is made from ours: the inverse of `reading`."""
        out: dict[str, TensorSource] = {}
        for name in names:
            for theirs, source in self._write_one(name):
                if self.prefix + theirs in out:
                    raise CheckpointError(
                        f"{name!r} and {out[self.prefix + theirs].names[0]!r} are both "
                        f"{self.prefix + theirs!r} in the {self.name} layout.",
                        fix="This is a fault in the architecture's key map; please report it.",
                    )
                out[self.prefix + theirs] = source
        return out

    def _strip(self, names: Iterable[str]) -> dict[str, str]:
        n = len(self.prefix)
        return {name: name[n:] for name in names if name.startswith(self.prefix)}

    def _read_one(self, name: str) -> tuple[str, Rule | None, int]:
        for rule in self.rules:
            templates = rule.theirs if isinstance(rule, Fuse) else (rule.theirs,)
            for index, template in enumerate(templates):
                values = _match(template, name)
                if values is not None:
                    return rule.ours.format(**values), rule, index
        return name, None, 0

    def _write_one(self, name: str) -> list[tuple[str, TensorSource]]:
        for rule in self.rules:
            values = _match(rule.ours, name)
            if values is None:
                continue
            if isinstance(rule, Fuse):
                return [
                    (
                        t.format(**values),
                        TensorSource(names=(name,), operation="split", ratio=rule.weights, part=i),
                    )
                    for i, t in enumerate(rule.theirs)
                ]
            return [(rule.theirs.format(**values), _whole(name, rule, reading=False))]
        return [(name, TensorSource(names=(name,)))]


def _whole(name: str, rule: Rename | Swap | Squeeze | None, *, reading: bool) -> TensorSource:
    """The source of a tensor that is made of one other tensor."""
    if isinstance(rule, Swap):
        return TensorSource(names=(name,), operation="swap")
    if isinstance(rule, Squeeze):
        operation = "squeeze" if reading else "unsqueeze"
        return TensorSource(
            names=(name,), operation=operation, ones=rule.ones, leading=rule.leading
        )
    return TensorSource(names=(name,))


def renamed(pairs: dict[str, str], *, theirs: str = "", ours: str = "") -> tuple[Rename, ...]:
    """Rules for layers that differ by name alone. They cover every tensor of a layer.

    >>> renamed({"to_q": "q"}, theirs="attn.", ours="attention.")
    (Rename(theirs='attn.to_q.{rest}', ours='attention.q.{rest}'),)
    """
    return tuple(
        Rename(theirs=f"{theirs}{t}.{{rest}}", ours=f"{ours}{o}.{{rest}}") for t, o in pairs.items()
    )


@lru_cache(maxsize=4096)
def _pattern(template: str) -> re.Pattern[str]:
    out: list[str] = []
    for literal, field in re.findall(r"([^{}]*)(?:\{(\w+)\})?", template):
        out.append(re.escape(literal))
        if field:
            out.append(f"(?P<{field}>{'.+' if field == 'rest' else '[^.]+'})")
    return re.compile("".join(out))


def _match(template: str, name: str) -> dict[str, str] | None:
    found = _pattern(template).fullmatch(name)
    return None if found is None else found.groupdict()
