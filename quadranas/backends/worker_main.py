"""The process that runs networks elsewhere: on a board, or in an old Python beside this one.

It is copied there and not imported: one file, valid Python 3.6, with nothing but the standard
library and the runtime. It reads JSON objects from stdin, one per line, such as
`{"id": 7, "do": "time", "handle": 3, "repeats": 5}`, and answers each on stdout:
`{"id": 7, "result": {"ms": [...]}}`, or `{"id": 7, "error": "what went wrong"}`. The first request
is `open`, with the runtime and its settings. Tensors are float32 in base64. The process ends when
stdin does, and removes the folder that it was given.
"""

import base64
import importlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, TextIO, Tuple

Answer = Dict[str, Any]
Shapes = Dict[str, List[int]]

MAX_THREADS = 64
"""Limit on the threads that are watched for lost time, each of which is an open file."""

DTYPES = {"float": "float32", "double": "float64"}
"""numpy's names of types, where ONNX Runtime has others."""

CPU = "CPUExecutionProvider"

HINTS = {
    "fp32": ("f32", "float", "float32"),
    "fp16": ("f16", "float16"),
    "bf16": ("bf16", "bfloat16"),
}
"""OpenVINO's names of precisions, which differ by release."""

THROTTLED_NOW = 0xF
"""The bits of `vcgencmd get_throttled` for low voltage and limited clocks; the same bits 16 places
higher say that it happened since the start."""


def noise(shape: List[int], dtype: Any) -> Any:
    """An input to time with: normal noise, or zeros for other types than floating point."""
    numpy = importlib.import_module("numpy")
    if numpy.dtype(dtype).kind != "f":
        return numpy.zeros(shape, dtype)
    return numpy.random.RandomState(0).standard_normal(shape).astype(dtype)


def array_of(content: bytes, shape: List[int]) -> Any:
    """A tensor of the other side as an array."""
    return importlib.import_module("numpy").frombuffer(content, "<f4").reshape(shape)


def content_of(array: Any) -> Tuple[bytes, List[int]]:
    """An array as float32, and its shape."""
    return array.astype("<f4").tobytes(), list(array.shape)


def refuse_target(settings: Answer) -> None:
    """Refuse hardware that a runtime cannot choose.

    Raises:
        ValueError: the device has a target.
    """
    if settings["target"] is not None:
        raise ValueError(f"over ssh it takes no target, got {settings['target']!r}")


# The runtimes. Each is opened with the settings of the device, and loads networks; a network has
# the methods fill (set the input), call and output.


class OpenVino2021Network:
    """A network in OpenVINO 2021.4.

    Args:
        loaded: must outlive its requests.
    """

    def __init__(self, loaded: Any) -> None:
        self.loaded, self.request = loaded, loaded.requests[0]
        ((self.name, blob),) = self.request.input_blobs.items()
        blob.buffer[:] = noise(blob.buffer.shape, "float32")

    def fill(self, content: bytes, shape: List[int]) -> None:
        blob = self.request.input_blobs[self.name]
        if list(blob.buffer.shape) != shape:
            raise ValueError(f"the network takes {blob.buffer.shape}, got {shape}")
        blob.buffer[:] = array_of(content, shape)

    def call(self) -> None:
        self.request.infer()

    def output(self) -> Tuple[bytes, List[int]]:
        (blob,) = self.request.output_blobs.values()
        return content_of(blob.buffer)


class OpenVino2021:
    """OpenVINO 2021.4, which reads ONNX of opset 13 at most. A call includes the way over USB."""

    def __init__(self, settings: Answer) -> None:
        self.api = importlib.import_module("openvino.inference_engine")
        self.core = self.api.IECore()
        self.target, self.config = settings["target"], settings["config"]

    def facts(self) -> Answer:
        name = None  # of an absent device
        try:
            name = self.core.get_metric(self.target, "FULL_DEVICE_NAME")
        except Exception as error:
            sys.stderr.write(f"no name for {self.target}: {describe(error)}\n")
        numpy = importlib.import_module("numpy").__version__
        return {"versions": {"openvino": self.api.get_version(), "numpy": numpy}, "hardware": name}

    def load(self, path: str, shapes: Shapes, batch: Optional[int]) -> Any:
        network = self.core.read_network(path)
        loaded = self.core.load_network(network, self.target, self.config, num_requests=1)
        return OpenVino2021Network(loaded)


class OnnxNetwork:
    """A session of ONNX Runtime.

    Args:
        memory: the memory for inputs and outputs of timed calls, which then copy nothing; `None`
            for calls that do.
        notes: how it runs otherwise than asked for.
    """

    def __init__(
        self, session: Any, shapes: Shapes, memory: Optional[str], notes: List[str]
    ) -> None:
        self.session, self.memory, self.notes = session, memory, notes
        self.feeds = {}
        for place in session.get_inputs():
            dtype = place.type[len("tensor(") : -1]
            self.feeds[place.name] = noise(shapes[place.name], DTYPES.get(dtype, dtype))
        self.outputs = []  # type: List[Any]

    def fill(self, content: bytes, shape: List[int]) -> None:
        self.feeds[next(iter(self.feeds))] = array_of(content, shape)

    def call(self) -> None:
        self.outputs = self.session.run(None, self.feeds)

    def timed_call(self) -> Callable[[], None]:
        """The call to time."""
        if self.memory is None:
            return self.call
        place = importlib.import_module("onnxruntime").OrtValue.ortvalue_from_numpy
        binding = self.session.io_binding()
        for name, values in self.feeds.items():
            binding.bind_ortvalue_input(name, place(values, self.memory, 0))
        for output in self.session.get_outputs():
            binding.bind_output(output.name, self.memory, 0)

        def call() -> None:
            self.session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return call

    def output(self) -> Tuple[bytes, List[int]]:
        return content_of(self.outputs[0])


class OnnxRuntime:
    """ONNX Runtime with the execution providers of the settings, by priority."""

    def __init__(self, settings: Answer) -> None:
        self.api = importlib.import_module("onnxruntime")
        self.threads, self.memory = settings["threads"], settings["memory"]
        self.providers = [tuple(provider) for provider in settings["providers"]]
        self.names = [name for name, _ in self.providers]
        offered = self.api.get_available_providers()
        for name in self.names:
            if name not in offered:
                raise ValueError(
                    f"ONNX Runtime {self.api.__version__} there offers no execution provider "
                    f"{name!r}; it offers: {', '.join(offered)}"
                )

    def facts(self) -> Answer:
        version = self.api.__version__
        names = "" if self.names == [CPU] else f" ({', '.join(self.names)})"
        return {
            "runtime": f"ONNX Runtime {version}{names}",
            "versions": {"onnxruntime": version},
        }

    def load(self, path: str, shapes: Shapes, batch: Optional[int]) -> Any:
        options = self.api.SessionOptions()
        options.intra_op_num_threads = self.threads or 0
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if batch is not None:
            options.add_free_dimension_override_by_name("batch", batch)
        if self.names != [CPU]:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        session = self.api.InferenceSession(path, options, providers=self.providers)
        return OnnxNetwork(session, shapes, self.memory, self._check(session))

    def _check(self, session: Any) -> List[str]:
        """Check that the providers run a network; returns what runs on the CPU instead, in words.

        Raises:
            ValueError: one could not be started, or leaves nodes to the CPU, which is not named.
        """
        if self.names == [CPU]:
            return []
        started = session.get_providers()
        absent = [name for name in self.names if name not in started]
        if absent:
            raise ValueError(f"{' and '.join(absent)} could not be started there")
        if not hasattr(session, "get_provider_graph_assignment_info"):
            if CPU in self.names:
                return ["it is unknown which nodes run on the CPU"]
            raise ValueError(
                f"ONNX Runtime {self.api.__version__} does not say which nodes run on the CPU; "
                f"install 1.24 or newer there, or allow it with {CPU} as the last entry of target"
            )
        parts = session.get_provider_graph_assignment_info()
        nodes = [
            f"{node.name or 'unnamed'} ({node.op_type})"
            for part in parts
            if part.ep_name == CPU
            for node in part.get_nodes()
        ]
        some = ", ".join(nodes[:5]) + (" ..." if len(nodes) > 5 else "")
        if nodes and CPU not in self.names:
            raise ValueError(
                f"{len(nodes)} nodes would run on the CPU instead of {self.names[0]}: {some}; to "
                f"allow that, add {CPU} as the last entry of target"
            )
        return [f"{len(nodes)} nodes run on the CPU: {some}"] if nodes else []


class OpenVinoNetwork:
    """A request of OpenVINO, which keeps its input."""

    def __init__(self, request: Any, compiled: Any) -> None:
        self.request = request
        self.place = compiled.input(0)
        inputs = {
            number: noise(list(place.shape), place.element_type.to_dtype())
            for number, place in enumerate(compiled.inputs)
        }
        request.infer(inputs)

    def fill(self, content: bytes, shape: List[int]) -> None:
        self.request.get_input_tensor(0).data[:] = array_of(content, shape)

    def call(self) -> None:
        self.request.infer()

    def output(self) -> Tuple[bytes, List[int]]:
        return content_of(self.request.get_output_tensor(0).data)


class OpenVino:
    """OpenVINO on any device that it offers, in the precision of the settings or not at all."""

    def __init__(self, settings: Answer) -> None:
        self.api = importlib.import_module("openvino")
        self.core = self.api.Core()
        self.target = settings["target"] or "CPU"
        self.precision = settings["precision"]
        self.threads = settings["threads"]
        offered = list(self.core.available_devices)
        if self.target.split(".")[0] not in {name.split(".")[0] for name in offered}:
            message = "OpenVINO finds no device {!r} there; it offers: {}"
            raise ValueError(message.format(self.target, ", ".join(offered) or "none"))

    def facts(self) -> Answer:
        version = self.api.__version__
        return {
            "runtime": "OpenVINO {} ({})".format(version.split("-")[0], self.target),
            "versions": {"openvino": version},
            "hardware": self.core.get_property(self.target, "FULL_DEVICE_NAME"),
        }

    def load(self, path: str, shapes: Shapes, batch: Optional[int]) -> Any:
        model = self.core.read_model(path)
        names = [
            place.get_any_name() if place.get_names() else f"input{number}"
            for number, place in enumerate(model.inputs)
        ]
        model.reshape({place: shapes[name] for place, name in zip(model.inputs, names)})
        compiled = self.core.compile_model(model, self.target, self._properties())
        runs = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if runs not in HINTS[self.precision]:
            raise ValueError(f"it would run {runs}, not {self.precision}")
        return OpenVinoNetwork(compiled.create_infer_request(), compiled)

    def _properties(self) -> Answer:
        """The properties that affect the speed, as far as the device supports them."""
        wanted = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": HINTS[self.precision][0],
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # the affinity of this process determines the cores
        }  # type: Answer
        if self.threads is not None:
            wanted["INFERENCE_NUM_THREADS"] = self.threads
        known = set(self.core.get_property(self.target, "SUPPORTED_PROPERTIES"))
        return {key: value for key, value in wanted.items() if key in known}


class TorchNetwork:
    """A module of PyTorch, or a method of ExecuTorch: takes one tensor.

    Args:
        owner: what must outlive it.
    """

    def __init__(
        self, torch: Any, shapes: Shapes, run: Callable[[Any], Any], owner: Any = None
    ) -> None:
        self.torch, self.run, self.owner = torch, run, owner
        (shape,) = shapes.values()
        self.images = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
        self.result = None  # type: Any

    def fill(self, content: bytes, shape: List[int]) -> None:
        values = self.torch.frombuffer(bytearray(content), dtype=self.torch.float32)
        self.images = values.reshape(shape)

    def call(self) -> None:
        with self.torch.inference_mode():
            self.result = self.run(self.images)

    def output(self) -> Tuple[bytes, List[int]]:
        result = self.result.contiguous().to(self.torch.float32)
        return bytes(result.flatten().view(self.torch.uint8).tolist()), list(result.shape)


class PyTorch:
    """PyTorch's own operations, for archives of torch.export."""

    def __init__(self, settings: Answer) -> None:
        refuse_target(settings)
        self.torch = importlib.import_module("torch")
        if settings["threads"] is not None:
            self.torch.set_num_threads(settings["threads"])

    def facts(self) -> Answer:
        version = self.torch.__version__
        return {"runtime": f"PyTorch {version}, eager", "versions": {"torch": version}}

    def load(self, path: str, shapes: Shapes, batch: Optional[int]) -> Any:
        program = self.torch.export.load(path)
        try:
            module = program.module(check_guards=False)
        except TypeError:  # before torch 2.9
            module = program.module()
        return TorchNetwork(self.torch, shapes, module)


class ExecuTorch:
    """ExecuTorch with XNNPACK; its threads belong to the process."""

    def __init__(self, settings: Answer) -> None:
        refuse_target(settings)
        self.torch = importlib.import_module("torch")
        self.api = importlib.import_module("executorch.runtime").Runtime.get()
        if settings["threads"] is not None:
            library = importlib.import_module("executorch.extension.pybindings.portable_lib")
            library._unsafe_reset_threadpool(settings["threads"])

    def facts(self) -> Answer:
        found = importlib.import_module("importlib.metadata").version("executorch")
        return {
            "runtime": f"ExecuTorch {found} (XNNPACK)",
            "versions": {"executorch": found, "torch": self.torch.__version__},
        }

    def load(self, path: str, shapes: Shapes, batch: Optional[int]) -> Any:
        program = self.api.load_program(Path(path).read_bytes())
        method = program.load_method("forward")
        # The method reads from the program.
        return TorchNetwork(self.torch, shapes, lambda x: method.execute([x])[0], program)


RUNTIMES = {
    "executorch": ExecuTorch,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "openvino2021": OpenVino2021,
    "torch": PyTorch,
}  # type: Dict[str, Callable[[Answer], Any]]
"""The runtimes by the names of device files."""


class Watch:
    """The time that threads of this process waited for a processor, as Linux counts it."""

    def __init__(self) -> None:
        self.files = []  # type: List[int]
        try:
            for task in list(Path("/proc/self/task").iterdir())[:MAX_THREADS]:
                with suppress(FileNotFoundError):  # the thread has ended
                    self.files.append(os.open(str(task / "schedstat"), os.O_RDONLY))
            self.is_known = any(self._read(0))
        except (OSError, ValueError, IndexError):  # not Linux, or without these statistics
            self.is_known = False

    def _read(self, column: int) -> List[int]:
        numbers = []
        for file in self.files:
            try:
                numbers.append(int(os.pread(file, 64, 0).split()[column]))
            except ProcessLookupError:  # the thread has ended
                numbers.append(0)
        return numbers

    def waited_ns(self) -> List[int]:
        """How long each thread has waited."""
        return self._read(1) if self.is_known else []

    def close(self) -> None:
        for file in self.files:
            os.close(file)


def timed(call: Callable[[], None], repeats: int) -> Answer:
    """Time calls in milliseconds, and what each lost to other processes, after a discarded one."""
    call()
    latencies_ms, lost_ms = [], []
    watch = Watch()
    try:
        for _ in range(repeats):
            before = watch.waited_ns()
            start = time.perf_counter()
            call()
            latencies_ms.append((time.perf_counter() - start) * 1e3)
            waited = [now - then for now, then in zip(watch.waited_ns(), before)]
            lost_ms.append(min(max(waited) / 1e6, latencies_ms[-1]) if waited else None)
    finally:
        watch.close()
    return {"ms": latencies_ms, "lost_ms": lost_ms}


class Machine:
    """The cores that networks run on, and what Linux says about their clocks and temperature.

    Args:
        root: the root of the file system.
    """

    def __init__(self, root: str = "/") -> None:
        self.root = Path(root)
        self.cores = []  # type: List[int]
        self.flags = self._flags()
        self.limits = {}  # type: Dict[int, float]
        self.counts = 0

    def use(self, threads: Optional[int]) -> None:
        """Pin this process to as many cores as there are threads, the fastest and last ones.

        Raises:
            ValueError: there are fewer cores.
        """
        if not hasattr(os, "sched_getaffinity"):
            return
        usable = sorted(
            os.sched_getaffinity(0),
            key=lambda core: (self._mhz(core, "cpuinfo_max_freq") or 0, core),
            reverse=True,
        )
        threads = threads or len(usable)
        if threads > len(usable):
            message = "got {} threads, but there are only {} cores"
            raise ValueError(message.format(threads, len(usable)))
        self.cores = sorted(usable[:threads])
        os.sched_setaffinity(0, self.cores)
        limits = {core: self._mhz(core, "scaling_max_freq") for core in self.cores}
        self.limits = {core: mhz for core, mhz in limits.items() if mhz is not None}
        self.counts = self._counts()

    def settings(self) -> Dict[str, str]:
        """The settings that affect the speed, as far as they are known."""
        governors = {self._cpufreq(core, "scaling_governor") for core in self.cores} - {""}
        known = {
            "cores": ", ".join(map(str, self.cores)),
            "governor": ", ".join(sorted(governors)),
            "clock limit": ", ".join(
                f"{mhz:.0f} MHz" for mhz in sorted(set(self.limits.values()))
            ),
        }
        return {key: text for key, text in known.items() if text}

    def state(self) -> Answer:
        """Clock, temperature, and why clocks were lowered since the last look."""
        clocks = [self._mhz(core, "scaling_cur_freq") for core in self.cores]
        known = [mhz for mhz in clocks if mhz is not None]
        return {
            "clock_mhz": min(known) if known else None,
            "temperature_c": self._temperature_c(),
            "throttled": self._throttled(),
        }

    def hardware(self) -> str:
        """Name of the board and of its processor."""
        board = self._read("proc/device-tree/model").strip("\0")
        pairs = (line.partition(":") for line in self._read("proc/cpuinfo").splitlines()[::-1])
        found = {key.strip(): value.strip() for key, _, value in pairs}
        name = found.get("model name") or found.get("Hardware") or platform.processor()
        if "cpu family" in found:
            name += " family {} model {}".format(found["cpu family"], found["model"])
        known = [text for text in (board, name, platform.machine()) if text]
        return ", ".join(known)

    def memory_bytes(self) -> Optional[int]:
        """Free memory."""
        found = re.search(r"MemAvailable: +([0-9]+) kB", self._read("proc/meminfo"))
        return int(found.group(1)) * 1024 if found else None

    def _throttled(self) -> List[str]:
        reasons = []
        for place in self._list("sys/class/thermal", "cooling_device"):
            kind = self._read(place + "/type")
            level = self._read(place + "/cur_state")
            if ("cpufreq" in kind or kind == "Processor") and level.isdigit() and int(level):
                reasons.append(f"{kind} limits the clock")
        for core, limit in self.limits.items():
            mhz = self._mhz(core, "scaling_max_freq")
            if mhz is not None and mhz < limit:
                reasons.append(f"the limit of core {core} fell to {mhz:.0f} MHz")
        flags, self.flags = self.flags, self._flags()
        if self.flags & THROTTLED_NOW or (self.flags & ~flags) >> 16:
            reasons.append(f"vcgencmd get_throttled says 0x{self.flags:x}")
        counts, self.counts = self.counts, self._counts()
        if self.counts > counts:
            reasons.append(f"the processor was too hot {self.counts - counts} times")
        return reasons

    def _flags(self) -> int:
        """What the firmware of a Raspberry Pi says; 0 elsewhere."""
        program = shutil.which("vcgencmd")
        if program is None:
            return 0
        try:
            text = subprocess.check_output([program, "get_throttled"], timeout=5).decode()
            return int(text.strip().partition("=")[2], 16)
        except (OSError, ValueError, subprocess.SubprocessError):
            return 0

    def _counts(self) -> int:
        """How often the cores were too hot, where x86 processors count it."""
        texts = [
            self._read(f"sys/devices/system/cpu/cpu{c}/thermal_throttle/core_throttle_count")
            for c in self.cores
        ]
        return sum(int(text) for text in texts if text.isdigit())

    def _temperature_c(self) -> Optional[float]:
        """The highest temperature."""
        texts = [self._read(z + "/temp") for z in self._list("sys/class/thermal", "thermal_zone")]
        found = [int(text) / 1000 for text in texts if text.isdigit()]
        return max((c for c in found if 0 < c < 150), default=None)

    def _mhz(self, core: int, name: str) -> Optional[float]:
        text = self._cpufreq(core, name)
        return int(text) / 1000 if text.isdigit() else None

    def _cpufreq(self, core: int, name: str) -> str:
        return self._read(f"sys/devices/system/cpu/cpu{core}/cpufreq/{name}")

    def _list(self, folder: str, prefix: str) -> List[str]:
        try:
            names = sorted(path.name for path in (self.root / folder).iterdir())
        except OSError:
            return []
        return [f"{folder}/{name}" for name in names if name.startswith(prefix)]

    def _read(self, path: str) -> str:
        """A file's text; empty if there is none, or it cannot be read now."""
        try:
            return (self.root / path).read_text(errors="replace").strip()
        except OSError:
            return ""


class Worker:
    """Loaded networks by handle, and the requests for them."""

    def __init__(self) -> None:
        self.machine = None  # type: Optional[Machine]
        self.runtime = None  # type: Any
        self.networks = {}  # type: Dict[int, Any]
        self.num_loads = 0

    def open(self, runtime: str, settings: Answer) -> Answer:
        """Open the runtime; returns its facts."""
        if settings.get("on_board"):
            self.machine = Machine()
            self.machine.use(settings["threads"])
        self.runtime = RUNTIMES[runtime](settings)
        return self.facts()

    def facts(self) -> Answer:
        """Versions, hardware and settings."""
        facts = self.runtime.facts()  # type: Answer
        facts["versions"]["python"] = platform.python_version()
        if self.machine is not None:
            facts.setdefault("hardware", self.machine.hardware())
            facts["settings"] = self.machine.settings()
            facts["memory_bytes"] = self.machine.memory_bytes()
            facts["state"] = self.machine.state()
        return facts

    def load(self, path: str, shapes: Shapes, batch: Optional[int]) -> Answer:
        """Prepare a file to run on inputs of the shapes."""
        network = self.runtime.load(path, shapes, batch)
        self.num_loads += 1
        self.networks[self.num_loads] = network
        return {"handle": self.num_loads, "notes": getattr(network, "notes", [])}

    def unload(self, handle: int) -> Answer:
        """Release a network and its memory."""
        del self.networks[handle]
        return {}

    def run(self, handle: int, images: str, shape: List[int]) -> Answer:
        """Compute the output for an input."""
        network = self.networks[handle]
        network.fill(base64.b64decode(images), shape)
        network.call()
        content, shape = network.output()
        return {"output": base64.b64encode(content).decode(), "shape": shape}

    def time(self, handle: int, repeats: int) -> Answer:
        """Time calls on the last input, at first noise."""
        network = self.networks[handle]
        choose_call = getattr(network, "timed_call", None)
        times = timed(network.call if choose_call is None else choose_call(), repeats)
        if self.machine is not None:
            times["state"] = self.machine.state()
        return times


def describe(error: Exception) -> str:
    """Type and text of an error, on one line."""
    return "{}: {}".format(type(error).__name__, " ".join(str(error).split()))


def answer(actions: Dict[str, Callable[..., Answer]], line: str) -> Answer:
    """The answer to a request, which may describe a failure."""
    identity = None
    try:
        request = json.loads(line)
        identity = request.pop("id")
        action = actions[request.pop("do")]
        return {"id": identity, "result": action(**request)}
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        return {"id": identity, "error": describe(error), "missing": missing}


def answers_only_on_stdout() -> TextIO:
    """The real stdout; other output, also that of C++ plugins, goes to stderr."""
    stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return stream


def serve(folder: Optional[str]) -> None:
    """Answer until stdin ends."""
    stream = answers_only_on_stdout()
    worker = Worker()
    names = ("open", "facts", "load", "unload", "run", "time")
    actions = {name: getattr(worker, name) for name in names}
    try:
        for line in iter(sys.stdin.readline, ""):
            stream.write(json.dumps(answer(actions, line)) + "\n")
            stream.flush()
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    serve(sys.argv[1] if len(sys.argv) > 1 else None)
