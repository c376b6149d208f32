"""What the worker reads of clocks and temperature, from made-up files of Linux."""

import stat
import threading
from pathlib import Path

import pytest

from quadranas.backends.ssh_host import SshHost
from quadranas.backends.worker_main import Machine, Watch
from quadranas.errors import ThrottledError
from tests.measuring import board

TASKS = Path("/proc/self/task")
CORE = "sys/devices/system/cpu/cpu{}/cpufreq"


def write(root: Path, path: str, text: object) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(f"{text}\n", encoding="utf-8")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A Linux with one core."""
    for name, text in {
        "cpuinfo_max_freq": 2_400_000,
        "scaling_max_freq": 2_400_000,
        "scaling_cur_freq": 2_399_000,
        "scaling_governor": "performance",
    }.items():
        write(tmp_path, f"{CORE.format(3)}/{name}", text)
    write(tmp_path, "sys/class/thermal/thermal_zone0/temp", 51_250)
    write(tmp_path, "sys/class/thermal/thermal_zone1/temp", 62_000)
    write(tmp_path, "sys/class/thermal/thermal_zone2/temp", -274_000)  # a sensor that is off
    write(tmp_path, "sys/class/thermal/cooling_device0/type", "thermal-cpufreq-0")
    write(tmp_path, "sys/class/thermal/cooling_device0/cur_state", 0)
    write(tmp_path, "sys/class/thermal/cooling_device1/type", "pwm-fan")
    write(tmp_path, "sys/class/thermal/cooling_device1/cur_state", 3)
    write(tmp_path, "proc/meminfo", "MemTotal: 4 kB\nMemAvailable:  2048 kB")
    write(tmp_path, "proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0")
    return tmp_path


@pytest.fixture
def machine(root: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("PATH", str(root))  # without vcgencmd
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {1, 2, 3}, raising=False)
    monkeypatch.setattr("os.sched_setaffinity", lambda process, cores: None, raising=False)
    found = Machine(str(root))
    found.use(1)
    return found


def test_the_fastest_core_is_taken_and_its_settings_are_known(machine: Machine) -> None:
    assert machine.cores == [3]
    assert machine.settings() == {
        "cores": "3",
        "governor": "performance",
        "clock limit": "2400 MHz",
    }
    assert machine.memory_bytes() == 2048 * 1024
    assert machine.hardware().startswith("Raspberry Pi 5 Model B Rev 1.0, ")


def test_a_quiet_board_is_not_throttled(machine: Machine) -> None:
    assert machine.state() == {"clock_mhz": 2399, "temperature_c": 62, "throttled": []}


def test_lowered_clocks_are_named(machine: Machine, root: Path) -> None:
    write(root, "sys/class/thermal/cooling_device0/cur_state", 2)
    write(root, f"{CORE.format(3)}/scaling_max_freq", 1_500_000)
    assert machine.state()["throttled"] == [
        "thermal-cpufreq-0 limits the clock",
        "the limit of core 3 fell to 1500 MHz",
    ]


def test_the_counters_of_x86_count_once(root: Path, machine: Machine) -> None:
    counter = "sys/devices/system/cpu/cpu3/thermal_throttle/core_throttle_count"
    write(root, counter, 7)
    machine.use(1)
    assert machine.state()["throttled"] == []
    write(root, counter, 9)
    assert machine.state()["throttled"] == ["the processor was too hot 2 times"]
    assert machine.state()["throttled"] == []


def test_the_firmware_of_a_raspberry_pi_is_asked(root: Path, machine: Machine) -> None:
    program = root / "vcgencmd"

    def say(flags: str) -> None:
        program.write_text(f'#!/bin/sh\n[ "$1" = get_throttled ] && echo throttled={flags}\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    say("0x50000")  # happened since it was started, before this
    machine.flags = machine._flags()
    assert machine.state()["throttled"] == []
    say("0x50005")
    assert machine.state()["throttled"] == ["vcgencmd get_throttled says 0x50005"]
    say("0x70000")  # between two looks
    assert machine.state()["throttled"] == ["vcgencmd get_throttled says 0x70000"]
    assert machine.state()["throttled"] == []
    program.write_text("#!/bin/sh\necho VCHI initialization failed\nexit 255\n")
    assert machine.state()["throttled"] == []


def test_without_such_files_nothing_is_said(tmp_path: Path) -> None:
    machine = Machine(str(tmp_path))
    assert machine.state() == {"clock_mhz": None, "temperature_c": None, "throttled": []}
    assert machine.settings() == {}
    assert machine.memory_bytes() is None


def test_extremes_are_kept_and_a_lowered_clock_is_an_error(tmp_path: Path) -> None:
    host = SshHost(board(reach={"ssh": "pi@board"}), tmp_path)
    for clock_mhz, temperature_c in ((2400, 51.5), (1800, 62), (2000, 55)):
        host.observe({"state": {"clock_mhz": clock_mhz, "temperature_c": temperature_c}})
    host.observe({})
    assert host.observed == {
        "max_temperature_c": 62,
        "min_clock_mhz": 1800,
        "max_clock_mhz": 2400,
    }
    with pytest.raises(ThrottledError, match=r"device 'board' \(pi@board\) lowered .*: too hot"):
        host.observe({"state": {"throttled": ["too hot"]}})


@pytest.mark.skipif(not TASKS.is_dir(), reason="only Linux counts how long threads wait")
def test_a_thread_may_end_while_calls_are_timed() -> None:
    """A thread of ONNX Runtime 1.31.1 did, which ended the measurement with an error."""
    ending = threading.Event()
    thread = threading.Thread(target=ending.wait)
    thread.start()
    watch = Watch()
    try:
        before = watch.waited_ns()
        ending.set()
        thread.join()
        while (TASKS / str(thread.native_id)).exists():  # Linux removes it a moment later
            threading.Event().wait(0.001)
        after = watch.waited_ns()
    finally:
        watch.close()
    assert watch.is_known
    assert len(before) == len(after) >= 2
