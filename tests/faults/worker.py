"""A process that runs commands for the tests: each in a child of its own, so that it may be killed or starve.

It reads one JSON object a line (`words`, and what is to go wrong) and answers with one: the exit status,
what was said, seconds, and the peak of its memory in MiB above the start.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

PATIENCE = 30


def serve() -> None:
    """Answer requests until the input ends."""
    warm()
    for line in sys.stdin:
        answer = run(json.loads(line))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def warm() -> None:
    """Import what every command imports, once."""
    import accelerate  # noqa: F401
    import av  # noqa: F401
    import torch
    import transformers  # noqa: F401

    import musubi.cache.encode
    import musubi.cli.app
    import musubi.generate.run
    import musubi.lora.merge
    import musubi.train.setup  # noqa: F401

    torch.set_num_threads(1)


def run(asked: dict) -> dict:
    """Run one request in a child."""
    reader, writer = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reader)
        answer = _run(asked)
        with os.fdopen(writer, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(writer)
    os.set_blocking(reader, False)
    content, ended = b"", False
    while time.monotonic() - began < PATIENCE and not ended:
        ended = os.waitpid(child, os.WNOHANG)[0] == child
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(reader, 1 << 16):
                content += piece
        time.sleep(0.005)
    if not ended:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    os.close(reader)
    seconds = time.monotonic() - began
    if not ended:
        return {"code": "hangs", "said": "", "seconds": seconds, "memory": 0, "calls": []}
    found = (
        json.loads(content) if content else {"code": "killed", "said": "", "memory": 0, "calls": []}
    )
    return {**found, "seconds": seconds}


def _run(asked: dict) -> dict:
    import inject

    from musubi.cli import main

    os.environ |= {"HF_HUB_OFFLINE": "1", "COLUMNS": "4000"}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = io.StringIO()
    calls: list = []
    code: object = 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            with inject.faults(asked.get("fault"), asked.get("under", "/nowhere"), calls):
                main(asked["words"])
        except SystemExit as end:
            code = end.code or 0
        except BaseException:  # told as a test's failure
            code = "raises"
            said.write(traceback.format_exc())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "code": code,
        "said": said.getvalue(),
        "memory": (peak - before) // 1024,
        "calls": calls,
    }


if __name__ == "__main__":
    serve()
