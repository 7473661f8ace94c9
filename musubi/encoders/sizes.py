"""What reading a network's sizes from names and shapes shares. No torch in this file."""

from musubi.errors import CheckpointError
from musubi.plugin import Shapes


def all_there(shapes: Shapes, needed: tuple[str, ...], what: str, fix: str) -> None:
    """Refuse a file that lacks one of these tensors.

    Raises:
        CheckpointError: It is not `what`.
    """
    absent = next((name for name in needed if name not in shapes), None)
    if absent is not None:
        raise CheckpointError(f"This is not {what}: it has no tensor {absent!r}.", fix=fix)


def depth(shapes: Shapes, stack: str) -> int:
    """How many blocks a stack has, whose name ends in a point."""
    return len({n.removeprefix(stack).split(".")[0] for n in shapes if n.startswith(stack)})
