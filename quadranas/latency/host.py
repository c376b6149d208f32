"""The machine that quadranas runs on: its name and cores, and pinning a measurement to them."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quadranas.errors import QuadranasError


def cpu_name() -> str:
    """Name of the CPU as the operating system gives it, with CPU family and instruction set."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    pairs = (line.partition(":") for line in reversed(lines))
    found = {key.strip(): value.strip() for key, _, value in pairs}
    name = found.get("model name") or found.get("Model") or platform.processor()
    family = (
        f" family {found['cpu family']} model {found['model']}" if "cpu family" in found else ""
    )
    return f"{name or 'unknown CPU'}{family}, {platform.machine()}"


def usable_cores() -> list[int]:
    """The cores this process may run on, last core first, since interrupts prefer the first."""
    if not hasattr(os, "sched_getaffinity"):  # macOS
        return list(range(os.cpu_count() or 1))
    return sorted(os.sched_getaffinity(0), reverse=True)


@contextmanager
def pinned(threads: int | None) -> Iterator[None]:
    """Pin this process, and the threads it starts, to as many cores as there are threads.

    Raises:
        QuadranasError: there are fewer cores than threads.
    """
    cores = usable_cores()
    wanted = threads or len(cores)
    if wanted > len(cores):
        raise QuadranasError(
            f"got {wanted} threads, but this process may use only {len(cores)} cores",
            "Set fewer threads.",
        )
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    os.sched_setaffinity(0, cores[:wanted])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
