"""Facts about a board: its CPU, its clock, and whether it is emulated.

TVM's `download` returns nothing for files without a size, such as all of /proc. So files are read
by a kernel that calls the C library, compiled for the board like any other.
"""

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PATH_SIZE = 256
CONTENT_SIZE = 2**16

EXECUTABLE = "/proc/thread-self/exe"  # qemu-user imitates only /proc/self
CPUINFO = "/proc/cpuinfo"
COMPATIBLE = "/proc/device-tree/compatible"
VENDOR = "/sys/class/dmi/id/sys_vendor"
GOVERNOR = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
CLOCK = "/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq"
FILES = (EXECUTABLE, CPUINFO, COMPATIBLE, VENDOR, GOVERNOR, CLOCK)

ELF_MACHINES = {3: "i386", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
ARM_PARTS = {
    0xD03: "Cortex-A53",
    0xD04: "Cortex-A35",
    0xD05: "Cortex-A55",
    0xD07: "Cortex-A57",
    0xD08: "Cortex-A72",
    0xD09: "Cortex-A73",
    0xD0A: "Cortex-A75",
    0xD0B: "Cortex-A76",
    0xD0C: "Neoverse-N1",
    0xD0D: "Cortex-A77",
    0xD40: "Neoverse-V1",
    0xD41: "Cortex-A78",
    0xD44: "Cortex-X1",
    0xD46: "Cortex-A510",
    0xD47: "Cortex-A710",
    0xD49: "Neoverse-N2",
    0xD4F: "Neoverse-V2",
}


@dataclass(frozen=True)
class Facts:
    """Facts about a board.

    Args:
        hardware: its CPU.
        settings: other settings that affect the speed.
        emulator: why it counts as emulated; empty for a real board.
    """

    hardware: str
    settings: dict[str, str] = field(default_factory=dict)
    emulator: str = ""


def build_reader(target: Any) -> Any:
    """A program with the function `read_file(path, content)`, compiled for a target."""
    import tvm
    from tvm import te, tirx

    def read(inputs: Any, outputs: Any) -> Any:
        opened = tirx.call_extern("int32", "open", inputs[0].data, 0)
        size = tirx.const(CONTENT_SIZE, "int64")
        return tirx.Evaluate(tirx.call_extern("int64", "read", opened, outputs[0].data, size))

    path = te.placeholder((PATH_SIZE,), "uint8", name="path")
    content = te.extern((CONTENT_SIZE,), [path], read, dtype="uint8", name="content")
    function = te.create_prim_func([path, content]).with_attr("global_symbol", "read_file")
    return tvm.compile(tvm.IRModule({"read_file": function}), target)


def read_here() -> Facts:
    """The facts about this machine."""
    contents = []
    for path in FILES[1:]:
        try:
            contents.append(Path(path).read_bytes())
        except OSError:
            contents.append(b"")
    return judge([b"", *contents], "")


def judge(contents: list[bytes], machine: str) -> Facts:
    """Derive the facts from the contents of `FILES`.

    Args:
        machine: the target's instruction set; empty for this machine, which is assumed real.
    """
    executable, cpuinfo, compatible, vendor, governor, clock = contents
    cores = _fields(cpuinfo.decode(errors="replace"))
    settings = {}
    if governor.strip():
        settings["governor"] = governor.decode(errors="replace").strip()
    if clock.strip().isdigit():
        settings["max_clock_mhz"] = str(int(clock) // 1000)
    emulator = ""
    if machine:
        emulator = _emulator(machine, executable, cores, compatible + vendor)
    return Facts(_cpu(cores), settings, emulator)


def _fields(cpuinfo: str) -> list[dict[str, str]]:
    """The key-value pairs of every paragraph."""
    paragraphs = cpuinfo.strip().split("\n\n")
    pairs = [[line.partition(":") for line in text.splitlines()] for text in paragraphs]
    return [{key.strip(): value.strip() for key, _, value in lines} for lines in pairs]


def _cpu(cores: list[dict[str, str]]) -> str:
    names: dict[str, None] = {}
    for core in cores:
        name = core.get("model name", "")
        if "CPU part" in core:
            part = int(core["CPU part"], 16)
            arm = core.get("CPU implementer") == "0x41"
            unnamed = f"CPU {core.get('CPU implementer')}/{core['CPU part']}"
            name = f"Arm {ARM_PARTS[part]}" if arm and part in ARM_PARTS else name or unnamed
        if name:
            names[name] = None
    return ", ".join(names) or "unknown CPU"


def _emulator(machine: str, executable: bytes, cores: list[dict[str, str]], makers: bytes) -> str:
    """Why a board counts as emulated; empty for a real one."""
    if executable.startswith(b"\x7fELF") and len(executable) >= 20:
        found = ELF_MACHINES.get(struct.unpack("<H", executable[18:20])[0], "another machine")
        if found != machine:
            return f"its programs for {machine} are run by a program for {found}"
    foreign = not machine.startswith(("x86", "i386"))
    if foreign and any("vendor_id" in core for core in cores):
        return f"its CPU is {_cpu(cores)}, not one for {machine}"
    if foreign and (b"QEMU" in makers or b"dummy-virt" in makers):
        return "its board was made by QEMU"
    return ""
