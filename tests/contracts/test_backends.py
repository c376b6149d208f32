"""BackendContract: what every runtime promises. A runtime in RUNTIMES is tested.

Runtimes that are not installed and devices that are not here are skipped. The runtime of the
Myriad stick runs on the CPU device of its OpenVINO 2021.4. A made-up runtime is tested too.
"""

import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quadranas.backends.interface import (
    Backend,
    Conversion,
    FileBackend,
    Program,
    TimingBackend,
)
from quadranas.backends.registry import open_backend
from quadranas.errors import DeviceLostError, MissingExtraError, QuadranasError
from quadranas.latency.device import Device
from quadranas.latency.runtimes import RUNTIMES, Runtime, RuntimeFiles
from quadranas.layers import build_op
from quadranas.measurement.probes import REFERENCE_OP, chain_probe
from quadranas.space.operation import OpSpec
from quadranas.space.space_file import load_space, space_files
from tests.bundles import toy_network
from tests.command_line import CHECKOUT
from tests.command_tool import TOOL
from tests.fake_runtime import FACTS, FAKE, register
from tests.measuring import board, remember_nothing, skip_without_litert

pytestmark = pytest.mark.usefixtures("registered", "exports")

Scrambler = Callable[..., nn.Module]

WORKER = "openvino2021"
WORKER_PYTHON = os.environ.get("QUADRANAS_WORKER_PYTHON", "")
KNOWN: dict[str, Runtime] = {**RUNTIMES, FAKE: FACTS}

REACHED: dict[str, dict[str, Any]] = {
    WORKER: {"target": "CPU", "reach": {"worker_python": WORKER_PYTHON}},
    "command": {"command": TOOL},
}
"""How tests reach the devices of runtimes that need to be told."""

TOLERANCE = 1e-4
"""Absolute and relative: in float32 sums are taken in another order; bfloat16 misses it by far."""

BATCH = 2
SHAPE = (1, 3, 32, 32)

PRODUCTS = {
    name: re.compile(pattern)
    for name, pattern in {
        "onnxruntime": "^Mul$",
        "openvino": "^Multiply$",
        "tvm": "multiply",
        "torch": "^aten.addcmul$",
        "executorch": "^XNNMultiply$",
        WORKER: "^Mul$",
    }.items()
}
"""How each runtime names the product of a quadratic layer."""

ANY_PRODUCT = re.compile("(?<!mat)mul", re.IGNORECASE)
"""For other runtimes."""


@pytest.fixture(scope="module")
def registered() -> Iterator[None]:
    """A runtime that is made up, to show that an entry of facts is enough."""
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        yield


def files_of(name: str) -> RuntimeFiles:
    """The facts about a runtime's files; skips a runtime without them."""
    files = KNOWN[name].files
    if files is None:
        pytest.skip(f"{name} has no files")
    return files


def described(name: str, **changes: Any) -> Device:
    settings = {"runtime": name, **REACHED.get(name, {})}
    if "threads" not in KNOWN[name].settings:
        settings["threads"] = None
    if "tuning_trials" in KNOWN[name].settings:
        settings["tuning_trials"] = 0
    return board(**(settings | changes)).allowing_commands()


def opened(name: str, records: Path, **changes: Any) -> Backend:
    """The runtime's backend; skips where it cannot be here."""
    if name == WORKER and not WORKER_PYTHON:
        pytest.skip("QUADRANAS_WORKER_PYTHON names no Python with OpenVINO 2021.4.2")
    if name == "litert":
        skip_without_litert()
    device = described(name, **changes)
    try:
        return open_backend(device, records)
    except MissingExtraError as error:
        pytest.skip(str(error))
    except QuadranasError as error:
        if KNOWN[name].other_hardware and device.precision == "fp32":
            pytest.skip(error.message)
        raise


@pytest.fixture(scope="module", params=KNOWN)
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def backend(name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    with closing(opened(name, tmp_path_factory.mktemp("records"))) as found:
        yield found


def small(spec: OpSpec) -> OpSpec:
    """The operation with few channels and pixels."""
    channels = {
        "in_channels": 3 if spec.in_channels == 3 else 12,
        "out_channels": 12 if spec.in_channels == spec.out_channels else 8,
    }
    changes = channels | {"resolution": 4 * spec.stride}
    return OpSpec.model_validate(spec.model_dump() | changes)


def first_of_every_kind() -> list[OpSpec]:
    specs: dict[OpSpec, None] = {}
    for space in space_files():
        kinds: dict[str, OpSpec] = {}
        for spec in load_space(space).specs():
            kinds.setdefault(spec.kind, spec)
        specs |= dict.fromkeys(map(small, kinds.values()))
    return list(specs)


def random_images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def input_of(spec: OpSpec, batch: int = 1) -> Tensor:
    return random_images(batch, spec.in_channels, spec.resolution, spec.resolution)


def assert_agrees(program: Program, network: nn.Module, images: Tensor) -> None:
    output = program.run(images)
    assert output.dtype == torch.float32
    with torch.no_grad():
        expected = network.double()(images.double()).float()
    network.float()
    torch.testing.assert_close(output, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.fixture(scope="module")
def network(scramble: Scrambler) -> nn.Module:
    """A whole network that computes something: the one of `tests/commands/test_run.py`."""
    return toy_network(scramble)


@pytest.fixture(scope="module")
def program(backend: Backend, network: nn.Module) -> Program:
    return backend.compile(network, (1, 3, 32, 32))


@pytest.fixture(scope="module")
def batch_program(backend: Backend, network: nn.Module) -> Program:
    return backend.compile(network, (BATCH, 3, 32, 32))


def test_every_runtime_can_be_named_for_a_device() -> None:
    for name in KNOWN:
        assert described(name).runtime == name


def test_every_kind_of_the_shipped_spaces_is_among_the_examples() -> None:
    kinds = {spec.kind for space in space_files() for spec in load_space(space).specs()}
    assert {spec.kind for spec in first_of_every_kind()} == kinds


@pytest.mark.parametrize("spec", first_of_every_kind(), ids=str)
def test_an_operation_computes_what_pytorch_computes(
    backend: Backend, scramble: Scrambler, spec: OpSpec
) -> None:
    op = scramble(build_op(spec)).eval()
    images = input_of(spec)
    assert_agrees(backend.compile(op, images.shape), op, images)


def test_a_network_computes_what_pytorch_computes(program: Program, network: nn.Module) -> None:
    assert_agrees(program, network, random_images(1, 3, 32, 32))


def test_a_batch_computes_what_pytorch_computes(
    batch_program: Program, network: nn.Module
) -> None:
    images = random_images(BATCH, 3, 32, 32)
    assert_agrees(batch_program, network, images)
    assert_agrees(batch_program, network, images.to(memory_format=torch.channels_last))


def test_a_run_can_be_repeated(program: Program) -> None:
    images, others = random_images(2, 3, 32, 32).chunk(2)
    first = program.run(images)
    kept = first.clone()
    assert not torch.equal(program.run(others), kept)
    assert torch.equal(first, kept)  # another run did not write over it
    program.time_ms(2)
    assert torch.equal(program.run(images), kept)


def test_programs_do_not_mix(backend: Backend, program: Program, network: nn.Module) -> None:
    images = random_images(1, 3, 32, 32)
    before = program.run(images)
    op = chain_probe([REFERENCE_OP])
    other = backend.compile(op, (1, 32, 56, 56))
    assert_agrees(other, op, input_of(REFERENCE_OP))
    assert torch.equal(program.run(images), before)


@pytest.mark.parametrize("repeats", [1, 7])
def test_there_are_as_many_times_as_asked_for(program: Program, repeats: int) -> None:
    times_ms = program.time_ms(repeats)
    assert len(times_ms) == repeats
    assert all(isinstance(ms, float) and math.isfinite(ms) and ms > 0 for ms in times_ms)


def test_times_are_milliseconds(backend: Backend, name: str) -> None:
    """The calls take less than everything together, and not a thousandth of it."""
    program = backend.compile(chain_probe([REFERENCE_OP]), (1, 32, 56, 56))
    repeats = 200 if KNOWN[name].reports_times else 20  # another program has to start too
    shares = []
    for _ in range(5):  # the process may be held up while it does not time anything
        start = time.perf_counter()
        called_ms = sum(program.time_ms(repeats))
        shares.append(called_ms / ((time.perf_counter() - start) * 1e3))
        if shares[-1] > 0.02:
            break
    assert max(shares) <= 1
    assert max(shares) > 0.02


def test_provenance_says_what_is_measured(backend: Backend) -> None:
    provenance = backend.provenance()
    assert any(character.isdigit() for character in provenance.runtime)
    assert provenance.hardware.strip()
    assert provenance.versions["torch"] == torch.__version__
    assert all(isinstance(text, str) and text for text in provenance.versions.values())
    assert all(isinstance(text, str) for text in provenance.settings.values())
    assert provenance == backend.provenance()
    assert not provenance.emulated
    assert backend.max_parallel >= 1


def stored(backend: Backend) -> FileBackend:
    """The backend of a runtime that has files; skips others."""
    if not isinstance(backend, FileBackend):
        pytest.skip(f"{type(backend).__name__} has no files")
    return backend


@pytest.fixture(scope="module")
def converted(
    backend: Backend, name: str, network: nn.Module, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The network as a file for one image, in a folder that did not exist."""
    path = tmp_path_factory.mktemp("files") / "new" / f"network{files_of(name).suffix}"
    stored(backend).convert(network, Conversion(input_shape=(1, 3, 32, 32)), path)
    return path


def test_every_runtime_has_files_or_runs_those_of_others() -> None:
    without = {name for name, runtime in KNOWN.items() if not runtime.files}
    assert without == {"cuda", "command"}
    assert all(KNOWN[name].runs for name in without)


def test_a_file_computes_what_a_compiled_program_does(
    backend: Backend, program: Program, converted: Path
) -> None:
    images = random_images(1, 3, 32, 32)
    loaded = stored(backend).load(converted, images.shape)
    torch.testing.assert_close(loaded.run(images), program.run(images), rtol=1e-5, atol=1e-5)
    assert len(loaded.time_ms(2)) == 2
    assert {path.stem for path in converted.parent.iterdir()} == {"network"}


def test_a_file_says_what_it_takes_and_is_timed(
    backend: Backend, program: Program, converted: Path
) -> None:
    if not isinstance(backend, TimingBackend):
        pytest.skip(f"{type(backend).__name__} times no files of others")
    assert list(backend.input_shapes(converted).values()) == [(1, 3, 32, 32)]
    opened = backend.open_file(converted, {"images": (1, 3, 32, 32)})
    images = random_images(1, 3, 32, 32)
    torch.testing.assert_close(opened.run(images), program.run(images), rtol=1e-5, atol=1e-5)
    assert len(opened.time_ms(3)) == 3


def test_a_file_can_go_when_it_is_loaded(
    backend: Backend, converted: Path, tmp_path: Path
) -> None:
    for path in converted.parent.iterdir():
        shutil.copy(path, tmp_path)
    images = random_images(1, 3, 32, 32)
    loaded = stored(backend).load(tmp_path / converted.name, images.shape)
    before = loaded.run(images)
    for path in tmp_path.iterdir():
        path.unlink()
    assert torch.equal(loaded.run(images), before)


def test_a_file_takes_any_batch_where_it_is_asked_to(
    backend: Backend, name: str, network: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / f"dynamic{files_of(name).suffix}"
    conversion = Conversion(input_shape=(1, 3, 32, 32), dynamic_batch=True)
    if not files_of(name).free_batch:
        with pytest.raises(QuadranasError, match="do not support dynamic_batch"):
            stored(backend).convert(network, conversion, path)
        assert not list(tmp_path.iterdir())
        return
    stored(backend).convert(network, conversion, path)
    for batch in (1, BATCH):
        images = random_images(batch, 3, 32, 32)
        assert_agrees(stored(backend).load(path, images.shape), network, images)


@pytest.mark.parametrize("shape", [(BATCH, 3, 32, 32), (1, 3, 64, 64)], ids=str)
def test_a_file_for_another_shape_is_refused(
    backend: Backend, name: str, converted: Path, shape: tuple[int, ...]
) -> None:
    if name == "openvino":
        pytest.skip("OpenVINO gives its files other shapes")
    with pytest.raises(QuadranasError, match=r"with inputs of|takes inputs of") as caught:
        stored(backend).load(converted, shape)
    assert str(converted) in caught.value.message


@pytest.mark.parametrize("fault", ["absent", "empty", "foreign", "cut"])
def test_a_file_that_cannot_be_read_is_one_error(
    backend: Backend, converted: Path, tmp_path: Path, fault: str
) -> None:
    for path in converted.parent.iterdir():
        shutil.copy(path, tmp_path)
    broken = tmp_path / converted.name
    content = broken.read_bytes()
    broken.unlink()
    if fault != "absent":
        contents = {"empty": b"", "foreign": b"GIF89a" * 99, "cut": content[: len(content) // 2]}
        broken.write_bytes(contents[fault])
    for read in (stored(backend).count_operators, lambda path: stored(backend).load(path, SHAPE)):
        with pytest.raises(QuadranasError) as caught:
            read(broken)
        assert str(broken) in caught.value.message
        assert not isinstance(caught.value, DeviceLostError)


def test_a_file_says_what_it_consists_of(backend: Backend, name: str, converted: Path) -> None:
    counts = stored(backend).count_operators(converted)
    assert list(counts.values()) == sorted(counts.values(), reverse=True)
    found = sum(
        count for kind, count in counts.items() if PRODUCTS.get(name, ANY_PRODUCT).search(kind)
    )
    assert found >= 1, counts


def test_the_same_network_gives_the_same_bytes(
    backend: Backend,
    name: str,
    scramble: Scrambler,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    remember_nothing(monkeypatch)
    spec = OpSpec(
        kind="quadratic_depthwise", in_channels=4, out_channels=4, kernel_size=3, resolution=8
    )
    op = scramble(build_op(spec)).eval()
    contents = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        path = folder / f"other {folder.name}" / f"op{files_of(name).suffix}"
        stored(backend).convert(op, Conversion(input_shape=(1, 4, 8, 8)), path)
        contents.append({file.name: file.read_bytes() for file in path.parent.iterdir()})
    assert contents[0] == contents[1]


def test_a_file_that_cannot_be_written_is_one_error(
    backend: Backend, name: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    path = tmp_path / "file" / f"op{files_of(name).suffix}"
    with pytest.raises(QuadranasError, match="cannot write"):
        stored(backend).convert(
            nn.Conv2d(3, 4, 1).eval(), Conversion(input_shape=(1, 3, 4, 4)), path
        )


ASKED: dict[str, dict[str, Any]] = {"half_weights": {"half_weights": True}, "opset": {"opset": 21}}


@pytest.mark.parametrize("option", ASKED)
def test_what_a_format_lacks_is_refused(
    backend: Backend, name: str, tmp_path: Path, option: str
) -> None:
    files = files_of(name)
    if files.options[option] and (option != "opset" or ASKED["opset"]["opset"] in files.opsets):
        pytest.skip(f"{name} takes {option}")
    with pytest.raises(QuadranasError, match=option):
        stored(backend).convert(
            nn.Conv2d(3, 4, 1).eval(),
            replace(Conversion(input_shape=(1, 3, 4, 4)), **ASKED[option]),
            tmp_path / f"op{files_of(name).suffix}",
        )
    assert not list(tmp_path.iterdir())


def extras() -> dict[str, list[str]]:
    """The packages of every extra, as setup.cfg lists them."""
    parser = ConfigParser()
    parser.read(CHECKOUT / "setup.cfg", encoding="utf-8")
    section = parser["options.extras_require"]
    return {extra: section[extra].split() for extra in section}


EXTRAS = {name: runtime.extra for name, runtime in KNOWN.items()}
WHEN_USED = ("tornado", "ziglang")
"""For TVM's tracker, and for linking where there is no cross-compiler."""
NEEDED = [
    (name, package)
    for name, extra in EXTRAS.items()
    for package in extras().get(extra, [])
    if package.isidentifier() and package not in WHEN_USED
]


@pytest.mark.parametrize(("name", "package"), NEEDED)
def test_a_missing_package_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError) as caught:
        open_backend(described(name), tmp_path)
    assert f"quadranas[{EXTRAS[name]}]" in caught.value.hint


ERROR = {
    "fp32": (0.0, 1e-5),
    "tf32": (5e-5, 1e-2),
    "fp16": (5e-5, 1e-2),
    "bf16": (5e-4, 1e-1),
    "int8": (1e-3, 1e-1),
}
"""How far from float64 a network's output is in a precision, relative to its size: a precision
has 24, 11, 11, 8 and about 7 significant bits."""


def relative_error(output: Tensor, network: nn.Module, images: Tensor) -> float:
    with torch.no_grad():
        exact = network.double()(images.double())
    network.float()
    return float((output.double() - exact).norm() / exact.norm())


def layers(scramble: Scrambler) -> nn.Module:
    """Sums long enough for their rounding to be seen."""
    wide = [nn.Conv2d(64, 64, 3, padding=1, bias=False) for _ in range(3)]
    return scramble(nn.Sequential(*wide, nn.Flatten(), nn.Linear(64 * 64, 16))).eval()


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("name", KNOWN)
def test_the_precision_asked_for_is_the_one_that_runs_or_it_is_refused(
    tmp_path: Path, scramble: Scrambler, name: str, precision: str
) -> None:
    opened(name, tmp_path).close()  # or skip
    deep, images = layers(scramble), random_images(1, 64, 8, 8)
    refusal = ""
    try:
        with closing(opened(name, tmp_path, precision=precision)) as backend:
            output = backend.compile(deep, images.shape).run(images)
    except QuadranasError as error:
        refusal = error.message
    if refusal:
        assert precision != "fp32", refusal
        assert precision in refusal
        assert "board" in refusal
        return
    assert precision in ERROR, f"{name} runs {precision}"
    low, high = ERROR[precision]
    assert low <= relative_error(output, deep, images) < high


def test_onnx_runtime_refuses_what_it_would_emulate(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    for precision in ("fp16", "bf16"):
        refused = f"'board'.*runs fp32 or int8, not {precision}"
        with pytest.raises(QuadranasError, match=refused) as caught:
            open_backend(described("onnxruntime", precision=precision), tmp_path)
        assert caught.value.hint == "Set precision: fp32 or int8, or name another runtime."


def test_onnx_runtime_lists_the_providers_that_it_has(tmp_path: Path) -> None:
    package = pytest.importorskip("onnxruntime")
    with pytest.raises(QuadranasError, match="offers no execution provider 'NPU'") as caught:
        open_backend(described("onnxruntime", target="NPU"), tmp_path)
    for offered in package.get_available_providers():
        assert offered in caught.value.message


def test_openvino_lists_the_devices_that_it_has(tmp_path: Path) -> None:
    package = pytest.importorskip("openvino")
    with pytest.raises(QuadranasError, match="finds no device 'NPUX' on this") as caught:
        open_backend(described("openvino", target="NPUX"), tmp_path)
    for offered in package.Core().available_devices:
        assert offered in caught.value.message


def test_a_myriad_needs_an_interpreter_of_its_own(tmp_path: Path) -> None:
    """Version 0.1.0 called its runtime `openvino` too."""
    for name in ("openvino", WORKER):
        stick = described(name, target="MYRIAD", precision="fp16", reach={})
        with pytest.raises(QuadranasError, match="has no worker_python") as caught:
            open_backend(stick, tmp_path)
        assert "--worker-python" in caught.value.hint


def test_openvino_left_to_itself_would_run_bf16(tmp_path: Path, scramble: Scrambler) -> None:
    """So a backend that did not ask for fp32 would be found out by the tests above."""
    package = pytest.importorskip("openvino")
    core = package.Core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bf16, so OpenVINO would run fp32 anyway")
    deep, images = layers(scramble), random_images(1, 64, 8, 8)
    with closing(open_backend(described("openvino"), tmp_path)) as backend:
        program = backend.compile(deep, images.shape)
        stored(backend).convert(deep, Conversion(input_shape=(1, 64, 8, 8)), tmp_path / "deep.xml")
    compiled = core.compile_model(str(tmp_path / "deep.xml"), "CPU")
    by_default = torch.from_numpy(compiled([images.numpy()])[0].copy())
    ours = relative_error(program.run(images), deep, images)
    assert ours < ERROR["fp32"][1]
    assert relative_error(by_default, deep, images) > 100 * ours
