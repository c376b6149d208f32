"""A user's own model as the pre-trained network of a search (`init: own-model`)."""

from quadranas.conversion.pretrained_network import PretrainedNetwork
from quadranas.errors import QuadranasError
from quadranas.network.own_model import restore_weights
from quadranas.network.skeleton import build_subnet
from quadranas.space.own_space_file import REST
from quadranas.space.search_space import SearchSpace

FAMILY = "your own model"

PREFIX = f"blocks.{REST}."
"""Beginning of the names of the model's tensors in a network."""


def own_pretrained(space: SearchSpace) -> PretrainedNetwork:
    """The model that a space is made from, with the weights that it was given with.

    Raises:
        QuadranasError: the space is made from no model, or the model was not given or has values
            that are not finite.
    """
    if space.model is None:
        raise QuadranasError(
            f"init own-model is for a space of your own model; space {space.name} is none",
            "Name a run folder, a .safetensors or torch file, or timm:NAME with --init.",
        )
    architecture = space.architecture(space.original_choices())
    tensors = {
        name: tensor.detach().clone()
        for name, tensor in build_subnet(architecture).state_dict().items()
    }
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise QuadranasError(
                f"your model has values that are not finite in {name.removeprefix(PREFIX)!r}",
                "Give it with other weights.",
            )
    return PretrainedNetwork(space.model.source, FAMILY, architecture, tensors)


def give_kept_weights(network: PretrainedNetwork) -> None:
    """Let the model that was given to this process have the weights of a run's copy of it."""
    if network.architecture.model is not None:
        tensors = {name.removeprefix(PREFIX): t for name, t in network.tensors.items()}
        restore_weights(network.architecture.model, tensors)
