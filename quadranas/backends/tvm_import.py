"""Networks in TVM's terms."""

import copy
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from quadranas.errors import QuadranasError


def import_network(network: nn.Module, input_shape: Sequence[int], target: Any) -> Any:
    """A network as kernels for a target, fused and not yet scheduled, and a main function.

    Raises:
        QuadranasError: PyTorch cannot export it, or TVM does not know one of its operations.
    """
    from tvm import relax
    from tvm.relax.frontend.torch import from_exported_program

    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch.export's own deprecations (torch 2.13)
            folded = fold_norms(copy.deepcopy(network).eval())
            exported = torch.export.export(folded, (torch.zeros(*input_shape),))
            module = from_exported_program(exported, unwrap_unit_return_tuple=True)
        with target:  # here, because TVM's default pipeline for CPUs does not fuse (0.27)
            return relax.get_pipeline("zero")(module)
    except Exception as error:  # TVM and PyTorch raise many kinds
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise QuadranasError(f"TVM cannot compile this network: {reason[-1]}") from error


def fold_norms(network: nn.Module) -> nn.Module:
    """Put every BatchNorm that follows a convolution into it: TVM 0.27 has no such pass."""
    for parent in network.modules():
        if isinstance(parent, nn.Sequential):
            for index, (conv, norm) in enumerate(pairwise(list(parent))):
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    parent[index], parent[index + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return network
