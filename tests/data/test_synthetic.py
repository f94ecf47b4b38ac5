"""What synthetic digits guarantee: form, balance, repeatability, plausible ink, variety inside a class."""

import inspect
import tracemalloc

import numpy as np
import pytest

from gpucnn.data import synthetic
from gpucnn.data.synthetic import VARIANTS, synthetic_digits
from gpucnn.errors import ConfigurationError

N = 1003  # more than one chunk, and no multiple of ten


@pytest.fixture(scope="module")
def digits():
    return synthetic_digits(N, seed=3)


def test_synthetic_digits_shape_and_dtype(digits):
    images, labels = digits
    assert images.shape == (N, 28, 28, 1)
    assert images.dtype == np.uint8
    assert images.flags.c_contiguous
    assert labels.shape == (N,)
    assert labels.dtype == np.int64


def test_synthetic_seed_defaults_to_zero():
    assert inspect.signature(synthetic_digits).parameters["seed"].default == 0


def test_synthetic_classes_are_balanced_and_shuffled(digits):
    counts = np.bincount(digits[1], minlength=10)
    assert len(counts) == 10
    assert counts.max() - counts.min() <= 1
    assert np.bincount(digits[1][:200], minlength=10).min() >= 5
    assert (np.diff(digits[1]) == 0).mean() == pytest.approx(0.1, abs=0.05)


@pytest.mark.parametrize("n", [1, 7, 10, 501])
def test_synthetic_count_may_be_any(n):
    images, labels = synthetic_digits(n)
    assert len(images) == len(labels) == n
    assert images.reshape(n, -1).max(axis=1).min() > 100


def test_synthetic_same_seed_same_bits(digits):
    images, labels = synthetic_digits(N, seed=3)
    assert np.array_equal(images, digits[0])
    assert np.array_equal(labels, digits[1])


def test_synthetic_arguments_may_be_numpy_integers(digits):
    images, _ = synthetic_digits(np.int64(N), seed=np.int32(3))
    assert np.array_equal(images, digits[0])


def test_synthetic_other_seed_other_digits(digits):
    images, labels = synthetic_digits(N, seed=4)
    assert not np.array_equal(labels, digits[1])
    assert (images != digits[0]).any(axis=(1, 2, 3)).all()


def test_synthetic_images_are_all_different(digits):
    assert len(np.unique(digits[0].reshape(N, -1), axis=0)) == N


def test_synthetic_digits_leave_the_global_random_state_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002 the old global state is what is asked about
    synthetic_digits(10)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_synthetic_ink_is_neither_missing_nor_everywhere(digits):
    images = digits[0].reshape(N, -1) / 255
    assert images.max(axis=1).min() > 0.5
    coverage = (images > 0.5).mean(axis=1)
    assert coverage.min() > 0.01
    assert coverage.max() < 0.45
    assert 0.09 < images.mean() < 0.18  # MNIST's is 0.13


def test_synthetic_background_is_black_and_ink_reaches_white(digits):
    images = digits[0]
    assert np.median(images) == 0
    assert (images[:, [0, -1]] > 127).mean() < 0.001
    assert (images[:, :, [0, -1]] > 127).mean() < 0.001
    assert (images.max(axis=(1, 2, 3)) > 250).mean() > 0.7


def test_synthetic_edges_are_smooth(digits):
    images = digits[0]
    grey = ((images > 10) & (images < 245)).mean()
    assert 0.04 < grey < 0.25


def test_synthetic_digits_fill_the_box_and_are_centred(digits):
    images = digits[0][..., 0].astype(float)
    place = np.arange(28) - 13.5
    for axis in (1, 2):
        mass = images.sum(axis=axis)
        centre = (mass * place).sum(axis=1) / mass.sum(axis=1)
        assert abs(centre.mean()) < 0.2
        assert abs(centre).max() < 3.0
    rows, columns = (images > 127).any(axis=2), (images > 127).any(axis=1)
    longest = np.maximum(rows.sum(axis=1), columns.sum(axis=1))
    assert longest.mean() == pytest.approx(20, abs=1.5)
    assert longest.min() >= 14
    assert longest.max() <= 24


@pytest.mark.parametrize("digit", range(10))
def test_synthetic_classes_vary_within_themselves(digits, digit):
    images = digits[0][digits[1] == digit].reshape(-1, 784).astype(float)
    correlation = np.corrcoef(images)[np.triu_indices(len(images), 1)]
    assert correlation.mean() < 0.8
    assert correlation.max() < 0.99


def test_synthetic_classes_can_be_told_apart():
    """The nearest class mean, a weak classifier, must do far better than the one in ten of chance."""
    images, labels = synthetic_digits(2000, seed=1)
    flat = images.reshape(2000, -1) / 255
    means = np.stack([flat[:1000][labels[:1000] == digit].mean(axis=0) for digit in range(10)])
    distance = (means**2).sum(axis=1) - 2 * flat[1000:] @ means.T
    assert (distance.argmin(axis=1) == labels[1000:]).mean() > 0.4


def test_synthetic_digits_have_named_variants():
    assert {variant.digit for variant in VARIANTS} == set(range(10))
    assert [variant.digit for variant in VARIANTS] == sorted(variant.digit for variant in VARIANTS)
    assert len({(variant.digit, variant.name) for variant in VARIANTS}) == len(VARIANTS)
    assert min(variant.frequency for variant in VARIANTS) > 0
    for digit in range(10):
        assert sum(variant.digit == digit for variant in VARIANTS) >= 4


def test_synthetic_curve_passes_its_control_points():
    points = np.array([[0.0, 0.0], [1.0, 2.0], [3.0, 1.0], [4.0, 4.0]])
    weights = synthetic.catmull_rom(4, np.array([0.0, 1.0, 2.0, 3.0]))
    assert np.allclose(weights @ points, points)
    between = synthetic.catmull_rom(4, np.linspace(0, 3, 50))
    assert np.allclose(between.sum(axis=1), 1)  # moving all the points moves the curve
    line = np.arange(4.0)
    assert np.allclose(between @ line, np.linspace(0, 3, 50))


def test_synthetic_variants_are_drawn_in_full():
    variants = synthetic.variant_arrays()
    for variant, points, curve in zip(VARIANTS, variants.points, variants.curve, strict=True):
        begin, end = np.split(curve @ points, 2)
        drawn = np.hypot(*(end - begin).T).sum()
        own, strokes = synthetic.split_strokes(variant)
        chords = sum(np.hypot(*np.diff(own[stroke], axis=0).T).sum() for stroke in strokes)
        assert 0.98 * chords < drawn < 1.25 * chords, variant.name


def test_synthetic_memory_does_not_grow_with_the_count():
    synthetic_digits(10)  # the table of variants is worked out once
    overhead = []
    for n in (synthetic.CHUNK, 4 * synthetic.CHUNK):
        tracemalloc.start()
        images, labels = synthetic_digits(n)
        overhead.append(tracemalloc.get_traced_memory()[1] - images.nbytes - labels.nbytes)
        tracemalloc.stop()
    assert overhead[1] < 1.2 * overhead[0] + 1e6
    assert overhead[1] < 150e6


@pytest.mark.parametrize("n", [0, -3, 2.0, "10", None, True])
def test_synthetic_count_out_of_range_is_refused(n):
    with pytest.raises(ConfigurationError, match=r"n must be a positive integer, not") as caught:
        synthetic_digits(n)
    assert repr(n) in str(caught.value)


@pytest.mark.parametrize("seed", [-1, 1.5, "a", None, False])
def test_synthetic_seed_out_of_range_is_refused(seed):
    with pytest.raises(ConfigurationError, match=r"seed must be an integer of at least 0, not") as caught:
        synthetic_digits(10, seed=seed)
    assert repr(seed) in str(caught.value)
