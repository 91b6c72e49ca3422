# SPDX-License-Identifier: Apache-2.0
"""The UCADI study's 3D-DenseNet: 14 convolutions in six bottleneck layers and two transitions.

Source: Xu et al. 2020, "UCADI", Methods; layer sizes as in the published code.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["DenseNet3d"]

_GROWTH = 32
_BOTTLENECK = 128
_SLOPE = 0.1


class DenseNet3d(nn.Module):
    """Classifies a stack of slices. Channels 32-96-48-112-56-120, 726,972 trainable values.

    Args:
        classes: Number of output logits.
    """

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv3d(1, 32, 3, padding=1), *_norm_act(32)]
        channels = 32
        for stage in range(3):
            for _ in range(2):
                layers.append(_DenseLayer(channels))
                channels += _GROWTH
            layers += _norm_act(channels)
            if stage < 2:
                layers += [nn.Conv3d(channels, channels // 2, 1), nn.AvgPool3d(2)]
                channels //= 2
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_uniform_(module.weight, a=_SLOPE)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.head.bias)

    def forward(self, stack: Float[Tensor, "batch 1 z y x"]) -> Float[Tensor, "batch classes"]:
        """Return logits. Each spatial size must be at least 4."""
        logits: Tensor = self.head(self.features(stack).mean((2, 3, 4)))
        return logits


class _DenseLayer(nn.Module):
    """norm-act-1x1x1 to 128 channels, norm-act-3x3x3 to 32, appended to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_norm_act(channels),
            nn.Conv3d(channels, _BOTTLENECK, 1),
            *_norm_act(_BOTTLENECK),
            nn.Conv3d(_BOTTLENECK, _GROWTH, 3, padding=1),
        )

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([features, self.body(features)], 1)


def _norm_act(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm3d(channels), nn.LeakyReLU(_SLOPE, inplace=True)]
