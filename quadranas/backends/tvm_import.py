"""Importing networks into TVM."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from quadranas.errors import QuadranasError


def import_network(network: nn.Module, input_shape: Sequence[int], target: Any) -> Any:
    """Import a network as fused, unscheduled kernels for a target, and a main function.

    Raises:
        QuadranasError: PyTorch cannot export it, or TVM lacks one of its operations.
    """
    from tvm import relax
    from tvm.relax.frontend.torch import from_exported_program

    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch.export's own deprecations (torch 2.13)
            exported = torch.export.export(network, (torch.zeros(*input_shape),))
            module = from_exported_program(exported, unwrap_unit_return_tuple=True)
        with target:  # here, because TVM's default pipeline for CPUs does not fuse (0.27)
            return relax.get_pipeline("zero")(module)
    except Exception as error:  # TVM and PyTorch raise many kinds
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise QuadranasError(f"TVM cannot compile this network: {reason[-1]}") from error
