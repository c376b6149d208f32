"""Steps of a supernet in float64, computed by one process or by several together."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quadranas.acceleration.accelerator import CPU
from quadranas.acceleration.engine import Engine
from quadranas.acceleration.processes import ALONE, Processes, together
from quadranas.data.augmentation import AugmentConfig, Augmenter
from quadranas.data.batch import Batch
from quadranas.data.dataset import load_dataset
from quadranas.runs.config import GateConfig, SupernetConfig, WeightConfig
from quadranas.seeds import generator_for
from quadranas.supernet.budget_controller import BudgetController
from quadranas.supernet.expected_latency import ExpectedLatency
from quadranas.supernet.gate_training import GateTrainer
from quadranas.supernet.path_sampler import PathSampler
from quadranas.supernet.supernet import build_supernet
from quadranas.training.batches import Batches
from quadranas.training.distillation import label_loss
from quadranas.training.optimizers import build_optimizer
from quadranas.training.steps import joint_weight_step
from tests.small_supernets import BUDGET_MS, SPACES, table_for

NUM_STEPS = 4


def train(
    space_name: str, processes: Processes = ALONE, **supernet_keys: Any
) -> dict[str, Tensor]:
    """Weight and architecture steps with every augmentation; returns all tensors at the end."""
    shared = SupernetConfig(**supernet_keys)
    space = SPACES[space_name].with_num_classes(10)
    engine = Engine.of(CPU, processes)
    dataset = load_dataset(None, resolution=space.resolution)
    config = AugmentConfig(
        flip=True, crop_padding=2, rand_augment_ops=1, mixup=0.3, cutmix=0.5, erasing=0.3
    )
    batches = Batches(
        *(dataset, Augmenter.of(dataset, config), engine, torch.arange(100)),
        batch_size=24,
        seed_of=lambda epoch: epoch,
    )
    supernet = build_supernet(space, seed=0, nested=shared.weights == "nested").double().train()
    if not processes.is_alone:
        supernet.synchronize()
    weights = WeightConfig()
    optimizer = build_optimizer(supernet, weights)
    expected = ExpectedLatency(space, supernet.gates, table_for(space))
    sampler = PathSampler(supernet, shared, expected, BUDGET_MS)
    trainer = GateTrainer(
        supernet, expected, BudgetController(BUDGET_MS), GateConfig(learning_rate=0.05), engine
    )
    for number in range(NUM_STEPS):
        joint_weight_step(
            supernet,
            sampler.draw(generator_for(0, "path", number)),
            optimizer,
            in_double(batches.augmented(number, seed=number)),
            *(weights, 0.01, engine, label_loss(weights)),
            distillation=shared.distillation,
        )
        trainer.step(in_double(batches.plain(number)), generator_for(0, "gates", number))
    return {name: tensor.clone() for name, tensor in supernet.state_dict().items()}


def in_double(batch: Batch) -> Batch:
    return Batch(batch.images.double(), batch.targets.double(), batch.weight)


def main(space_name: str, output: str, **supernet_keys: Any) -> None:
    """Train as one of several processes; each writes its tensors."""
    with together() as processes:
        found = train(space_name, processes, **supernet_keys)
        torch.save(found, Path(output) / f"{processes.rank}.pt")
