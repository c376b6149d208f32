"""Lowering: rewriting a network into the form that a runtime executes fastest.

Every pass takes a network in evaluation mode and returns one that is equal up to rounding.
Runtimes name the passes they use (`FileBackend.lowering`); networks are copied first. The ratios
were measured on two cores of an AMD EPYC, fp32, batch 1: `experiments/lowering/`.
Layouts: B, C, H, W; or channels last, for linear layers.
"""

import copy
from collections.abc import Callable, Iterable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from quadranas.layers.convnext import QuadraticConvNeXt
from quadranas.layers.quadranet import ChannelNorm, FeedForward, QuadraticDepthwise
from quadranas.layers.quadratic import QuadraticConv2d, QuadraticLayer

Pass = Callable[[nn.Module], nn.Module]


class DecomposedNorm(nn.Module):
    """LayerNorm in elementary operations, over the last axes or over channels."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.eps, sizes = norm.eps, norm.normalized_shape
        over_channels = isinstance(norm, ChannelNorm)
        self.axes = (1,) if over_channels else tuple(range(-len(sizes), 0))
        shape = (-1, 1, 1) if over_channels else sizes
        weight, bias = (  # absent if elementwise_affine or bias is false
            initial(sizes) if parameter is None else parameter.detach()
            for parameter, initial in ((norm.weight, torch.ones), (norm.bias, torch.zeros))
        )
        self.weight = nn.Parameter(weight.reshape(shape))
        self.bias = nn.Parameter(bias.reshape(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (..., C), or (B, C, H, W), to the same."""
        centred = x - x.mean(self.axes, keepdim=True)
        variance = (centred * centred).mean(self.axes, keepdim=True)
        return centred / torch.sqrt(variance + self.eps) * self.weight + self.bias


class ConvolutionalFeedForward(nn.Module):
    """A feed-forward part as 1x1 convolutions, with the layer scale folded into the last one.

    Attributes:
        before: the depthwise convolution before the part, in a ConvNeXt block.
    """

    def __init__(self, part: "FeedForward | QuadraticConvNeXt | UnscaledFeedForward") -> None:
        super().__init__()
        self.before = _before(part)
        self.norm = ChannelNorm(part.norm.normalized_shape[0]).to(part.norm.weight.dtype)
        self.norm.load_state_dict(part.norm.state_dict())
        self.expand, self.project = map(_pointwise, (part.expand, part.project))
        if isinstance(part, FeedForward | QuadraticConvNeXt):
            _scale([self.project], part.gamma)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) to (B, C, H, W)."""
        out: Tensor = self.project(functional.gelu(self.expand(self.norm(self.before(x)))))
        return x + out


class UnscaledDepthwise(nn.Module):
    """First half of a QuadraBlock, with the layer scale folded into the convolution."""

    def __init__(self, part: QuadraticDepthwise) -> None:
        super().__init__()
        self.norm, self.conv = part.norm, part.conv
        _scale(_scaled_branches(part.conv), part.gamma)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) to (B, C, H, W)."""
        out: Tensor = self.conv(self.norm(x))
        return x + out


class UnscaledFeedForward(nn.Module):
    """Second half of a QuadraBlock, with the layer scale folded into the last linear layer.

    Attributes:
        before: the depthwise convolution before it, in a ConvNeXt block.
    """

    def __init__(self, part: FeedForward | QuadraticConvNeXt) -> None:
        super().__init__()
        self.before = _before(part)
        self.norm, self.expand, self.project = part.norm, part.expand, part.project
        _scale(_scaled_branches(part.project), part.gamma)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) to (B, C, H, W)."""
        pixels = self.norm(self.before(x).permute(0, 2, 3, 1))  # (B, H, W, C)
        out: Tensor = self.project(functional.gelu(self.expand(pixels)))
        return x + out.permute(0, 3, 1, 2)  # (B, C, H, W)


class JoinedBranches(nn.Module):
    """A quadratic depthwise convolution as one depthwise convolution over three copies."""

    def __init__(self, layer: QuadraticConv2d) -> None:
        super().__init__()
        branches = list(layer.branches.values())
        first = branches[0]
        assert isinstance(first, nn.Conv2d)
        channels = 3 * first.in_channels
        self.conv = nn.Conv2d(
            channels,
            channels,
            first.kernel_size,  # type: ignore[arg-type]
            first.stride,  # type: ignore[arg-type]
            first.padding,  # type: ignore[arg-type]
            first.dilation,  # type: ignore[arg-type]
            groups=channels,
            bias=any(branch.bias is not None for branch in branches),
        )
        zeros = torch.zeros_like(first.weight[:, 0, 0, 0])
        for name, parameter in self.conv.named_parameters():
            parts = [getattr(branch, name) for branch in branches]  # only `c` may have a bias
            parameter.data = torch.cat([zeros if p is None else p.detach() for p in parts])

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) to (B, C, H', W')."""
        a, b, c = self.conv(torch.cat([x, x, x], 1)).chunk(3, 1)
        return torch.addcmul(c, a, b)


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Fold every BatchNorm that follows a convolution into the convolution."""
    for parent in network.modules():
        if isinstance(parent, nn.Sequential):
            for index, (conv, norm) in enumerate(pairwise(list(parent))):
                if (
                    isinstance(norm, nn.BatchNorm2d)
                    and norm.running_mean
                    is not None  # otherwise it uses the statistics of the batch
                ):
                    folded = _folded(conv, norm)
                    parent[index], parent[index + 1] = folded or (conv, norm)
    return network


def _folded(conv: nn.Module, norm: nn.BatchNorm2d) -> tuple[nn.Module, nn.Module] | None:
    """A convolution that does what a BatchNorm after it does, and nothing after it.

    Of a quadratic one the terms are scaled, and the linear term gets the bias.
    """
    if type(conv) is nn.Conv2d:
        return fuse_conv_bn_eval(conv, norm), nn.Identity()
    if not isinstance(conv, QuadraticConv2d) or conv.form != "hadamard" or len(conv.norms):
        return None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    _scale([conv.branches["a"]], scale if norm.weight is None else norm.weight * scale)
    linear = conv.branches["c"]
    assert isinstance(linear, nn.Conv2d)
    conv.add_module("c", fuse_conv_bn_eval(linear, norm))
    return conv, nn.Identity()


def fold_layer_scale(network: nn.Module) -> nn.Module:
    """Fold the layer scales of QuadraBlocks into the layers before them."""

    def folds(kind: type[nn.Module], layer: str) -> Callable[[nn.Module], bool]:
        return lambda module: (
            isinstance(module, kind) and bool(_scaled_branches(getattr(module, layer)))
        )

    network = _replaced(network, folds(QuadraticDepthwise, "conv"), UnscaledDepthwise)
    network = _replaced(network, folds(QuadraticConvNeXt, "project"), UnscaledFeedForward)
    return _replaced(network, folds(FeedForward, "project"), UnscaledFeedForward)


def decompose_layer_norm(network: nn.Module) -> nn.Module:
    """Write LayerNorm as elementary operations, for runtimes that lack it or fuse these."""
    return _replaced(network, lambda module: isinstance(module, nn.LayerNorm), DecomposedNorm)


def linear_as_convolution(network: nn.Module) -> nn.Module:
    """Replace the linear layers of feed-forward parts by 1x1 convolutions, without transposing.

    Parts whose norm is already decomposed are not changed.
    """

    def matches(module: nn.Module) -> bool:
        return (
            isinstance(module, FeedForward | QuadraticConvNeXt | UnscaledFeedForward)
            and type(module.norm) is nn.LayerNorm
            and all(type(layer) is nn.Linear for layer in (module.expand, module.project))
        )

    return _replaced(network, matches, ConvolutionalFeedForward)


def join_branches(network: nn.Module) -> nn.Module:
    """Compute the branches of quadratic depthwise convolutions in one convolution."""

    def matches(module: nn.Module) -> bool:
        return (
            isinstance(module, QuadraticConv2d)
            and module.form == "hadamard"
            and not len(module.norms)
            and isinstance(module.a, nn.Conv2d)
            and module.a.groups == module.in_channels == module.out_channels
        )

    return _replaced(network, matches, JoinedBranches)


PASSES: dict[str, Pass] = {
    pass_.__name__: pass_
    for pass_ in (
        fold_batch_norm,
        fold_layer_scale,
        linear_as_convolution,
        decompose_layer_norm,
        join_branches,
    )
}


@torch.no_grad()
def lower(network: nn.Module, names: Iterable[str]) -> nn.Module:
    """Apply passes to a copy of a network, in evaluation mode."""
    lowered = copy.deepcopy(network).eval()
    for name in names:
        lowered = PASSES[name](lowered)
    return lowered.eval()


def _replaced(
    network: nn.Module, matches: Callable[[nn.Module], bool], make: Callable[..., nn.Module]
) -> nn.Module:
    """Replace all modules that match, possibly the network itself."""
    if matches(network):
        return make(network)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if matches(child):
                parent.add_module(name, make(child))
    return network


def _scaled_branches(layer: nn.Module) -> list[nn.Module]:
    """The layers to scale in order to scale a layer's output; empty if there are none."""
    if type(layer) in (nn.Linear, nn.Conv2d):
        return [layer]
    if not isinstance(layer, QuadraticLayer) or len(layer.norms):
        return []
    if layer.form in ("product", "hadamard"):
        return [branch for name, branch in layer.branches.items() if name != "b"]
    return []


def _scale(layers: Iterable[nn.Module], gamma: Tensor) -> None:
    """Multiply the outputs of layers, channel by channel."""
    for layer in layers:
        for parameter in layer.parameters(recurse=False):
            shape = (-1, *(1 for _ in parameter.shape[1:]))
            parameter.data = parameter.detach() * gamma.detach().reshape(shape)


def _before(part: "FeedForward | QuadraticConvNeXt | UnscaledFeedForward") -> nn.Module:
    if isinstance(part, UnscaledFeedForward):
        return part.before
    return part.conv if isinstance(part, QuadraticConvNeXt) else nn.Identity()


def _pointwise(layer: nn.Module) -> nn.Conv2d:
    assert isinstance(layer, nn.Linear)
    conv = nn.Conv2d(layer.in_features, layer.out_features, 1, bias=layer.bias is not None)
    conv.weight.data = layer.weight.detach()[:, :, None, None]
    if layer.bias is not None:
        conv.bias = nn.Parameter(layer.bias.detach())
    return conv
