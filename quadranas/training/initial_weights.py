"""Initial weights of a search, from a pre-trained network."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from quadranas.conversion.pretrained_network import PretrainedNetwork
from quadranas.data.dataset import Dataset
from quadranas.network.skeleton import Network
from quadranas.reporter import Reporter
from quadranas.runs.config import PretrainedConfig
from quadranas.runs.pretrained_record import EmbeddedPart, PretrainedNote, computed_alike
from quadranas.space.matching import StageMatch, match_stages
from quadranas.space.own_space_file import REST
from quadranas.space.search_space import SearchSpace
from quadranas.supernet.embedding import HEAD, Embedding, embed, largest_choices
from quadranas.supernet.own_embedding import own_embedding, second_order_layers
from quadranas.supernet.supernet import Supernet
from quadranas.training.inheritance import Inheritance

NUM_IMAGES = 2
"""Number of random images on which supernet and pre-trained network are compared."""

TOLERANCE = 1e-4
"""Largest difference of their outputs, relative to the largest output, that is rounding."""


@dataclass(frozen=True)
class InitialWeights:
    """A pre-trained network that fits the space of a search.

    Args:
        matches: the stages of the space with their counterparts in the network.
        uses_head: whether its classifier tells the classes of the data apart.
    """

    network: PretrainedNetwork
    matches: tuple[StageMatch, ...]
    uses_head: bool

    @classmethod
    def of(
        cls, network: PretrainedNetwork, space: SearchSpace, dataset: Dataset
    ) -> "InitialWeights":
        """Raises `QuadranasError` if the network does not fit the space."""
        matches: tuple[StageMatch, ...] = ()
        if space.model is None:
            matches = match_stages(space, network.architecture, network.source)
        return cls(network, matches, network.tells_apart(dataset))

    def fill(self, supernet: Supernet, config: PretrainedConfig) -> Inheritance:
        """Derive the weights of all candidates, in place.

        Raises:
            QuadranasError: a candidate cannot get weights from the network.
        """
        space, tensors = supernet.space, self.network.tensors
        if space.model is not None:  # it was made from the model's own weights
            layers = second_order_layers(space)
            return Inheritance(own_embedding(space), frozenset(), config, layers)
        embedding = embed(supernet, self.matches, tensors, uses_head=self.uses_head)
        return Inheritance(embedding, self.network.new, config)

    def note(
        self, supernet: Supernet, embedding: Embedding, *, is_teacher: bool
    ) -> PretrainedNote:
        """What the run records about it.

        Args:
            supernet: filled, and not trained yet.
            is_teacher: whether the network is the teacher too.
        """
        deviations = list(embedding.deviations)
        difference = None
        if all(found.startswith(HEAD) for found in deviations):
            difference = self._difference(supernet)
        if difference is not None and not difference < TOLERANCE:
            deviations.append(
                f"outputs on random images differ by {difference:.1e} of the largest"
            )
            difference = None
        return PretrainedNote(
            source=self.network.source,
            family=self.network.family,
            digest=self.network.digest,
            parts=embedding.parts,
            deviations=tuple(deviations),
            max_difference=difference,
            is_teacher=is_teacher,
        )

    @torch.no_grad()
    def _difference(self, supernet: Supernet) -> float:
        """The largest difference between the largest sub-network and the network, before heads."""
        side = supernet.space.resolution
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(NUM_IMAGES, 3, side, side, generator=generator)
        supernet.set_choices(largest_choices(supernet.space))
        found, wanted = (
            _outputs(n.eval(), images) for n in (supernet.network, self.network.network())
        )
        return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))


def _outputs(network: Network, images: Tensor) -> Tensor:
    """The last feature map of a network; of a user's own model the class scores."""
    if REST in network.blocks:
        scores: Tensor = network(images)
        return scores
    x = images.contiguous(memory_format=torch.channels_last)
    for block in list(network.blocks.values())[:-1]:
        x = block(x)
    return x


def report_initial(note: PretrainedNote, notes: Iterable[str], reporter: Reporter) -> None:
    """Say what was used of a pre-trained network, as a table, and what could not be embedded."""
    about = "; ".join(notes)
    reporter.message(f"starting from {note.source} ({note.family}{', ' + about if about else ''})")
    for line in table_lines(note.parts):
        reporter.message(line)
    for deviation in note.deviations:
        reporter.warning(f"not embedded exactly: {deviation}")
    if note.max_difference is not None:
        reporter.message(f"before any step the largest sub-network {computed_alike(note)}")
    if not note.is_teacher and any(found.startswith(HEAD) for found in note.deviations):
        reporter.message(
            "nothing is distilled from it, since its classes are not those of the data"
        )
    if note.is_teacher:
        reporter.message(
            "the pre-trained network is the teacher too (distillation.weight: 0 to omit it)"
        )


def table_lines(parts: Iterable[EmbeddedPart]) -> list[str]:
    """A table of plain text with one line per part."""
    rows = [["part", "used", "sliced", "dropped", "new"]]
    rows += [[part.part, part.used, part.sliced, part.dropped, part.new] for part in parts]
    rows = [[cell or "-" for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
