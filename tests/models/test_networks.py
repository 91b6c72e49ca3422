# SPDX-License-Identifier: Apache-2.0
import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch

from ucadi.errors import CheckpointError, ModelError
from ucadi.models.densenet3d import DenseNet3d
from ucadi.models.parameters import load_parameters, parameters_of
from ucadi.models.registry import NETWORKS, build_network
from ucadi.models.unet3d import UNet3d
from ucadi.tensors import hash_tensors
from ucadi.types import Task


def test_the_densenet_has_the_published_networks_number_of_values():
    network = build_network("densenet3d", Task.CLASSIFIER, seed=0)
    state, shared = network.state_dict(), parameters_of(network)
    assert sum(p.numel() for p in network.parameters()) == 726_972
    assert sum(value.numel() for value in state.values()) == 729_980  # with BatchNorm's statistics
    assert len(state) == 112
    assert sum(array.size for array in shared.values()) == 729_980 - 16  # without BatchNorm's 16 counters
    assert len(shared) == 112 - 16


def test_the_densenet_has_fourteen_convolutions_and_the_stated_channels():
    network = DenseNet3d()
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv3d)]
    assert len(convolutions) == 1 + 14  # the stem, then six layers of two and two transitions
    transitions = [m for m in network.features if isinstance(m, torch.nn.Conv3d)][1:]
    assert [(m.in_channels, m.out_channels) for m in transitions] == [(96, 48), (112, 56)]
    assert network.head.in_features == 120


@pytest.mark.parametrize("shape", [(4, 4, 4), (16, 32, 32), (5, 9, 7)])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_densenet_gives_four_logits_for_stacks_of_any_size(shape, batch):
    network = DenseNet3d().eval()
    with torch.no_grad():
        logits = network(torch.zeros(batch, 1, *shape))
    assert logits.shape == (batch, 4)
    assert logits.dtype == torch.float32


@pytest.mark.parametrize("shape", [(4, 8, 8), (8, 16, 24), (16, 32, 32)])
def test_the_unet_gives_two_logits_per_voxel_on_the_inputs_grid(shape):
    network = UNet3d(width=2).eval()
    with torch.no_grad():
        logits = network(torch.zeros(2, 1, *shape))
    assert logits.shape == (2, 2, *shape)


@pytest.mark.parametrize("shape", [(4, 8, 12), (2, 8, 8)])
def test_the_unet_states_by_what_sizes_must_be_divisible(shape):
    assert any(size % divisor for size, divisor in zip(shape, UNet3d.divisor, strict=True))
    with pytest.raises(RuntimeError), torch.no_grad():
        UNet3d(width=2).eval()(torch.zeros(1, 1, *shape))


@pytest.mark.parametrize("preset", ["paper", "compact"])
def test_the_unet_takes_the_windows_of_every_preset(preset):
    from ucadi.imaging.presets import PRESETS

    for sizes in (PRESETS[preset].patch, PRESETS[preset].window):
        assert all(size % divisor == 0 for size, divisor in zip(sizes, UNet3d.divisor, strict=True))


def test_every_voxel_of_the_stack_can_change_the_logits():
    network = DenseNet3d().eval()
    stack = torch.zeros(1, 1, 4, 4, 4, requires_grad=True)
    network(stack + torch.randn(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0)))[0, 0].backward()
    assert (stack.grad != 0).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_seed_gives_the_same_parameters_and_another_seed_others(name):
    task = NETWORKS[name].task
    hashes = [hash_tensors(parameters_of(build_network(name, task, seed))) for seed in (3, 3, 4)]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("name", NETWORKS)
def test_building_a_network_leaves_the_global_generator_as_it_was(name):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    build_network(name, NETWORKS[name].task, seed=9)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "task"), [("resnet", Task.CLASSIFIER), ("densenet3d", Task.SEGMENTATION), ("", Task.CLASSIFIER)]
)
def test_an_unknown_network_or_one_of_another_task_is_refused_with_what_there_is(name, task):
    with pytest.raises(ModelError) as caught:
        build_network(name, task, seed=0)
    assert caught.value.code == "model-unknown"
    fitting = {key for key, entry in NETWORKS.items() if entry.task is task}
    assert all(key in caught.value.detail for key in fitting)


def test_the_names_can_be_known_without_torch():
    code = (
        "import sys; from ucadi.models.registry import NETWORKS, build_network\n"
        "assert len(NETWORKS) >= 2; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_go_out_and_back_in(name):
    task = NETWORKS[name].task
    source, target = build_network(name, task, seed=1), build_network(name, task, seed=2)
    shared = parameters_of(source)
    load_parameters(target, shared)
    assert hash_tensors(parameters_of(target)) == hash_tensors(shared)
    assert all(array.dtype == np.float32 for array in shared.values())


def test_shared_parameters_are_copies():
    network = UNet3d(width=2)
    shared = parameters_of(network)
    before = hash_tensors(parameters_of(network))
    for array in shared.values():
        array += 1
    assert hash_tensors(parameters_of(network)) == before


def test_shared_are_the_running_statistics_and_no_counters():
    names = parameters_of(DenseNet3d())
    assert any(name.endswith("running_mean") for name in names)
    assert any(name.endswith("running_var") for name in names)
    assert not any(name.endswith("num_batches_tracked") for name in names)


def test_read_only_and_channels_last_parameters_can_be_exchanged():
    network = UNet3d(width=2)
    shared = parameters_of(network)
    for array in shared.values():
        array.flags.writeable = False
    other = UNet3d(width=2).to(memory_format=torch.channels_last_3d)
    load_parameters(other, shared)
    assert hash_tensors(parameters_of(other)) == hash_tensors(shared)
    assert all(array.flags.c_contiguous for array in parameters_of(other).values())


def missing(shared):
    del shared["head.bias"]


def surplus(shared):
    shared["head.extra"] = np.zeros(1, np.float32)


def reshaped(shared):
    shared["head.bias"] = np.zeros(3, np.float32)


@pytest.mark.parametrize("change", [missing, surplus, reshaped])
def test_parameters_that_do_not_fit_are_refused_before_any_is_copied(change):
    network = UNet3d(width=2)
    before = hash_tensors(parameters_of(network))
    shared = {name: array + 1 for name, array in parameters_of(network).items()}
    change(shared)
    with pytest.raises(CheckpointError) as caught:
        load_parameters(network, shared)
    assert caught.value.code == "checkpoint-invalid"
    assert "head." in caught.value.detail
    assert hash_tensors(parameters_of(network)) == before


def test_names_and_shapes_are_those_of_the_first_release():
    """A change makes every released model unreadable, so it must be meant."""
    shared = parameters_of(build_network("densenet3d", Task.CLASSIFIER, seed=0))
    layout = "\n".join(f"{name} {array.shape}" for name, array in shared.items())
    assert hashlib.sha256(layout.encode()).hexdigest()[:12] == "9fdc011e27a1"
