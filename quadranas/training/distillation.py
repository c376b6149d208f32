"""Distillation: a network learns the outputs of a teacher beside the labels.

Source: Hinton, Vinyals and Dean, 2015 (arXiv:1503.02531), Sec. 2; on the images as augmented, with
mixed ones, as in Beyer et al., CVPR 2022 (arXiv:2106.05237).
"""

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor
from torch.nn import functional

from quadranas.data.augmentation import Augmenter
from quadranas.data.batch import Batch
from quadranas.runs.config import DistillationConfig, WeightConfig
from quadranas.training.teacher import Teacher

Loss: TypeAlias = Callable[[Tensor, Batch], Tensor]
"""The loss of logits, (B, num_classes), for a batch: a scalar, the mean over its images."""


def label_loss(weights: WeightConfig) -> Loss:
    """Cross-entropy with the targets, some of which is spread over all classes."""
    smoothing = weights.label_smoothing
    return lambda logits, batch: functional.cross_entropy(
        logits, batch.targets, label_smoothing=smoothing
    )


def distilled_loss(
    weights: WeightConfig, teacher: Teacher, config: DistillationConfig, augmenter: Augmenter
) -> Loss:
    """The loss with a teacher, for the configured weight w and temperature T.

    `(1 - w) cross-entropy + w T^2 KL(softmax(teacher / T) || softmax(logits / T))`
    """
    labels, temperature = label_loss(weights), config.temperature

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        statistics = augmenter.statistics(batch.images.device)
        wanted = teacher.logits(batch.images, *statistics).to(logits.dtype)
        distance = functional.kl_div(
            functional.log_softmax(logits / temperature, 1),
            functional.log_softmax(wanted / temperature, 1),
            reduction="batchmean",
            log_target=True,
        )
        share = config.weight
        return (1 - share) * labels(logits, batch) + share * temperature**2 * distance

    return loss


def imitation_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy with the probabilities of another network.

    Args:
        logits: (B, num_classes).
        wanted: the logits of the other network, the same shape, without a gradient.
    """
    return functional.cross_entropy(logits, wanted.softmax(1))


def loss_for(
    weights: WeightConfig,
    teacher: Teacher | None,
    config: DistillationConfig,
    augmenter: Augmenter,
) -> Loss:
    """The loss of a training with or without a teacher."""
    if teacher is None:
        return label_loss(weights)
    return distilled_loss(weights, teacher, config, augmenter)
