"""predict: the latency of any ONNX classifier, from the analytic model of a device."""

import math
from pathlib import Path
from typing import Any

from quadranas.errors import QuadranasError
from quadranas.latency.analytic import primitive_ms
from quadranas.latency.device import AnalyticModel, Device
from quadranas.prediction.fusion import fuse
from quadranas.prediction.graph import Node, read_graph
from quadranas.prediction.operators import Launch


def predict(path: Path, device: Device, *, resolution: int | None = None) -> dict[str, Any]:
    """Price a file operator by operator, as the tables of the same device are priced.

    Args:
        resolution: height and width of the image, where the file leaves them open.

    Returns: latency_ms, at batch 1 unless the file has another; operators, one per kernel launch;
    unpriced, the operators left out, so that latency_ms is a lower bound if there are any;
    and where the numbers come from.

    Raises:
        QuadranasError: the file cannot be read, or the device has no analytic model.
    """
    model = device.analytic
    if model is None:
        raise QuadranasError(
            f"device {device.name!r} has no analytic model, which predictions are made from",
            "Choose cpu, vpu or gpu, or add the section 'analytic' to the device's YAML file.",
        )
    graph = read_graph(path, resolution=resolution)
    launches, unpriced = fuse(graph)
    operators = [_operator(launch, model, device.precision) for launch in launches]
    return {
        "model": str(path),
        "inputs": [list(graph.shapes.get(name, ())) for name in graph.inputs],
        "latency_ms": math.fsum(operator["latency_ms"] for operator in operators),
        "is_lower_bound": bool(unpriced),
        "macs": sum(operator["macs"] for operator in operators),
        "params": sum(operator["params"] for operator in operators),
        "device": device.name,
        "title": device.title,
        "method": "analytic",
        "runtime": model.runtime,
        "precision": device.precision,
        "threads": device.threads,
        "fitted_to": model.fitted_to,
        "expected_error": model.expected_error,
        "operators": operators,
        "unpriced": _by_type(unpriced),
    }


def _operator(launch: Launch, model: AnalyticModel, precision: str) -> dict[str, Any]:
    primitive = launch.primitive
    return {
        "name": launch.nodes[0].name,
        "ops": [node.op for node in launch.nodes],
        "kind": primitive.kind,
        "macs": primitive.num_macs,
        "params": primitive.num_params,
        "latency_ms": primitive_ms(primitive, model, precision),
    }


def _by_type(nodes: list[Node]) -> list[dict[str, Any]]:
    names: dict[str, list[str]] = {}
    for node in nodes:
        names.setdefault(node.op, []).append(node.name)
    return [{"op": op, "count": len(of), "nodes": of} for op, of in names.items()]
