# SPDX-License-Identifier: Apache-2.0
"""A compact 3D U-shaped network for thick-slice CT.

The first downsampling leaves z alone, because a chest CT's slices are thicker than its pixels. BatchNorm
and LeakyReLU throughout: the fastest choice on CPUs with bf16.

Source: the U shape of Çiçek et al. 2016 (3D U-Net), reduced to 3 levels.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["UNet3d"]

_STRIDES = ((1, 2, 2), (2, 2, 2), (2, 2, 2))


class UNet3d(nn.Module):
    """Two-channel segmentation: background and lesion.

    Args:
        width: Channels at full resolution; doubles with each level.
    """

    divisor = (4, 8, 8)
    """Spatial sizes (z, y, x) must be multiples of this."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        channels = [width * 2**level for level in range(len(_STRIDES) + 1)]
        self.stem = _block(1, channels[0])
        self.down = nn.ModuleList(
            nn.Sequential(nn.MaxPool3d(stride), _block(low, high))
            for stride, low, high in zip(_STRIDES, channels[:-1], channels[1:], strict=True)
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(high, low, stride, stride)
            for stride, low, high in zip(_STRIDES, channels[:-1], channels[1:], strict=True)
        )
        self.merge = nn.ModuleList(_block(2 * low, low) for low in channels[:-1])
        self.head = nn.Conv3d(channels[0], 2, 1)

    def forward(self, patch: Float[Tensor, "batch 1 z y x"]) -> Float[Tensor, "batch 2 z y x"]:
        """Return logits on the input's grid."""
        levels = [self.stem(patch)]
        for down in self.down:
            levels.append(down(levels[-1]))
        features = levels.pop()
        for up, merge in zip(reversed(self.up), reversed(self.merge), strict=True):
            features = merge(torch.cat([levels.pop(), up(features)], 1))
        logits: Tensor = self.head(features)
        return logits


def _block(channels_in: int, channels_out: int) -> nn.Sequential:
    """Two 3x3x3 convolutions with norm and activation."""
    return nn.Sequential(
        nn.Conv3d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm3d(channels_out),
        nn.LeakyReLU(0.1, inplace=True),
        nn.Conv3d(channels_out, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm3d(channels_out),
        nn.LeakyReLU(0.1, inplace=True),
    )
