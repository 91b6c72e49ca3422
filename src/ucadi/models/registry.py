# SPDX-License-Identifier: Apache-2.0
"""Networks by name. Knowing the names needs no torch; building one does."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ucadi.errors import ModelError
from ucadi.types import Task

if TYPE_CHECKING:
    from torch import nn

__all__ = ["NETWORKS", "NetworkEntry", "build_network"]


@dataclass(frozen=True)
class NetworkEntry:
    """A registered network.

    Attributes:
        task: What it can learn.
        summary: One line for people.
    """

    task: Task
    summary: str


NETWORKS: dict[str, NetworkEntry] = {
    "densenet3d": NetworkEntry(Task.CLASSIFIER, "The UCADI study's 3D-DenseNet, four classes"),
    "unet3d": NetworkEntry(Task.SEGMENTATION, "Compact 3D U-shaped network, background and lesion"),
}


def build_network(name: str, task: Task, seed: int) -> "nn.Module":
    """Build a network with reproducible initial parameters.

    Args:
        name: A key of `NETWORKS`.
        task: What it will learn; must be the entry's task.
        seed: Seed of the initial parameters. The global generator is left as it was.

    Raises:
        ModelError: If the name is unknown or belongs to another task.
    """
    entry = NETWORKS.get(name)
    if entry is None or entry.task is not task:
        fitting = ", ".join(key for key, value in NETWORKS.items() if value.task is task)
        raise ModelError("model-unknown", f"There is no {task} network {name[:80]!r}; there is: {fitting}.")
    import torch

    from ucadi.models.densenet3d import DenseNet3d
    from ucadi.models.unet3d import UNet3d

    builders = {"densenet3d": DenseNet3d, "unet3d": UNet3d}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return builders[name]()
