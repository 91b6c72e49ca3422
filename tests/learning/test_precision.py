# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from torch import nn

from ucadi.imaging.presets import PRESETS
from ucadi.learning.precision import as_input, autocast, has_bf16, to_fast_layout
from ucadi.models.registry import NETWORKS, build_network
from ucadi.models.unet3d import UNet3d
from ucadi.types import Task


def gradient_of(network: nn.Module, batch: torch.Tensor, context) -> np.ndarray:
    """The loss' gradient by all parameters, computed where not-a-numbers lay in memory before."""
    network.zero_grad(set_to_none=True)
    with context:
        logits = network(batch)
    loss = logits.float().square().mean()
    for size in (100_000, 500_000, 2_000_000):
        torch.full((size,), float("nan"))  # freed at once
    loss.backward()
    return np.concatenate([p.grad.flatten().numpy() for p in network.parameters()])


@pytest.mark.parametrize("depth", [4, 5, 8, 12, 16])
def test_gradients_are_right_and_repeat_at_every_depth(depth):
    network = build_network("densenet3d", Task.CLASSIFIER, seed=0)
    layout = to_fast_layout(network)
    batch = as_input(torch.randn(2, depth, 8, 8, generator=torch.Generator().manual_seed(0)), layout)
    found = [gradient_of(network, batch, autocast(depth)) for _ in range(3)]
    assert all(gradient.tobytes() == found[0].tobytes() for gradient in found)
    exact = gradient_of(network, batch, torch.autocast("cpu", enabled=False))
    assert np.linalg.norm(found[0] - exact) < 0.25 * np.linalg.norm(exact)  # bf16 keeps eight bits a step


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_halve_the_depth_as_often_as_the_choice_of_format_assumes(name):
    network = build_network(name, NETWORKS[name].task, seed=0).eval()
    depths = set()
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(lambda m, given, out: depths.add(given[0].shape[2]))
    with torch.no_grad():
        network(torch.zeros(1, 1, 16, 16, 16))
    assert depths == {16, 8, 4}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains_in_the_fast_format(name):
    preset = PRESETS[name]
    for depth in (preset.stack_slices, preset.patch[0], preset.window[0]):
        with autocast(depth):
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == (torch.bfloat16 if has_bf16() else torch.float32)


def test_networks_without_batch_norm_keep_the_usual_layout():
    grouped = nn.Sequential(nn.Conv3d(1, 4, 3), nn.GroupNorm(2, 4))
    assert to_fast_layout(grouped) is torch.contiguous_format
    assert to_fast_layout(UNet3d(width=2)) is torch.channels_last_3d


def test_the_fast_layout_changes_no_value():
    network = UNet3d(width=4).eval()
    batch = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = network(batch.unsqueeze(1))
        after = network(as_input(batch, to_fast_layout(network)))
    torch.testing.assert_close(before, after)
