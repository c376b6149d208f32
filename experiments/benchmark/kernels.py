"""The fused depthwise convolution against three convolutions and the floor of bytes, on a GPU.

At the stages of QuadraNet36-T, channels_last: every way of computing the layer on the same
tensors, forward, and forward with backward. The floor is the least number of bytes that must move,
at the rate at which this GPU copies memory. Times are medians, with a cold cache.
"""

import argparse
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from quadranas.backends.cuda import fp32_arithmetic
from quadranas.cli.console import fail
from quadranas.errors import QuadranasError
from quadranas.extras import require_extra
from quadranas.files import source_commit, write_json
from quadranas.layers import algebra, fused_depthwise
from quadranas.layers.quadratic import QuadraticConv2d
from quadranas.space.reference import reference_architecture

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def median_ms(call: Callable[[], Any]) -> float:
    """Time of a call on the GPU."""
    from triton.testing import do_bench

    return float(do_bench(call, quantiles=[0.5]))


def copied_bytes_per_ms() -> float:
    """What the GPU's memory delivers: bytes read and written by a copy of 512 MiB."""
    source = torch.empty(2**29, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / median_ms(lambda: target.copy_(source))


def measure_stage(channels: int, size: int, kernel: int, batch: int, name: str) -> dict[str, Any]:
    """Milliseconds of every run, and the largest difference of the fused one from the others."""
    place: dict[str, Any] = {"device": "cuda", "dtype": DTYPES[name]}
    torch.manual_seed(0)
    layer = QuadraticConv2d(channels, channels, kernel, padding="same", groups=channels, **place)
    x = torch.randn(batch, channels, size, size, **place)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    gradient = torch.randn_like(x)
    branches = [algebra.Branch(b.weight, b.bias) for b in layer.branches.values()]  # type: ignore[arg-type]
    inputs, call = [x, *layer.parameters()], (layer.form, layer.operator, x, branches, ())

    torch.compiler.reset()  # so that each stage is compiled for its own shapes
    runs: dict[str, Callable[..., torch.Tensor]] = {
        "composition": algebra.direct,
        "recomputed": algebra.recomputed,
        "compiled": torch.compile(algebra.direct),
        "fused": fused_depthwise.fused,
    }
    forward_ms, training_ms, outputs = {}, {}, {}
    for run_name, run in runs.items():
        with torch.no_grad():
            outputs[run_name] = run(*call).float()
            forward_ms[run_name] = median_ms(lambda run=run: run(*call))  # type: ignore[misc]
        training_ms[run_name] = median_ms(
            lambda run=run: torch.autograd.grad(run(*call), inputs, gradient)  # type: ignore[misc]
        )
    error = (outputs["fused"] - outputs["composition"]).abs().max() / outputs["fused"].abs().max()
    bytes_moved = [
        fused_depthwise.floor_bytes(x.shape, x.dtype, backward=b) for b in (False, True)
    ]
    return {
        "setting": f"{name}, {batch} x {channels} x {size} x {size}, K {kernel}",
        "forward_ms": forward_ms,
        "forward_backward_ms": training_ms,
        "floor_bytes": {"forward": bytes_moved[0], "forward_backward": sum(bytes_moved)},
        "relative_difference": error.item(),
    }


def main() -> None:
    """Measure, print, and keep the figures in `--output`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--output", type=Path, help="folder to keep the figures in")
    args = parser.parse_args()
    try:
        if not torch.cuda.is_available():
            raise QuadranasError(
                f"PyTorch {torch.__version__} finds no CUDA GPU here; these kernels need one",
                "Run it where there is one, with a CUDA build of torch and the extra 'triton'.",
            )
        require_extra("triton", "triton")
    except QuadranasError as error:
        fail(error.message, error.hint, error.exit_code)
    ops = reference_architecture("quadranet36_t").ops()
    stages = {
        (op.in_channels, op.resolution, op.kernel_size)
        for op in ops
        if op.kind == "quadratic_depthwise"
    }
    rate = copied_bytes_per_ms()
    results: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda},
        "commit": source_commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "copied_gb_per_s": rate / 1e6,
        "stages": [],
    }
    print(f"{results['gpu']}, copies {results['copied_gb_per_s']:.0f} GB/s")
    with fp32_arithmetic(tensor_cores=False):
        for name in DTYPES:
            for stage in sorted(stages):
                found = measure_stage(*stage, args.batch_size, name)
                found["floor_ms"] = {k: v / rate for k, v in found["floor_bytes"].items()}
                results["stages"].append(found)
                print(found)
    if args.output:
        write_json(args.output / "kernels.json", results)


if __name__ == "__main__":
    main()
