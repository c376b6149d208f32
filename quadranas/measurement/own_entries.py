"""Latencies of the parts of a user's own model, operator by operator.

Every candidate of a part is exported by itself, with the shape of its input in the model, and
priced by the analytic model of the device as `quadranas predict` does. What no search changes is
priced as the whole model less its parts.
"""

import math
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from quadranas.backends.interface import Conversion
from quadranas.backends.onnx_file import to_onnx
from quadranas.errors import QuadranasError, some
from quadranas.latency.analytic import primitive_ms
from quadranas.latency.device import AnalyticModel, Device
from quadranas.network.own_model import changed_part, given_model, part_inputs
from quadranas.network.skeleton import Network
from quadranas.prediction.fusion import fuse
from quadranas.prediction.graph import read_graph
from quadranas.reporter import Reporter
from quadranas.space.operation import OpSpec
from quadranas.space.own_space_file import REST
from quadranas.space.search_space import SearchSpace


def own_latencies_ms(
    space: SearchSpace, device: Device, model: AnalyticModel, reporter: Reporter
) -> dict[OpSpec, float]:
    """The latency of every operation of the space of a user's own model, in milliseconds.

    Raises:
        QuadranasError: the model was not given, a part cannot be exported, or has an operator
            without a price.
    """
    assert space.model is not None
    specs = space.specs()
    whole = given_model(space.model)
    inputs = part_inputs(whole, tuple(space.model.parts.values()), space.resolution)
    phase = reporter.phase("pricing", len(specs), 0)
    priced: dict[Any, float] = {}
    found: dict[OpSpec, float] = {}
    originals_ms = []
    for number, spec in enumerate(specs[:-1], start=1):
        own = spec.own_part
        image = inputs[own.layer]
        part = changed_part(whole.get_submodule(own.layer), own.layer, own.changes)
        key = _same_price(part, image)
        if key not in priced:
            priced[key] = _priced_ms(part, image, device, model, str(spec))
        found[spec] = priced[key]
        if not own.changes:
            originals_ms.append(priced[key])
        reporter.advance(phase, number)
    image = image.new_zeros(1, 3, space.resolution, space.resolution)
    total_ms = _priced_ms(whole, image, device, model, "the model")
    reporter.advance(phase, len(specs))
    found[specs[-1]] = max(total_ms - math.fsum(originals_ms), 0.0)
    return found


def _same_price(part: nn.Module, image: Tensor) -> Any:
    """Equal for parts of equal classes, layers and plain attributes, and inputs of a shape."""
    plain = (int, float, bool, str, tuple, type(None))
    attributes = tuple(
        (type(module), name, value)
        for module in part.modules()
        for name, value in sorted(vars(module).items())
        if isinstance(value, plain) and not (isinstance(value, tuple) and _is_unhashable(value))
    )
    return tuple(image.shape), repr(part), attributes


def _is_unhashable(value: tuple[Any, ...]) -> bool:
    try:
        hash(value)
    except TypeError:
        return True
    return False


def _priced_ms(
    part: nn.Module, image: Tensor, device: Device, model: AnalyticModel, described: str
) -> float:
    """The latency of a module that is exported by itself."""
    if image.ndim == 4:  # in the layout of a network, which some operators' lowering depends on
        part = Network({REST: part})
    content = to_onnx(part.eval(), Conversion(input_shape=tuple(image.shape)))  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.onnx"
        path.write_bytes(content)
        graph = read_graph(path)
    launches, unpriced = fuse(graph)
    if unpriced:
        names = some(list(dict.fromkeys(node.op for node in unpriced)))
        raise QuadranasError(
            f"cannot price {described}: the analytic model of {device.name} has no price for "
            f"{names}",
            "Write it with other operators; docs/prediction.md says which have a price.",
        )
    return math.fsum(
        primitive_ms(launch.primitive, model, device.precision, device.batch_size)
        for launch in launches
    )
