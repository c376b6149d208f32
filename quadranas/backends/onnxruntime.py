"""ONNX Runtime: save a network as ONNX, and run the file."""

import importlib
import logging
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quadranas.errors import MissingExtraError, QuadranasError
from quadranas.files import TEMPORARY

EXTRA = "onnxruntime"
OPSET = 18


def require_extra() -> None:
    """See that the packages of the extra are installed.

    Raises:
        MissingExtraError: names the extra.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingExtraError(
                f"exporting to ONNX needs the package {package!r}",
                f"Install it with: pip install 'quadranas[{EXTRA}]'",
            ) from error


def save(network: nn.Module, resolution: int, path: Path) -> None:
    """Write a network in evaluation mode as one ONNX file, for any batch size.

    The input is `images`, (batch, 3, resolution, resolution), float32; the output `logits`.
    The file appears whole or not at all.

    Raises:
        MissingExtraError: ONNX is not installed.
        QuadranasError: the file cannot be written.
    """
    require_extra()
    network.eval()
    example = (torch.zeros(2, 3, resolution, resolution),)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations (torch 2.13)
        program = torch.onnx.export(
            network,
            example,
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    temporary = path.with_name(f".{path.name}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        program.save(str(temporary), external_data=False)
        temporary.replace(path)
    except OSError as error:
        raise QuadranasError(
            f"cannot write {path}: {error.strerror or error}", "Choose another --output."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


class Session:
    """A loaded ONNX file on the CPU."""

    def __init__(self, path: Path) -> None:
        require_extra()
        import onnxruntime

        self.session: Any = onnxruntime.InferenceSession(
            str(path), providers=["CPUExecutionProvider"]
        )

    def run(self, images: Tensor) -> Tensor:
        """Shapes: (B, 3, H, W) to (B, num_classes), float32."""
        (logits,) = self.session.run(None, {"images": images.contiguous().numpy()})
        return torch.from_numpy(logits)
