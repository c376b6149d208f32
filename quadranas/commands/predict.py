"""predict: the latency of any ONNX classifier, from the analytic model of a device."""

import math
from pathlib import Path

from quadranas.errors import QuadranasError
from quadranas.latency.analytic import primitive_ms
from quadranas.latency.device import AnalyticModel, Device, load_device
from quadranas.prediction.fusion import fuse
from quadranas.prediction.graph import Node, read_graph
from quadranas.prediction.operators import Launch
from quadranas.validation import CommandResult, Frozen


class PredictedOperator(Frozen):
    """One kernel launch.

    Args:
        name: name of its first operator.
        ops: types of the operators that are fused in it.
        kind: kind of primitive in the analytic model.
        macs: number of multiply-accumulates.
        params: number of weights.
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
        nodes: their names.
    """

    op: str
    count: int
    nodes: tuple[str, ...]


class PredictResult(CommandResult):
    """The result of `quadranas predict`.

    Args:
        model: the ONNX file.
        inputs: shapes of its inputs.
        latency_ms: sum over the operators, at batch 1 unless the file has another.
        is_lower_bound: whether operators without a price are missing from the sum.
        device, title, precision, threads: description of the device.
        method: always `analytic`.
        runtime, fitted_to, expected_error: description of its model, see `AnalyticModel`.
        operators: the kernel launches in order.
        unpriced: the operators without a price, by type.
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


def predict(
    model: str | Path, *, device: str | Path | Device, resolution: int | None = None
) -> PredictResult:
    """Predict the latency of an ONNX file, operator by operator.

    Operators are priced by the analytic model that the device's analytic tables are made with.

    Args:
        model: an ONNX file.
        device: name, YAML file, or a device that is loaded already; it needs an analytic model.
        resolution: height and width of the input, if the file leaves them open.

    Raises:
        QuadranasError: the file cannot be read, or the device has no analytic model.
    """
    opened, path = load_device(device), Path(model)
    analytic = opened.analytic
    if analytic is None:
        raise QuadranasError(
            f"device {opened.name!r} has no analytic model to predict with",
            "Choose cpu, vpu or gpu, or add the section 'analytic' to the device's YAML file.",
        )
    graph = read_graph(path, resolution=resolution)
    launches, unpriced = fuse(graph)
    operators = tuple(_operator(launch, analytic, opened.precision) for launch in launches)
    return PredictResult(
        model=path,
        inputs=tuple(graph.shapes.get(name, ()) for name in graph.inputs),
        latency_ms=math.fsum(operator.latency_ms for operator in operators),
        is_lower_bound=bool(unpriced),
        macs=sum(operator.macs for operator in operators),
        params=sum(operator.params for operator in operators),
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
