"""predict: the latency of any ONNX classifier, from the analytic model of a device."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from quadranas.errors import QuadranasError
from quadranas.latency.analytic import BYTES, primitive_ms
from quadranas.latency.device import AnalyticModel, Device
from quadranas.prediction.fusion import fuse
from quadranas.prediction.graph import Graph, Node, read_graph
from quadranas.prediction.operators import Launch, spatial_dimensions, weights_of
from quadranas.runs.run_device import open_device_argument
from quadranas.validation import CommandResult, Frozen

LEAST_SHARE = 0.1
"""Share of the operators, and of the weights, that must have a price."""


class PredictedOperator(Frozen):
    """One kernel launch.

    Args:
        name: name of its first operator.
        ops: types of the operators that are fused in it.
        kind: kind of primitive in the analytic model.
        macs: number of multiply-accumulates.
        params: number of weights.
        latency_ms: latency of the launch.
    """

    name: str
    ops: tuple[str, ...]
    kind: str
    macs: int
    params: int
    latency_ms: float


class UnpricedOperators(Frozen):
    """The operators of one type that the model has no price for.

    Args:
        op: their type.
        count: number of operators of that type.
        nodes: their names.
    """

    op: str
    count: int
    nodes: tuple[str, ...]


class PredictResult(CommandResult):
    """The result of `quadranas predict`.

    Args:
        model: the ONNX file.
        inputs: shapes of its inputs: the number of elements in each dimension.
        latency_ms: sum over the operators, at batch 1 unless the file has another.
        is_lower_bound: whether operators without a price are missing from the sum.
        macs: number of multiply-accumulates of convolutions and matrix products.
        params: number of weights; those that several operators share count once.
        device, title: name of the device, and description of its hardware.
        precision: precision that the operators are priced in.
        threads: number of threads on the device.
        method: always `analytic`.
        runtime, fitted_to, expected_error: description of its model, see `AnalyticModel`.
        operators: the kernel launches in order.
        unpriced: the operators without a price, by type.
        file_precision: precision of the file's weights, such as `fp32`, or the type that it is
            quantised to, such as `int8`; `precision` is the one that it is priced in.
        notes: how the prediction departs from the file, or from what the device's model was fitted
            to.
    """

    model: Path
    inputs: tuple[tuple[int, ...], ...]
    latency_ms: float
    is_lower_bound: bool
    macs: int
    params: int
    device: str
    title: str
    method: str
    runtime: str
    precision: str
    threads: int | None
    fitted_to: str
    expected_error: str
    operators: tuple[PredictedOperator, ...]
    unpriced: tuple[UnpricedOperators, ...]
    file_precision: str
    notes: tuple[str, ...]


def predict(
    model: str | Path,
    *,
    device: str | Path | Device,
    resolution: int | None = None,
    inputs: Mapping[str, Sequence[int]] | None = None,
) -> PredictResult:
    """Predict the latency of an ONNX file, operator by operator.

    Operators are priced by the analytic model that the device's analytic tables are made with.

    Args:
        model: an ONNX file.
        device: name, YAML file, folder of a run, or an opened device, with an analytic model.
        resolution: height and width of the input, if the file leaves them open.
        inputs: whole shapes by the names of inputs, for other sizes that the file leaves open.

    Raises:
        QuadranasError: the file cannot be read, describes a network that no runtime can execute,
            or consists of operators without a price; a size remains open; or the device has no
            analytic model.
    """
    opened, path = open_device_argument(device), Path(model)
    analytic = _analytic_model(opened)
    graph = read_graph(path, resolution=resolution, inputs=inputs)
    launches, unpriced = fuse(graph)
    _require_known_share(path, graph, launches, unpriced)
    weights = [name for launch in launches for name in launch.weights]
    weights += [name for node in unpriced for name in weights_of(graph, node)]
    operators = tuple(_operator(launch, analytic, opened.precision) for launch in launches)
    return PredictResult(
        model=path,
        inputs=tuple(graph.shapes.get(name, ()) for name in graph.inputs),
        latency_ms=math.fsum(operator.latency_ms for operator in operators),
        is_lower_bound=bool(unpriced),
        macs=sum(operator.macs for operator in operators),
        params=graph.count_parameters(weights),
        device=opened.name,
        title=opened.title,
        method="analytic",
        runtime=analytic.runtime,
        precision=opened.precision,
        threads=opened.threads,
        fitted_to=analytic.fitted_to,
        expected_error=analytic.expected_error,
        operators=operators,
        unpriced=_by_type(unpriced),
        file_precision=graph.precision,
        notes=tuple(_notes(graph, opened)),
    )


def _analytic_model(device: Device) -> AnalyticModel:
    if device.analytic is None:
        raise QuadranasError(
            f"device {device.name!r} has no analytic model to predict with",
            "Choose one that `quadranas devices` lists with a model, or add the section "
            "'analytic' to the device's YAML file.",
        )
    return device.analytic


def _require_known_share(
    path: Path, graph: Graph, launches: Sequence[Launch], unpriced: Sequence[Node]
) -> None:
    """Refuse a prediction that leaves out most of the network.

    Raises:
        QuadranasError: less than a tenth of the operators, or of the weights, have a price.
    """
    if not unpriced:
        return
    num_priced = sum(len(launch.nodes) for launch in launches)
    priced = graph.count_parameters(name for launch in launches for name in launch.weights)
    others = graph.count_parameters(name for node in unpriced for name in weights_of(graph, node))
    shares = (num_priced / (num_priced + len(unpriced)), priced / max(priced + others, 1))
    if shares[0] >= LEAST_SHARE and (shares[1] >= LEAST_SHARE or not others):
        return
    known = "none" if not num_priced else f"only {num_priced}"
    names = ", ".join(dict.fromkeys(node.op for node in unpriced))
    raise QuadranasError(
        f"cannot predict {path}: {known} of its {num_priced + len(unpriced)} operators can be "
        f"priced, with {priced:,} of {priced + others:,} weights; without a price or a known "
        f"shape: {names[:200]}",
        "Measure it in its runtime, or export the network with standard ONNX operators and with "
        "the shapes of their results.",
    )


def _notes(graph: Graph, device: Device) -> Iterator[str]:
    """How the prediction departs from the file, or from what the model was fitted to."""
    own, priced = graph.precision, device.precision
    if graph.quantized and graph.quantized != priced:
        yield (
            f"The file is quantised to {own}; it is priced as {priced}, because {device.name} has "
            f"no {own} model. In {own} it takes another time, usually less."
        )
    elif priced == "int8" and not graph.quantized:
        yield f"The file is in {own}; it is priced as int8, as if it were quantised."
    elif BYTES.get(own, 8) < BYTES[priced]:
        yield f"The file is in {own}; it is priced as {priced}, the precision of {device.name}."
    others = sorted(spatial_dimensions(graph) - {2})
    if others:
        dims = " and ".join(map(str, others))
        yield (
            f"The file has convolutions or pools over {dims} spatial dimension(s); the model of "
            f"{device.name} was fitted to networks with 2, and its expected error does not apply."
        )


def _operator(launch: Launch, model: AnalyticModel, precision: str) -> PredictedOperator:
    primitive = launch.primitive
    return PredictedOperator(
        name=launch.nodes[0].name,
        ops=tuple(node.op for node in launch.nodes),
        kind=primitive.kind,
        macs=primitive.num_macs,
        params=primitive.num_params,
        latency_ms=primitive_ms(primitive, model, precision),
    )


def _by_type(nodes: list[Node]) -> tuple[UnpricedOperators, ...]:
    names: dict[str, list[str]] = {}
    for node in nodes:
        names.setdefault(node.op, []).append(node.name)
    return tuple(
        UnpricedOperators(op=op, count=len(of), nodes=tuple(of)) for op, of in names.items()
    )
