"""Signs that a training failed."""

from typing import Any

import pytest

from quadranas.runs.records import Epoch
from quadranas.training.outcome import _test_warnings, is_chance, learning_warnings


def search(accuracy: float, entropy: float = 0.5) -> list[Epoch]:
    """The epochs of a search that ended so, with the first ones at chance."""
    accuracies = [0.17] * 6 + [accuracy] * 2
    return [
        Epoch(phase="search", epoch=number + 1, gate_accuracy=value, entropy=entropy)
        for number, value in enumerate(accuracies)
    ]


def test_an_accuracy_is_compared_with_what_guessing_reaches() -> None:
    assert is_chance(0.19, 1 / 6, 480)
    assert is_chance(0.23, 1 / 6, 480)
    assert not is_chance(0.33, 1 / 6, 480)
    assert is_chance(0.6, 0.5, 100)
    assert is_chance(0.85, 0.8, 100_000)  # one frequent class
    assert not is_chance(0.01, 0.001, 50_000)
    assert not is_chance(0.99, 0.9, 1000)  # a quarter more than chance is more than all
    assert not is_chance(1.0, 0.5, 8)  # four deviations more are
    assert is_chance(0.75, 0.5, 8)


@pytest.mark.parametrize(
    ("epochs", "texts"),
    [
        (search(0.4), []),
        (search(0.19), ["the supernet did not learn: its held-out accuracy was 19.0%"]),
        (search(0.4, entropy=0.97), ["the gates are undecided: their entropy is 0.97"]),
        (
            [Epoch(phase="finetune", epoch=1, accuracy=0.18)],
            ["the fine-tuning started from nothing: 18.0% in its first epoch"],
        ),
        ([Epoch(phase="finetune", epoch=1, accuracy=0.5)], []),
        ([Epoch(phase="train", epoch=1, accuracy=0.17)], []),
        ([], []),
    ],
)
def test_a_search_that_did_not_learn_is_noticed(epochs: list[Epoch], texts: list[str]) -> None:
    found = list(learning_warnings(epochs, 1 / 6, 960))
    assert len(found) == len(texts)
    assert all(one.startswith(text) for one, text in zip(found, texts, strict=True))


@pytest.mark.parametrize(
    ("accuracy", "as_trained", "text"),
    [
        (0.9, 0.92, ""),
        (0.92, 0.2, ""),
        (0.12, 0.11, "the network did not learn: its test accuracy is 12.0%"),
        (0.175, 0.61, "the accuracy is 17.5% at the deployment resolution of 224 pixels, and"),
    ],
)
def test_an_accuracy_that_does_not_hold_is_noticed(
    accuracy: float, as_trained: float, text: str
) -> None:
    given: dict[str, Any] = {"resolution": 224, "trained_resolution": 64, "chance": 0.1}
    given |= {"accuracy": accuracy, "accuracy_as_trained": as_trained, "num_images": 359}
    found = list(_test_warnings(**given))
    assert len(found) == bool(text)
    assert all(one.startswith(text) for one in found)
