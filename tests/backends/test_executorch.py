"""ExecuTorch: what XNNPACK takes over, and threads that belong to the whole process."""

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from quadranas.backends.interface import Conversion
from quadranas.errors import QuadranasError
from quadranas.layers import build_op
from quadranas.space.operation import OpSpec
from tests.measuring import board

pytest.importorskip("executorch", reason="ExecuTorch is not installed")

from quadranas.backends.executorch import LOADED, ExecuTorchBackend

Scrambler = Callable[..., nn.Module]
BLOCK = [
    OpSpec(kind="quadratic_depthwise", in_channels=8, out_channels=8, kernel_size=3, resolution=8),
    OpSpec(kind="feed_forward", in_channels=8, out_channels=8, expand_ratio=2, resolution=8),
]
SHAPE = (1, 8, 8, 8)


def opened(threads: int | None) -> ExecuTorchBackend:
    return ExecuTorchBackend(board(runtime="executorch", threads=threads), Path())


@pytest.fixture(scope="module")
def file(scramble: Scrambler, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "block.pte"
    block = scramble(nn.Sequential(*map(build_op, BLOCK))).eval()
    opened(None).convert(block, Conversion(input_shape=SHAPE), path)
    return path


def test_only_norms_and_layouts_are_left_to_portable_kernels(file: Path) -> None:
    counts = opened(None).count_operators(file)
    portable = {kind: count for kind, count in counts.items() if "::" in kind}
    assert portable.pop("aten::native_layer_norm.out") == 2
    assert all(kind.startswith("dim_order_ops::") for kind in portable)
    assert counts["XNNDepthwiseConv2d"] == 3
    assert counts["XNNFullyConnected"] == 2  # the feed-forward part's
    assert counts["XNNGelu"] == 1


def test_the_number_of_threads_changes_only_while_no_program_is_in_use(file: Path) -> None:
    gc.collect()
    assert not len(LOADED)
    one = opened(1).load(file, SHAPE)
    images = torch.randn(SHAPE)
    output = one.run(images)
    assert torch.equal(opened(1).load(file, SHAPE).run(images), output)
    with pytest.raises(
        QuadranasError, match=r"with 2 threads.* loaded in .* run with 1\n"
    ) as caught:
        opened(2).load(file, SHAPE)
    assert "use another process" in caught.value.hint
    assert torch.equal(one.run(images), output)
    del one
    gc.collect()
    torch.testing.assert_close(opened(2).load(file, SHAPE).run(images), output)


def test_a_wrong_input_is_refused_and_the_next_one_works(file: Path) -> None:
    program = opened(None).load(file, SHAPE)
    with pytest.raises(QuadranasError, match=r"takes \(1, 8, 8, 8\), got \(1, 8, 9, 9\)"):
        program.run(torch.zeros(1, 8, 9, 9))
    assert program.run(torch.zeros(SHAPE)).shape == SHAPE


def test_what_cannot_be_converted_is_explained(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(QuadranasError, match="Branching cannot be converted for ExecuTorch"):
        opened(None).convert(Branching(), Conversion(input_shape=SHAPE), tmp_path / "net.pte")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "fp16"}, "'board': ExecuTorch on a CPU runs fp32, not fp16"),
        ({"target": "CPU"}, "takes no target, got 'CPU'"),
    ],
)
def test_impossible_devices_are_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(QuadranasError, match=message):
        ExecuTorchBackend(board(runtime="executorch", **changes), Path())
