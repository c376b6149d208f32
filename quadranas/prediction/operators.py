"""ONNX operators in terms of the primitives that device models price, before fusion."""

import math
from collections.abc import Collection
from dataclasses import dataclass, field

from quadranas.prediction.checks import CONVOLUTIONS
from quadranas.prediction.graph import Graph, Node, data_inputs
from quadranas.prediction.tensors import Shape
from quadranas.space.cost import Primitive

VIEWS = frozenset({"Identity", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})
PRODUCTS = frozenset({"Gemm", "MatMul"})
ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "PRelu", "ThresholdedRelu"})
SIGMOIDS = frozenset({"Sigmoid", "HardSigmoid", "HardSwish", "Swish"})
AFFINE = frozenset({"Add", "Sub", "Mul", "Div", "BatchNormalization"})
OTHER_ELEMENTWISE = frozenset(
    {
        *("Abs", "And", "BitShift", "Cast", "CastLike", "Ceil", "Celu", "Cos", "Elu", "Equal"),
        *("Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "IsNaN", "Less"),
        *("LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Neg", "Not", "Or", "Pow"),
        *("Reciprocal", "Round", "Selu", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sum"),
        *("Tanh", "Where", "Xor"),
    }
)
ELEMENTWISE = AFFINE | ACTIVATIONS | SIGMOIDS | OTHER_ELEMENTWISE
REDUCTIONS = frozenset(
    {
        *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1"),
        *("ReduceL2", "ReduceSumSquare", "ReduceLogSumExp"),
    }
)
NORMS = frozenset(
    {
        *("LayerNormalization", "InstanceNormalization", "GroupNormalization"),
        *("RMSNormalization", "LpNormalization", "MeanVarianceNormalization"),
    }
)
POOLS = frozenset(
    {
        *("MaxPool", "AveragePool", "LpPool"),
        *("GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool"),
    }
)
PASSES = NORMS | POOLS | REDUCTIONS | {"Softmax", "LogSoftmax", "Hardmax", "LRN", "ArgMax"}
JOINS = frozenset({"Concat", "Split"})
MOVES = frozenset(
    {
        *("Slice", "Gather", "GatherElements", "Transpose", "Pad", "Resize", "Upsample"),
        *("Expand", "Tile", "DepthToSpace", "SpaceToDepth"),
    }
)
PRICED = ELEMENTWISE | CONVOLUTIONS | PRODUCTS | PASSES | JOINS | MOVES
LAYOUTS = frozenset({(0, 2, 3, 1), (0, 3, 1, 2), (0, 2, 1)})
"""Permutations to and from channels-last, for images and sequences: free, because a runtime keeps
one layout throughout."""


@dataclass(kw_only=True, eq=False)
class Launch:
    """A kernel launch under construction.

    Args:
        nodes: the nodes that it computes.
        kind, in_channels, out_channels, reads, writes, num_macs, num_params: see `Primitive`.
        scales, shifts, activates: whether it absorbs a following factor per channel, summand per
            channel, or activation such as ReLU at no cost.
        clips, multiplies: whether it limits values, and multiplies tensors.
        weights: names of the constants that are counted in `num_params`.
    """

    nodes: list[Node]
    reads: int
    kind: str = "elementwise"
    in_channels: int = 1
    out_channels: int = 1
    writes: int = 0
    num_macs: int = 0
    num_params: int = 0
    scales: bool = False
    shifts: bool = False
    activates: bool = False
    clips: bool = False
    multiplies: bool = False
    weights: list[str] = field(default_factory=list)

    def read_weights(self, graph: Graph, node: Node) -> None:
        """Count the weights of a node."""
        names = weights_of(graph, node)
        self.num_params += sum(map(graph.size, names))
        self.weights += names

    @property
    def primitive(self) -> Primitive:
        """The launch in the form that device models price."""
        return Primitive(
            kind=self.kind,
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            reads=self.reads,
            writes=self.writes,
            num_macs=self.num_macs,
            num_params=self.num_params,
        )


def is_view(graph: Graph, node: Node, users: Collection[Node]) -> bool:
    """Whether a node moves no data: its output is a view of its first input.

    Args:
        users: the nodes that read its output.
    """
    before, after = (graph.shapes.get(name, ()) for name in (node.inputs[0], node.outputs[0]))
    if node.op in VIEWS:
        return True
    if node.op == "Pad":  # fused into a convolution or a pool, which pad their input anyway
        return bool(users) and all(user.op in CONVOLUTIONS | POOLS for user in users)
    if node.op == "Transpose":
        order = node.attributes.get("perm", tuple(reversed(range(len(before)))))
        # Axes of size 1 have no place in memory: if the others keep their order, so do the data.
        moved = [axis for axis in order if 0 <= axis < len(before) and before[axis] > 1]
        return order in LAYOUTS or (bool(before) and moved == sorted(moved))
    if node.op == "AveragePool":  # an adaptive pool whose output size is its input size
        return before == after and set(node.attributes.get("kernel_shape", ())) == {1}
    # A slice of everything, a sum over an axis of size 1, a concatenation of one tensor
    selects = node.op in ("Slice", "Expand", "Tile", "Concat", "Split", "ReduceMean", "ReduceSum")
    return selects and graph.size(node.inputs[0]) == graph.size(node.outputs[0]) > 0


def is_normalising(graph: Graph, node: Node) -> bool:
    """Whether a reduction is a step of a softmax or a norm: over one axis, with `keepdims`."""
    if node.op not in REDUCTIONS or not node.attributes.get("keepdims", 1):
        return False
    axes_input = node.inputs[1] if len(node.inputs) > 1 else ""  # an attribute in older files
    axes = node.attributes.get("axes", graph.values.get(axes_input, ()))
    return len(axes) == 1


def weights_of(graph: Graph, node: Node) -> list[str]:
    """The constants of a node that are weights: no scalars, axes, sizes, limits and the like."""
    names = dict.fromkeys(data_inputs(node))
    return [name for name in names if name in graph.weights and graph.size(name) > 1]


def spatial_dimensions(graph: Graph) -> set[int]:
    """The numbers of spatial dimensions of a graph's convolutions and pools."""
    nodes = [node for node in graph.nodes if node.op in CONVOLUTIONS | POOLS]
    ranks = {len(graph.shapes[n.inputs[0]]) for n in nodes if n.inputs[0] in graph.shapes}
    return {rank - 2 for rank in ranks}


def open_launch(graph: Graph, node: Node, inputs: Collection[str]) -> Launch | None:
    """The launch that a node opens, or None for an unknown operator.

    Args:
        inputs: the tensors that it reads, without weights.
    """
    launch = Launch(nodes=[node], reads=sum(map(graph.size, set(inputs))))
    launch.read_weights(graph, node)
    if node.op not in PRICED:
        return None
    if node.op in CONVOLUTIONS | PRODUCTS:
        if not _has_operands(graph, node):
            return None
        describe = _describe_product if node.op in PRODUCTS else _describe_convolution
        describe(graph, node, launch)
    elif node.op in PASSES:
        launch.scales = launch.shifts = node.op in NORMS
        launch.activates = node.op in POOLS
    elif node.op in JOINS | MOVES:  # only the elements that are written are read
        outputs = sum(graph.size(name) for name in node.outputs if name)
        launch.reads = min(launch.reads, outputs)
        launch.num_params = min(launch.num_params, outputs)
        launch.kind = "join" if node.op in JOINS else "elementwise"
    return launch


def _has_operands(graph: Graph, node: Node) -> bool:
    """Whether a node has two operands, and a convolution's weights enough dimensions."""
    if len(node.inputs) < 2 or not all(name in graph.shapes for name in node.inputs[:2]):
        return False
    return node.op in PRODUCTS or len(graph.shapes[node.inputs[1]]) > 2


def _describe_convolution(graph: Graph, node: Node, launch: Launch) -> None:
    """Fill in a convolution; the channels of a grouped one are those of a single group."""
    weights = graph.shapes[node.inputs[1]]
    groups = max(node.attributes.get("group", 1), 1)
    is_transposed = node.op == "ConvTranspose"
    in_channels, out_channels = _channels_of_a_group(weights, groups, is_transposed)
    kernel_area = math.prod(weights[2:])
    launch.kind = "pointwise" if kernel_area == 1 else "conv"
    if groups > 1 and in_channels == 1:
        launch.kind = "depthwise"
        in_channels, out_channels = groups, out_channels * groups
    launch.in_channels, launch.out_channels = in_channels, out_channels
    # Each output element sums weights[1] * kernel_area products. A transposed convolution is the
    # reverse: each input element is spread over as many outputs.
    elements = graph.size(node.inputs[0] if is_transposed else node.outputs[0])
    launch.num_macs = elements * weights[1] * kernel_area
    launch.scales = launch.shifts = launch.activates = True


def _channels_of_a_group(weights: Shape, groups: int, is_transposed: bool) -> tuple[int, int]:
    first, second = max(weights[0] // groups, 1), weights[1]
    return (first, second) if is_transposed else (second, first)


def _describe_product(graph: Graph, node: Node, launch: Launch) -> None:
    """Fill in a matrix product: kind `linear` for weights times one vector, else `pointwise`."""
    first, second = node.inputs[:2]
    has_weights = first in graph.constants or second in graph.constants
    left, output = graph.shapes[first], graph.shapes[node.outputs[0]]
    is_transposed = node.op == "Gemm" and node.attributes.get("transA", 0)
    depth = left[0 if is_transposed else -1] if left else 1
    vectors = graph.size(second if first in graph.constants else first) // depth
    is_linear = has_weights and vectors == 1 and len(output) <= 2
    launch.kind = "linear" if is_linear else "pointwise"
    launch.num_macs = graph.size(node.outputs[0]) * depth
    launch.in_channels = depth
    weights_first = first in graph.constants and len(output) > 1
    launch.out_channels = output[-2 if weights_first else -1] if output else 1
    launch.scales = launch.activates = True
    launch.shifts = has_weights
