"""The configuration of a search or a training run: typed, and resolved once.

Every field has a default, so a configuration may be partial: `given_keys` returns the keys that
were set. `recipe.resolve_config` completes it with a recipe for the data, then with the defaults;
`config.yaml` records the result.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field

from quadranas.acceleration.accelerator import Precision
from quadranas.data.augmentation import AugmentConfig
from quadranas.data.dataset import Dataset, load_dataset, native_side
from quadranas.data.examination import Verify
from quadranas.data.identity import EarlierData
from quadranas.data.listing import ImageListing, list_images
from quadranas.data.loader import MAX_WORKERS
from quadranas.errors import QuadranasError
from quadranas.latency.budget import parse_device_budget
from quadranas.latency.contract import DEFAULT_TOLERANCE, Contract
from quadranas.runs.config_file import read_config_file
from quadranas.space.footprint import parse_bytes
from quadranas.validation import MOST_SEEDS, Frozen, validate

DEFAULT_SPACE = "quadranet-mobile"
MIN_RESOLUTION = 32
NUM_DIGITS = 10

MAX_RATE, MAX_COUNT, MAX_SIZE = 1e6, 1_000_000, 10**18
"""Limits on rates, on numbers of epochs, steps and images, and on parameters and MACs: beyond
them the float32 arithmetic of a training, or float64 of decoding, overflows or loses meaning."""

DEFAULT_CANDIDATES, MAX_CANDIDATES = 16, 1000
"""Number of networks to judge before one is chosen."""

RESOLUTION_IMAGES = 5_000
PathText = Annotated[
    str, BeforeValidator(lambda value: str(value) if isinstance(value, PurePath) else value)
]
"""A path or a name, kept as text."""


class WeightConfig(Frozen):
    """How weights are trained.

    Args:
        optimizer: AdamW, or SGD with Nesterov momentum.
        learning_rate: peak value; it rises linearly over `warmup_fraction` of the steps, then
            falls to zero along a cosine.
        weight_decay: weight decay of the optimiser.
        warmup_fraction: share of the steps in which the learning rate rises.
        label_smoothing: share of the target that is spread over all classes; applied in weight
            steps only, never in architecture steps.
        clip_norm: upper bound on the gradient norm of the weights in use.
        ema: decay, from 0 to 1, of the exponential moving average of the weights of a network,
            which is then validated, tested and stored in their place; 0 for none. Weights of a
            supernet are not averaged.
        drop_path: probability, from 0 to 1, that an image skips the last residual branch of a
            network (stochastic depth, arXiv:1603.09382); it rises linearly over the depth from 0
            at the first. Supernets skip nothing.
        second_order_warmup: share of the steps in which the second-order terms of the quadratic
            layers rise from 0 to 1, the first layers first; in a supernet, and in a network that
            is trained from scratch.
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(default=4e-3, gt=0, le=MAX_RATE)
    weight_decay: float = Field(default=0.05, ge=0, le=MAX_RATE)
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1)
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    clip_norm: float = Field(default=2.0, gt=0, le=1e30)
    ema: float = Field(default=0.0, ge=0, lt=1)
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    second_order_warmup: float = Field(default=0.0, ge=0, lt=1)


class DistillationConfig(Frozen):
    """How a network learns from a teacher.

    Args:
        weight: share of the loss that compares with the teacher, from 0 to 1; the rest compares
            with the labels. 0: the network of `init` is no teacher.
        temperature: number by which both logits are divided before they are compared.
    """

    weight: float = Field(default=0.5, ge=0, le=1)
    temperature: float = Field(default=2.0, gt=0, le=100)


class GateConfig(Frozen):
    """How architecture parameters are trained.

    Args:
        mode: `two_path` compares two sampled candidates per gate; `full` compares all with the
            memory of one path, by running the inactive ones again in the backward pass.
        learning_rate: learning rate of Adam with betas (0, 0.999), without weight decay.
        weight_steps: number of weight steps per architecture step.
    """

    mode: Literal["two_path", "full"] = "two_path"
    learning_rate: float = Field(default=0.03, gt=0, le=MAX_RATE)
    weight_steps: int = Field(default=1, ge=1, le=MAX_COUNT)


class SupernetConfig(Frozen):
    """What the candidates of a supernet have in common.

    Args:
        weights: `nested`, each is a part of the largest candidate of its slot, so that every step
            trains all of them, where they are parts of it (not `mbconv` with and without
            expansion); or `independent`, each candidate has its own (ProxylessNAS).
        sandwich: number of random networks that a weight step trains beside the largest and the
            smallest one (sandwich rule); 0 to train one random network alone. A step takes as
            long as `sandwich` + 2 steps of one network.
        distillation: in a step with the sandwich rule, whether the other networks learn the
            outputs of the largest one instead of the labels (in-place distillation).
        near_budget: share of the budget by which the latency of a random network may differ from
            it in a weight step, for example 0.2; 0 to train networks of any latency.
    """

    weights: Literal["nested", "independent"] = "nested"
    sandwich: int = Field(default=0, ge=0, le=MAX_COUNT)
    distillation: bool = False
    near_budget: float = Field(default=0.0, ge=0, le=1)


class PretrainedConfig(Frozen):
    """How weights are trained in a search that starts from a pre-trained network (`init`).

    Args:
        rate: learning rate of the weights that come from it, as a share of that of new weights.
        quadratic_rate: learning rate of quadratic factors that are added to a first-order
            network, as a share of that of new weights.
        quadratic_warmup: share of the supernet's steps in which that rate rises from 0.
        frozen_stages: number of stages, from the input, whose weights and statistics do not
            change; new blocks in them stay the identity.
    """

    rate: float = Field(default=0.3, gt=0, le=1)
    quadratic_rate: float = Field(default=0.3, gt=0, le=MAX_RATE)
    quadratic_warmup: float = Field(default=0.2, ge=0, le=1)
    frozen_stages: int = Field(default=0, ge=0, le=MAX_COUNT)


class ScheduleConfig(Frozen):
    """Number of epochs of each phase.

    An epoch of warm-up or search is one pass over the half of the training images that trains
    the weights.

    Args:
        warmup_epochs: number of epochs that train the weights of all candidates, before the
            search.
        search_epochs: number of epochs that train weights and architecture parameters in turn.
        finetune_epochs: number of epochs that train the chosen network.
        resolution_images: number of training images for each resolution of the last phase, at
            most one pass over them, or 1,000 images in several passes if there are fewer; 0 to
            omit the phase (`quadranas.training.resolution_phase`).
    """

    warmup_epochs: int = Field(default=10, ge=0, le=MAX_COUNT)
    search_epochs: int = Field(default=30, ge=1, le=MAX_COUNT)
    finetune_epochs: int = Field(default=20, ge=0, le=MAX_COUNT)
    resolution_images: int = Field(default=RESOLUTION_IMAGES, ge=0, le=MAX_SIZE)


class DataConfig(Frozen):
    """Which images are used, at which size, and the random seed.

    Args:
        data: a folder or a zip file of images, tar shards or Parquet files; None for
            scikit-learn's digits.
        val: a second one with the test images.
        skip_corrupt: leave out corrupt images instead of ending with an error.
        verify: which parts of the image files are verified before training: headers and `ends`, or
            the `full` files, which are decoded. It does not affect the results.
        workers: number of processes that decode training images that are not kept in memory; a
            search divides them between its two kinds of steps. 0 decodes in the process itself;
            null chooses by the number of cores. It does not affect the results.
        seed: random seed; it determines all random draws of the run.
        train_resolution: image size during training, in pixels. A last phase of the training
            prepares the network for its deployment resolution, for which latency is counted.
    """

    data: PathText | None = None
    val: PathText | None = None
    skip_corrupt: bool = False
    verify: Verify = "ends"
    workers: int | None = Field(default=None, ge=0, le=MAX_WORKERS)
    seed: int = Field(default=0, ge=0, lt=MOST_SEEDS)
    train_resolution: int = Field(default=MIN_RESOLUTION, ge=8, le=1024)


class TrainingConfig(DataConfig):
    """How any training runs: its steps, and the hardware that does them.

    Args:
        recipe: the defaults of the other keys: a name that `quadranas recipes` lists, or the path
            of a YAML file. Null: chosen by the number of training images.
        batch_size: number of images per step, of all processes together.
        accumulate: number of parts in which a batch is computed, one after the other, to need less
            memory; their gradients are added up before the weights change. BatchNorm uses the
            statistics of each part.
        checkpointing: store only the inputs of a network's blocks for the backward pass, which
            computes the blocks again (gradient checkpointing); supernets never do.
        checkpoint_seconds: minimum time between two checkpoints.
        accelerator: the hardware that trains: `cpu`, or a type of PyTorch such as `cuda`, `mps` or
            `xpu`, with a number (`cuda:1`) to choose among several; `auto` for the best there is.
        precision: `fp32`, or the type of automatic mixed precision. Gates are float64 in all.
        compile: whether to compile the network with `torch.compile`; a supernet never is.
        weights: how weights are trained.
        augment: the augmentations to use.
        tracking: address of an MLflow tracking server that receives the curves too, or the path of
            a local store. Null: that of the environment variable
            MLFLOW_TRACKING_URI, if MLflow is installed.
        inspect: whether to record distributions of the quadratic layers in every epoch of training
            a network.
        teacher: the network whose outputs are learned beside the labels (distillation): a run
            folder, an architecture or a model's name with `teacher_weights`, `timm:NAME`, or an
            ONNX file, which ONNX Runtime computes on the processor. Null: the network of `init`
            if its classes are those of the data, otherwise none.
        teacher_weights: file with the weights of the teacher, if it does not bring its own.
        teacher_resolution: image size for the teacher, in pixels. Null: its own.
        distillation: how the network learns from the teacher.
        holdout: share of the training images of every class that is held out: for the validation
            after every epoch of training a network, and to compare sub-networks; 0 for none.
        keep: the epoch whose weights are used at the end: `last`, or the `best` one on the
            held-out images. Null: `best` if there are any.
        patience: number of epochs without a better one on the held-out images after which the
            training of a network ends; 0: it does not end early.
    """

    recipe: PathText | None = None
    batch_size: int = Field(default=64, ge=2, le=MAX_COUNT)
    accumulate: int = Field(default=1, ge=1, le=MAX_COUNT)
    checkpointing: bool = False
    checkpoint_seconds: float = Field(default=20.0, ge=0, le=1e9)
    accelerator: str = Field(default="auto", min_length=1, max_length=40)
    precision: Precision = "fp32"
    compile: bool = False
    weights: WeightConfig = WeightConfig()
    augment: AugmentConfig = AugmentConfig()
    tracking: str | None = Field(default=None, min_length=1, max_length=2000)
    inspect: bool = False
    teacher: PathText | None = None
    teacher_weights: PathText | None = None
    teacher_resolution: int | None = Field(default=None, ge=8, le=1024)
    distillation: DistillationConfig = DistillationConfig()
    holdout: float = Field(default=0.0, ge=0, le=0.5)
    keep: Literal["best", "last"] | None = None
    patience: int = Field(default=0, ge=0, le=MAX_COUNT)


def _listed(value: Any) -> Any:
    """A single entry as a list."""
    return [value] if isinstance(value, str) else value


def _in_bytes(value: Any) -> Any:
    is_size = isinstance(value, str | int) and not isinstance(value, bool)
    return parse_bytes(value) if is_size else value


def _parsed(text: str) -> str:
    parse_device_budget(text)
    return text


Size = Annotated[int, BeforeValidator(_in_bytes), Field(ge=1, le=MAX_SIZE)]
"""A number of bytes, or a text such as `512KiB`."""


class LimitsConfig(Frozen):
    """The limits of a network besides the budget on its device.

    Args:
        also: budgets on further devices, each as `DEVICE=BUDGET`, which the network keeps too.
        max_params, max_macs: upper limit on the number of parameters and of multiply-accumulates;
            null: no limit.
        max_size: upper limit on the weights in an exported fp32 file, in bytes or as text such as
            `4MB`; an fp16 file takes half of it, an int8 file a quarter. Null: no limit.
        max_memory: upper limit on the activations that exist at once at inference, in bytes or as
            text such as `512KiB`, in the precision of the device (`quadranas.space.footprint`).
            Null: no limit.
        confidence: probability that the measured latency is within the budget, from 0.5 to 1;
            needs a measured table. Null: only the predicted latency is kept within it.
        tolerance: allowed overshoot of the measured latency, as a fraction of the budget.
    """

    also: Annotated[
        tuple[Annotated[str, AfterValidator(_parsed)], ...], BeforeValidator(_listed)
    ] = ()
    max_params: int | None = Field(default=None, ge=1, le=MAX_SIZE)
    max_macs: int | None = Field(default=None, ge=1, le=MAX_SIZE)
    max_size: Size | None = None
    max_memory: Size | None = None
    confidence: float | None = Field(default=None, ge=0.5, lt=1)
    tolerance: float = Field(default=DEFAULT_TOLERANCE, ge=0, le=1)

    @property
    def ceilings(self) -> dict[str, int | None]:
        """The upper bounds on other measures than the latency."""
        names = ("max_params", "max_macs", "max_size", "max_memory")
        return {name: getattr(self, name) for name in names}

    def contract(self, budget_ms: float) -> Contract:
        """The contract of a budget."""
        return Contract(budget_ms=budget_ms, confidence=self.confidence, tolerance=self.tolerance)


class SearchConfig(TrainingConfig, LimitsConfig):
    """The configuration of `quadranas search`.

    Args:
        device: the device that the network is for: a shipped one, or the path of a YAML file;
            required to begin a search.
        budget: the latency budget, such as `30ms`, `0.3s` or `250us`; required to begin a search.
        space: a shipped search space, or the path of a YAML file.
        table: latency table to use instead of the default one.
        init: the pre-trained network from which all candidates get their first weights: a run
            folder, a `.safetensors` file, a torch file of tensors, or `timm:NAME`; in the space
            of one's own model `own-model`, if its weights are trained. Null: none.
        candidates: number of networks that the gates prefer most, of which the one with the best
            accuracy on held-out training images is chosen.
        pretrained: how weights from `init` are trained.
        schedule: number of epochs of each phase.
        supernet: what the candidates have in common.
        gates: how architecture parameters are trained.
    """

    device: PathText | None = None
    budget: Annotated[str, Field(coerce_numbers_to_str=True)] | None = None
    space: PathText = DEFAULT_SPACE
    table: PathText | None = None
    init: PathText | None = None
    candidates: int = Field(default=DEFAULT_CANDIDATES, ge=1, le=MAX_CANDIDATES)
    pretrained: PretrainedConfig = PretrainedConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    supernet: SupernetConfig = SupernetConfig()
    gates: GateConfig = GateConfig()


class TrainConfig(TrainingConfig):
    """The configuration of `quadranas train`.

    Args:
        epochs: number of epochs.
        resolution_images: number of training images for each resolution of the last phase, as in
            `ScheduleConfig`.
        trainable: `all` parameters, or only the `quadratic` terms of adapted layers.
    """

    epochs: int = Field(default=40, ge=1, le=MAX_COUNT)
    resolution_images: int = Field(default=RESOLUTION_IMAGES, ge=0, le=MAX_SIZE)
    trainable: Literal["all", "quadratic"] = "all"


Config = TypeVar("Config", bound=DataConfig)


def given_keys(config: DataConfig) -> dict[str, Any]:
    """The keys of a configuration that were set, as plain data."""
    return config.model_dump(mode="json", exclude_unset=True)


def combined(
    model: type[Config], config: Config | None, keys: Mapping[str, Any], source: str = "arguments"
) -> Config:
    """A partial configuration from an object and keys; where both set a value, the key wins.

    Raises:
        QuadranasError: an unknown key or an impossible value; the message begins with `source`.
    """
    given = validate(model, dict(keys), source)
    if config is None:
        return given
    if not isinstance(config, model):
        raise QuadranasError(
            f"expected a {model.__name__}, got a {type(config).__name__}",
            f"Build one with quadranas.{model.__name__}, or pass its keys as arguments.",
        )
    return validate(model, merged(given_keys(config), given_keys(given)), source)


def load_config(model: type[Config], path: Path | None, **keys: Any) -> Config:
    """A partial configuration from a YAML file and the options of a command line.

    Raises:
        QuadranasError: an unreadable file, an unknown key, or an impossible value.
    """
    config = None
    if path is not None:
        config = validate(model, read_config_file(path).keys, path)
    return combined(model, config, keys, "command line")


def list_data(config: DataConfig) -> ImageListing | None:
    """List the image files that a configuration names; None for the embedded digits.

    Raises:
        QuadranasError: the images do not exist, or their folders are ambiguous.
    """
    return None if config.data is None else list_images(config.data, config.val)


def count_classes(listing: ImageListing | None) -> int:
    """The number of classes of listed images, or of the embedded digits."""
    return NUM_DIGITS if listing is None else len(listing.train.class_names)


def open_data(
    config: DataConfig,
    largest: int,
    listing: ImageListing | None = None,
    earlier: EarlierData | None = None,
) -> Dataset:
    """Load the images that a configuration names.

    Args:
        largest: upper bound on the default training resolution, which otherwise is the largest
            multiple of 32 that does not exceed the median shorter side of the images.
        listing: the files of `list_data`, if they are listed already.
        earlier: the data of the run to resume, with which the images have to agree.

    Raises:
        QuadranasError: images are missing, corrupt, too small or too few.
    """
    listing = listing or list_data(config)
    resolution = config.train_resolution
    if "train_resolution" not in config.model_fields_set:
        side = native_side(listing, seed=config.seed) if listing else MIN_RESOLUTION
        resolution = max(min(side, largest) // 32 * 32, MIN_RESOLUTION)
    dataset = load_dataset(
        listing,
        val=config.val if listing is None else None,
        resolution=resolution,
        seed=config.seed,
        skip_corrupt=config.skip_corrupt,
        earlier=earlier,
        verify=config.verify,
    )
    return replace(dataset, workers=config.workers)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Two mappings in one: nested mappings are merged, all other values replaced."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            value = merged(old, value)
        result[key] = value
    return result
