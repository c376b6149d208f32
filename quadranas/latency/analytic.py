"""Analytic device models: the latency of every primitive, from a few fitted numbers.

`t = max(MACs / (P_kind * c/(c+s)), bytes / B) + o` per kernel launch, where P is the throughput of
the primitive's kind, c the saturating channels, B the memory bandwidth, o the launch overhead and
bytes = inputs + outputs + weights. Folded primitives (BatchNorm, ReLU6, layer scale) are free;
LayerNorm, GELU, products and residual sums cost their memory traffic and one launch each, and so
do joins, unless the runtime lets tensors share memory. On some devices sigmoids cost extra.
"""

from quadranas.latency.device import AnalyticModel
from quadranas.space.cost import Primitive, primitives
from quadranas.space.operation import OpSpec

BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "int8": 1}
"""Bytes per element, by the precision of a device."""


def op_latency_ms(
    spec: OpSpec, model: AnalyticModel, precision: str, batch_size: int = 1
) -> float:
    """Latency of one operation, in milliseconds per call; arguments as in `primitive_ms`."""
    return sum(primitive_ms(p, model, precision, batch_size) for p in primitives(spec))


def primitive_ms(
    primitive: Primitive, model: AnalyticModel, precision: str, batch_size: int = 1
) -> float:
    """Latency of one kernel launch, in milliseconds.

    Analytic tables and the prediction of ONNX files both use this function. With several images
    a call, computation and activations are multiplied; weights are read, and kernels launched,
    once a call.

    Args:
        precision: precision of the device, such as `fp16`.
        batch_size: images per call, if the primitive is for one image.
    """
    if primitive.kind == "folded" or (primitive.kind == "join" and model.joins_in_place):
        return 0.0
    bytes_per_element = BYTES[precision]
    activations = batch_size * (primitive.reads + primitive.writes) * bytes_per_element
    weights = primitive.num_params * bytes_per_element
    weight_bandwidth = model.bandwidth_gb_per_s
    if primitive.kind == "linear" and model.linear_weights_gb_per_s is not None:
        weight_bandwidth = model.linear_weights_gb_per_s
    # GB/s is bytes per microsecond times 1e-3.
    memory_us = activations / model.bandwidth_gb_per_s / 1e3 + weights / weight_bandwidth / 1e3
    overhead_us = model.overhead_us
    if primitive.kind == "sigmoid":
        overhead_us += model.sigmoid_overhead_us
    compute_us = batch_size * _compute_us(primitive, model)
    return (max(compute_us, memory_us) + overhead_us) / 1e3


def _compute_us(primitive: Primitive, model: AnalyticModel) -> float:
    if primitive.num_macs == 0:
        return 0.0
    gmacs_per_s: float = getattr(model.gmacs_per_s, primitive.kind)
    inside = model.saturation_channels == "in"
    channels = primitive.in_channels if inside else primitive.out_channels
    efficiency = channels / (channels + model.saturation)
    return primitive.num_macs / (gmacs_per_s * efficiency) / 1e3
