"""`musubi cache latents` and `cache text`: when the device is full, what is needed and what helps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from musubi.cache import encode
from musubi.cache.caching_run import DeviceFullError
from musubi.cache.tasks import encoders_of, task_of
from musubi.config.cache import CacheLatentsConfig, CacheTextConfig
from musubi.config.memory import encoder_policies
from musubi.config.options import Options, own_options
from musubi.errors import RunError
from musubi.plan import advice, networks, words
from musubi.plan.choose import needed
from musubi.plan.out_of_memory import device_room
from musubi.plan.workload import Bucket, networks_of
from musubi.plugin import Architecture, Report, Task
from musubi.plugin.option import Command
from musubi.plugin.policy import Policy


def run_latents(config: CacheLatentsConfig, architecture: Architecture, report: Report) -> None:
    """`musubi cache latents`."""
    task = task_of(config, architecture)
    with explained(config, architecture, task, "cache latents"):
        encode.run_latents(config, architecture, report)


def run_text(config: CacheTextConfig, architecture: Architecture, report: Report) -> None:
    """`musubi cache text`."""
    task = task_of(config, architecture)
    with explained(config, architecture, task, "cache text"):
        encode.run_text(config, architecture, report)


@contextmanager
def explained(
    config: Options, architecture: Architecture, task: Task, command: Command
) -> Iterator[None]:
    """Inside this context, running out of memory for one clip or caption gives an error with
    figures.

    Args:
        config: The options of the command.
        architecture: Whose networks.
        task: What is cached.
        command: Whose options may be named.

    Raises:
        RunError: The device's memory is full.
    """
    try:
        yield
    except DeviceFullError as error:
        try:
            said = _explain(error, config, architecture, task, command)
        except Exception:  # a failing plan must not hide the real error
            said = error
    else:
        return
    raise said


def _explain(
    error: DeviceFullError,
    config: Options,
    architecture: Architecture,
    task: Task,
    command: Command,
) -> RunError:
    network = networks_of(config, architecture)[error.component]
    options, room = own_options(config, architecture), device_room()
    if error.size is not None:
        bucket = Bucket(*error.size)
        known = networks_of(config, architecture)
        names = [c.name for c in encoders_of(architecture, task, "media")]
        used = [known[name] for name in names if name in known]
        found = networks.encoding(architecture, task, options, used, bucket, None)
        fix = advice.for_vae(architecture, options, command)
        at = f" at {bucket}"
    else:
        # When training makes text records, its encoders stay on the device.
        caches = command == "cache text"
        policies = encoder_policies(config, architecture) if caches else {}
        policy = policies.get(error.component, Policy())
        found = networks.text(architecture, network, policy, None)
        fix = advice.for_text(architecture, network, policy, room)
        fix = f"{fix} Or use --device cpu." if caches else f"Run `musubi cache text` before. {fix}"
        at = ""
    there = f", and this one has {words.gib(room)}" if room is not None else ""
    needs = f"It needs a card with {words.gib(needed(found))} GiB free{at}{there}."
    return RunError(f"{error.what} {needs}", fix=fix)
