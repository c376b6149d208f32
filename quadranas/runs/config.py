"""The configuration of a search or a training run: written resolved into every run folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, PositiveFloat

from quadranas.data.augmentation import AugmentConfig
from quadranas.data.dataset import Dataset, load_dataset, native_side
from quadranas.data.folders import find_splits
from quadranas.files import read_yaml
from quadranas.latency.contract import DEFAULT_TOLERANCE
from quadranas.validation import Frozen, validate, validate_partial

DEFAULT_SPACE = "quadranet-mobile"
MIN_RESOLUTION = 32
NUM_DIGITS = 10


class WeightConfig(Frozen):
    """How weights are trained.

    Args:
        learning_rate: the peak; it rises linearly over `warmup_fraction` of the steps, then falls
            to zero by a cosine.
        label_smoothing: for weight steps only, never for architecture steps.
        clip_norm: of the gradient of the weights in use.
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: PositiveFloat = 4e-3
    weight_decay: float = Field(default=0.05, ge=0)
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1)
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    clip_norm: PositiveFloat = 2.0


class GateConfig(Frozen):
    """How architecture parameters are trained.

    Args:
        mode: `two_path` compares two sampled candidates per gate; `full` compares all with the
            memory of one path, by running the inactive ones again in the backward pass.
        learning_rate: of Adam with betas (0, 0.999), no weight decay.
        weight_steps: weight steps per architecture step.
    """

    mode: Literal["two_path", "full"] = "two_path"
    learning_rate: PositiveFloat
    weight_steps: int = Field(default=1, ge=1)


class ScheduleConfig(Frozen):
    """Epochs of each phase; an epoch of the supernet is one pass over the weights' half."""

    warmup_epochs: int = Field(ge=0)
    search_epochs: int = Field(ge=1)
    finetune_epochs: int = Field(ge=0)


class DataConfig(Frozen):
    """Which images, at which size, and the seed of everything drawn at random.

    Args:
        data: a folder or a zip; scikit-learn's digits if none.
        val: a second folder or zip, the test split.
        train_resolution: of the images in training; latency is always that of the space's
            deployment resolution.
    """

    data: str | None = None
    val: str | None = None
    skip_corrupt: bool = False
    seed: int = Field(default=0, ge=0, lt=2**31)
    train_resolution: int = Field(ge=8, le=1024)


class SearchConfig(DataConfig):
    """All that decides the result of `quadranas search`, and what is recorded beside it.

    Args:
        inspect: whether to record distributions of the quadratic layers in every epoch of the
            derived network's training.
    """

    device: str
    budget: str = Field(coerce_numbers_to_str=True)
    space: str = DEFAULT_SPACE
    table: str | None = None
    max_params: int | None = Field(default=None, ge=1)
    max_macs: int | None = Field(default=None, ge=1)
    confidence: float | None = Field(default=None, ge=0.5, lt=1)
    tolerance: float = Field(default=DEFAULT_TOLERANCE, ge=0, le=1)
    batch_size: int = Field(default=64, ge=2)
    checkpoint_seconds: float = Field(default=20.0, ge=0)
    schedule: ScheduleConfig
    weights: WeightConfig = WeightConfig()
    gates: GateConfig
    augment: AugmentConfig
    inspect: bool = False


class TrainConfig(DataConfig):
    """All that decides the result of `quadranas train`, and `inspect`, as of a search.

    Args:
        trainable: every parameter, or the quadratic terms of adapted layers alone.
    """

    epochs: int = Field(ge=1)
    trainable: Literal["all", "quadratic"] = "all"
    batch_size: int = Field(default=64, ge=2)
    checkpoint_seconds: float = Field(default=20.0, ge=0)
    weights: WeightConfig = WeightConfig()
    augment: AugmentConfig
    inspect: bool = False


Config = TypeVar("Config", bound=DataConfig)


def load_overrides(path: Path | None, model: type[DataConfig]) -> dict[str, Any]:
    """A partial configuration from YAML.

    Raises:
        QuadranasError: unreadable, an unknown key, or an impossible value.
    """
    if path is None:
        return {}
    content = read_yaml(path, "configuration")
    validate_partial(model, content, path)
    return content


def count_classes(overrides: Mapping[str, Any]) -> int:
    """Classes of the images a configuration names; only their folders are looked at.

    Raises:
        QuadranasError: there are no such images.
    """
    if overrides.get("data") is None:
        return NUM_DIGITS
    train, _ = find_splits(Path(overrides["data"]), overrides.get("val"))
    return len(train.class_names)


def open_data(overrides: Mapping[str, Any], largest: int, source: str | Path) -> Dataset:
    """Load the images a configuration names.

    Args:
        largest: bound of the default training resolution, which otherwise is the largest multiple
            of 32 that does not exceed the images' median shorter side.

    Raises:
        QuadranasError: a fault in the configuration or in the images.
    """
    content = {k: v for k, v in overrides.items() if k in DataConfig.model_fields}
    if "train_resolution" not in content:
        given = validate(DataConfig, content | {"train_resolution": MIN_RESOLUTION}, source)
        side = MIN_RESOLUTION
        if given.data is not None:
            side = native_side(given.data, val=given.val, seed=given.seed)
        content["train_resolution"] = max(min(side, largest) // 32 * 32, MIN_RESOLUTION)
    config = validate(DataConfig, content, source)
    return load_dataset(
        config.data,
        val=config.val,
        resolution=config.train_resolution,
        seed=config.seed,
        skip_corrupt=config.skip_corrupt,
    )


def resolve_config(
    model: type[Config], overrides: Mapping[str, Any], dataset: Dataset, source: str | Path
) -> Config:
    """Fill what a configuration leaves open with defaults that suit the data's size.

    Args:
        overrides: what was given, in file and command line.
        source: the file they came from, for messages.

    Raises:
        QuadranasError: an unknown key or an impossible value.
    """
    defaults = defaults_for(dataset, photos=overrides.get("data") is not None)
    accepted = {key: value for key, value in defaults.items() if key in model.model_fields}
    return validate(model, merged(accepted, overrides), source)


def defaults_for(dataset: Dataset, *, photos: bool) -> dict[str, Any]:
    """Schedule, rates and augmentation by number of training images.

    Up to 5,000 images: a short run. Up to 200,000: the recipe measured on CIFAR-10 with small
    QuadraNets. Beyond: ProxylessNAS's schedule (arXiv:1812.00332, Sec. 4.2).
    """
    size = len(dataset.train)
    common: dict[str, Any] = {
        "train_resolution": dataset.resolution,
        "augment": {"flip": photos, "crop_padding": max(1, dataset.resolution // 16)},
    }
    if size <= 5_000:
        return common | {
            "schedule": {"warmup_epochs": 10, "search_epochs": 30, "finetune_epochs": 20},
            "gates": {"learning_rate": 0.03},
            "epochs": 40,
        }
    if size <= 200_000:
        return common | {
            "batch_size": 128,
            "schedule": {"warmup_epochs": 10, "search_epochs": 30, "finetune_epochs": 40},
            "gates": {"learning_rate": 6e-3, "weight_steps": 2},
            "epochs": 60,
            "augment": {"flip": photos, "crop_padding": max(1, dataset.resolution // 8)},
        }
    return common | {
        "batch_size": 256,
        "schedule": {"warmup_epochs": 40, "search_epochs": 120, "finetune_epochs": 150},
        "weights": {"optimizer": "sgd", "learning_rate": 0.025, "weight_decay": 4e-5},
        "gates": {"learning_rate": 1e-3, "weight_steps": 5},
        "epochs": 150,
        "augment": {
            "flip": photos,
            "crop_padding": max(1, dataset.resolution // 8),
            "rand_augment_ops": 2,
            "mixup": 0.2,
        },
    }


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings merged; everything else replaced."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            value = merged(old, value)
        result[key] = value
    return result
