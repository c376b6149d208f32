"""Opening what a user names: a network, with its weights and preprocessing if it has any."""

from dataclasses import dataclass
from pathlib import Path

import torch

from quadranas.architecture import Architecture
from quadranas.config import resume_command
from quadranas.errors import QuadranasError
from quadranas.evaluate import Preprocessing, load_preprocessing
from quadranas.naming import find_architecture
from quadranas.network import Network, build_subnet, load_weights


@dataclass(frozen=True)
class Subject:
    """A network to work on.

    Args:
        folder: the run folder it lies in, if any.
        weights: its trained weights, if any.
    """

    architecture: Architecture
    folder: Path | None = None
    weights: Path | None = None
    preprocessing: Preprocessing | None = None

    def network(self, *, seed: int = 0) -> Network:
        """The network, with its trained weights if it has any, else drawn from a seed."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            network = build_subnet(self.architecture)
        if self.weights is not None:
            load_weights(network, self.weights)
        return network

    def require_weights(self) -> None:
        """Refuse an untrained network.

        Raises:
            QuadranasError: there are no trained weights.
        """
        if self.weights is None and self.folder is not None:
            raise QuadranasError(
                f"{self.folder} holds no trained weights: subnet.safetensors is missing",
                f"If the run is unfinished, continue it with: {self._resume_command()}",
            )
        if self.weights is None:
            raise QuadranasError(
                f"architecture {self.architecture.name!r} has no trained weights",
                "Name a run folder, or add --weights FILE.safetensors.",
            )

    def _resume_command(self) -> str:
        assert self.folder is not None
        searched = (self.folder / "space.yaml").is_file()
        return resume_command("search" if searched else "train", self.folder)


def open_subject(name: str, weights: Path | None = None) -> Subject:
    """What ARCH|RUN on the command line stands for.

    Args:
        weights: a safetensors file instead of the run's `subnet.safetensors`.

    Raises:
        QuadranasError: unknown name, or an unfinished run.
    """
    folder = Path(name)
    architecture = find_architecture(name)
    if not folder.is_dir():
        return Subject(architecture, weights=weights)
    own_weights = folder / "subnet.safetensors"
    stored = folder / "preprocessing.json"
    return Subject(
        architecture,
        folder=folder,
        weights=weights or (own_weights if own_weights.is_file() else None),
        preprocessing=load_preprocessing(stored) if stored.is_file() else None,
    )
