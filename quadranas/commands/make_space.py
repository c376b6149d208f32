"""make_space: a search space from a user's own model."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quadranas.conversion.own_space import WIDTHS, Where, own_space
from quadranas.errors import QuadranasError
from quadranas.files import dump_yaml, write_atomically
from quadranas.space.own_space_file import OwnBlock
from quadranas.space.search_space import SearchSpace
from quadranas.space.space_file import build_space, load_space, name_after, new_space_path
from quadranas.validation import CommandResult, Frozen, WrittenPath

if TYPE_CHECKING:
    from torch import Tensor, nn


class SearchedPart(Frozen):
    """A part of a model that a search changes.

    Args:
        layer: its path in the model.
        choices: what may change in it: `skip`, `kernel`, `hidden`, `quadratic`, `adapted`.
        candidates: number of combinations, without skipping it.
    """

    layer: str
    choices: tuple[str, ...]
    candidates: int

    @classmethod
    def of(cls, block: OwnBlock) -> "SearchedPart":
        """The part of a block of a space file."""
        kinds = {change.kind: None for one in block.candidates for change in one.changes}
        skip = ("skip",) if block.optional else ()
        return cls(layer=block.layer, choices=(*skip, *kinds), candidates=len(block.candidates))


class MakeSpaceResult(CommandResult):
    """The result of `make_space`, and of `quadranas space-from` for a user's own model.

    Args:
        path: the file of the space.
        name: name of the space.
        model: where the model comes from, in words.
        resolution: height and width of the input, in pixels.
        num_classes: number of outputs of the model.
        parts: the parts that a search changes, in the order of the model.
        architectures: number of networks in the space.
        params, macs: number of parameters and multiply-accumulates of the model.
    """

    path: WrittenPath
    name: str
    model: str
    resolution: int
    num_classes: int
    parts: tuple[SearchedPart, ...]
    architectures: int
    params: int
    macs: int

    def space(self) -> SearchSpace:
        """Load the space."""
        return load_space(self.path)


def make_space(
    model: "nn.Module",
    example: "Tensor",
    *,
    where: Where,
    widths: Sequence[float] = WIDTHS,
    output: str | Path | None = None,
    source: str = "",
) -> MakeSpaceResult:
    """Write a search space whose networks are one's own model with changes.

    The file holds no code and no weights. The model is given to this process, as by `use_model`,
    so that searches in the space start from its weights.

    Args:
        model: the model, which takes images and returns class scores.
        example: one image, (1, 3, size, size), of the size for which latencies are counted.
        where: patterns of the paths of parts that may change, in which `*` also matches dots; a
            pattern includes all that is inside of what it matches. A mapping gives the choices of
            each pattern: `skip` (residual blocks), `kernel` (of depthwise convolutions), `hidden`
            (width between two layers), by default these, and `quadratic` or `adapted` (variants).
        widths: hidden widths, as shares of the model's.
        output: a new YAML file, after which the space is named. Default: named after the class.
        source: where the model comes from, in words. Default: its class.

    Raises:
        QuadranasError: the model fails, `where` names what cannot change, or the file exists.
    """
    made = f"{type(model).__module__}.{type(model).__qualname__}"
    default = source.rpartition("/")[2].partition(".py")[0] or type(model).__name__
    path = new_space_path(output, default)
    file = own_space(
        model, example, where, name=name_after(path), source=source or made, widths=widths
    )
    space = build_space(file)
    originals = [next(one for one in block.candidates if not one.changes) for block in file.blocks]
    content = dump_yaml(file.model_dump(mode="json", exclude_defaults=True))
    about = "# A space made from a user's own model, whose code and weights are not in it.\n"
    write_atomically(path, about + content, replace=False)
    return MakeSpaceResult(
        path=path,
        name=file.name,
        model=file.model,
        resolution=file.resolution,
        num_classes=file.num_classes,
        parts=tuple(map(SearchedPart.of, file.blocks)),
        architectures=space.num_architectures,
        params=file.rest_params + sum(one.params for one in originals),
        macs=file.rest_macs + sum(one.macs for one in originals),
    )


def parse_where(options: Sequence[str]) -> dict[str, tuple[str, ...]] | list[str]:
    """`where` from options such as `layer2.*` and `layer3.*=skip,quadratic`.

    Raises:
        QuadranasError: a pattern is given twice.
    """
    from quadranas.conversion.own_space import DEFAULT_CHOICES

    found: dict[str, tuple[str, ...]] = {}
    for option in options:
        pattern, equals, choices = option.partition("=")
        if pattern in found:
            raise QuadranasError(
                f"--where names {pattern!r} twice", f"Write it once: {pattern}=skip,kernel,hidden."
            )
        found[pattern] = tuple(choices.split(",")) if equals else DEFAULT_CHOICES
    return found
