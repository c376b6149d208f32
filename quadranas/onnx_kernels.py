"""The kernel launches of an ONNX graph: what a runtime fuses is one, what moves nothing is none.

- BatchNorm, bias and layer scale fold into the operator before them, if it has weights or a norm's
  scale to take them up; ReLU and its like fold into convolutions, linear layers, sums and products.
- A chain of element-wise operators that depend on one tensor alone is one launch: GELU, hard swish,
  softmax or LayerNorm, however a file spells them.
- Reshape, Flatten, Identity, Dropout and a mere change of layout are free, as is padding before a
  convolution; what depends on weights and shapes alone was computed beforehand.
- Whatever is not known here is listed, not guessed.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from quadranas.cost import Primitive
from quadranas.onnx_graph import Graph, Node, Shape

FREE = frozenset({"Identity", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})
CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "PRelu", "ThresholdedRelu"})
SIGMOIDS = frozenset({"Sigmoid", "HardSigmoid", "HardSwish", "Swish"})
AFFINE = frozenset({"Add", "Sub", "Mul", "Div", "BatchNormalization"})
ELEMENTWISE = (
    AFFINE
    | ACTIVATIONS
    | SIGMOIDS
    | frozenset(
        "Abs And BitShift Cast CastLike Ceil Celu Cos Elu Equal Erf Exp Floor Gelu Greater "
        "GreaterOrEqual IsNaN Less LessOrEqual Log Max Mean Min Mish Mod Neg Not Or Pow Reciprocal "
        "Round Selu Sign Sin Softplus Softsign Sqrt Sum Tanh Where Xor".split()
    )
)
REDUCTIONS = frozenset(
    "ReduceMean ReduceSum ReduceMax ReduceMin ReduceSumSquare ReduceL1 ReduceL2 ReduceLogSumExp "
    "ReduceProd".split()
)
NORMS = frozenset(
    "LayerNormalization InstanceNormalization GroupNormalization RMSNormalization "
    "LpNormalization MeanVarianceNormalization".split()
)
POOLS = frozenset(
    "MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool".split()
)
PASSES = NORMS | POOLS | REDUCTIONS | frozenset("Softmax LogSoftmax Hardmax LRN ArgMax".split())
MOVES = frozenset(
    "Concat Split Slice Gather GatherElements Transpose Pad Resize Upsample Expand Tile "
    "DepthToSpace SpaceToDepth".split()
)
LAYOUTS = frozenset({(0, 2, 3, 1), (0, 3, 1, 2), (0, 2, 1)})
"""Channels last and back, of images and of sequences: a runtime picks one layout and keeps it."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One launch, and the nodes of the file that it carries out."""

    nodes: tuple[Node, ...]
    primitive: Primitive


@dataclass(kw_only=True, eq=False)
class _Launch:
    """A kernel while nodes are still joining it.

    Args:
        reads: elements.
        scales, shifts, activates: what it can take up from the next node.
    """

    nodes: list[Node]
    reads: int
    kind: str = "elementwise"
    in_channels: int = 1
    out_channels: int = 1
    num_macs: int = 0
    num_params: int = 0
    writes: int = 0
    scales: bool = False
    shifts: bool = False
    activates: bool = False


@dataclass(kw_only=True)
class _Fusion:
    """Goes through a graph once, opening launches and joining nodes to them."""

    graph: Graph
    aliases: dict[str, str] = field(default_factory=dict)
    consumers: Counter[str] = field(default_factory=Counter)
    made_by: dict[str, _Launch] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    regions: dict[str, _Launch] = field(default_factory=dict)
    launches: list[_Launch] = field(default_factory=list)
    unpriced: list[Node] = field(default_factory=list)

    def run(self) -> None:
        """Find the launches."""
        following: dict[str, list[Node]] = {}
        for node in self.graph.nodes:
            for name in set(node.inputs):
                following.setdefault(name, []).append(node)
        rest = []
        for node in self.graph.nodes:
            variables = self.variables(node)
            if len(variables) == 1 and self._is_free(node, following.get(node.outputs[0], [])):
                self.aliases[node.outputs[0]] = variables[0]
            else:
                rest.append(node)
                self.consumers.update(set(variables))
        self.consumers.update(self.root(name) for name in self.graph.outputs)
        for node in rest:
            self._take(node)
        self._count_writes(rest)

    def root(self, name: str) -> str:
        """The tensor that a view shows."""
        return self.aliases.get(name, name)

    def variables(self, node: Node) -> list[str]:
        """The tensors a node reads that depend on the network's input; one for every mention."""
        constants = self.graph.constants
        return [self.root(name) for name in node.inputs if name and name not in constants]

    def parameters(self, node: Node) -> int:
        """Elements of the constants a node reads, single numbers and integers aside."""
        names = (n for n in node.inputs if n in self.graph.constants and self.size(n) > 1)
        return sum(self.size(name) for name in names if name not in self.graph.values)

    def size(self, name: str) -> int:
        """Elements of a tensor."""
        return math.prod(self.graph.shapes.get(name, (0,)))

    def _is_free(self, node: Node, following: list[Node]) -> bool:
        shapes, values = self.graph.shapes, self.graph.values
        if node.op in FREE:
            return True
        if node.op == "Pad":
            padded = CONVOLUTIONS | POOLS
            return bool(following) and all(user.op in padded for user in following)
        if node.op == "Transpose":
            shape = shapes.get(node.inputs[0], ())
            order = node.attributes.get("perm", tuple(reversed(range(len(shape)))))
            moved = [axis for axis in order if axis < len(shape) and shape[axis] > 1]
            return order in LAYOUTS or (bool(shape) and moved == sorted(moved))
        if node.op == "AveragePool":
            return set(node.attributes.get("kernel_shape", ())) == {1} and (
                shapes.get(node.inputs[0], 0) == shapes.get(node.outputs[0], 1)
            )
        # A slice or an expansion that takes the whole, a sum over a single element
        return (
            node.op in ("Slice", "Expand", "Tile", "ReduceMean", "ReduceSum", "Concat")
            and self.size(node.inputs[0]) == self.size(node.outputs[0]) > 0
            and node.inputs[0] not in values
        )

    def _take(self, node: Node) -> None:
        """Join a node to a launch, open one for it, or list it."""
        needed = [n for n in (*node.inputs, node.outputs[0]) if n]
        if any(not self.size(n) for n in needed if n not in self.graph.values):
            self.unpriced.append(node)
            return
        if node.op in ELEMENTWISE or self._is_normalising(node):
            self._take_elementwise(node)
        elif node.op in CONVOLUTIONS and len(self.graph.shapes[node.inputs[1]]) > 2:
            self._open(node, self._convolution(node))
        elif node.op in ("Gemm", "MatMul"):
            self._open(node, self._matmul(node))
        elif node.op in PASSES:
            launch = self._traffic(node)
            launch.scales = launch.shifts = node.op in NORMS
            launch.activates = node.op in POOLS
            self._open(node, launch)
        elif node.op in MOVES:
            launch = self._traffic(node)
            outputs = sum(self.size(name) for name in node.outputs if name)
            launch.reads = min(launch.reads, outputs)
            self._open(node, launch)
        else:
            self.unpriced.append(node)

    def _is_normalising(self, node: Node) -> bool:
        """Whether a reduction is a step of a softmax or a norm: one axis, which stays."""
        if node.op not in REDUCTIONS or not node.attributes.get("keepdims", 1):
            return False
        given = node.inputs[1] if len(node.inputs) > 1 else ""
        axes = node.attributes.get("axes", self.graph.values.get(given, ()))
        return len(axes) == 1

    def _open(self, node: Node, launch: _Launch) -> None:
        self.launches.append(launch)
        self._produce(node, launch)

    def _produce(self, node: Node, launch: _Launch) -> None:
        for name in node.outputs:
            self.made_by[name] = launch

    def _traffic(self, node: Node) -> _Launch:
        """A launch that reads what the node reads, each tensor once."""
        inputs = sorted(set(self.variables(node)))
        return _Launch(
            nodes=[node],
            reads=sum(map(self.size, inputs)),
            num_params=self.parameters(node),
        )

    def _take_elementwise(self, node: Node) -> None:
        variables = self.variables(node)
        launch = self._foldable(node, variables)
        if launch is not None:
            self._fold(node, launch)
            return
        sources = {self.sources.get(name, name) for name in variables}
        if len(sources) > 1:
            self._open(node, self._pairwise(node, variables))
            return
        (source,) = sources
        if source not in self.regions:
            region = _Launch(nodes=[], reads=self.size(source))
            self.regions[source] = region
            self.launches.append(region)
        region = self.regions[source]
        region.nodes.append(node)
        region.num_params += self.parameters(node)
        self._produce(node, region)
        self.sources |= dict.fromkeys(node.outputs, source)
        if node.op in SIGMOIDS or _is_hard_swish(region.nodes, self):
            region.kind = "sigmoid"

    def _pairwise(self, node: Node, variables: list[str]) -> _Launch:
        """A sum or product of tensors; what can be taken up by its operands, it can take up."""
        launch = self._traffic(node)
        makers = [self.made_by.get(name) for name in variables if self.consumers[name] == 1]
        takers = [maker for maker in makers if maker is not None]
        everywhere = len(takers) == len(variables)
        if node.op in ("Add", "Sub"):
            launch.scales = everywhere and all(taker.scales for taker in takers)
            launch.shifts = any(taker.shifts for taker in takers)
        elif node.op == "Mul":
            launch.scales = any(taker.scales for taker in takers)
        launch.activates = True
        return launch

    def _foldable(self, node: Node, variables: list[str]) -> _Launch | None:
        """The launch that takes the node up at no cost, if there is one."""
        launch = self.made_by.get(variables[0])
        if launch is None or len(variables) != 1 or self.consumers[variables[0]] != 1:
            return None
        if node.op in ACTIVATIONS:
            return launch if launch.activates else None
        if node.op not in AFFINE or not all(self._is_per_channel(n) for n in node.inputs):
            return None
        if node.op == "Div" and node.inputs[0] in self.graph.constants:
            return None
        subtracted = node.op == "Sub" and node.inputs[0] in self.graph.constants
        scales = node.op in ("Mul", "Div", "BatchNormalization") or subtracted
        shifts = node.op in ("Add", "Sub", "BatchNormalization")
        fits = (launch.scales or not scales) and (launch.shifts or not shifts)
        return launch if fits else None

    def _is_per_channel(self, name: str) -> bool:
        """Whether a tensor is variable, or one number per channel at most."""
        shape = self.graph.shapes.get(name, ())
        return name not in self.graph.constants or sum(dim > 1 for dim in shape) <= 1

    def _fold(self, node: Node, launch: _Launch) -> None:
        if node.op in ("Add", "Sub") and launch.kind in ("linear", "pointwise"):
            launch.num_params += self.parameters(node)  # the bias of a MatMul
        launch.nodes.append(node)
        self._produce(node, launch)
        if node.op in ACTIVATIONS:
            launch.scales = launch.shifts = launch.activates = False

    def _convolution(self, node: Node) -> _Launch:
        weights = self.graph.shapes[node.inputs[1]]
        kernel = math.prod(weights[2:])
        groups = node.attributes.get("group", 1)
        image = node.inputs[0] if node.op == "ConvTranspose" else node.outputs[0]
        in_channels, out_channels = self._channels(node, weights, groups)
        is_depthwise = groups > 1 and groups == self.graph.shapes[node.inputs[0]][1]
        kind = "depthwise" if is_depthwise else "pointwise" if kernel == 1 else "conv"
        launch = self._linear_map(node, kind)
        launch.num_macs = self.size(image) * weights[1] * kernel
        if is_depthwise:  # as many as there are; elsewhere every group is a convolution of its own
            in_channels, out_channels = groups, out_channels * groups
        launch.in_channels, launch.out_channels = in_channels, out_channels
        return launch

    def _channels(self, node: Node, weights: Shape, groups: int) -> tuple[int, int]:
        """Channels in and out of one group."""
        first = max(weights[0] // max(groups, 1), 1)
        return (first, weights[1]) if node.op == "ConvTranspose" else (weights[1], first)

    def _matmul(self, node: Node) -> _Launch:
        """A linear layer, or a product of two tensors; on a single vector its kind is `linear`."""
        shapes, constants = self.graph.shapes, self.graph.constants
        variable, other = node.inputs[:2]
        swapped = variable in constants
        if swapped:
            variable, other = other, variable
        output = shapes[node.outputs[0]] or (1,)
        left = shapes[node.inputs[0]]
        transposed = node.attributes.get("transA", 0) if node.op == "Gemm" else 0
        depth = left[0] if transposed else left[-1] if left else 1
        is_vector = len(output) <= 2 and self.size(variable) == depth and other in constants
        launch = self._linear_map(node, "linear" if is_vector else "pointwise")
        launch.num_macs = math.prod(output) * depth
        launch.in_channels = depth
        launch.out_channels = output[-2] if swapped and len(output) > 1 else output[-1]
        return launch

    def _linear_map(self, node: Node, kind: str) -> _Launch:
        launch = self._traffic(node)
        launch.kind = kind
        launch.scales = launch.activates = True
        launch.shifts = node.inputs[1] in self.graph.constants or kind != "pointwise"
        return launch

    def _count_writes(self, nodes: Iterable[Node]) -> None:
        """Add up what leaves each launch: tensors that another one reads, or the caller."""
        leaving = {self.root(name) for name in self.graph.outputs}
        for node in nodes:
            reader = self.made_by.get(node.outputs[0])
            for name in self.variables(node):
                if self.made_by.get(name) is not reader or reader is None:
                    leaving.add(name)
        for name in sorted(leaving & self.made_by.keys()):
            self.made_by[name].writes += self.size(name)


def _is_hard_swish(nodes: list[Node], fusion: _Fusion) -> bool:
    """Whether `x * clip(x + 3)` is among the nodes of a launch."""
    products = any(node.op == "Mul" and len(fusion.variables(node)) == 2 for node in nodes)
    return products and any(node.op == "Clip" for node in nodes)


def find_kernels(graph: Graph) -> tuple[list[Kernel], list[Node]]:
    """The launches of a graph in order, and the nodes that cannot be priced."""
    fusion = _Fusion(graph=graph)
    fusion.run()
    return [_finish(launch) for launch in fusion.launches], fusion.unpriced


def _finish(launch: _Launch) -> Kernel:
    primitive = Primitive(
        kind=launch.kind,
        in_channels=launch.in_channels,
        out_channels=launch.out_channels,
        reads=launch.reads,
        writes=launch.writes,
        num_macs=launch.num_macs,
        num_params=launch.num_params,
    )
    return Kernel(nodes=tuple(launch.nodes), primitive=primitive)
