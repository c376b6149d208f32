"""Linking compiled kernels to a library for a device's processor."""

import importlib.util
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from quadranas.errors import QuadranasError

GLIBC = "2.28"
"""The oldest release that TVM's wheels for aarch64 run on."""
WITHOUT_CHECKS = ("-fno-sanitize=undefined",)
"""Otherwise zig adds its checks for C code, which kernels are not: 4 MB per library, and 16 s to
compile them once (ziglang 0.17).
"""
ALIASES = {"arm64": "aarch64", "amd64": "x86_64"}

Link = Callable[..., None]
"""Called by TVM with the path of the library, the object files, and further options."""


def machine_of(triple: str) -> str:
    """The instruction set of an LLVM triple; this machine's if it is empty."""
    machine = (triple.partition("-")[0] or platform.machine()).lower()
    return ALIASES.get(machine, machine)


def find_linker(triple: str) -> list[str]:
    """The command that links for a target.

    Raises:
        QuadranasError: none is installed.
    """
    machine = machine_of(triple)
    native = machine == machine_of("")
    names = ("c++", "g++", "clang++", "cc") if native else (f"{machine}-linux-gnu-g++",)
    for name in names:
        if found := shutil.which(name):
            return [found]
    if importlib.util.find_spec("ziglang") is not None:
        zig = [sys.executable, "-m", "ziglang", "cc", "-target", f"{machine}-linux-gnu.{GLIBC}"]
        return [*zig, *WITHOUT_CHECKS]
    package = "g++" if native else f"g++-{machine.replace('_', '-')}-linux-gnu"
    raise QuadranasError(
        f"no linker for {machine} was found: neither {names[0]} nor the Python package ziglang",
        f"Install one of them with: apt-get install {package}, or: pip install ziglang",
    )


def make_link(command: list[str]) -> Link:
    """The function that TVM calls to link.

    It is a nested function because tuning sends it to processes that import only TVM.
    """

    def link(output: str, objects: list[str], **_: object) -> None:
        done = subprocess.run(
            [*command, "-shared", "-fPIC", "-o", output, *objects],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed: {done.stderr[-500:]}")

    return link


def export(program: object, path: Path, link: Link) -> None:
    """Write a compiled program as a shared library."""
    program.export_library(str(path), fcompile=link)  # type: ignore[attr-defined]
