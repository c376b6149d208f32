"""Fused depthwise convolutions: when they run, what they must move, and the kernels elsewhere."""

import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from quadranas.layers import fused_depthwise
from quadranas.layers.algebra import Branch
from quadranas.layers.fused_depthwise import floor_bytes
from quadranas.layers.quadratic import (
    QuadraticConv1d,
    QuadraticConv2d,
    QuadraticLayer,
    QuadraticLinear,
)
from tests.command_line import CHECKOUT

needs_triton = pytest.mark.skipif(
    not fused_depthwise.HAS_TRITON, reason="the package triton is not installed"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")


@needs_triton
@pytest.mark.parametrize("interpreted", [True, pytest.param(False, marks=needs_gpu)])
def test_the_kernels(interpreted: bool) -> None:
    """In a process of their own: Triton chooses its interpreter when it is imported."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--noconftest", "tests/layers/fused_kernels.py"],
        cwd=CHECKOUT,
        env=os.environ | {"TRITON_INTERPRET": str(int(interpreted))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@needs_triton
@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs the x86-64 build of ptxas")
def test_the_kernels_compile_for_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is needed for that; the interpreter accepts what the compiler does not."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from quadranas.layers import fused_depthwise_kernels as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = {"kernel_size": 3, "num_taps": 10, "tile_channels": 32, "channel_stride": 1}
    for kernel, more in (
        (kernels.forward_kernel, {"tile_pixels": 64}),
        (kernels.branch_gradients_kernel, {"tile_pixels": 64}),
        (kernels.input_gradient_kernel, {"tile_pixels": 64}),
        (kernels.taps_gradient_kernel, {"tile_pixels": 8, "tile_taps": 8}),
    ):
        fixed = constants | more
        types = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(fixed, "constexpr")
        types |= {name: "*fp16" for name in types if name.endswith("_ptr")}
        types |= {name: "*fp32" for name in types if name == "partial_ptr"}
        source = ASTSource(
            kernel, types, {(kernel.arg_names.index(n),): v for n, v in fixed.items()}
        )
        options = {"enable_fp_fusion": True}
        compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options)
        assert "fma.rn.f32" in compiled.asm["ptx"]
        assert compiled.asm["cubin"]


# ---------------------------------------------------------------- when

SHAPE = (2, 8, 5, 7)


def depthwise(**changes: Any) -> QuadraticConv2d:
    options: dict[str, Any] = {"kernel_size": 3, "padding": 1, "groups": 8, "out_channels": 8}
    return QuadraticConv2d(8, **(options | changes))


def accepted(
    layer: QuadraticLayer,
    shape: tuple[int, ...] = SHAPE,
    device: str = "cuda",
    dtype: torch.dtype = torch.float32,
) -> bool:
    """Of tensors that say they lie on a GPU."""
    with FakeTensorMode():
        x = torch.empty(shape, device=device, dtype=dtype)
        weights = [branch.get_parameter("weight") for branch in layer.branches.values()]
        branches = [
            Branch(torch.empty(w.shape, device=device, dtype=w.dtype), None) for w in weights
        ]
        norms: list[Any] = list(layer.norms.values())
        return fused_depthwise.runs_fused(layer.form, layer.operator, x, branches, norms)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The properties that the GPU says it has."""
    properties = SimpleNamespace(major=8)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(fused_depthwise, "HAS_TRITON", True)
    return properties


@pytest.mark.parametrize("changes", [
    {}, {"kernel_size": 1, "padding": 0}, {"kernel_size": 13, "padding": "same"},
    {"bias": False}, {"dtype": torch.float16}, {"dtype": torch.bfloat16},
], ids=str)  # fmt: skip
@pytest.mark.usefixtures("gpu")
def test_depthwise_layers_on_a_gpu_run_fused(changes: dict[str, Any]) -> None:
    assert accepted(depthwise(**changes), dtype=changes.get("dtype", torch.float32))


@pytest.mark.parametrize("changes", [
    {"form": "product"}, {"norm": True}, {"stride": 2}, {"padding": 0}, {"padding": 2},
    {"padding": "same", "dilation": 2}, {"kernel_size": 15, "padding": 7},
    {"kernel_size": (3, 5), "padding": (1, 2)}, {"kernel_size": 4, "padding": 2}, {"groups": 4},
    {"out_channels": 16}, {"dtype": torch.float64},
], ids=str)  # fmt: skip
@pytest.mark.usefixtures("gpu")
def test_other_layers_do_not(changes: dict[str, Any]) -> None:
    assert not accepted(depthwise(**changes), dtype=changes.get("dtype", torch.float32))


@pytest.mark.usefixtures("gpu")
def test_nor_do_other_inputs() -> None:
    layer = depthwise()
    assert accepted(layer)
    assert not accepted(layer, device="cpu")
    assert not accepted(layer, dtype=torch.float16)
    assert not accepted(layer, (0, *SHAPE[1:]))
    assert not accepted(layer, SHAPE[1:])
    assert not accepted(layer, (2**20, 8, 16, 16))
    assert not accepted(QuadraticLinear(8, 8), (8,))
    assert not accepted(QuadraticConv1d(8, 8, 3, padding=1, groups=8), (2, 8, 5))


def test_what_is_missing_leaves_the_layer_to_pytorch(
    gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.major = 7
    assert not accepted(depthwise())
    gpu.major = 9
    assert accepted(depthwise())
    monkeypatch.setattr(fused_depthwise, "HAS_TRITON", False)
    assert not accepted(depthwise())


@pytest.mark.usefixtures("gpu")
def test_an_exported_layer_consists_of_pytorchs_operations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert accepted(depthwise())
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert not accepted(depthwise())


# ---------------------------------------------------------------- how much


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_the_floor_is_every_tensor_once(dtype: torch.dtype, size: int) -> None:
    shape = (128, 64, 56, 56)
    image = 128 * 64 * 56 * 56 * size
    assert floor_bytes(shape, dtype, backward=False) == 2 * image
    assert floor_bytes(shape, dtype, backward=True) == 3 * image


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: it would be measured")
def test_the_benchmark_says_that_it_needs_a_gpu() -> None:
    done = subprocess.run(
        [sys.executable, "experiments/benchmark/kernels.py"],
        cwd=CHECKOUT,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"error: PyTorch {torch.__version__} finds no CUDA GPU here; these kernels need one",
        "Run it where there is one, with a CUDA build of torch and the extra 'triton'.",
    ]
