"""The record of a pre-trained network that a search starts from: `pretrained.json`."""

from pathlib import Path

from pydantic import Field, FiniteFloat

from quadranas.files import read_json, write_json
from quadranas.runs import layout
from quadranas.space.architecture import Architecture
from quadranas.space.operation import MAX_RESOLUTION
from quadranas.validation import Frozen, refuse_newer, validate

FORMAT_VERSION = 1
Triple = tuple[FiniteFloat, FiniteFloat, FiniteFloat]


class EmbeddedPart(Frozen):
    """What became of one stage of a checkpoint in the supernet, in words.

    Args:
        part: the stage of the space.
        used: what was taken as it is.
        sliced: of what smaller candidates got a part.
        dropped: what no candidate holds.
        new: what the checkpoint does not have.
    """

    part: str
    used: str = ""
    sliced: str = ""
    dropped: str = ""
    new: str = ""


class PretrainedNote(Frozen):
    """How a search used its pre-trained network.

    Args:
        source: the run, file or name that it came from.
        family: what kind of network it is.
        digest: identifier of its weights.
        parts: what of it was used, sliced or dropped, per stage.
        deviations: why the largest sub-network does not compute what the checkpoint does, before
            any step; empty if it does.
        max_difference: largest difference of their outputs on random images, relative to the
            largest output; None if they are not comparable.
        is_teacher: whether the network is also the teacher.
    """

    source: str
    family: str
    digest: str
    parts: tuple[EmbeddedPart, ...] = ()
    deviations: tuple[str, ...] = ()
    max_difference: FiniteFloat | None = None
    is_teacher: bool = False


def computed_alike(note: PretrainedNote) -> str:
    """How exactly the largest sub-network repeats the network, in words."""
    exactly = "bit for bit"
    if note.max_difference:
        exactly = f"up to rounding ({note.max_difference:.0e} of the largest output)"
    return f"computes what the pre-trained network does, {exactly}"


class PretrainedRecord(PretrainedNote):
    """The pre-trained network in a run folder, whose weights lie beside this record.

    Args:
        format_version: version of the file format.
        architecture: the network.
        new: names of tensors that the checkpoint did not have.
        notes: how the tensors were found.
        class_names: the classes that it tells apart; null if unknown.
        mean, std: normalisation per channel of pixels in [0, 1]; null if unknown.
        resolution: size of the images in its training, in pixels; null if unknown.
    """

    format_version: int = FORMAT_VERSION
    architecture: Architecture
    new: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] | None = None
    mean: Triple | None = None
    std: Triple | None = None
    resolution: int | None = Field(default=None, ge=1, le=MAX_RESOLUTION)

    @property
    def note(self) -> PretrainedNote:
        """What the result of the search says about it."""
        fields = PretrainedNote.model_fields
        return PretrainedNote(**{name: getattr(self, name) for name in fields})

    def save(self, path: Path) -> None:
        """Write the record as JSON."""
        write_json(path, self.model_dump(mode="json"))


def load_pretrained_record(path: Path) -> PretrainedRecord:
    """Read a record that `save` wrote.

    Raises:
        QuadranasError: the file is unreadable, of a newer version or not valid.
    """
    content = read_json(path, "record of the pre-trained network")
    refuse_newer(content, FORMAT_VERSION, path)
    return validate(PretrainedRecord, content, path)


def noted(folder: Path) -> PretrainedNote | None:
    """How the search in a run folder used its pre-trained network, if there is one."""
    record = pretrained_of(folder)
    return None if record is None else record.note


def pretrained_of(folder: Path) -> PretrainedRecord | None:
    """The record in a run folder; None for a search from scratch. Errors as above."""
    path = folder / layout.PRETRAINED
    return load_pretrained_record(path) if path.is_file() else None
