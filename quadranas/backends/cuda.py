"""NVIDIA GPUs through PyTorch: networks are captured as CUDA graphs and replayed."""

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from quadranas.backends.interface import Backend, Provenance
from quadranas.errors import DeviceLostError, QuadranasError
from quadranas.latency.device import Device

DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
WARM_UPS = 3
"""Number of calls before the capture, in which cuDNN and cuBLAS choose their kernels."""

ASKED = ("driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit")
"""Properties to query from nvidia-smi: constants that a GPU's speed depends on."""


class CudaBackend(Backend):
    """A GPU, selected by its number. Latencies exclude copies from and to the host.

    In eager PyTorch, kernel launches dominate at batch 1, so networks are deployed as graphs.
    """

    max_parallel = 1

    def __init__(self, device: Device, records: object) -> None:
        if not torch.cuda.is_available():
            raise QuadranasError(
                f"device {device.name!r}: PyTorch {torch.__version__} finds no CUDA device here",
                "Use a machine with an NVIDIA GPU and a CUDA build of torch.",
            )
        index = device.target or 0
        if not isinstance(index, int) or index >= torch.cuda.device_count():
            raise QuadranasError(
                f"device {device.name!r}: there is no CUDA device {device.target!r}; "
                f"found {torch.cuda.device_count()}",
                "Set 'target' to the number of a CUDA device, counted from 0.",
            )
        if device.precision not in DTYPES:
            raise QuadranasError(
                f"device {device.name!r}: CUDA runs {', '.join(DTYPES)}, not {device.precision}",
                "Set one of these with 'precision'.",
            )
        if device.threads is not None:
            raise QuadranasError(
                f"device {device.name!r}: a GPU has no thread count, got {device.threads}",
                "Remove the key 'threads'; for this machine's GPU, write a device file.",
            )
        self.place = torch.device("cuda", index)
        self.precision = device.precision

    def compile(self, network: nn.Module, input_shape: Sequence[int]) -> "CudaProgram":
        """See `Backend`."""
        dtype = DTYPES[self.precision]
        placed = deepcopy(network).eval().to(self.place, dtype)
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(*input_shape, generator=generator).to(self.place, dtype)
        try:
            with (
                torch.cuda.device(self.place),
                fp32_arithmetic(tensor_cores=self.precision == "tf32"),
            ):
                return CudaProgram(placed, images)
        except torch.cuda.OutOfMemoryError as error:
            raise QuadranasError(
                f"the GPU's memory is too small for {tuple(input_shape)}: {error}",
                "Use a smaller batch size.",
            ) from error

    def provenance(self) -> Provenance:
        """See `Backend`."""
        return Provenance(
            runtime=f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}, graph replay",
            hardware=torch.cuda.get_device_name(self.place),
            versions={"torch": torch.__version__, "cudnn": str(torch.backends.cudnn.version())},
            settings=_settings(self.place.index),
        )

    def close(self) -> None:
        """Return the memory of deleted programs to the GPU."""
        torch.cuda.empty_cache()


class CudaProgram:
    """A captured network, and its input and output tensors."""

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        self.network = network  # keeps the weights that the graph reads
        self.images = images
        self.graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                network(images)
        torch.cuda.current_stream().wait_stream(side)
        with torch.no_grad(), torch.cuda.graph(self.graph):
            self.output: Tensor = network(images)

    def run(self, images: Tensor) -> Tensor:
        """See `Program`."""
        self.images.copy_(images)
        self.graph.replay()
        return self.output.float().cpu()

    def time_ms(self, repeats: int) -> list[float]:
        """See `Program`."""
        device = self.images.device
        try:
            with torch.cuda.device(device):
                self.graph.replay()
                torch.cuda.synchronize()
                return [_replay_ms(self.graph) for _ in range(repeats)]
        except RuntimeError as error:
            raise DeviceLostError(
                f"GPU {device} no longer responds: {str(error).splitlines()[0]}",
                "Check it with nvidia-smi, then repeat the command.",
            ) from error


def _replay_ms(graph: torch.cuda.CUDAGraph) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


@contextmanager
def fp32_arithmetic(*, tensor_cores: bool) -> Iterator[None]:
    """Multiply fp32 numbers in tf32 on tensor cores, or in fp32; applies to captured graphs."""
    wanted = "tf32" if tensor_cores else "ieee"
    cudnn: Any = torch.backends.cudnn
    places = (torch.backends.cuda.matmul, cudnn.conv)
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = wanted
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


def _settings(index: int) -> dict[str, str]:
    """Driver, clocks and power limit, if nvidia-smi is installed."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    told = subprocess.run(
        [program, f"--id={index}", f"--query-gpu={','.join(ASKED)}", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    values = [value.strip() for value in told.stdout.strip().split(",")]
    return dict(zip(ASKED, values, strict=False)) if told.returncode == 0 else {}
