"""BatchNorm over the images of all processes.

PyTorch's own `SyncBatchNorm` runs on CUDA only.
"""

import torch
from torch import Tensor, nn
from torch.distributed.nn import functional as differentiable
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from quadranas.acceleration.accelerator import widest


class SynchronizedBatchNorm(BatchNorm):
    """A BatchNorm whose training statistics are those of the whole batch, in every process.

    Shapes: (B, C) or (B, C, H, W), as the BatchNorm that it replaces.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        if x.ndim < 2:
            raise ValueError(f"expected at least 2 dimensions, got {x.ndim}")

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; in evaluation as any BatchNorm."""
        if not self.training:
            return super().forward(x)
        wide = widest(x.device)
        dims = [dim for dim in range(x.ndim) if dim != 1]
        sums = [x.sum(dims, dtype=wide), x.to(wide).square().sum(dims)]
        size = torch.full((1,), x.numel() / x.shape[1], dtype=wide, device=x.device)
        totals: Tensor = differentiable.all_reduce(torch.cat([*sums, size]))
        first, second, size = totals.split([x.shape[1], x.shape[1], 1])
        mean, size = first / size, size.detach()
        variance = (second / size - mean.square()).clamp(min=0)
        if self.track_running_stats:
            self._update_averages(mean.detach(), (variance * size / (size - 1)).detach())
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        shift = -mean * scale
        if self.bias is not None:
            shift = shift + self.bias
        shape = [1, -1, *(1 for _ in dims[1:])]
        scale, shift = (column.to(x.dtype).view(shape) for column in (scale, shift))
        return torch.addcmul(shift, x, scale)

    @torch.no_grad()
    def _update_averages(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        share = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            share = 1 / float(self.num_batches_tracked) if share is None else share
        assert share is not None
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(variance.to(self.running_var), share)


def synchronize(network: nn.Module) -> None:
    """Replace every BatchNorm of a network, in place; parameters and buffers are kept.

    Quadratic layers with norms then store their branches' outputs for the backward pass: to
    compute them again would need another exchange between the processes.
    """
    for module in network.modules():
        has_norms = any(isinstance(inner, BatchNorm) for inner in module.modules())
        if has_norms and getattr(module, "memory_efficient", False):
            module.memory_efficient = False  # type: ignore[assignment]
        for name, inner in module.named_children():
            if isinstance(inner, BatchNorm) and not isinstance(inner, SynchronizedBatchNorm):
                setattr(module, name, _replacement(inner))


def _replacement(norm: BatchNorm) -> SynchronizedBatchNorm:
    new = SynchronizedBatchNorm(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    )
    new.weight, new.bias = norm.weight, norm.bias
    new.running_mean, new.running_var = norm.running_mean, norm.running_var
    new.num_batches_tracked = norm.num_batches_tracked
    new.training = norm.training
    return new
