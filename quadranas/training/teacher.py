"""Teachers: networks whose outputs another network learns to repeat (distillation)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ConfigDict
from torch import Tensor, nn
from torch.nn import functional

from quadranas.acceleration.engine import Engine
from quadranas.conversion.pretrained import TIMM, load_pretrained
from quadranas.conversion.pretrained_network import PretrainedNetwork
from quadranas.data.augmentation import Augmenter
from quadranas.data.dataset import Dataset, Triple
from quadranas.data.digests import digest_of as file_digest
from quadranas.data.preprocessing import Preprocessing, load_preprocessing
from quadranas.errors import QuadranasError
from quadranas.extras import require_extra
from quadranas.files import read_json, require_readable
from quadranas.network.weights import digest_of
from quadranas.runs import layout
from quadranas.runs.config import TrainingConfig
from quadranas.runs.stored_network import open_network
from quadranas.validation import Strict, validate

Compute = Callable[[Tensor], Tensor]
"""From images in the teacher's size and normalisation to logits, on the accelerator."""

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Teacher:
    """A network that is not trained, and what it expects of its images.

    Args:
        name: as configured.
        compute: its forward pass.
        resolution: height and width of its images, in pixels.
        digest: identifier of its weights.
        mean, std: its normalisation of pixels in [0, 1], (1, 3, 1, 1) on the accelerator; None:
            that of the training.
        class_names: the classes that it tells apart; None if unknown.
    """

    name: str
    compute: Compute
    resolution: int
    digest: str
    mean: Tensor | None = None
    std: Tensor | None = None
    class_names: tuple[str, ...] | None = None

    @torch.no_grad()
    def logits(self, images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """The teacher's logits for images of the training, (B, 3, R, R) to (B, num_classes).

        Args:
            mean, std: the normalisation of these images, (1, 3, 1, 1).
        """
        if self.mean is not None and self.std is not None:
            images = (images * std + mean - self.mean) / self.std
        if images.shape[-1] != self.resolution:
            images = functional.interpolate(
                images, size=(self.resolution,) * 2, mode="bilinear", antialias=True
            )
        return self.compute(images.contiguous(memory_format=torch.channels_last))


def open_teacher(
    config: TrainingConfig, dataset: Dataset, augmenter: Augmenter, engine: Engine
) -> Teacher | None:
    """The configured teacher, checked with one batch; None without one.

    Raises:
        QuadranasError: it cannot be opened, tells other classes apart, or refuses its images.
        MissingExtraError: a package for it is not installed.
    """
    name = config.teacher
    if name is None:
        return None
    weights = None if config.teacher_weights is None else Path(config.teacher_weights)
    if name.startswith(TIMM):
        teacher = _timm_teacher(name, weights, dataset.num_classes, engine)
    elif name.endswith(".onnx"):
        if weights is not None:
            raise QuadranasError(
                f"teacher {name} holds its weights, but teacher_weights names {weights}",
                "Omit teacher_weights.",
            )
        teacher = _onnx_teacher(Path(name), engine)
    else:
        teacher = _network_teacher(name, weights, engine)
    if config.teacher_resolution is not None:
        teacher = replace(teacher, resolution=config.teacher_resolution)
    _check(teacher, dataset, augmenter, engine)
    return teacher


def pretrained_teacher(
    network: PretrainedNetwork,
    config: TrainingConfig,
    dataset: Dataset,
    augmenter: Augmenter,
    engine: Engine,
) -> Teacher | None:
    """The network that a search starts from as its teacher; None if nothing is distilled.

    Args:
        dataset: with the normalisation of the network, if that is known.

    Raises:
        QuadranasError: the network refuses the images.
    """
    if not config.distillation.weight:
        return None
    size = config.teacher_resolution or network.resolution or dataset.resolution
    forward = _forward(network.network(), engine)
    teacher = Teacher(
        network.source, forward, size, network.digest, class_names=network.class_names
    )
    _check(teacher, dataset, augmenter, engine)
    return teacher


def _forward(network: nn.Module, engine: Engine) -> Compute:
    """The forward pass of a network of PyTorch, which moves to the accelerator."""
    engine.accelerator.place(network.eval().requires_grad_(False))
    return lambda images: engine.logits(network, images)


def _network_teacher(name: str, weights: Path | None, engine: Engine) -> Teacher:
    stored = open_network(name, weights)
    stored.require_weights(" (the key teacher_weights)")
    network = stored.network()
    return Teacher(
        name,
        _forward(network, engine),
        stored.architecture.resolution,
        digest_of(network.state_dict()),
        **_expected(stored.preprocessing, engine),
    )


def _expected(known: Preprocessing | None, engine: Engine) -> dict[str, Any]:
    """The fields of a teacher that describe its images."""
    if known is None:
        return {}
    statistics = _columns(known.mean, known.std, engine)
    return {**statistics, "class_names": known.class_names}


def _columns(mean: Triple | None, std: Triple | None, engine: Engine) -> dict[str, Any]:
    """Mean and standard deviation as tensors on the accelerator, if they are known."""
    values = {"mean": mean, "std": std}
    return {
        name: engine.accelerator.put(torch.tensor(found).view(1, 3, 1, 1))
        for name, found in values.items()
        if found is not None
    }


def _timm_teacher(name: str, weights: Path | None, num_classes: int, engine: Engine) -> Teacher:
    require_extra("timm", "timm")
    import timm

    options: dict[str, Any] = {"pretrained": True}
    if weights is not None:
        options = {"pretrained": False, "num_classes": num_classes}
    try:
        network = timm.create_model(name.removeprefix(TIMM), **options)
        expected = timm.data.resolve_model_data_config(network)
    except Exception as error:  # timm, huggingface_hub and the network each raise their own
        raise QuadranasError(
            f"timm cannot supply the teacher {name!r}: {error}",
            "Check the name with timm.list_models(), or name a file as teacher_weights.",
        ) from error
    if weights is not None:
        load_pretrained(network, weights)
    return Teacher(
        name,
        _forward(network, engine),
        expected["input_size"][-1],
        digest_of(network.state_dict()),
        **_columns(expected["mean"], expected["std"], engine),
    )


class _BundleInput(Strict):
    """The normalisation in the manifest of a bundle."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    mean: Triple | None = None
    std: Triple | None = None


class _BundleNote(Strict):
    """What a bundle's manifest says about the images of its network."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    input: _BundleInput = _BundleInput()
    class_names: tuple[str, ...] | None = None


def _onnx_teacher(path: Path, engine: Engine) -> Teacher:
    """An ONNX file in ONNX Runtime on the processor, to which the images travel."""
    require_extra("onnxruntime", "onnxruntime")
    import onnxruntime

    require_readable(path, "teacher")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session: Any = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's errors have no common class
        reason = str(error).splitlines()[0]
        raise QuadranasError(
            f"ONNX Runtime cannot read the teacher {path}: {reason}", "Export the file again."
        ) from error
    shape = _input_shape(session, path)
    return Teacher(
        str(path),
        _onnx_forward(session, shape[0], engine),
        next((side for side in shape[2:] if isinstance(side, int)), 0),
        file_digest(path, whole=True),
        **_note_beside(path, engine),
    )


def _input_shape(session: Any, path: Path) -> list[Any]:
    """The shape of the only input: (B, 3, R, R), in which all may be open: None or a name."""
    inputs = session.get_inputs()
    shape = list(inputs[0].shape)
    is_image = len(inputs) == 1 and len(shape) == 4 and inputs[0].type == "tensor(float)"
    fixed = [
        {side for side in sides if isinstance(side, int)} for sides in (shape[1:2], shape[2:])
    ]
    if not is_image or not fixed[0] <= {3} or len(fixed[1]) > 1:
        found = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
        raise QuadranasError(
            f"teacher {path} takes {found}; a teacher takes square images, float [B, 3, R, R]",
            "Export it with one input of this shape.",
        )
    return shape


def _onnx_forward(session: Any, batch: Any, engine: Engine) -> Compute:
    name, output = session.get_inputs()[0].name, session.get_outputs()[0].name

    def compute(images: Tensor) -> Tensor:
        pixels = images.float().cpu().contiguous().numpy()
        size = batch if isinstance(batch, int) else len(pixels)
        outputs = []
        for start in range(0, len(pixels), size):
            part = pixels[start : start + size]
            padded = np.concatenate([part, part[:1].repeat(size - len(part), 0)])
            outputs.append(np.atleast_1d(session.run([output], {name: padded})[0])[: len(part)])
        return engine.accelerator.put(torch.from_numpy(np.concatenate(outputs)))

    return compute


def _note_beside(path: Path, engine: Engine) -> dict[str, Any]:
    """Normalisation and classes of a file from what lies beside it: a manifest or a run."""
    manifest, preprocessing = path.with_name(MANIFEST), path.with_name(layout.PREPROCESSING)
    if manifest.is_file():
        note = validate(_BundleNote, read_json(manifest, "manifest"), manifest)
        columns = _columns(note.input.mean, note.input.std, engine)
        return {**columns, "class_names": note.class_names}
    return _expected(
        load_preprocessing(preprocessing) if preprocessing.is_file() else None, engine
    )


def _check(teacher: Teacher, dataset: Dataset, augmenter: Augmenter, engine: Engine) -> None:
    """Compare the classes, and send one batch through the teacher.

    Raises:
        QuadranasError: other classes, or images that it refuses.
    """
    if not teacher.resolution:
        raise QuadranasError(
            f"teacher {teacher.name} takes images of any size",
            "Set teacher_resolution to the size that it was trained at.",
        )
    pixels = engine.accelerator.put(dataset.train.batch(torch.arange(min(2, len(dataset.train)))))
    statistics = augmenter.statistics(pixels.device)
    try:
        logits = teacher.logits(augmenter.plain(pixels), *statistics)
    except QuadranasError:
        raise
    except Exception as error:  # of PyTorch, or of ONNX Runtime, whose errors have no common class
        reason = str(error).splitlines()[0]
        raise QuadranasError(
            f"teacher {teacher.name} refuses images of {teacher.resolution} pixels: {reason}",
            "Set teacher_resolution to the size that it takes, or omit it.",
        ) from error
    _check_logits(teacher.name, logits, (len(pixels), dataset.num_classes))
    names = teacher.class_names
    if names is not None and names != dataset.class_names:
        pairs = zip_longest(names, dataset.class_names)
        first = next((a, b) for a, b in pairs if a != b)
        raise QuadranasError(
            f"teacher {teacher.name} was trained for other classes than those of the data; first: "
            f"{first[0]!r} instead of {first[1]!r}",
            "Name a teacher that was trained on these classes.",
        )


def _check_logits(name: str, logits: Tensor, expected: tuple[int, int]) -> None:
    """Refuse outputs that are no logits of the classes of the data.

    Args:
        expected: number of images, and of classes.
    """
    shape = tuple(logits.shape)
    if len(shape) != 2 or shape[0] != expected[0] or not logits.is_floating_point():
        raise QuadranasError(
            f"the first output of teacher {name} is {logits.dtype} {list(shape)} for "
            f"{expected[0]} images; expected: logits, float {list(expected)}",
            "Name a classifier whose first output are its logits.",
        )
    if shape != expected:
        raise QuadranasError(
            f"teacher {name} tells {shape[1]} classes apart; the data have {expected[1]}",
            "Name a teacher that was trained on these classes.",
        )
    if not logits.isfinite().all():
        raise QuadranasError(
            f"teacher {name} outputs numbers that are not finite",
            "Check its weights, and the mean and std in the file beside it.",
        )
