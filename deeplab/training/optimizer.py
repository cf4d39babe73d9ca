"""The optimizer: the papers' parameter groups and learning rates, and the running mean of the weights."""

from __future__ import annotations

import torch

from deeplab.networks.network import ParameterGroup, SegmentationNetwork
from deeplab.training import learning_rate
from deeplab.training.presets import TrainingConfig


def learning_rate_factor(config: TrainingConfig, step: int) -> float:
    """The factor on every base learning rate at `step`."""
    if config.schedule == "poly":
        factor = learning_rate.poly(step, config.steps, config.power)
    else:
        factor = learning_rate.staircase(step, config.step_every)
    return factor * learning_rate.warmup(step, config.warmup_steps)


def parameter_groups(network: SegmentationNetwork, config: TrainingConfig) -> list[ParameterGroup]:
    """Weights x 1, biases x 2 without weight decay, the head's x m and x 2m, as in the released solvers."""
    return network.parameter_groups(config.learning_rate, config.head_multiplier, config.weight_decay)


def optimizer_of(network: SegmentationNetwork, config: TrainingConfig) -> torch.optim.Optimizer:
    """The optimizer that the configuration names, over the network's parameter groups."""
    groups = [dict(group) for group in parameter_groups(network, config)]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate)
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)


def update_average(average: dict[str, torch.Tensor], network: SegmentationNetwork, decay: float, step: int) -> None:
    """average <- decay * average + (1 - decay) * weights, with a smaller decay over the first steps."""
    decay = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for key, value in network.state_dict().items():
            if value.is_floating_point():
                average[key].lerp_(value, 1 - decay)
            else:
                average[key].copy_(value)
