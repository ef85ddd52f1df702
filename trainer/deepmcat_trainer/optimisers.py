"""Optimisers of the encoder and what is trained with it, and how they travel in a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import nn

Tensors = dict[str, torch.Tensor]


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
