"""Shapes: from the file where none can be inferred, and at a cost that its size bounds."""

import resource
import subprocess
import sys
from pathlib import Path

from onnx import TensorProto, helper

from quadranas.prediction.fusion import fuse
from quadranas.prediction.graph import read_graph
from tests.onnx_files import Weights, model, write

ROOT = Path(__file__).parents[2]


def test_shapes_in_the_file_are_used_behind_an_unknown_operator(tmp_path: Path) -> None:
    nodes = "a = Conv(x, w)\nm = MyAct(a)\nc = Conv(m, w)\ny = Relu(c)"
    whole = model(nodes, {"w": (8, 8, 1, 1)}, ("N", 8, 16, 16))
    whole.graph.node[1].domain = "my.ops"
    whole.opset_import.append(helper.make_opsetid("my.ops", 1))
    path = tmp_path / "net.onnx"

    def found() -> tuple[list[str], list[str]]:
        path.write_bytes(whole.SerializeToString())
        launches, unpriced = fuse(read_graph(path))
        return [launch.nodes[0].op for launch in launches], [node.op for node in unpriced]

    assert found() == (["Conv"], ["my.ops.MyAct", "Conv", "Relu"])
    shape = ("N", 8, 16, 16)  # the batch is 1 here as it is in the input
    whole.graph.value_info.append(helper.make_tensor_value_info("m", TensorProto.FLOAT, shape))
    assert found() == (["Conv", "Conv"], ["my.ops.MyAct"])


def test_an_inferred_shape_is_preferred_to_the_file(tmp_path: Path) -> None:
    whole = model("a = Relu(x)\ny = Abs(a)")
    wrong = helper.make_tensor_value_info("a", TensorProto.FLOAT, (9, 9))
    whole.graph.value_info.append(wrong)
    (tmp_path / "net.onnx").write_bytes(whole.SerializeToString())
    assert read_graph(tmp_path / "net.onnx").shapes["a"] == (1, 8, 16, 16)


def chain(operator: str, count: int) -> str:
    """Operators that each read the result of the one before, and an activation."""
    lines = [operator.format(i + 1, f"a{i}" if i else "x") for i in range(count)]
    return "\n".join([*lines, f"y = Relu(a{count})"])


HOSTILE: dict[str, tuple[str, Weights]] = {
    "shapes that double": (
        "a0 = Shape(x)\n"
        + "\n".join(f"a{i + 1} = Concat<axis=0>(a{i}, a{i})" for i in range(60))
        + "\ny = Reshape(x, a60)",
        {},
    ),
    "tensors that double": (chain("a{} = Tile({}, twice)", 60), {"twice": [1, 1, 2, 2]}),
    "axes that add up": (
        chain("a{} = Unsqueeze({}, axes)", 300),
        {"axes": list(range(1000))},
    ),
    "a sum of all with all": (
        "t = ConstantOfShape(s)\na = Reshape(t, first)\nb = Reshape(t, second)\n"
        "c = Reshape(t, third)\nd = Where(a, b, c)\ne = Reshape(d, flat)\ny = Reshape(x, e)",
        {
            **{"s": [1024], "first": [-1, 1, 1], "second": [1, -1, 1], "third": [1, 1, -1]},
            **{"flat": [-1]},
        },
    ),
    "a large constant": (
        "t = ConstantOfShape(s)\ny = Expand(x, t)",
        {"s": [2**40]},
    ),
    "reshapes by computed shapes": (
        "\n".join(
            f"s{i} = Shape({f'r{i - 1}' if i else 'x'})\ng{i} = Gather(s{i}, zero)\n"
            f"c{i} = Concat<axis=0>(g{i}, rest)\nr{i} = Reshape({f'r{i - 1}' if i else 'x'}, c{i})"
            for i in range(300)
        )
        + "\ny = Relu(r299)",
        {"zero": [0], "rest": [8, 16, 16]},
    ),
    "a long chain of element-wise operators": (chain("a{} = Clip({})", 3000), {}),
}


def limit_resources() -> None:
    """3 GB of memory and a minute of processor time."""
    resource.setrlimit(resource.RLIMIT_AS, (3 * 10**9, 3 * 10**9))
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))


def test_small_files_take_little_memory_and_time(tmp_path: Path) -> None:
    """Each file has at most some 100 kB; what they stand for does not fit any memory."""
    for name, (nodes, weights) in HOSTILE.items():
        write(tmp_path / f"{name}.onnx", nodes, weights)
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from quadranas.errors import QuadranasError\n"
        "from quadranas.prediction.fusion import fuse\n"
        "from quadranas.prediction.graph import read_graph\n"
        "for path in sorted(Path(sys.argv[1]).glob('*.onnx')):\n"
        "    try:\n        fuse(read_graph(path))\n"
        "    except QuadranasError:\n        pass\n"
        "    print(path.stem)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        preexec_fn=limit_resources,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == sorted(HOSTILE)


def test_the_last_shape_of_a_chain_of_reshapes(tmp_path: Path) -> None:
    nodes, weights = HOSTILE["reshapes by computed shapes"]
    assert read_graph(write(tmp_path / "net.onnx", nodes, weights)).shapes["y"] == (1, 8, 16, 16)


def test_a_tensor_of_many_axes_has_no_known_shape(tmp_path: Path) -> None:
    path = write(
        tmp_path / "net.onnx", "a = Unsqueeze(x, axes)\ny = Relu(a)", {"axes": list(range(61))}
    )
    assert "a" not in read_graph(path).shapes
