"""Accuracy: one definition for training, evaluation, export and ranking."""

import pytest
import torch
from torch import nn

from quadranas.data.batch import Batch
from quadranas.data.task import accuracy_on, num_correct, step_result, top1_accuracy
from quadranas.errors import QuadranasError

LOGITS = torch.tensor([[2.0, 1, 0], [0, 3, 1], [1, 0, 5], [9, 1, 1], [0, 1, 0], [0, 0, 1]])
LABELS = torch.tensor([0, 1, 1, 0, 1, 2])


def test_the_largest_logit_is_the_answer() -> None:
    assert num_correct(LOGITS, LABELS) == 5
    assert top1_accuracy(LOGITS, LABELS) == 5 / 6


def test_a_step_counts_the_class_with_the_larger_share() -> None:
    targets = torch.eye(3)[LABELS] * 0.7 + 0.1
    logits = LOGITS.clone().requires_grad_()
    found = step_result(logits.sum(), logits, Batch(torch.zeros(6, 3, 2, 2), targets))
    assert found.accuracy == 5 / 6
    assert found.loss == LOGITS.sum().item()


def test_batches_of_different_sizes_count_by_their_images() -> None:
    network = nn.Sequential(nn.Identity(), nn.Dropout(0.9)).train()
    batches = [(LOGITS[:1], LABELS[:1]), (LOGITS[1:], LABELS[1:])]
    assert accuracy_on(network, batches) == 5 / 6
    assert network.training


def test_without_images_there_is_no_accuracy() -> None:
    with pytest.raises(QuadranasError, match="an accuracy without images"):
        accuracy_on(nn.Identity(), [])
