"""Networks of inverted bottlenecks whose depthwise convolutions become quadratic.

Source: QuadraNet V2, Xu et al., 2024 (arXiv:2405.03192): first-order weights as the linear term,
and quadratic terms that are zero at the start.
"""

from dataclasses import replace

from quadranas.conversion.pretrained_network import (
    PretrainedNetwork,
    checked_tensors,
    completed_tensors,
)
from quadranas.layers.mbconv import depthwise_index
from quadranas.space.architecture import Block
from quadranas.space.matching import by_stage
from quadranas.space.search_space import SearchSpace

FIRST_ORDER, QUADRATIC = "mbconv", "quadratic_mbconv"


def made_quadratic(
    network: PretrainedNetwork, space: SearchSpace | None = None
) -> PretrainedNetwork:
    """The network with quadratic depthwise convolutions in its inverted bottlenecks.

    Its own convolutions are the linear terms, and the quadratic terms are zero, so that it
    computes the same. Other networks are returned as they are.

    Args:
        space: change only the stages that are quadratic in this space; None: all.
    """
    places = _places(network, space)
    blocks = tuple(_changed(b) if b.name in places else b for b in network.architecture.blocks)
    if blocks == network.architecture.blocks:
        return network
    architecture = network.architecture.model_copy(update={"blocks": blocks})
    renamed = {_renamed(name, places): t for name, t in network.tensors.items()}
    whole, new = completed_tensors(architecture, renamed)
    tensors = checked_tensors(architecture, whole, network.source)
    note = "its depthwise convolutions are the linear terms of quadratic ones"
    notes = (*network.notes, note)
    return replace(
        network, architecture=architecture, tensors=tensors, new=network.new | new, notes=notes
    )


def _places(network: PretrainedNetwork, space: SearchSpace | None) -> dict[str, str]:
    """The prefix of the depthwise convolution of every block to change, by the block's name."""
    stages = list(by_stage(network.architecture.blocks).values())
    if space is not None:
        counterparts = by_stage(space.blocks).values()
        kinds = [{s.candidates[0].kind for b in own for s in b.slots} for own in counterparts]
        pairs = zip(stages, kinds, strict=False)  # another number of stages is refused later
        stages = [blocks for blocks, found in pairs if QUADRATIC in found]
    return {
        block.name: f"blocks.{block.name}.{FIRST_ORDER}.layers.{depthwise_index(op)}."
        for blocks in stages
        for block in blocks
        for op in block.ops
        if op.kind == FIRST_ORDER
    }


def _changed(block: Block) -> Block:
    ops = [
        op.model_copy(update={"kind": QUADRATIC}) if op.kind == FIRST_ORDER else op
        for op in block.ops
    ]
    return block.model_copy(update={"ops": tuple(ops)})


def _renamed(name: str, places: dict[str, str]) -> str:
    """A tensor's name in the changed network; the depthwise convolution is the linear term `c`."""
    _, block, *_ = name.split(".")
    if block not in places:
        return name
    name = name.replace(places[block], f"{places[block]}c.")
    return name.replace(f".{FIRST_ORDER}.", f".{QUADRATIC}.", 1)
