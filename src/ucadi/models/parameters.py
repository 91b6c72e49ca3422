# SPDX-License-Identifier: Apache-2.0
"""A network's shared parameters as named arrays, and back.

Shared are all floating-point tensors of the state: weights, biases and BatchNorm's running statistics.
Whole-number counters stay with each side.
"""

import numpy as np
import torch
from torch import nn

from ucadi.errors import CheckpointError
from ucadi.tensors import Tensors

__all__ = ["load_parameters", "parameters_of"]


def parameters_of(network: nn.Module) -> dict[str, np.ndarray]:
    """Return copies of the shared parameters as float32, in the state's order."""
    return {
        name: value.detach().to(torch.float32).cpu().contiguous().numpy().copy()
        for name, value in network.state_dict().items()
        if value.is_floating_point()
    }


def load_parameters(network: nn.Module, parameters: Tensors) -> None:
    """Copy parameters into a network.

    Raises:
        CheckpointError: If names or shapes differ from the network's.
    """
    own = {name: value for name, value in network.state_dict().items() if value.is_floating_point()}
    if own.keys() != parameters.keys():
        odd = sorted(own.keys() ^ parameters.keys())
        raise CheckpointError(
            "checkpoint-invalid", f"{len(odd)} parameters do not fit, the first is {odd[0]!r}."
        )
    for name, value in own.items():
        if tuple(value.shape) != parameters[name].shape:
            raise CheckpointError(
                "checkpoint-invalid",
                f"{name} has shape {parameters[name].shape}, expected {tuple(value.shape)}.",
            )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(torch.from_numpy(np.array(parameters[name], dtype=np.float32)))
