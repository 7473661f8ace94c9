"""Host memory that a device reads and writes without a detour: page-locked, exactly as large as asked.

PyTorch's own pinned memory is rounded up to a power of two: 26 GB of weights would take 32 GB.
"""

from __future__ import annotations

import weakref

import torch

from musubi.plugin.report import Report

_PAGE = 4096


def host_bytes(size: int, device: torch.device, report: Report) -> torch.Tensor:
    """`size` bytes of host memory, page-locked where that can be had.

    Args:
        size: In bytes.
        device: The device that will read or write them; locked for a CUDA device only.
        report: Warned when they should be locked and are not.

    Returns:
        A uint8 tensor whose first byte starts a page. It is unlocked when its memory is freed.
    """
    block = torch.empty(size + _PAGE, dtype=torch.uint8)
    start = -block.data_ptr() % _PAGE
    found = block[start : start + size]
    if device.type != "cuda" or not size:
        return found
    found.fill_(0)  # by all threads: locking would touch the pages one by one
    if not _lock(found):
        report.warn(
            "Host memory cannot be page-locked here: copies to and from the device are several "
            "times slower. More free memory (or a higher `ulimit -l`) helps."
        )
    return found


def _lock(memory: torch.Tensor) -> bool:
    runtime = torch.cuda.cudart()
    if runtime is None:
        return False
    try:
        failed = runtime.cudaHostRegister(memory.data_ptr(), memory.numel(), 0)
    except RuntimeError:
        return False
    if int(failed):
        return False
    weakref.finalize(
        memory.untyped_storage(), runtime.cudaHostUnregister, memory.data_ptr()
    ).atexit = False
    return True
