"""publish: write an exported network as a folder for a model hub."""

from pathlib import Path

from quadranas.deployment.bundle import Bundle, open_bundle
from quadranas.deployment.publication import check_hub_place, check_license, write_hub_folder
from quadranas.errors import QuadranasError
from quadranas.runs import layout
from quadranas.runs.stored_network import Model, open_network
from quadranas.runs.whole_folder import restore_replaced, whole_folder
from quadranas.validation import CommandResult

UNKNOWN_LICENSE = "unknown"


class PublishResult(CommandResult):
    """The result of `quadranas publish`.

    Args:
        folder: the folder that was written.
        bundle: the bundle that it was made of.
        name: name of the network.
        license: identifier of the licence in the metadata.
        files: the files in the folder.
        accuracy: top-1 accuracy in PyTorch in the metadata, from 0 to 1; `None` if it was not
            measured at export.
        num_images: number of images of that accuracy; `None` without it.
        size_bytes: size of all files.
        notes: what the metadata lack.
    """

    folder: Path
    bundle: Path
    name: str
    license: str
    files: tuple[str, ...]
    accuracy: float | None
    num_images: int | None
    size_bytes: int
    notes: tuple[str, ...]


def publish(
    bundle: str | Path,
    output: str | Path,
    *,
    model: Model | None = None,
    weights: str | Path | None = None,
    license: str = UNKNOWN_LICENSE,
    force: bool = False,
) -> PublishResult:
    """Write an exported network as a folder for a model hub; nothing is uploaded.

    The folder has a model card with metadata, the architecture, the weights as safetensors and the
    bundle. `from_pretrained` and every command that takes a model open it.

    Args:
        bundle: the bundle's folder.
        output: the folder to write.
        model: the network that was exported; by default that of the run folder with the bundle.
        weights: its weights, if it is not a run folder.
        license: identifier of the weights' licence, as the hub lists it.
        force: replace a folder that this function wrote.

    Raises:
        QuadranasError: the bundle is damaged or of an untrained network, its network or weights
            are not found or are others, or the output exists.
    """
    check_license(license)
    folder, opened = Path(output), open_bundle(Path(bundle))
    if not opened.manifest.trained:
        raise QuadranasError(
            f"{bundle} was exported untrained: its weights are random",
            "Train the network and export it again.",
        )
    stored = open_network(model or _run_of(opened.folder), weights)
    stored.require_weights()
    restore_replaced(folder)
    check_hub_place(folder, replace=force)
    with whole_folder(folder, replace=force) as new:
        write_hub_folder(new.path, opened, stored, license=license)
    return _result(folder, opened, license)


def _result(folder: Path, opened: Bundle, license: str) -> PublishResult:
    accuracy = opened.manifest.accuracy
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return PublishResult(
        folder=folder,
        bundle=opened.folder,
        name=opened.manifest.name,
        license=license,
        files=tuple(path.relative_to(folder).as_posix() for path in paths),
        accuracy=accuracy.pytorch if accuracy else None,
        num_images=accuracy.num_images if accuracy else None,
        size_bytes=sum(path.stat().st_size for path in paths),
        notes=_notes(license, has_accuracy=accuracy is not None),
    )


def _run_of(bundle: Path) -> Path:
    """The run folder in which a bundle was exported.

    Raises:
        QuadranasError: it was exported to another place.
    """
    exports = bundle.absolute().parent
    if exports.name != layout.EXPORTS:
        raise QuadranasError(
            f"{bundle} is not in a run folder, and a bundle does not contain the weights as "
            "tensors",
            "Name the network that was exported: --model RUN, or --model FILE.json --weights "
            "FILE.safetensors.",
        )
    return exports.parent


def _notes(license: str, *, has_accuracy: bool) -> tuple[str, ...]:
    notes = []
    if license == UNKNOWN_LICENSE:
        notes.append("the licence is unknown; name one with --license before you upload it")
    if not has_accuracy:
        notes.append(
            "the metadata have no evaluation, since the accuracy was not measured at export"
        )
    return tuple(notes)
