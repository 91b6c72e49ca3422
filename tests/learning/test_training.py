# SPDX-License-Identifier: Apache-2.0
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ucadi.errors import ModelError
from ucadi.imaging.presets import InputPreset
from ucadi.learning.inference import class_probabilities, lesion_probabilities, mean_dice, score_classifier
from ucadi.learning.samples import ClassifierSamples, SegmentationSamples
from ucadi.learning.supervised import FitSettings, _batches, train_classifier, train_segmentation
from ucadi.models.parameters import parameters_of
from ucadi.models.registry import build_network
from ucadi.models.unet3d import UNet3d
from ucadi.tensors import hash_tensors
from ucadi.types import Task

TINY = InputPreset(
    stack_slices=12,
    stack_size=8,
    draws=3,
    spacing_mm=(5.0, 3.0, 3.0),
    patch=(12, 16, 16),
    window=(12, 24, 16),
    overlap=0.25,
)


def stacks(studies: int = 8) -> ClassifierSamples:
    """Studies whose class is their brightness."""
    rng = np.random.default_rng(0)
    labels = np.arange(studies) % 4
    slices = [rng.normal(-900 + 350 * k, 60, (6, 8, 8)).astype(np.int16) for k in labels]
    return ClassifierSamples(tuple(slices), labels, TINY)


def lesions(studies: int = 4) -> SegmentationSamples:
    """Studies with a bright box in dark lung."""
    rng = np.random.default_rng(0)
    volumes, masks = [], []
    for k in range(studies):
        mask = np.zeros((14, 20, 18), bool)
        mask[2:11, 3 + k : 12 + k, 5:13] = True
        volumes.append((np.where(mask, -200, -850) + rng.normal(0, 30, mask.shape)).astype(np.int16))
        masks.append(mask)
    return SegmentationSamples(tuple(volumes), tuple(masks), TINY)


def classifier(seed: int = 0) -> nn.Module:
    return build_network("densenet3d", Task.CLASSIFIER, seed)


def outliner(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return UNet3d(width=4)


CASES = {
    "classifier": (classifier, stacks, train_classifier, FitSettings(8, 4, 3e-3, 7)),
    "segmentation": (outliner, lesions, train_segmentation, FitSettings(25, 4, 1e-2, 7)),
}


@pytest.mark.parametrize("task", CASES)
def test_the_loss_falls_within_a_few_steps(task):
    build, samples, train, settings = CASES[task]
    losses = []
    mean = train(build(), samples(), settings, lambda step, loss: losses.append(loss))
    quarter = len(losses) // 4
    assert np.mean(losses[-quarter:]) < 0.8 * np.mean(losses[:quarter])
    assert mean == pytest.approx(np.mean(losses))


@pytest.mark.parametrize("task", CASES)
def test_training_is_the_same_bit_for_bit_for_the_same_seed(task):
    build, samples, train, settings = CASES[task]
    hashes = []
    for seed in (7, 7, 8):
        network = build()
        few = FitSettings(2, settings.batch_size, settings.learning_rate, seed)
        train(network, samples(), few, lambda step, loss: None)
        hashes.append(hash_tensors(parameters_of(network)))
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("task", CASES)
def test_every_step_is_told_once_from_one(task):
    build, samples, train, settings = CASES[task]
    steps = []
    few = FitSettings(3, 2, settings.learning_rate, 0)
    train(build(), samples(), few, lambda step, loss: steps.append(step))
    assert steps == [1, 2, 3]


@pytest.mark.parametrize("task", CASES)
def test_a_loss_that_is_not_finite_ends_the_training(task):
    build, samples, train, settings = CASES[task]
    network = build()
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    with pytest.raises(ModelError) as caught:
        train(network, samples(), settings, lambda step, loss: None)
    assert caught.value.code == "site-failed"
    assert "step 1" in caught.value.detail


def test_one_study_is_enough_to_train_on():
    network = outliner()
    assert np.isfinite(train_segmentation(network, lesions(1), FitSettings(1, 3, 1e-3, 0), lambda s, v: None))


@given(studies=st.integers(1, 12), batch_size=st.integers(1, 30), seed=st.integers(0, 5))
def test_every_study_appears_once_per_pass(studies, batch_size, seed):
    passes = 3
    wanted = -(-passes * studies // batch_size)
    batches = list(islice(_batches(studies, batch_size, np.random.default_rng(seed)), wanted))
    assert all(len(batch) == batch_size for batch in batches)
    order = np.concatenate(batches)
    for number in range(passes):
        once = order[number * studies : (number + 1) * studies]
        assert sorted(once) == list(range(studies))


# -- samples ----------------------------------------------------------------------------------------------


def test_a_drawn_patch_and_its_mask_stay_together():
    samples = lesions()
    patches, masks = samples.draw(np.random.default_rng(0), np.array([0, 1, 2, 3]))
    assert patches.shape == masks.shape == (4, *TINY.patch)
    assert patches.dtype == masks.dtype == np.float32
    assert set(np.unique(masks)) <= {0.0, 1.0}
    for patch, mask in zip(patches, masks, strict=True):
        if 0 < mask.sum() < mask.size:
            assert patch[mask == 1].mean() > patch[mask == 0].mean() + 0.2  # flips went through both


def test_every_second_patch_lies_on_a_lesion():
    mask = np.zeros((24, 64, 64), bool)
    mask[0, 0, 0] = True
    samples = SegmentationSamples((np.zeros(mask.shape, np.int16),), (mask,), TINY)
    _, masks = samples.draw(np.random.default_rng(0), np.zeros(20, np.intp))
    assert masks[::2].any((1, 2, 3)).all()
    assert not masks[1::2].any((1, 2, 3)).all()


def test_studies_smaller_than_a_patch_are_padded():
    samples = SegmentationSamples((np.zeros((2, 5, 40), np.int16),), (np.ones((2, 5, 40), bool),), TINY)
    patches, masks = samples.draw(np.random.default_rng(0), np.array([0]))
    assert patches.shape == (1, *TINY.patch)
    assert masks.sum() == 2 * 5 * 16


def test_stacks_of_one_study_span_it_whatever_the_offset():
    voxels = np.repeat(np.arange(-1000, -1000 + 120, dtype=np.int16), 4).reshape(120, 2, 2)
    samples = ClassifierSamples((voxels,), np.array([0]), TINY)
    for offset in (0.0, 0.5, 0.999):
        stack = samples.stack(0, offset)
        assert stack.shape == (TINY.stack_slices, 2, 2)
        depths = np.diff(stack[:, 0, 0])
        assert (depths > 0).all()
        np.testing.assert_allclose(depths, depths[0], rtol=1e-3)


# -- inference --------------------------------------------------------------------------------------------


class Brightness(nn.Module):
    """Two channels whose softmax is the input itself."""

    def forward(self, patch):
        return torch.log(torch.cat([1 - patch, patch], 1).clamp(1e-6, 1))


def test_lesion_probabilities_have_the_studys_shape_and_the_networks_values():
    window = np.random.default_rng(0).uniform(0.1, 0.9, (7, 33, 21)).astype(np.float32)
    found = lesion_probabilities(Brightness(), window, TINY)
    assert found.shape == window.shape
    np.testing.assert_allclose(found, window, atol=0.01)  # bf16 where the CPU has it


def test_the_mean_dice_is_over_the_studies_that_have_a_lesion():
    samples = lesions(2)
    bright = SegmentationSamples(
        tuple(np.where(mask, -100, -900).astype(np.int16) for mask in samples.lesion_masks),
        samples.lesion_masks,
        TINY,
    )
    assert mean_dice(Brightness(), bright) == pytest.approx(1.0)
    none = np.zeros(samples.lesion_masks[1].shape, bool)
    half = SegmentationSamples(bright.volumes_hu, (bright.lesion_masks[0], none), TINY)
    assert mean_dice(Brightness(), half) == pytest.approx(1.0)
    assert mean_dice(Brightness(), SegmentationSamples((bright.volumes_hu[0],), (none,), TINY)) is None


def test_class_probabilities_are_one_row_per_draw_and_sum_to_one():
    found = class_probabilities(classifier(), stacks(2), 1)
    assert found.shape == (TINY.draws, 4)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(found, class_probabilities(classifier(), stacks(2), 1))


def test_scoring_leaves_the_parameters_as_they_were():
    network = classifier()
    before = hash_tensors(parameters_of(network))
    assert 0 <= score_classifier(network, stacks(4)) <= 1
    assert hash_tensors(parameters_of(network)) == before
