"""The conditions of a run, which have to be the same for a resumed run to be the same run."""

import platform
from pathlib import Path

import torch
from pydantic import Field

from quadranas.acceleration.engine import Engine
from quadranas.data.identity import DataIdentity, EarlierData, written_name
from quadranas.data.preprocessing import load_preprocessing
from quadranas.errors import some
from quadranas.files import read_json, write_compact_json
from quadranas.runs import layout
from quadranas.validation import Frozen, refuse_newer, validate

FORMAT_VERSION = 1
MAX_THREADS = 1024
MAX_PROCESSES = 100_000


class Conditions(Frozen):
    """The conditions under which a run was begun, in `conditions.json`.

    Args:
        format_version: version of the file format.
        threads: number of threads of PyTorch. Sums are split between them, so that results with
            another number differ in their last bits.
        processes: number of processes that train together; sums are split between them too.
        accelerator: the type of hardware that trains, such as `cpu` or `cuda`.
        torch, processor: version of PyTorch, and the instruction set it computes with.
        images: the images; None for the built-in digits.
        teacher: identifier of the weights of the network that the run learns from; None without
            one, and in runs of versions that did not record it.
        corrupt: images that an error named as corrupt; they may be removed or replaced.
        notes: what has changed in the run since it was begun, in words.
    """

    format_version: int = FORMAT_VERSION
    threads: int = Field(ge=1, le=MAX_THREADS)
    processes: int = Field(default=1, ge=1, le=MAX_PROCESSES)
    accelerator: str = "cpu"
    torch: str
    processor: str
    images: DataIdentity | None = None
    teacher: str | None = None
    corrupt: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def here(
        cls, images: DataIdentity | None, engine: Engine, teacher: str | None = None
    ) -> "Conditions":
        """The conditions of this process."""
        return cls(
            threads=torch.get_num_threads(),
            processes=engine.processes.count,
            accelerator=engine.accelerator.device.type,
            torch=torch.__version__,
            processor=f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
            images=images,
            teacher=teacher,
        )

    def earlier(self, folder: Path) -> EarlierData | None:
        """The images of the run in a folder; None if it has none."""
        if self.images is None:
            return None
        path = folder / layout.PREPROCESSING
        found = load_preprocessing(path) if path.is_file() else None
        return EarlierData(
            run=folder,
            identity=self.images,
            corrupt=frozenset(self.corrupt),
            statistics=(found.mean, found.std) if found else None,
        )

    def save(self, folder: Path) -> None:
        """Write them into a run folder."""
        write_compact_json(folder / layout.CONDITIONS, self.model_dump(mode="json"))

    def with_notes(self, *notes: str) -> "Conditions":
        """The same with more notes, each once."""
        return self.model_copy(update={"notes": tuple(dict.fromkeys((*self.notes, *notes)))})

    def changes(self, engine: Engine) -> list[str]:
        """What differs in this process, and cannot be restored."""
        here = Conditions.here(None, engine)
        return [
            f"resumed with {what} {new}, begun with {old}: results may differ in their last bits"
            for what, old, new in (
                ("PyTorch", self.torch, here.torch),
                ("processor", self.processor, here.processor),
                ("accelerator", self.accelerator, here.accelerator),
                ("a number of processes of", self.processes, here.processes),
            )
            if old != new
        ]


def load_conditions(folder: Path) -> Conditions | None:
    """Read the conditions of a run; None for runs of versions that did not record them.

    Raises:
        QuadranasError: the file is unreadable or not valid.
    """
    path = folder / layout.CONDITIONS
    if not path.is_file():
        return None
    content = read_json(path, "conditions of the run")
    refuse_newer(content, FORMAT_VERSION, path)
    return validate(Conditions, content, path)


def notes_of(folder: Path) -> tuple[str, ...]:
    """What has changed in a run since it was begun; errors as in `load_conditions`."""
    conditions = load_conditions(folder)
    return () if conditions is None else conditions.notes


def note_corrupt(folder: Path, names: tuple[str, ...]) -> None:
    """Record images that turned out to be corrupt, so that they may be removed or replaced."""
    conditions = load_conditions(folder)
    if conditions is not None and names:
        corrupt = tuple(dict.fromkeys((*conditions.corrupt, *map(written_name, names))))
        conditions.model_copy(update={"corrupt": corrupt}).save(folder)


def left_out_note(names: tuple[str, ...]) -> str:
    """The note about images that are left out since a run was begun."""
    written = tuple(map(written_name, names))
    verb = "image was" if len(names) == 1 else "images were"
    return f"{len(names)} corrupt {verb} left out after the run was begun: {some(written)}"
