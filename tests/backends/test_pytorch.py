"""Archives of torch.export: read without running what they hold, and free of this machine."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quadranas.backends.interface import Conversion
from quadranas.backends.pytorch import PyTorchBackend
from quadranas.errors import QuadranasError
from quadranas.network.skeleton import build_subnet
from quadranas.space.space_file import load_space
from tests.measuring import board

SHAPE = (1, 3, 8, 8)


@pytest.fixture(scope="module")
def backend() -> PyTorchBackend:
    return PyTorchBackend(board(runtime="torch"), Path())


@pytest.fixture(scope="module")
def archive(backend: PyTorchBackend, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a network that has a constant, a batch of any size, and an expression of it."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.shift = torch.ones(4, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            out = self.conv(x) + self.shift
            scores: Tensor = out.reshape(x.shape[0] * 4, 36).reshape(x.shape[0], 4, 36).sum(2)
            return scores

    path = tmp_path_factory.mktemp("archive") / "net.pt2"
    network = Shifted().eval()
    backend.convert(network, Conversion(input_shape=SHAPE, dynamic_batch=True), path)
    images = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        output = backend.load(path, images.shape).run(images)
        torch.testing.assert_close(output, network(images))
    return path


class Payload:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def pickled(trace: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(Payload(trace), buffer)
    return buffer.getvalue()


def rewritten(source: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    with zipfile.ZipFile(source) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    change(records)
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return target


def in_graph(change: Callable[[dict[str, Any], str], None]) -> Callable[..., None]:
    def apply(records: dict[str, bytes], trace: Path) -> None:
        graph = json.loads(records["archive/models/model.json"])
        change(graph, f"open({str(trace)!r}, 'w')")
        records["archive/models/model.json"] = json.dumps(graph).encode()

    return apply


def pickled_weight(records: dict[str, bytes], trace: Path) -> None:
    name = "archive/data/weights/model_weights_config.json"
    config = json.loads(records[name])
    next(iter(config["config"].values()))["use_pickle"] = True
    records[name] = json.dumps(config).encode()
    records["archive/data/weights/weight_0"] = pickled(trace)


def pickled_constant(records: dict[str, bytes], trace: Path) -> None:
    name = "archive/data/constants/model_constants_config.json"
    config = json.loads(records[name])
    entry = next(iter(config["config"].values()))
    entry["path_name"] = "opaque_obj_0"
    records[name] = json.dumps(config).encode()
    records["archive/data/constants/opaque_obj_0"] = pickle.dumps(Payload(trace))


def pickled_examples(records: dict[str, bytes], trace: Path) -> None:
    records["archive/data/sample_inputs/model.pt"] = pickled(trace)


def pickled_weights_of_old(records: dict[str, bytes], trace: Path) -> None:
    records["archive/data/weights/model.pt"] = pickled(trace)


def library(records: dict[str, bytes], trace: Path) -> None:
    records["archive/data/aotinductor/model/model.so"] = b"\x7fELF"


@in_graph
def function(graph: dict[str, Any], code: str) -> None:
    graph["graph_module"]["graph"]["nodes"][0]["target"] = "torch.hub.load"


@in_graph
def file_opener(graph: dict[str, Any], code: str) -> None:
    graph["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.from_file.default"


@in_graph
def operator_argument(graph: dict[str, Any], code: str) -> None:
    node = graph["graph_module"]["graph"]["nodes"][0]
    node["inputs"][0]["arg"] = {"as_operator": "torch.hub.load"}


@in_graph
def input_name(graph: dict[str, Any], code: str) -> None:
    graph["graph_module"]["graph"]["inputs"][0]["as_tensor"]["name"] = f"x={code}"


@in_graph
def tensor_name(graph: dict[str, Any], code: str) -> None:
    values = graph["graph_module"]["graph"]["tensor_values"]
    values[f"x={code}"] = next(iter(values.values()))


@in_graph
def guard(graph: dict[str, Any], code: str) -> None:
    graph["guards_code"] = [code]


@in_graph
def size(graph: dict[str, Any], code: str) -> None:
    for value in graph["graph_module"]["graph"]["tensor_values"].values():
        for one in value["sizes"]:
            if "as_expr" in one:
                one["as_expr"]["expr_str"] = code


@in_graph
def container(graph: dict[str, Any], code: str) -> None:
    signature = graph["graph_module"]["module_call_graph"][0]["signature"]
    signature["in_spec"] = signature["in_spec"].replace("builtins.tuple", "collections.namedtuple")


ATTACKS = [
    *(pickled_weight, pickled_constant, pickled_examples, pickled_weights_of_old, library),
    *(function, file_opener, operator_argument, input_name, tensor_name, guard, size, container),
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_could_run_code_is_refused(
    backend: PyTorchBackend, archive: Path, tmp_path: Path, attack: Callable[..., None]
) -> None:
    trace = tmp_path / "trace"
    broken = rewritten(archive, tmp_path / "bad.pt2", lambda records: attack(records, trace))
    with pytest.raises(QuadranasError, match=r"bad\.pt2 contains .*, which quadranas neither"):
        backend.load(broken, SHAPE)
    assert not trace.exists()


def test_an_archive_that_was_only_packed_again_is_read(
    backend: PyTorchBackend, archive: Path, tmp_path: Path
) -> None:
    """So it is the attack that is refused above."""
    again = rewritten(archive, tmp_path / "again.pt2", lambda records: None)
    assert backend.count_operators(again) == backend.count_operators(archive)
    images = torch.randn(SHAPE)
    outputs = [backend.load(path, SHAPE).run(images) for path in (again, archive)]
    assert torch.equal(*outputs)


def test_pytorch_itself_would_run_the_code(archive: Path, tmp_path: Path) -> None:
    """As of 2.13; once it does not, less has to be looked at."""
    trace = tmp_path / "trace"
    broken = rewritten(
        archive, tmp_path / "bad.pt2", lambda records: pickled_weight(records, trace)
    )
    with suppress(Exception), broken.open("rb") as file:
        torch.export.load(file)
    assert trace.exists()


def test_two_records_of_one_name_are_refused(
    backend: PyTorchBackend, archive: Path, tmp_path: Path
) -> None:
    path = tmp_path / "twice.pt2"
    path.write_bytes(archive.read_bytes())
    with (
        zipfile.ZipFile(path, "a") as content,
        pytest.warns(UserWarning, match="Duplicate name"),
    ):
        content.writestr(content.namelist()[0], b"")
    with pytest.raises(QuadranasError, match="two records of one name"):
        backend.load(path, SHAPE)


def test_an_archive_says_nothing_of_this_machine(backend: PyTorchBackend, tmp_path: Path) -> None:
    space = load_space("toy")
    network = build_subnet(space.extreme(lambda spec: spec.kernel_size, largest=True)).eval()
    backend.convert(network, Conversion(input_shape=(1, 3, 32, 32)), tmp_path / "net.pt2")
    content = (tmp_path / "net.pt2").read_bytes()
    assert b"stack_trace" not in content
    assert str(Path(torch.__file__).parent).encode() not in content
    assert str(Path(__file__).parents[2]).encode() not in content
    assert b"blocks.stage1_block1.quadratic_depthwise" in content


def test_pytorch_itself_reads_the_archive(archive: Path) -> None:
    module = torch.export.load(archive).module()
    assert module(torch.zeros(2, 3, 8, 8)).shape == (2, 4)


def test_a_program_leaves_the_number_of_threads_alone(
    backend: PyTorchBackend, archive: Path
) -> None:
    before = torch.get_num_threads()
    two = PyTorchBackend(board(runtime="torch", threads=before + 1), Path())
    program = two.load(archive, SHAPE)
    found = []
    hook = program.module.register_forward_hook(lambda *_: found.append(torch.get_num_threads()))
    program.run(torch.zeros(SHAPE))
    hook.remove()
    assert found == [before + 1]
    assert torch.get_num_threads() == before
    with pytest.raises(QuadranasError, match=r"takes \(1, 3, 8, 8\), got \(1, 3, 9, 9\)"):
        program.run(torch.zeros(1, 3, 9, 9))


def test_what_pytorch_cannot_export_is_explained(backend: PyTorchBackend, tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(QuadranasError, match="Branching cannot be exported by PyTorch"):
        backend.convert(Branching(), Conversion(input_shape=SHAPE), tmp_path / "net.pt2")
