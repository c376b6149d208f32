"""The kernel launches of an ONNX graph: operators that a runtime fuses form one launch.

- BatchNorm, bias and layer scale fold into the operator before them, if that has weights to absorb
  them, or is a sum or product of operators that have; ReLU and similar activations fold into
  convolutions, linear layers, pools, sums and products.
- A chain of element-wise operators that depend on one tensor alone is one launch: GELU, hard
  swish, softmax or LayerNorm, whichever operators a file uses for them.
- Reshape, Flatten, Identity, Dropout and changes of layout are free, as is padding before a
  convolution; values that depend on weights and shapes alone are constants.
- Operators that no output depends on are left out, as runtimes do.
- Unknown operators are returned unpriced.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from quadranas.prediction.graph import Graph, Node
from quadranas.prediction.operators import (
    ACTIVATIONS,
    AFFINE,
    ELEMENTWISE,
    PRICED,
    SIGMOIDS,
    Launch,
    is_normalising,
    is_view,
    open_launch,
    weights_of,
)


def fuse(graph: Graph) -> tuple[list[Launch], list[Node]]:
    """The launches of a graph in order, and the nodes whose latency cannot be predicted."""
    fusion = _Fusion(graph=graph)
    for node in fusion.take_out_views():
        fusion.take(node)
    fusion.count_writes()
    return fusion.launches, fusion.unpriced


@dataclass(kw_only=True)
class _Fusion:
    """One pass over a graph that opens launches and adds nodes to them.

    Args:
        aliases: per view, the tensor that it is a view of.
        users: per tensor, the number of nodes that read it or a view of it.
        makers: per tensor, the launch that writes it.
        sources: per tensor computed element by element, the one tensor that it depends on.
        regions: per source, the launch of all element-wise nodes that depend on it alone.
    """

    graph: Graph
    aliases: dict[str, str] = field(default_factory=dict)
    users: Counter[str] = field(default_factory=Counter)
    makers: dict[str, Launch] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    regions: dict[str, Launch] = field(default_factory=dict)
    launches: list[Launch] = field(default_factory=list)
    unpriced: list[Node] = field(default_factory=list)

    def variables(self, node: Node) -> list[str]:
        """The tensors that a node reads, without constants, with repetitions."""
        constants = self.graph.constants
        names = [name for name in node.inputs if name and name not in constants]
        return [self.aliases.get(name, name) for name in names]

    def is_read(self, node: Node) -> bool:
        """Whether an output of the network depends on a node."""
        return node.outputs[0] not in self.graph.unread

    def take_out_views(self) -> list[Node]:
        """Register the nodes that move no data as aliases, and return the others."""
        readers: dict[str, list[Node]] = {}
        for node in self.graph.nodes:
            for name in node.inputs:
                readers.setdefault(name, []).append(node)
        rest = []
        for node in self.graph.nodes:
            variables, output = self.variables(node), node.outputs[0]
            first_varies = node.inputs and node.inputs[0] not in self.graph.constants
            if first_varies and is_view(self.graph, node, readers.get(output, [])):
                self.aliases[output] = variables[0]
            else:
                rest.append(node)
                if self.is_read(node) or node.op not in PRICED:
                    self.users.update(set(variables))
        self.users.update(self.aliases.get(name, name) for name in self.graph.outputs)
        return rest

    def take(self, node: Node) -> None:
        """Add a node to a launch, open one for it, or list it as unpriced."""
        variables = self.variables(node)
        # A tensor of unknown shape has no size, and neither reads nor MACs can be counted.
        names = (*variables, *weights_of(self.graph, node), node.outputs[0])
        if not variables or not all(map(self.graph.size, names)):
            self.unpriced.append(node)
        elif node.op in ELEMENTWISE or is_normalising(self.graph, node):
            if self.is_read(node):
                self._take_elementwise(node, variables)
        else:
            launch = open_launch(self.graph, node, variables)
            if launch is None:
                self.unpriced.append(node)
            elif self.is_read(node):
                self._open(node, launch)

    def count_writes(self) -> None:
        """Add up the tensors that each launch writes: those read elsewhere, and the outputs.

        This needs all launches: a tensor that only its own launch reads stays in registers.
        """
        leaving = {self.aliases.get(name, name) for name in self.graph.outputs}
        joined = [(launch, node) for launch in self.launches for node in launch.nodes]
        readers: Iterable[tuple[Launch | None, Node]] = joined
        for reader, node in (*readers, *((None, node) for node in self.unpriced)):
            leaving |= {n for n in self.variables(node) if self.makers.get(n) is not reader}
        for name in sorted(leaving & self.makers.keys()):
            self.makers[name].writes += self.graph.size(name)

    def _open(self, node: Node, launch: Launch) -> None:
        self.launches.append(launch)
        self.makers |= dict.fromkeys(node.outputs, launch)

    def _join(self, node: Node, launch: Launch) -> None:
        launch.nodes.append(node)
        self.makers |= dict.fromkeys(node.outputs, launch)

    def _take_elementwise(self, node: Node, variables: list[str]) -> None:
        host = self._absorbing_launch(node, variables)
        if host is not None:
            self._fold(node, host)
            return
        # Element-wise results count as their source, so that a chain that forks and joins again
        # (x * sigmoid(x), the variance of a LayerNorm) still depends on one tensor.
        sources = {self.sources.get(name, name) for name in variables}
        if len(sources) > 1:
            self._open(node, self._pairwise(node, variables))
            return
        (source,) = sources
        region = self.regions.get(source)
        if region is None:
            region = Launch(nodes=[], reads=self.graph.size(source))
            self.regions[source] = region
            self.launches.append(region)
        region.read_weights(self.graph, node)
        self._join(node, region)
        self.sources |= dict.fromkeys(node.outputs, source)
        region.clips |= node.op == "Clip"
        region.multiplies |= node.op == "Mul" and len(variables) > 1
        # `x * clip(x + 3)` is a hard swish.
        if node.op in SIGMOIDS or (region.clips and region.multiplies):
            region.kind = "sigmoid"

    def _pairwise(self, node: Node, variables: list[str]) -> Launch:
        """A sum or product of tensors; it absorbs what the launches before it can absorb.

        A factor per channel moves into both summands, or into one factor of a product; a summand
        per channel moves into one summand.
        """
        launch = open_launch(self.graph, node, variables)
        assert launch is not None
        # A launch cannot absorb a factor if another node reads its output without it.
        before = [self.makers.get(name) if self.users[name] == 1 else None for name in variables]
        launch.activates = True
        if node.op in ("Add", "Sub"):
            launch.scales = all(maker is not None and maker.scales for maker in before)
            launch.shifts = any(maker is not None and maker.shifts for maker in before)
        elif node.op == "Mul":
            launch.scales = any(maker is not None and maker.scales for maker in before)
        return launch

    def _absorbing_launch(self, node: Node, variables: list[str]) -> Launch | None:
        """The launch that absorbs the node at no cost, or None."""
        launch = self.makers.get(variables[0])
        if launch is None or len(variables) > 1 or self.users[variables[0]] > 1:
            return None
        if node.op in ACTIVATIONS:
            return launch if launch.activates else None
        if node.op not in AFFINE or not all(map(self._is_per_channel, node.inputs)):
            return None
        is_reversed = node.inputs[0] in self.graph.constants
        if node.op == "Div" and is_reversed:
            return None
        # BatchNormalization scales and shifts; `constant - x` flips the sign, a scale of -1.
        scales = node.op not in ("Add", "Sub") or (node.op == "Sub" and is_reversed)
        shifts = node.op not in ("Mul", "Div")
        return launch if scales <= launch.scales and shifts <= launch.shifts else None

    def _is_per_channel(self, name: str) -> bool:
        """Whether a tensor is variable, or a constant with at most one axis above size 1."""
        shape = self.graph.shapes.get(name, ())
        return name not in self.graph.constants or sum(size > 1 for size in shape) <= 1

    def _fold(self, node: Node, launch: Launch) -> None:
        if node.op in ("Add", "Sub") and launch.num_macs:  # a bias is read, unlike a folded scale
            launch.read_weights(self.graph, node)
        self._join(node, launch)
        if node.op in ACTIVATIONS:  # weights cannot absorb anything across a nonlinearity
            launch.scales = launch.shifts = launch.activates = False
