"""Optimisers of the encoder and what is trained with it, and how they travel in a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import nn

Tensors = dict[str, torch.Tensor]

WARM_UP = 0.05  # of the run


def trained_parameters(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that get a gradient, by module and name."""
    for prefix, module in modules.items():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                yield f"{prefix}.{name}", parameter


def sgd(modules: Iterable[nn.Module], *, lr: float, momentum: float, weight_decay: float) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    return torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)


def adamw(groups: Iterable[tuple[nn.Module, float]], *, weight_decay: float) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay, each module at a rate of its own."""
    parameters = [{"params": [p for p in module.parameters() if p.requires_grad], "lr": lr} for module, lr in groups]
    return torch.optim.AdamW([group for group in parameters if group["params"]], weight_decay=weight_decay)


def cosine(done: float) -> float:
    """The share of the full rate when `done` (0 to 1) of the run is over: up in a line, down in half a cosine."""
    if done < WARM_UP:
        return done / WARM_UP
    return (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))) / 2


def state_of(optimiser: torch.optim.Optimizer, parameters: Iterable[tuple[str, nn.Parameter]]) -> Tensors:
    """What the optimiser remembers of each parameter, as PARAMETER/ENTRY."""
    return {
        f"{name}/{entry}": value
        for name, parameter in parameters
        for entry, value in optimiser.state.get(parameter, {}).items()
        if value is not None
    }


def restore(
    optimiser: torch.optim.Optimizer, parameters: Iterable[tuple[str, nn.Parameter]], state: Mapping[str, torch.Tensor]
) -> None:
    """Take over what `state_of` gave."""
    by_name = dict(parameters)
    for key, value in state.items():
        name, _, entry = key.rpartition("/")
        parameter = by_name[name]
        if value.shape == parameter.shape:
            value = torch.empty_like(parameter).copy_(value).detach()  # in the parameter's memory format
        optimiser.state[parameter][entry] = value
