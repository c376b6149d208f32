"""What a supernet has from a user's own model whose weights are trained."""

from quadranas.runs.pretrained_record import EmbeddedPart
from quadranas.space.operation import OpSpec
from quadranas.space.search_space import SearchSpace
from quadranas.supernet.embedding import Embedding
from quadranas.supernet.own_supernet import SECOND_ORDER

NAMES = {"kernel": "kernel", "hidden": "hidden width"}
"""Changes that take a part of a layer, in words."""

FIRST_ORDER_TERMS = ("c.", "first_order.")
"""Beginnings of the names, in a layer with a second-order term, of the layer's own weights."""


def own_embedding(space: SearchSpace) -> Embedding:
    """What the supernet of a pre-trained model of the user's own has from it: everything."""
    parts = []
    for block in space.blocks[:-1]:
        changes = [c for spec in block.slots[0].candidates for c in spec.own_part.changes]
        sizes = dict.fromkeys(
            f"{NAMES[c.kind]} {c.kernel_size if c.kind == 'kernel' else c.width}"
            for c in changes
            if c.kind in NAMES
        )
        terms = dict.fromkeys(c.name for c in changes if c.kind in SECOND_ORDER)
        new = f"quadratic terms of zero in {', '.join(terms)}" if terms else ""
        part = block.slots[0].candidates[0].own_part.layer
        parts.append(EmbeddedPart(part=part, used="all", sliced=", ".join(sizes), new=new))
    origins = {block.name: block.name for block in space.blocks}
    return Embedding(tuple(parts), (), origins, has_head=True)


def second_order_layers(space: SearchSpace) -> frozenset[str]:
    """Paths of the layers of a user's own model that have a second-order version."""
    changes = (c for spec in space.specs() for c in spec.own_part.changes)
    return frozenset(change.name for change in changes if change.kind in SECOND_ORDER)


def name_in_model(spec: OpSpec, name: str) -> str:
    """The name of a tensor in a user's own model, by its name in a part of it."""
    layer = "" if spec.own is None else spec.own.layer
    return f"{layer}.{name}" if layer else name
