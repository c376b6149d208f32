"""The last phase of a training: a few images at growing resolutions, up to that of deployment.

A network that was trained on small images is wrong about large ones, in which every object is
larger; a short training at the new resolution is enough to mend that (FixRes, arXiv:1906.06423).
Departure: large differences are bridged in stages, each with at most about twice the resolution
of the one before, and all layers are trained.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from quadranas.data.dataset import Dataset
from quadranas.errors import QuadranasError
from quadranas.network.weights import save_tensors
from quadranas.reporter import Reporter
from quadranas.runs import layout
from quadranas.runs.run_folder import RunFolder
from quadranas.training.loop import run_phase
from quadranas.training.network_phase import NetworkTraining
from quadranas.training.tracking import Tracker

MAX_GROWTH = 2.0
"""Ratio of the resolutions of neighbouring stages, before rounding to the network's stride."""

MIN_BATCH = 4
"""Minimum batch size of a stage. Batches shrink with the number of pixels, so that steps stay
short and there are enough of them."""

FEW_IMAGES = 1000
"""Number of training images below which a stage passes over them several times, up to this
number: a single pass over them would be too few steps."""

WARMUP_FRACTION = 0.05
"""Fraction of the phase over which the learning rate rises."""


@dataclass(frozen=True)
class Stage:
    """One resolution of the phase.

    Args:
        resolution: height and width of the images.
        num_steps: number of batches.
    """

    resolution: int
    batch_size: int
    num_steps: int

    @property
    def name(self) -> str:
        """Name of its training in checkpoints and in the progress."""
        return f"resolution-{self.resolution}"

    @property
    def pixels_per_step(self) -> int:
        """A measure of the cost of a step."""
        return self.batch_size * self.resolution**2


def plan_stages(
    trained: int, deployed: int, *, stride: int, batch_size: int, num_images: int
) -> tuple[Stage, ...]:
    """The stages between two resolutions; none if they are equal, or without images.

    Args:
        trained, deployed: resolution of the training and of deployment.
        stride: the network's stride, of which every resolution is a multiple.
        batch_size: that of the training.
        num_images: number of images per stage.
    """
    if trained == deployed or not num_images:
        return ()
    number = max(1, math.ceil(math.log(deployed / trained, MAX_GROWTH)))
    growth = (deployed / trained) ** (1 / number)
    between = (round(trained * growth**k / stride) * stride for k in range(1, number))
    sizes = sorted({size for size in between if trained < size < deployed} | {deployed})
    return tuple(_stage(size, batch_size * (trained / size) ** 2, num_images) for size in sizes)


def _stage(resolution: int, batch_size: float, num_images: int) -> Stage:
    size = max(MIN_BATCH, round(batch_size))
    return Stage(resolution, size, max(1, num_images // size))


def images_per_stage(num_images: int, available: int) -> int:
    """The number of images of a stage: those wanted, at most one pass, but see `FEW_IMAGES`."""
    return min(num_images, max(available, FEW_IMAGES))


def equivalent_steps(dataset: Dataset, deployed: int, *, batch_size: int, num_images: int) -> int:
    """The number of steps of the training that cost as much as the whole phase.

    Args:
        dataset: the images of the training.
        deployed, batch_size: see `plan_stages`.
        num_images: see `train_network`.
    """
    trained, num_images = dataset.resolution, images_per_stage(num_images, len(dataset.train))
    stages = plan_stages(trained, deployed, stride=1, batch_size=batch_size, num_images=num_images)
    cost = sum(stage.num_steps * stage.pixels_per_step for stage in stages)
    return round(cost / (batch_size * trained**2))


def train_network(
    training: NetworkTraining,
    folder: RunFolder | None,
    reporter: Reporter,
    checkpoint: Mapping[str, Any] | None,
    *,
    num_images: int,
    checkpoint_seconds: float,
    num_metrics: int = 0,
    tracker: Tracker | None = None,
) -> None:
    """Train a network at the resolution of its data, then at its deployment resolution.

    Args:
        training: the first phase.
        folder: the run folder; None in a process that does not write.
        checkpoint: a checkpoint of any of the phases; None to start at the beginning.
        num_images: number of images per stage of the last phase, as in `images_per_stage`.
        num_metrics: number of lines in `metrics.jsonl` before the first phase.
        tracker: receives the metrics too.

    Raises:
        QuadranasError: the checkpoint does not fit the run, or something cannot be written.
    """
    phases = {training.name: lambda: training, **_stages(training, num_images)}
    names = list(phases)
    if checkpoint is not None and checkpoint["phase"] not in names:
        raise QuadranasError(
            f"the newest checkpoint is of the phase {checkpoint['phase']!r}, which this run does "
            "not have",
            "Start a new run with another --output.",
        )
    for name in names[names.index(checkpoint["phase"]) if checkpoint else 0 :]:
        phase = phases[name]()
        num_metrics = run_phase(
            *(phase, folder, reporter, checkpoint),
            checkpoint_seconds=checkpoint_seconds,
            num_metrics=num_metrics,
            later_steps=_later_steps(phase, num_images),
            tracker=tracker,
        )
        checkpoint = None
        if folder is not None and phase.choice.keeps_best:
            save_tensors(phase.network.state_dict(), folder / layout.BEST)


def _later_steps(phase: NetworkTraining, num_images: int) -> int:
    """The number of steps of a phase that cost as much as all later phases."""
    assert phase.network.architecture is not None
    return equivalent_steps(
        phase.dataset,
        phase.network.architecture.resolution,
        batch_size=phase.batch_size,
        num_images=num_images,
    )


def _stages(first: NetworkTraining, num_images: int) -> dict[str, Callable[[], NetworkTraining]]:
    """Functions that begin the stages of the last phase, by their names."""
    architecture = first.network.architecture
    assert architecture is not None
    # Which sizes between the two a user's own model takes is unknown.
    is_own = architecture.model is not None
    stride = architecture.resolution if is_own else first.network.feature_strides[-1]
    stages = plan_stages(
        first.dataset.resolution,
        architecture.resolution,
        stride=stride,
        batch_size=first.batch_size,
        num_images=images_per_stage(num_images, len(first.dataset.train)),
    )
    optimizer = first.make_optimizer(first.network, first.weights)
    return {
        stage.name: partial(_begin, first, optimizer, stages, index)
        for index, stage in enumerate(stages)
    }


def _begin(
    first: NetworkTraining,
    optimizer: torch.optim.Optimizer,
    stages: Sequence[Stage],
    index: int,
) -> NetworkTraining:
    """The training of one stage, which continues that of the stage before."""
    stage = stages[index]
    # With AdamW the step that a batch bears grows with the square root of its size.
    highest = first.weights.learning_rate * math.sqrt(stage.batch_size / first.batch_size)
    return NetworkTraining(
        stage.name,
        first.network,
        first.dataset.at(stage.resolution),
        first.augmenter.at(stage.resolution / first.dataset.resolution),
        first.weights,
        num_epochs=1,
        num_images=stage.num_steps * stage.batch_size,
        batch_size=stage.batch_size,
        seed=first.seed,
        optimizer=optimizer,
        rate=lambda step: highest * rate_at(stages, index, step),
        metrics={"phase": "resolution", "epoch": index + 1, "resolution": stage.resolution},
        engine=first.engine,
        compiled=first.is_compiled,
        num_parts=first.batches.num_parts,
        checkpointing=first.network.checkpointing,
        teacher=first.teacher,
        distillation=first.distillation,
    )


def rate_at(stages: Sequence[Stage], index: int, step: int) -> float:
    """The learning rate in a step of a stage, as a fraction of its highest value.

    It rises linearly and falls along a cosine over all stages. They are weighted by their pixels,
    as most of the training is at the last resolution.
    """
    costs = [stage.num_steps * stage.pixels_per_step for stage in stages]
    done = (sum(costs[:index]) + step * stages[index].pixels_per_step) / sum(costs)
    if done < WARMUP_FRACTION:
        return (done + stages[0].pixels_per_step / sum(costs)) / WARMUP_FRACTION
    progress = (done - WARMUP_FRACTION) / (1 - WARMUP_FRACTION)
    return 0.5 * (1 + math.cos(math.pi * progress))
