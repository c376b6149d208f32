"""Devices that run networks, described in YAML."""

import json
from pathlib import Path
from typing import Annotated, Any, Self, TypedDict, Unpack

from pydantic import AfterValidator, Field, PrivateAttr, model_validator

from quadranas.errors import unknown
from quadranas.files import dump_yaml, read_yaml, write_atomically
from quadranas.latency.conditions import Conditions
from quadranas.latency.measuring_command import MeasuringCommand
from quadranas.latency.runtimes import FASTEST, RUNTIMES, check_name, current_name
from quadranas.validation import Frozen, validate

DEVICES = Path(__file__).parent / "devices"

ANALYTIC = "analytic"
"""Name of the method and the backend of tables that an analytic model made."""

Rate = Annotated[float, Field(ge=1e-9, le=1e12)]
"""Range of accepted rates; within it no latency becomes zero or infinite."""


class Throughputs(Frozen):
    """Multiply-accumulates a device sustains, in 10^9 per second, by kind of primitive.

    Args:
        conv: convolutions with a kernel above 1, not depthwise; in GMAC/s.
        pointwise: 1 x 1 convolutions, in GMAC/s.
        depthwise: depthwise convolutions, in GMAC/s.
        linear: fully connected layers, in GMAC/s.
    """

    conv: Rate
    pointwise: Rate
    depthwise: Rate
    linear: Rate


class ModelNumbers(Frozen):
    """The numbers of a roofline with saturation and a cost per kernel launch; see `analytic.py`.

    Args:
        gmacs_per_s: throughputs by kind of primitive.
        bandwidth_gb_per_s: memory bandwidth.
        linear_weights_gb_per_s: bandwidth for the weights of fully connected layers, if different.
        overhead_us: time of every kernel launch.
        sigmoid_overhead_us: additional time of a sigmoid, hard sigmoid, swish or hard swish.
        joins_in_place: concatenated and split tensors share memory, so that nothing is copied.
        saturation_channels: the channels that limit the throughput, `in` or `out`.
        saturation: number of those channels at which half of the throughput is reached.
    """

    gmacs_per_s: Throughputs
    bandwidth_gb_per_s: Rate
    linear_weights_gb_per_s: Rate | None = None
    overhead_us: float = Field(ge=0, le=1e9)
    sigmoid_overhead_us: float = Field(default=0.0, ge=0, le=1e9)
    joins_in_place: bool = False
    saturation_channels: str = Field(default="out", pattern="^(in|out)$")
    saturation: float = Field(default=0.0, ge=0, le=1e9)


class AnalyticModel(ModelNumbers):
    """An analytic model and its origin.

    Args:
        runtime: the runtime whose speed is modelled.
        fitted_to: source of the numbers.
        expected_error: description of the expected error of predictions.
    """

    runtime: str
    fitted_to: str
    expected_error: str

    @property
    def numbers(self) -> ModelNumbers:
        """The numbers alone, without their origin."""
        return ModelNumbers.model_validate(self.model_dump(include=set(ModelNumbers.model_fields)))


RuntimeName = Annotated[
    str, AfterValidator(lambda name: check_name("runtime", name, (*RUNTIMES, FASTEST)))
]

Address = Annotated[str, Field(pattern=r"^[^\s:]+:[0-9]{1,5}$")]
"""A host and a port, as in `192.168.0.7:9090`."""


SshAddress = Annotated[
    str, Field(pattern=r"^([A-Za-z0-9_][A-Za-z0-9._-]*@)?[A-Za-z0-9][A-Za-z0-9._-]*$")
]
"""A host, or its alias in OpenSSH's configuration, with or without a user: `pi@192.168.0.7`."""

RemoteProgram = Annotated[str, Field(pattern=r"^[^\x00-\x20-][^\x00-\x1f]*$")]
RemoteFolder = Annotated[str, Field(pattern=r"^[A-Za-z0-9_./~][A-Za-z0-9_./~+-]*$")]
"""A folder on another machine, without characters that some versions of scp read otherwise."""


class Reach(Frozen):
    """How to reach a device that this process cannot open by itself.

    Args:
        rpc: address of a TVM RPC server on the device.
        rpc_tracker, rpc_key: address of a TVM RPC tracker, and the key of the boards there.
        worker_python: Python 3.6 to 3.9 with `openvino==2021.4.2`, to drive a Myriad stick.
        ssh: user and host of a board that OpenSSH reaches without a password, or an alias in its
            configuration; for the runtimes `onnxruntime`, `openvino`, `torch` and `executorch`.
        python: with `ssh`, the interpreter there with the runtime's package, by its path; default
            `python3`.
        folder: with `ssh`, the folder there for temporary files; default: that of its system.
        ssh_config: with `ssh`, a configuration of OpenSSH to use instead of `~/.ssh/config`.
    """

    rpc: Address | None = None
    rpc_tracker: Address | None = None
    rpc_key: str | None = None
    worker_python: str | None = None
    ssh: SshAddress | None = None
    python: RemoteProgram | None = None
    folder: RemoteFolder | None = None
    ssh_config: str | None = None

    @property
    def given(self) -> dict[str, str]:
        """The settings that are set; empty if nothing has to be started or contacted."""
        return self.model_dump(exclude_none=True)

    @model_validator(mode="after")
    def _check_tracker(self) -> Self:
        if self.rpc is not None and self.rpc_tracker is not None:
            raise ValueError("set either a server (rpc) or a tracker (rpc_tracker), not both")
        if (self.rpc_tracker is None) != (self.rpc_key is None):
            raise ValueError("rpc_tracker and rpc_key must both be set, or neither")
        for key in ("python", "folder", "ssh_config"):
            if getattr(self, key) is not None and self.ssh is None:
                raise ValueError(f"{key} needs ssh, the host that it belongs to")
        return self


EXAMPLE_REACH = {
    "rpc": "board:9090",
    "rpc_tracker": "tracker:9190",
    "rpc_key": "board",
    "worker_python": "python3.8",
    "ssh": "user@board",
    "python": "python3",
}
"""Of the settings that a published description keeps."""

ProviderOptions = dict[str, str | int | float | bool]

Target = str | int | dict[str, str | int | list[str]] | list[str | dict[str, ProviderOptions]]
"""The hardware in the terms of a runtime."""


class Device(Frozen):
    """A device, and how its latency is measured or modelled.

    Args:
        name: name of the device and of its tables, `latency_tables/<space>/<name>.json`.
        title: description of the hardware.
        runtime: `onnxruntime`, `openvino`, `tvm`, `torch`, `executorch`, `litert`, `cuda`,
            `openvino2021`, `command`: a program that times files, see `command`; or `fastest`: the
            faster of ONNX Runtime and OpenVINO on this machine; `None` if the device cannot be
            measured.
        target: the hardware in the runtime's terms: an OpenVINO device (`CPU`, `GPU`, `NPU`; with
            `openvino2021`, `MYRIAD`), a TVM target, the number of a CUDA device, an execution
            provider of ONNX Runtime or a list of them by priority, each with options if needed.
        precision: precision of weights and activations; refused if the runtime would run in
            another one.
        threads: number of threads on the device; `None` for devices without a thread count.
        batch_size: number of images per call; latencies are per call.
        tuning_trials: number of schedules that TVM tries per kernel; 0 leaves kernels untuned.
        time_copies: with an execution provider of ONNX Runtime, also time the copies of inputs and
            outputs between this machine's memory and that of the hardware.
        reach: how to reach the device; omit for this machine. Only a device file that is named on
            the command line decides this, never one in a bundle or run folder.
        command: with the runtime `command`, the program that times files on the device; obeyed
            only with `--allow-commands`, and like `reach` only in a device file that is named.
        analytic: an analytic model, for a device that cannot be measured; see
            `quadranas/latency/devices/cpu.yaml`.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    title: str
    runtime: RuntimeName | None = None
    target: Target | None = None
    precision: str = Field(pattern="^(fp32|tf32|fp16|bf16|int8)$")
    threads: int | None = Field(default=None, ge=1, le=65536)
    batch_size: int = Field(default=1, ge=1, le=65536)
    tuning_trials: int = Field(default=32, ge=0, le=1_000_000)
    time_copies: bool = False
    reach: Reach = Reach()
    command: MeasuringCommand | None = None
    analytic: AnalyticModel | None = None
    # No keys of a file: only the caller can allow commands, and take away how it is reached.
    _allows_commands: bool = PrivateAttr(default=False)
    _was_reached_by_ssh: bool = PrivateAttr(default=False)

    @model_validator(mode="before")
    @classmethod
    def _rename_runtime(cls, content: Any) -> Any:
        """Read the device files and bundles of version 0.1.0."""
        if not isinstance(content, dict) or content.get("runtime") != "openvino":
            return content
        reach = content.get("reach")
        worker = reach.get("worker_python") if isinstance(reach, dict) else None
        if isinstance(reach, Reach):
            worker = reach.worker_python
        name = current_name("openvino", target=content.get("target"), worker=worker)
        return content | {"runtime": name}

    @model_validator(mode="after")
    def _check_ssh(self) -> Self:
        known = [name for name, runtime in RUNTIMES.items() if runtime.over_ssh]
        if self.reach.ssh is not None and self.runtime not in known:
            raise ValueError(
                f"reach.ssh is for the runtimes {', '.join(known)}; got {self.runtime}"
            )
        return self

    @property
    def is_remote(self) -> bool:
        """Whether the device is reached over the network or through a command."""
        if self.command is not None and not self.command.on_this_machine:
            return True
        ways = (self.reach.rpc, self.reach.rpc_tracker, self.reach.ssh)
        return self.is_away or any(way is not None for way in ways)

    @property
    def is_away(self) -> bool:
        """Whether it is another machine, and how it is reached was left out."""
        return self._was_reached_by_ssh and self.reach.ssh is None

    @property
    def has_way(self) -> bool:
        """Whether its file says what is started, contacted or loaded to measure it."""
        return bool(self.reach.given) or self.command is not None or self.has_provider_options

    @property
    def has_provider_options(self) -> bool:
        """Whether it gives options to execution providers, which can name libraries to load."""
        return isinstance(self.target, list) and any(isinstance(e, dict) for e in self.target)

    @property
    def allows_commands(self) -> bool:
        """Whether the caller allows the commands of the device to run."""
        return self._allows_commands

    def allowing_commands(self) -> "Device":
        """The device with permission to run its commands."""
        if self.command is None:
            return self
        allowed = self.model_copy()
        allowed._allows_commands = True
        return allowed

    @property
    def conditions(self) -> Conditions:
        """Conditions of what is measured on the device, as far as they are known from it."""
        known: dict[str, Any] = {}
        if self.runtime in RUNTIMES:  # neither `fastest` nor a device that cannot be measured
            known["backend"] = self.runtime
            known["target"] = target_text(self.target)
            if "tuning_trials" in RUNTIMES[self.runtime].settings:
                known["tuning_trials"] = self.tuning_trials
        return Conditions(
            device=self.name,
            precision=self.precision,
            threads=self.threads,
            batch_size=self.batch_size,
            **known,
        )

    @property
    def modelled_conditions(self) -> Conditions:
        """Conditions of what the analytic model predicts for the device."""
        model = self.analytic
        if model is None:
            return Conditions(device=self.name, method="measured only")
        return self.conditions | Conditions(
            backend=ANALYTIC,
            method=ANALYTIC,
            runtime=model.runtime,
            model=model.numbers.model_dump(),
        )

    def without_reach(self) -> "Device":
        """The device without how it is reached, for one that a file of others describes.

        A bundle or a run folder may come from anywhere, so nothing in it chooses what is started
        or contacted: `reach`, `command` and the options of execution providers, which can name
        libraries, count from a device file named on a command line.
        """
        target = self.target
        if isinstance(target, list):
            target = [
                name for entry in target for name in ([entry] if isinstance(entry, str) else entry)
            ]
        device = self.model_copy(update={"reach": Reach(), "command": None, "target": target})
        device._was_reached_by_ssh = self._was_reached_by_ssh or self.reach.ssh is not None
        return device

    def without_addresses(self) -> "Device":
        """The device with examples instead of how it is reached, to be shown to others."""
        examples = {key: EXAMPLE_REACH.get(key) for key in self.reach.given}
        return self.model_copy(update={"reach": Reach.model_validate(examples)})

    def save(self, path: Path) -> None:
        """Write the description to a YAML file that `load_device` reads."""
        content = self.model_dump(mode="json", exclude_none=True)
        write_atomically(path, dump_yaml(content))

    def configured(self, **changes: Any) -> "Device":
        """A copy with other values for some keys, those of `reach` included: `rpc`, `rpc_key` ...

        An address of a server (`rpc`) replaces one of a tracker (`rpc_tracker`), and conversely.

        Raises:
            QuadranasError: a value is not accepted; names the key.
        """
        reach = {key: changes.pop(key) for key in list(changes) if key in Reach.model_fields}
        if reach.get("rpc") is not None:
            reach = {"rpc_tracker": None, "rpc_key": None} | reach
        elif reach.get("rpc_tracker") is not None:
            reach = {"rpc": None} | reach
        content = self.model_dump() | changes
        content["reach"] = content["reach"] | reach
        configured = validate(Device, content, f"device {self.name!r}")
        configured._was_reached_by_ssh = self._was_reached_by_ssh
        return configured.allowing_commands() if self.allows_commands else configured


def target_text(target: object) -> str:
    """The target of a device as text, for comparisons; empty for a device without a target."""
    if isinstance(target, dict | list):
        return json.dumps(target, sort_keys=True)
    return "" if target is None else str(target)


def shipped_devices() -> dict[str, Path]:
    """The shipped devices: the path of each by its name."""
    return {path.stem: path for path in sorted(DEVICES.glob("*.yaml"))}


def is_shipped(device: Device) -> bool:
    """Whether a device is a shipped one, unchanged, so that its name is enough to load it."""
    known = shipped_devices()
    return device.name in known and _read_device(device.name) == device


class ReachSettings(TypedDict, total=False):
    """How a device is reached; see `Reach`. `None` keeps what its file says."""

    rpc: str | None
    rpc_tracker: str | None
    rpc_key: str | None
    worker_python: str | None
    ssh: str | None
    python: str | None


class DeviceSettings(ReachSettings, total=False):
    """Keys of a device that a command can replace; `None` keeps one.

    Besides, `allow_commands`: whether the commands of the device may run.
    """

    threads: int | None
    precision: str | None
    batch_size: int | None
    tuning_trials: int | None
    allow_commands: bool | None


def load_device(device: str | Path | Device, **settings: Unpack[DeviceSettings]) -> Device:
    """Load a shipped device by name, or any device from its YAML file.

    Args:
        device: name, path, or a device that is loaded already.
        settings: values to use instead of the file's, such as `threads=4` and `rpc="pi:9090"`.

    Raises:
        QuadranasError: unknown name (nearest suggested), or a fault in the file or the settings.
    """
    changes = {key: value for key, value in settings.items() if value is not None}
    is_allowed = changes.pop("allow_commands", False)
    loaded = device if isinstance(device, Device) else _read_device(str(device))
    loaded = loaded.configured(**changes) if changes else loaded
    return loaded.allowing_commands() if is_allowed else loaded


def _read_device(name_or_path: str) -> Device:
    devices = shipped_devices()
    path = Path(name_or_path)
    if name_or_path in devices:
        path = devices[name_or_path]
    elif path.suffix not in (".yaml", ".yml"):
        raise unknown("device", name_or_path, devices, "Name one of these, or a .yaml file.")
    return validate(Device, read_yaml(path, "device"), path)
