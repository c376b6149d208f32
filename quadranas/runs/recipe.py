"""Named recipes: the defaults of a configuration, chosen by the number of training images."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from quadranas.data.dataset import Dataset
from quadranas.errors import QuadranasError, unknown
from quadranas.files import read_yaml
from quadranas.runs.config import (
    MAX_COUNT,
    MAX_SIZE,
    Config,
    DataConfig,
    SearchConfig,
    TrainConfig,
    TrainingConfig,
    given_keys,
    merged,
)
from quadranas.validation import Frozen, validate

RECIPES = Path(__file__).parent / "recipes"

OF_A_RUN = {
    *DataConfig.model_fields,
    *(
        "accelerator",
        "device",
        "budget",
        "space",
        "table",
        "init",
        "recipe",
        "teacher",
        "teacher_weights",
        "tracking",
    ),
}
"""Keys that name what a run works on; a recipe holds none of them."""


class Recipe(Frozen):
    """A recipe: defaults of the keys of a configuration.

    Args:
        description: what the recipe is for, in one line.
        chosen_for: images for which the recipe is chosen if none is named: `photos` read from
            files, the embedded `digits`, or `any`.
        chosen_up_to: upper limit on the number of training images for which it is chosen; null:
            no limit.
        crop_share: `augment.crop_padding` as a fraction of the training resolution.
        steps_per_pass: number of steps in a pass over the images, for which the batch size is
            lowered to a power of two; the learning rate falls with the square root of it. 0: the
            batch size does not depend on the number of images.
        min_batch: smallest batch size that this may give, as a number of images.
        keys: keys of `SearchConfig` and `TrainConfig` with their values; each command takes those
            that it has.
    """

    description: str
    chosen_for: Literal["any", "photos", "digits"] = "any"
    chosen_up_to: int | None = Field(default=None, ge=0, le=MAX_SIZE)
    crop_share: float = Field(default=0.0, ge=0, le=0.5)
    steps_per_pass: int = Field(default=0, ge=0, le=MAX_COUNT)
    min_batch: int = Field(default=16, ge=2, le=MAX_COUNT)
    keys: dict[str, Any] = Field(default_factory=dict)

    def defaults(self, num_images: int, resolution: int, *, photos: bool) -> dict[str, Any]:
        """The keys for a number of training images of a size; photos may be mirrored.

        Args:
            resolution: size of the images, in pixels.
        """
        padding = int(resolution * self.crop_share)
        decided: dict[str, Any] = {
            "train_resolution": resolution,
            "augment": {"flip": photos, "crop_padding": max(1, padding) if self.crop_share else 0},
        }
        if self.steps_per_pass:
            decided = merged(decided, self._small_batches(num_images))
        return merged(decided, self.keys)

    def _small_batches(self, num_images: int) -> dict[str, Any]:
        """Batch size and learning rate for few images, without which there are too few steps."""
        usual = validate(TrainConfig, _of(TrainConfig, self.keys), "recipe")
        batch_size = 2 ** round(math.log2(max(1, num_images / self.steps_per_pass)))
        batch_size = min(usual.batch_size, max(self.min_batch, batch_size))
        rate = usual.weights.learning_rate * math.sqrt(batch_size / usual.batch_size)
        return {"batch_size": batch_size, "weights": {"learning_rate": rate}}


def shipped_recipes() -> dict[str, Recipe]:
    """The shipped recipes by name: those chosen for fewer images first."""
    found = {path.stem: load_recipe(path.stem) for path in RECIPES.glob("*.yaml")}

    def order(name: str) -> float:
        limit = found[name].chosen_up_to
        return math.inf if limit is None else limit

    return {name: found[name] for name in sorted(sorted(found), key=order)}


def load_recipe(name: str | Path) -> Recipe:
    """Load a shipped recipe by name, or any recipe from its YAML file.

    Raises:
        QuadranasError: unknown name (nearest suggested), or a fault in the file.
    """
    text = str(name)
    known = {path.stem: path for path in RECIPES.glob("*.yaml")}
    if text not in known and not text.endswith((".yaml", ".yml")):
        raise unknown("recipe", text, sorted(known), "Name one of these, or a .yaml file.")
    path = known.get(text, Path(text))
    recipe = validate(Recipe, read_yaml(path, "recipe"), path)
    _check_keys(recipe, path)
    return recipe


def _check_keys(recipe: Recipe, path: Path) -> None:
    """Check the keys of a recipe against the configurations.

    Raises:
        QuadranasError: an unknown key, an impossible value, or a key that a recipe may not hold.
    """
    wrong = sorted(recipe.keys.keys() & OF_A_RUN)
    if wrong:
        raise QuadranasError(
            f"{path}: keys.{wrong[0]}: a recipe cannot hold this key: it names what a run "
            "works on",
            "Pass it as an option of the command, or in a --config file.",
        )
    known = SearchConfig.model_fields.keys() | TrainConfig.model_fields.keys()
    for key in recipe.keys:
        if key not in known:
            raise unknown(f"key of {path}:", key, known - OF_A_RUN, "Correct or remove it.")
    for model in (SearchConfig, TrainConfig):
        validate(model, _of(model, recipe.keys), path)


def _of(model: type[DataConfig], keys: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some keys that a configuration has."""
    return {key: value for key, value in keys.items() if key in model.model_fields}


def chosen_recipe(num_images: int, *, photos: bool) -> str:
    """The name of the recipe for a number of training images, if none is named."""
    kinds = ("any", "photos" if photos else "digits")
    for name, recipe in shipped_recipes().items():
        limit = recipe.chosen_up_to
        if recipe.chosen_for in kinds and (limit is None or num_images <= limit):
            return name
    raise AssertionError("no shipped recipe is for any number of any images")


def check_recipe(given: TrainingConfig) -> None:
    """Check the recipe that a configuration names, before any images are read.

    Raises:
        QuadranasError: an unknown name, or a fault in the file.
    """
    if given.recipe is not None and not _is_complete(given):
        load_recipe(given.recipe)


def _is_complete(config: DataConfig) -> bool:
    """Whether all keys are set, as those of a run that is resumed: it needs no recipe."""
    return given_keys(config) == config.model_dump(mode="json")


def resolve_config(given: Config, dataset: Dataset) -> Config:
    """Complete a configuration with its recipe for the data, then with the defaults.

    Raises:
        QuadranasError: an unknown recipe or an impossible value.
    """
    model = type(given)
    complete = model().model_dump(mode="json")
    if not isinstance(given, TrainingConfig):
        return validate(model, merged(complete, given_keys(given)), "configuration")
    if _is_complete(given):
        return given
    size, photos = len(dataset.train), given.data is not None
    name = given.recipe or chosen_recipe(size, photos=photos)
    decided = load_recipe(name).defaults(size, dataset.resolution, photos=photos)
    defaults = merged(complete, _of(model, decided) | {"recipe": name})
    keys = merged(defaults, given_keys(given))
    keys["keep"] = keys["keep"] or ("best" if keys["holdout"] else "last")
    config = validate(model, keys, "configuration")
    assert isinstance(config, TrainingConfig)
    _check_holdout(config)
    if config.checkpointing and config.compile:
        raise QuadranasError(
            "checkpointing and compile exclude each other: torch.compile itself decides what the "
            "backward pass computes again",
            "Set one of them to false.",
        )
    return config


def _check_holdout(config: TrainingConfig) -> None:
    """Refuse a choice of the epoch without held-out images.

    Raises:
        QuadranasError: names the key.
    """
    for key, value in (("keep", "best"), ("patience", config.patience or None)):
        if not config.holdout and getattr(config, key) == value:
            raise QuadranasError(
                f"{key} {value!r} needs held-out images, but holdout is 0",
                "Hold out a share of the training images, such as --holdout 0.1.",
            )
