"""LiteRT: its files, its threads, and the process that writes them."""

import json
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quadranas.backends.interface import Conversion
from quadranas.backends.litert_converter import VARIABLE
from quadranas.errors import MissingExtraError, QuadranasError
from quadranas.latency.table_files import load_table
from quadranas.layers import build_op
from quadranas.space.operation import OpSpec
from tests.command_line import call
from tests.measuring import board, skip_without_litert

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")

from quadranas.backends.litert import LiteRtBackend
from quadranas.backends.litert_file import products_of

pytestmark = pytest.mark.usefixtures("exports")

Scrambler = Callable[..., nn.Module]
BLOCK = [
    OpSpec(kind="quadratic_depthwise", in_channels=8, out_channels=8, kernel_size=3, resolution=8),
    OpSpec(kind="feed_forward", in_channels=8, out_channels=8, expand_ratio=2, resolution=8),
]
SHAPE = (1, 8, 8, 8)


def opened(threads: int | None = 1) -> LiteRtBackend:
    return LiteRtBackend(board(runtime="litert", threads=threads), Path())


@pytest.fixture(scope="module")
def block(scramble: Scrambler) -> nn.Module:
    return scramble(nn.Sequential(*map(build_op, BLOCK))).eval()


@pytest.fixture(scope="module")
def writer() -> Iterator[LiteRtBackend]:
    """A backend whose converter is started once."""
    skip_without_litert()
    with opened() as backend:
        yield backend


@pytest.fixture(scope="module")
def file(
    writer: LiteRtBackend, block: nn.Module, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("file") / "block.tflite"
    writer.convert(block, Conversion(input_shape=SHAPE), path)
    return path


def foreign(path: Path, shapes: Sequence[Sequence[int]], operator: str = "ADD") -> Path:
    """A file of others, without a signature: an operator on inputs `a`, `b` ..., -1 where open."""
    from ai_edge_litert import schema_py_generated as schema

    graph = schema.SubGraphT()
    graph.tensors = []
    for name, shape in zip("abcdefg", [*shapes, shapes[0]], strict=False):
        tensor = schema.TensorT()
        tensor.name, tensor.type = name, schema.TensorType.FLOAT32
        tensor.shape, tensor.shapeSignature = [max(size, 1) for size in shape], list(shape)
        graph.tensors.append(tensor)
    graph.inputs, graph.outputs = list(range(len(shapes))), [len(shapes)]
    node, code = schema.OperatorT(), schema.OperatorCodeT()
    node.inputs, node.outputs, node.opcodeIndex = graph.inputs, graph.outputs, 0
    code.builtinCode = getattr(schema.BuiltinOperator, operator)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.version = 1
    if operator == "ADD":
        node.builtinOptionsType = schema.BuiltinOptions.AddOptions
        node.builtinOptions = schema.AddOptionsT()
    graph.operators = [node]
    model = schema.ModelT()
    model.version, model.subgraphs, model.operatorCodes = 3, [graph], [code]
    model.buffers = [schema.BufferT()]
    builder = schema.flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def test_xnnpack_runs_files_that_take_images_as_every_runtime_does(file: Path) -> None:
    backend = opened()
    counts = backend.count_operators(file)
    assert counts["TRANSPOSE"] >= 1
    assert (counts["DEPTHWISE_CONV_2D"], counts["FULLY_CONNECTED"]) == (3, 2)
    program = backend.load(file, SHAPE)
    assert program.shapes == {"images": SHAPE}
    kinds = [entry["op_name"] for entry in program.interpreter._get_ops_details()]
    assert kinds.count("DELEGATE") == 1


def test_operators_are_named_after_their_layers(file: Path) -> None:
    layers = list(products_of(file.read_bytes()).values())
    assert layers == ["0.conv"] * 3 + ["1.expand", "1.project"]
    assert opened().layers(file) == ["0.conv", "1.expand", "1.project"]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="this system lists no threads")
def test_a_program_has_as_many_threads_as_its_device(file: Path) -> None:
    def num_threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    added, programs = [], []
    for threads in (1, 3, None):
        before = num_threads()
        programs.append(opened(threads).load(file, SHAPE))
        programs[-1].time_ms(1)
        added.append(num_threads() - before)
    assert added == [0, 2, 0]


def test_weights_in_half_precision(
    writer: LiteRtBackend, block: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "half.tflite"
    writer.convert(block, Conversion(input_shape=SHAPE, half_weights=True), path)
    assert opened().count_operators(path)["DEQUANTIZE"] == 5
    images = torch.randn(SHAPE)
    with torch.no_grad():
        expected = block(images)
    error = float((opened().load(path, SHAPE).run(images) - expected).abs().max())
    assert 1e-5 < error < 1e-2 * float(expected.abs().max())


def test_files_of_others_are_timed(tmp_path: Path) -> None:
    backend = opened()
    path = foreign(tmp_path / "sum.tflite", [(2, 3), (2, 3)])
    assert backend.input_shapes(path) == {"a": (2, 3), "b": (2, 3)}
    assert len(backend.open_file(path, {"a": (2, 3), "b": (2, 3)}).time_ms(3)) == 3
    assert backend.count_operators(path) == {"ADD": 1}
    assert backend.layers(path) == []
    with pytest.raises(QuadranasError, match=r"sum\.tflite has 2 inputs"):
        backend.load(path, (2, 3))
    path = foreign(tmp_path / "open.tflite", [(-1, 3), (1, 3)])
    assert backend.input_shapes(path) == {"a": (None, 3), "b": (1, 3)}
    assert len(backend.open_file(path, {"a": (7, 3), "b": (1, 3)}).time_ms(3)) == 3
    with pytest.raises(QuadranasError, match=r"open\.tflite is not a LiteRT file that can run"):
        backend.open_file(path, {"a": (7, 3), "b": (1, 4)})


def test_a_cut_file_or_one_with_unknown_operators_is_one_error(tmp_path: Path) -> None:
    backend = opened()
    path = foreign(tmp_path / "sum.tflite", [(2, 3), (2, 3)])
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(QuadranasError, match=r"sum\.tflite is not a LiteRT file"):
            backend.input_shapes(path)
    path = foreign(tmp_path / "iota.tflite", [(2, 3)], "STABLEHLO_IOTA")
    with pytest.raises(QuadranasError, match=r"iota\.tflite is not .*STABLEHLO_IOTA"):
        backend.input_shapes(path)


def test_a_wrong_input_is_refused_and_the_next_one_works(file: Path) -> None:
    program = opened().load(file, SHAPE)
    with pytest.raises(QuadranasError, match=r"takes \(1, 8, 8, 8\), got \(1, 8, 9, 9\)"):
        program.run(torch.zeros(1, 8, 9, 9))
    assert program.run(torch.zeros(SHAPE)).shape == SHAPE


def test_what_cannot_be_converted_is_explained(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(QuadranasError, match="Branching cannot be converted for LiteRT"):
        opened().convert(Branching(), Conversion(input_shape=SHAPE), tmp_path / "net.tflite")
    assert not list(tmp_path.iterdir())


# The process that writes files


def convert(path: Path) -> None:
    """Write a file that no other test has written."""
    with opened() as backend:
        backend.convert(nn.Conv2d(3, 7, 1).eval(), Conversion(input_shape=(1, 3, 5, 5)), path)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("", r"python cannot be started to convert for LiteRT: No such file"),
        ("exit 3", r"python was lost while it converted for LiteRT: it ended with exit code 3"),
        ("kill -9 $$", r"was lost while .*: it was killed by SIGKILL"),
    ],
)
def test_a_converter_that_fails_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, message: str
) -> None:
    python = tmp_path / "python"
    if program:
        python.write_text(f"#!/bin/sh\n{program}\n", encoding="utf-8")
        python.chmod(0o755)
    monkeypatch.setenv(VARIABLE, str(python))
    with pytest.raises(QuadranasError, match=message):
        convert(tmp_path / "net.tflite")
    assert not (tmp_path / "net.tflite").exists()


@pytest.mark.skipif(find_spec("litert_torch") is not None, reason="litert-torch is installed")
def test_without_litert_torch_files_run_and_none_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(MissingExtraError, match=r"needs litert-torch, which .* not") as caught:
        convert(tmp_path / "net.tflite")
    assert f"export {VARIABLE}=" in caught.value.hint
    with opened() as backend:
        provenance = backend.provenance()
        assert "litert-torch" not in provenance.versions
        assert provenance.runtime.startswith("LiteRT ")
        backend.input_shapes(foreign(tmp_path / "sum.tflite", [(2, 3), (2, 3)]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "fp16"}, "'board': LiteRT on a CPU runs fp32 or int8, not fp16"),
        ({"target": "CPU"}, "takes no target, got 'CPU'"),
    ],
)
def test_impossible_devices_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(QuadranasError, match=message):
        LiteRtBackend(board(runtime="litert", **changes), Path())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_table_is_measured_and_validated(tmp_path: Path, precision: str) -> None:
    skip_without_litert()
    device, table = tmp_path / "pc.yaml", tmp_path / "table.json"
    board(runtime="litert", precision=precision).save(device)
    given = ("--device", device, "--space", "toy", "--rounds", "12")
    built = call("build-lut", *given, "--max-residual", "9", "--output", table)
    assert built.code == 0, built.err
    header = load_table(table).header
    assert (header.backend, header.precision) == ("litert", precision)
    validated = call("validate-lut", *given, "--networks", "3", "--table", table, "--json")
    assert validated.code == 0, validated.err
    assert json.loads(validated.out)["networks"] == 3
