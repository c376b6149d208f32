"""The execution providers of ONNX Runtime: which are offered, and which nodes they leave."""

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import distributions, version
from typing import Any

from quadranas.errors import QuadranasError, nearest, some
from quadranas.latency.device import Device

CPU = "CPUExecutionProvider"
Option = str | int | float | bool

PLUGIN = re.compile(r"onnxruntime[-_.]ep[-_.]\w+", re.IGNORECASE)
"""Names of packages that bring an execution provider for an installed ONNX Runtime."""

MEMORY = {
    "CUDAExecutionProvider": "cuda",
    "TensorrtExecutionProvider": "cuda",
    "NvTensorRTRTXExecutionProvider": "cuda",
    "DmlExecutionProvider": "dml",
    "CANNExecutionProvider": "cann",
}
"""The memory in which a provider wants inputs and outputs; all others use that of the CPU."""

PRECISIONS: Mapping[str, Mapping[str, Mapping[str, Option]]] = {
    CPU: {"fp32": {}, "int8": {}},
    "CUDAExecutionProvider": {"fp32": {"use_tf32": "0"}, "tf32": {"use_tf32": "1"}},
    "TensorrtExecutionProvider": {
        "fp32": {"trt_fp16_enable": "0"},
        "fp16": {"trt_fp16_enable": "1"},
    },
}
"""The options that choose a precision; the other providers run fp32 files as they are."""


@dataclass(frozen=True)
class Provider:
    """An execution provider and its options."""

    name: str
    options: Mapping[str, Option]

    @property
    def texts(self) -> dict[str, str]:
        """The options as ONNX Runtime takes them."""
        return {
            key: str(int(value)) if isinstance(value, bool) else str(value)
            for key, value in self.options.items()
        }


@dataclass(frozen=True)
class Providers:
    """The execution providers of a device, in order of priority.

    Args:
        chosen: the providers that the device's file names; the CPU's if it names none.
    """

    device: str
    chosen: tuple[Provider, ...]

    @property
    def is_cpu(self) -> bool:
        """Whether the CPU alone runs everything."""
        return self.names == (CPU,)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the providers."""
        return tuple(provider.name for provider in self.chosen)

    @property
    def allows_fallback(self) -> bool:
        """Whether nodes may run on the CPU: it is named."""
        return CPU in self.names

    @property
    def memory(self) -> str:
        """The memory for inputs and outputs, in ONNX Runtime's terms."""
        return MEMORY.get(self.chosen[0].name, "cpu")

    @property
    def versions(self) -> dict[str, str]:
        """The versions of the packages that bring the providers."""
        return {package: version(package) for package in map(plugin_of, self.names) if package}

    def apply(self, options: Any) -> list[tuple[str, dict[str, str]]] | None:
        """Add the providers to the options of a session; returns those to name at its creation.

        Raises:
            QuadranasError: the package of a provider finds no hardware that it supports.
        """
        if not any(map(plugin_of, self.names)):
            return [(provider.name, provider.texts) for provider in self.chosen]
        for provider in self.chosen:
            if plugin_of(provider.name):
                found = _plugin_devices(provider.name)
                if not found:
                    raise QuadranasError(
                        f"device {self.device!r}: the package {plugin_of(provider.name)} is "
                        f"installed, but {provider.name} finds no hardware that it supports on "
                        "this machine",
                        "Name another execution provider as target, or measure on another "
                        "machine.",
                    )
                options.add_provider_for_devices(found[:1], provider.texts)
            elif provider.name != CPU:
                options.add_provider(provider.name, provider.texts)
        return None

    def check(self, session: Any, name: object) -> tuple[str, ...]:
        """Check that the providers run a network; returns the nodes that the CPU runs instead.

        Args:
            name: what the session runs, for messages.

        Raises:
            QuadranasError: a provider could not be started, or nodes fall back to the CPU and the
                device does not allow that.
        """
        if self.is_cpu:
            return ()
        started = set(session.get_providers())
        absent = [provider for provider in self.names if provider not in started]
        if absent:
            raise QuadranasError(
                f"device {self.device!r}: ONNX Runtime could not start {' and '.join(absent)}, "
                f"and would run on {', '.join(session.get_providers())}",
                "Install its driver and libraries, or correct its options in 'target'.",
            )
        nodes = _nodes_on_cpu(session)
        if nodes and not self.allows_fallback:
            raise QuadranasError(
                f"device {self.device!r}: {len(nodes)} nodes of {name} would run on the CPU "
                f"instead of {self.names[0]}: {some(nodes, 5)}",
                f"To allow that, add {CPU} as the last entry of the list 'target'.",
            )
        return tuple(nodes)


def providers_of(device: Device) -> Providers:
    """The execution providers that a device's file names, or else the CPU's.

    Raises:
        QuadranasError: as in `named_providers`, or the installed package does not offer one.
    """
    found = named_providers(device)
    offered = offered_providers()
    for provider in found.chosen:
        if provider.name not in offered:
            import onnxruntime

            raise QuadranasError(
                f"device {device.name!r}: ONNX Runtime {onnxruntime.__version__} offers no "
                f"execution provider {provider.name!r}; it offers: {', '.join(offered)}"
                f"{nearest(provider.name, offered)}",
                "Set 'target' to one of these, or install the package that brings it: "
                "onnxruntime-gpu, onnxruntime-qnn, onnxruntime-ep-openvino ...",
            )
    return found


def named_providers(device: Device) -> Providers:
    """The execution providers that a device's file names, whether or not they are offered here.

    Raises:
        QuadranasError: no such description, or they do not run in the device's precision.
    """
    target = CPU if device.target is None else device.target
    entries = target if isinstance(target, list) else [target]
    found = [_provider(device, entry) for entry in entries]
    names = [provider.name for provider in found]
    if not names or len(set(names)) < len(names) or CPU in names[:-1]:
        raise QuadranasError(
            f"device {device.name!r}: target {names} is no list of execution providers",
            f"Name each once, by priority; {CPU} can only be the last.",
        )
    return Providers(device.name, tuple(_in_precision(device, each) for each in found))


def offered_providers() -> list[str]:
    """The providers that the installed packages offer.

    `AzureExecutionProvider`, which every package lists, runs no network on this machine.
    """
    import onnxruntime

    return list(dict.fromkeys((*onnxruntime.get_available_providers(), *_plugins())))


def plugin_of(provider: str) -> str | None:
    """The package that brings a provider; `None` for those in ONNX Runtime itself."""
    import onnxruntime

    if provider in onnxruntime.get_available_providers():
        return None
    return _plugins().get(provider)


@cache
def _plugins() -> dict[str, str]:
    """The installed packages of providers, by the provider's name."""
    found: dict[str, str] = {}
    for package in distributions():
        name = package.metadata["Name"] or ""
        if PLUGIN.fullmatch(name):
            module = import_module(name.replace("-", "_").replace(".", "_"))
            found |= dict.fromkeys(module.get_ep_names(), name)
    return found


@cache
def _registered(package: str) -> None:
    """Load the library of a package into ONNX Runtime, once."""
    import onnxruntime

    library = import_module(package.replace("-", "_").replace(".", "_")).get_library_path()
    onnxruntime.register_execution_provider_library(package, library)


def _plugin_devices(provider: str) -> list[Any]:
    import onnxruntime

    _registered(_plugins()[provider])
    return [found for found in onnxruntime.get_ep_devices() if found.ep_name == provider]


def _provider(device: Device, entry: object) -> Provider:
    if isinstance(entry, str):
        return Provider(entry, {})
    if isinstance(entry, dict) and len(entry) == 1:
        ((name, options),) = entry.items()
        if isinstance(options, dict):
            return Provider(str(name), options)
    raise QuadranasError(
        f"device {device.name!r}: target {entry!r} is no execution provider",
        "Write a name, or a name with options, as in: target: [{CUDAExecutionProvider: "
        "{device_id: 0}}, CPUExecutionProvider]",
    )


def _in_precision(device: Device, provider: Provider) -> Provider:
    """The provider with the options that make it run in the precision of the device.

    Raises:
        QuadranasError: it does not run in that precision.
    """
    known = PRECISIONS.get(provider.name, {"fp32": {}})
    if provider.name == CPU and device.target not in (None, CPU, [CPU]):
        return provider  # it only runs what the others leave
    if device.precision not in known:
        title = "ONNX Runtime on a CPU" if provider.name == CPU else provider.name
        accepted = " or ".join(known)
        raise QuadranasError(
            f"device {device.name!r}: {title} runs {accepted}, not {device.precision}",
            f"Set precision: {accepted}, or name another runtime.",
        )
    wanted = known[device.precision]
    for key, value in wanted.items():
        own = provider.options.get(key, value)
        own = int(own) if isinstance(own, bool) else own
        if str(own) != str(value):
            raise QuadranasError(
                f"device {device.name!r}: option {key}: {own} of {provider.name} contradicts "
                f"precision: {device.precision}",
                f"Omit {key}; the precision sets it.",
            )
    return Provider(provider.name, {**provider.options, **wanted})


def _nodes_on_cpu(session: Any) -> list[str]:
    """Names and types of the nodes that the CPU runs."""
    if not inspect.ismethod(getattr(session, "get_provider_graph_assignment_info", None)):
        import onnxruntime

        raise QuadranasError(
            f"ONNX Runtime {onnxruntime.__version__} does not say which nodes run on the CPU",
            "Install onnxruntime 1.24 or newer.",
        )
    parts: Iterable[Any] = session.get_provider_graph_assignment_info()
    return [
        f"{node.name or 'unnamed'} ({node.op_type})"
        for part in parts
        if part.ep_name == CPU
        for node in part.get_nodes()
    ]


def bound(session: Any, feeds: Mapping[str, Any], memory: str) -> Any:
    """Inputs and outputs in the memory of the hardware, so that calls copy nothing."""
    import onnxruntime

    binding = session.io_binding()
    for name, values in feeds.items():
        binding.bind_ortvalue_input(
            name, onnxruntime.OrtValue.ortvalue_from_numpy(values, memory, 0)
        )
    outputs: Sequence[Any] = session.get_outputs()
    for output in outputs:
        binding.bind_output(output.name, memory, 0)
    return binding
