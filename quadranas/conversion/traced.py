"""A model as its graph of operations, and which layers in it could change.

The graph is that of `torch.export`; every operation knows the modules in whose code it is.
"""

import logging
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from quadranas.errors import QuadranasError
from quadranas.layers.resizing import CHANNELWISE, fits_kernel, is_depthwise, is_mixing, out_width
from quadranas.network.own_model import first_line

POINTWISE = {
    *("relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "silu", "gelu", "sigmoid", "tanh"),
    *("leaky_relu", "elu", "mish", "softplus", "dropout", "clone", "contiguous", "mul", "add"),
    *("clamp", "clamp_min", "abs", "neg", "square"),
}
"""Operations that treat every channel by itself, if all their tensors do."""


@dataclass(frozen=True)
class Call:
    """How a module was called in the example: whether by one tensor, and the shapes."""

    is_simple: bool
    in_shape: tuple[int, ...] = ()
    out_shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class HiddenPair:
    """Two layers between which every channel is treated by itself.

    Args:
        first, last: paths of the layers that make and that mix the channels.
        between: paths of the layers in between.
    """

    first: str
    between: tuple[str, ...]
    last: str
    width: int

    @property
    def layers(self) -> tuple[str, ...]:
        """The paths of all layers."""
        return (self.first, *self.between, self.last)


@dataclass(frozen=True)
class Traced:
    """A model, its graph, and how its modules were called.

    Args:
        scopes: per operation, the paths of the modules around it, the innermost last.
    """

    model: nn.Module
    output_shape: tuple[int, ...]
    calls: dict[str, Call]
    nodes: tuple[fx.Node, ...]
    scopes: dict[fx.Node, tuple[str, ...]]
    data: frozenset[fx.Node] = field(default_factory=frozenset)

    def layer_at(self, node: fx.Node) -> str:
        """The path of the innermost module that an operation is part of."""
        return self.scopes[node][-1] if self.scopes.get(node) else ""

    def inputs_of(self, node: fx.Node) -> list[fx.Node]:
        """The operations whose results an operation reads, without weights."""
        return [other for other in node.all_input_nodes if other in self.data]

    def residual_blocks(self, added: Iterable[str] = ()) -> list[str]:
        """Paths of the innermost modules that add their input to what they compute of it.

        Args:
            added: `added_blocks`; modules around some of them are none.
        """
        found = [name for name in self._simple() if self._is_residual(name)]
        inner = [*found, *added]
        return [n for n in found if not any(m.startswith(f"{n}.") for m in inner)]

    def added_blocks(self) -> list[str]:
        """Paths of the modules whose input is added to their output by the code around them.

        A module with one of these inside, and nothing else, is a residual block itself.
        """
        found = [name for name in self._simple() if self._is_added(name)]
        found = [n for n in found if not any(n.startswith(f"{m}.") for m in found)]
        for name in self._simple():
            inside = [n for n in found if n.startswith(f"{name}.")]
            if len(inside) == 1 and self._is_residual(name):
                found.remove(inside[0])
        return found

    def _simple(self) -> list[str]:
        return [name for name, call in self.calls.items() if call.is_simple and name]

    def _ends(self, name: str) -> tuple[fx.Node, fx.Node] | None:
        """What a module that keeps the shape reads and returns, if that is one tensor each."""
        call = self.calls[name]
        members = {node for node in self.nodes if name in self.scopes[node]}
        sources = {o for node in members for o in self.inputs_of(node) if o not in members}
        ends = [n for n in members if any(user not in members for user in n.users)]
        if call.in_shape != call.out_shape or len(sources) != 1 or len(ends) != 1:
            return None
        return sources.pop(), ends[0]

    def _is_residual(self, name: str) -> bool:
        ends = self._ends(name)
        return ends is not None and any(
            _operation(node) == "add"
            and ends[0] in node.args
            and any(name in self.scopes.get(other, ()) for other in self.inputs_of(node))
            for node in self.nodes
            if name in self.scopes[node]
        )

    def _is_added(self, name: str) -> bool:
        ends = self._ends(name)
        if ends is None:
            return False
        users = list(ends[1].users)
        return (
            len(users) == 1
            and name not in self.scopes.get(users[0], ())
            and _operation(users[0]) == "add"
            and set(users[0].args) == set(ends)
            and not users[0].kwargs
        )

    def hidden_pair(self, name: str) -> HiddenPair | str:
        """The pair that a layer begins, or why it begins none."""
        starts = [n for n in self.nodes if self.layer_at(n) == name and _is_layer(n)]
        layer = self.model.get_submodule(name)
        if not is_mixing(layer) or len(starts) != 1:
            return "its outputs cannot be cut"
        followers, members, last = dict[str, None](), {starts[0]}, None
        for node in self.nodes:
            read = [other for other in self.inputs_of(node) if other in members]
            if node in members or not read:
                continue
            path = self.layer_at(node)
            reader = self.model.get_submodule(path)
            is_called = _is_layer(node) and node.args[0] in members
            if is_called and is_mixing(reader) and last is None:
                last = node
                continue
            if not self._keeps_channels(node, members, reader):
                return f"its outputs are read by {_operation(node)} in {path or 'the model'}"
            members.add(node)
            followers |= {path: None} if _is_layer(node) else {}
        if last is None:
            return "no layer mixes its outputs"
        if any(
            user is not last and user not in members for node in members for user in node.users
        ):
            return "its outputs are used more than once"
        paths = (name, *followers, self.layer_at(last))
        if len(set(paths)) < len(paths) or any(not self.calls[p].is_simple for p in paths):
            return "one of its layers is called more than once"
        return HiddenPair(name, tuple(followers), paths[-1], out_width(layer))

    def _keeps_channels(self, node: fx.Node, members: set[fx.Node], reader: nn.Module) -> bool:
        if _is_layer(node):
            return is_depthwise(reader) or type(reader) in CHANNELWISE
        return _operation(node) in POINTWISE and all(n in members for n in self.inputs_of(node))

    def kernel_sizes(self, name: str) -> tuple[int, ...] | str:
        """The kernel sizes that a depthwise convolution can have, or why it has only its own."""
        layer = self.model.get_submodule(name)
        if not is_depthwise(layer):
            return "it is no depthwise convolution"
        assert isinstance(layer, nn.Conv2d)
        sizes = tuple(range(3, layer.kernel_size[0] + 1, 2))
        if len(sizes) < 2 or not all(fits_kernel(layer, size) for size in sizes):
            return "its kernel cannot shrink: it needs a square one of at least 5, padded by half"
        return sizes


def _operation(node: fx.Node) -> str:
    """The name of an operation, such as `add` for `aten.add_.Tensor`."""
    name = getattr(node.target, "_opname", None) or getattr(node.target, "__name__", "")
    return str(name).split(".")[0].rstrip("_")


def _is_layer(node: fx.Node) -> bool:
    """Whether an operation is that of a layer with weights."""
    return _operation(node) in ("conv2d", "linear", "batch_norm")


def traced(model: nn.Module, example: Tensor) -> Traced:
    """Run and export a model.

    Raises:
        QuadranasError: it fails on the example, returns no class scores, or cannot be exported.
    """
    calls, output = _called(model, example)
    program = _exported(model, example)
    weights = {
        *program.graph_signature.inputs_to_parameters,
        *program.graph_signature.inputs_to_buffers,
        *program.graph_signature.inputs_to_lifted_tensor_constants,
    }
    nodes = tuple(node for node in program.graph.nodes if node.op == "call_function")
    images = [n for n in program.graph.nodes if n.op == "placeholder" and n.name not in weights]
    scopes = {
        node: tuple(path for path, _ in node.meta.get("nn_module_stack", {}).values())
        for node in nodes
    }
    return Traced(model, tuple(output.shape), calls, nodes, scopes, frozenset((*nodes, *images)))


@torch.no_grad()
def _called(model: nn.Module, example: Tensor) -> tuple[dict[str, Call], Tensor]:
    calls: dict[str, list[Call]] = {}

    def watch(name: str) -> Iterator[torch.utils.hooks.RemovableHandle]:
        def keep(_: nn.Module, args: tuple[object, ...], kwargs: object, out: object) -> None:
            is_one = len(args) == 1 and isinstance(args[0], Tensor) and not kwargs
            if is_one and isinstance(out, Tensor):
                assert isinstance(args[0], Tensor)
                call = Call(True, tuple(args[0].shape), tuple(out.shape))
            else:
                call = Call(False)
            calls.setdefault(name, []).append(call)

        yield model.get_submodule(name).register_forward_hook(keep, with_kwargs=True)

    handles = [h for name, _ in model.named_modules() for h in watch(name)]
    try:
        output = model(example)
    except Exception as error:  # any error of the user's code
        raise QuadranasError(
            f"the model fails on the example of shape {tuple(example.shape)}: {first_line(error)}",
            "Give an example that the model takes, such as torch.zeros(1, 3, 224, 224).",
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(output, Tensor) or output.ndim != 2:
        what = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output)
        raise QuadranasError(
            f"the model returns {what}, expected class scores (images, classes)",
            "Wrap it in a module that returns the class scores alone.",
        )
    return {n: c[0] if len(c) == 1 else Call(False) for n, c in calls.items()}, output


def _exported(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    logging.getLogger("torch.export").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # about the user's code, in terms of the exporter
            return torch.export.export(model, (example,))
    except Exception as error:  # the exporter passes on any error of the user's code
        raise QuadranasError(
            f"the model does not export, so nothing can be searched in it: {first_line(error)}",
            "torch.export.export(model.eval(), (example,)) must succeed; see its message, and "
            "replace what depends on the values of tensors.",
        ) from error


def common_module(names: Iterable[str]) -> str:
    """The path of the innermost module around layers; empty for the model itself."""
    parts = [name.split(".") for name in names]
    shared = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return ".".join(shared)
