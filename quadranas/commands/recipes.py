"""recipes: the named recipes, and the keys that each sets."""

from pathlib import Path

from quadranas.runs.recipe import Recipe, load_recipe, shipped_recipes
from quadranas.validation import CommandResult


class RecipesResult(CommandResult):
    """The result of `quadranas recipes`.

    Args:
        recipes: the recipes by name, those for fewer images first.
    """

    recipes: dict[str, Recipe]


def recipes(name: str | Path | None = None) -> RecipesResult:
    """The shipped recipes, which are the defaults of a search or a training.

    Args:
        name: only the recipe of this name, or the one in this YAML file.

    Raises:
        QuadranasError: unknown name, or a fault in the file.
    """
    if name is None:
        return RecipesResult(recipes=shipped_recipes())
    return RecipesResult(recipes={str(name): load_recipe(name)})
