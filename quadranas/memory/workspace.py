"""Workspaces: memory that kernels use internally while they run, outside of tensors.

It depends on the library and the processor (oneDNN on an AVX-512 processor pads the weight
gradient of a depthwise convolution to 256 times its size), so it is measured: each distinct call
of the kernels known to use workspaces runs once, alone, at a small batch.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._pytree import tree_map_only

from quadranas.memory.tracker import Call, TensorLayout

aten = torch.ops.aten
BATCHED: dict[Any, tuple[int, ...]] = {
    aten.convolution.default: (0,),
    aten.convolution_backward.default: (0, 1),
    aten.native_batch_norm_backward.default: (0, 1),
    aten._transformer_encoder_layer_fwd.default: (0,),
    aten._native_multi_head_attention.default: (0, 1, 2),
    aten._scaled_dot_product_flash_attention_for_cpu.default: (0, 1, 2),
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: (0, 1, 2, 3, 4, 5),
}
"""The measured kernels, and the indices of their arguments with the batch on axis 0."""

PROBE_BATCHES = (16, 20)
"""Batches to extrapolate from; below 16 PyTorch chooses other convolution algorithms."""


def measure_workspaces(calls: Sequence[Call], device: torch.device) -> list[int]:
    """Peak memory of each call in bytes, beyond its arguments and results.

    Calls with a larger batch than the last of `PROBE_BATCHES` run at these two batches, and the
    results are extrapolated linearly.
    """
    if not calls:
        return []
    points, probes = [], []
    for call in calls:
        batch = call.arguments[BATCHED[call.operation][0]].shape[0]
        batches = (batch,) if batch <= PROBE_BATCHES[-1] else PROBE_BATCHES
        points.append((batch, batches))
        probes += [_at_batch(call, size) for size in batches]
    measure = _measure_cuda if device.type == "cuda" else _measure_cpu
    measured = iter(measure(probes, device))
    return [
        _extrapolated(batch, batches, [next(measured) for _ in batches])
        for batch, batches in points
    ]


def _extrapolated(batch: int, batches: Sequence[int], sizes: Sequence[int]) -> int:
    if len(batches) == 1:
        return sizes[0]
    per_sample = (sizes[1] - sizes[0]) / (batches[1] - batches[0])
    return max(0, round(sizes[1] + per_sample * (batch - batches[1])))


def _at_batch(call: Call, batch: int) -> Call:
    arguments = list(call.arguments)
    for index in BATCHED[call.operation]:
        layout = arguments[index]
        arguments[index] = replace(layout, shape=(batch, *layout.shape[1:]))
    return replace(call, arguments=tuple(arguments))


def _real(call: Call, device: torch.device) -> tuple[Any, ...]:
    arguments: tuple[Any, ...] = tree_map_only(
        TensorLayout, lambda layout: layout.zeros(device), call.arguments
    )
    return arguments


def _measure_cpu(calls: Sequence[Call], device: torch.device) -> list[int]:
    with (
        torch.no_grad(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler,
    ):
        for index, call in enumerate(calls):
            arguments = _real(call, device)
            with record_function(f"workspace {index}"):
                results = call.operation(*arguments, **call.options)
            del arguments, results
    events = _events(profiler)
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    times = [time for time, _ in changes]
    found = [0] * len(calls)
    for event in events:
        if not event.name().startswith("workspace "):
            continue
        first = bisect_left(times, event.start_ns())
        last = bisect_right(times, event.start_ns() + event.duration_ns())
        held = list(accumulate((size for _, size in changes[first:last]), initial=0))
        found[int(event.name().split()[1])] = max(held) - held[-1]
    return found


def _measure_cuda(calls: Sequence[Call], device: torch.device) -> list[int]:
    found = []
    for call in calls:
        arguments = _real(call, device)
        torch.cuda.reset_peak_memory_stats(device)
        results = call.operation(*arguments, **call.options)
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device)
        found.append(peak - torch.cuda.memory_allocated(device))
        del arguments, results
    return found


def _events(profiler: profile) -> list[Any]:
    finished = profiler.profiler
    assert finished is not None
    assert finished.kineto_results is not None
    return list(finished.kineto_results.events())


def held_at_once(profiler: profile) -> int:
    """Peak memory during a profile in bytes, beyond the memory in use at its start."""
    events = [event for event in _events(profiler) if event.name() == "[memory]"]
    sizes: list[int] = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(accumulate(sizes, initial=0))


def tensor_bytes(tensors: Sequence[Tensor]) -> int:
    """Bytes of the storages of tensors; each storage counts once."""
    return sum(
        {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values()
    )
