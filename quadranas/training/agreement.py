"""What the processes of a training have to agree on before it starts."""

from pathlib import Path

from quadranas.acceleration.processes import Processes
from quadranas.data.dataset import Dataset
from quadranas.errors import QuadranasError
from quadranas.runs.config import TrainingConfig

SAME = "Start all processes with the same command, on machines that see the same files."


def check_batch_size(config: TrainingConfig, processes: Processes) -> None:
    """Refuse a batch size that cannot be split evenly, or in as many parts as configured.

    Raises:
        QuadranasError: names the nearest sizes.
    """
    size, count = config.batch_size, processes.count
    if size % count:
        lower = size // count * count
        nearest = " or ".join(str(near) for near in (lower, lower + count) if near)
        raise QuadranasError(
            f"a batch of {size} images cannot be split evenly among {count} processes",
            f"Set batch_size to {nearest}, or start another number of processes.",
        )
    if config.accumulate > size // count:
        raise QuadranasError(
            f"accumulate {config.accumulate} is more than the {size // count} images of a batch "
            "that a process computes",
            "Lower accumulate, or raise batch_size.",
        )


def check_command(given: TrainingConfig, processes: Processes, *arguments: object) -> None:
    """Refuse to begin if the processes were started with different commands.

    The main process alone decides, so that other options would be ignored without a word.

    Args:
        given: the given part of the configuration.
        arguments: the other arguments of the command; objects that are neither text, a path nor
            a flag are compared by their type.

    Raises:
        QuadranasError: names the processes that differ from the first one.
    """
    described = [
        str(value) if isinstance(value, str | Path | bool | None) else type(value).__name__
        for value in arguments
    ]
    command = given.model_dump_json(exclude_unset=True), described
    processes.require_equal("the command or configuration file", repr(command), SAME)


def check_agreement(config: TrainingConfig, dataset: Dataset, processes: Processes) -> None:
    """Refuse to train if the processes have different images or configurations.

    Raises:
        QuadranasError: names the processes that differ from the first one.
    """
    if processes.is_alone:
        return
    processes.require_equal("the configuration", config.model_dump_json(), SAME)
    labels = [split.labels.numpy().tobytes().hex() for split in (dataset.train, dataset.test)]
    names = [f.members for f in (dataset.files.train, dataset.files.test)] if dataset.files else []
    described = (dataset.class_names, dataset.resolution, dataset.mean, dataset.std, labels, names)
    processes.require_equal("the images", repr(described), SAME)
