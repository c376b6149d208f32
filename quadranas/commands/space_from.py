"""space-from: write a search space around a pre-trained network."""

from pathlib import Path

from quadranas.conversion.pretrained_network import open_pretrained
from quadranas.conversion.quadratic_bottlenecks import made_quadratic
from quadranas.files import dump_yaml, write_atomically
from quadranas.space.around import space_around
from quadranas.space.matching import match_stages
from quadranas.space.search_space import SearchSpace
from quadranas.space.space_file import build_space, load_space, name_after, new_space_path
from quadranas.validation import CommandResult, WrittenPath


class SpaceFromResult(CommandResult):
    """The result of `quadranas space-from`.

    Args:
        path: the file of the space.
        name: name of the space.
        family: what kind of network it is made for.
        resolution: image size for which latencies are counted, in pixels.
        widths: number of channels of each stage.
        architectures: number of networks in the space.
    """

    path: WrittenPath
    name: str
    family: str
    resolution: int
    widths: tuple[int, ...]
    architectures: int

    def space(self) -> SearchSpace:
        """Load the space."""
        return load_space(self.path)


def space_from(
    source: str | Path,
    *,
    output: str | Path | None = None,
    resolution: int | None = None,
    quadratic: bool = False,
) -> SpaceFromResult:
    """Write the space whose largest network is a pre-trained one, for `search --init`.

    Args:
        source: a run folder, a `.safetensors` file, a torch file of tensors, or `timm:NAME`.
        output: a new YAML file, after which the space is named. Default: named after the source.
        resolution: image size for which latencies are counted, in pixels. Default: that of the
            network; 224 if it is unknown.
        quadratic: whether the depthwise convolutions of inverted bottlenecks become quadratic.
            Those of other networks are.

    Raises:
        QuadranasError: the network cannot be read, or no space can hold it; or the file exists.
    """
    path = new_space_path(output, str(source).replace(":", "-"))
    network = open_pretrained(source)
    if quadratic:
        network = made_quadratic(network)
    architecture = network.architecture.adapted(resolution=resolution)
    file = space_around(architecture, name_after(path), f"around {network.source}")
    space = build_space(file)
    match_stages(space, architecture, network.source)
    content = dump_yaml(file.model_dump(mode="json", exclude_defaults=True))
    about = f"# A space around a pre-trained {network.family}, for quadranas search --init.\n"
    write_atomically(path, about + content, replace=False)
    return SpaceFromResult(
        path=path,
        name=file.name,
        family=network.family,
        resolution=file.resolution,
        widths=file.widths,
        architectures=space.num_architectures,
    )
