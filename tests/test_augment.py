"""Augmentation: what each does to an image, in plain loops; the same bits on every backend; the errors."""

import numpy as np
import pytest

import gpucnn
from gpucnn import layers as L
from gpucnn import optimizers
from gpucnn.backends import Backend
from gpucnn.backends.placement import Placement
from gpucnn.config import Configurable
from gpucnn.data.augment import Augmentation, Cutout, Flip, Translate, placement_of, words_of
from gpucnn.errors import ConfigurationError, ShapeError

H, W, C = 6, 5, 3


def images(rng, count=9):
    return rng.integers(0, 256, (count, H, W, C)).astype("uint8")


def placed(image, down=0, right=0, flip=0, hole_top=0, hole_left=0, hole=0, fill=0):
    """One image by plain loops, the reflected edge by NumPy's own padding."""
    result = np.zeros(image.shape)
    margin = H - 1, W - 1
    wide = np.pad(image, ((margin[0],) * 2, (margin[1],) * 2, (0, 0)), mode="reflect")
    for h in range(H):
        for w in range(W):
            column = W - 1 - w if flip else w
            pixel = wide[margin[0] + h - down, margin[1] + column - right]
            inside = hole_top <= h < hole_top + hole and hole_left <= w < hole_left + hole
            result[h, w] = fill / 255 if inside else pixel / 255
    return result


PLACEMENTS = {
    "nothing": {},
    "moved": {"down": [-4, -1, 0, 1, 5], "right": [4, 2, 0, -3, -4]},
    "mirrored": {"flip": [1, 0, 1, 0, 0]},
    "painted": {"hole_top": [-2, 0, 4, 5, 2], "hole_left": [1, -1, 3, 4, 2], "hole": 3, "fill": 77},
    "all": {
        "down": [-4, -1, 0, 1, 5],
        "right": [4, 2, 0, -3, -4],
        "flip": [1, 0, 1, 1, 0],
        "hole_top": [-2, 0, 4, 5, 2],
        "hole_left": [1, -1, 3, 4, 2],
        "hole": 2,
        "fill": 200,
    },
}


def on_backend(backend, fields):
    return Placement(
        **{
            name: backend.from_host(np.array(value, "int32")) if isinstance(value, list) else value
            for name, value in fields.items()
        }
    )


@pytest.mark.parametrize("kind", ["uint8", "float32"])
@pytest.mark.parametrize("name", PLACEMENTS)
def test_meaning(backend, rng, name, kind):
    """Picked out of order, and twice."""
    x, fields, picked = images(rng), PLACEMENTS[name], [7, 0, 3, 3, 8]
    data = x if kind == "uint8" else x.astype("float32") / 255
    batch = backend.gather(
        backend.from_host(data), backend.from_host(np.array(picked)), "float32", on_backend(backend, fields)
    )
    assert batch.dtype == "float32"
    for place, number in enumerate(picked):
        one = {key: value[place] if isinstance(value, list) else value for key, value in fields.items()}
        expected = placed(x[number], **one)
        assert np.array_equal(backend.to_host(batch)[place], expected.astype("float32")), place


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_same_bits_on_every_backend(backend, rng, dtype):
    x, picked, augment = images(rng), rng.permutation(9), [Flip(), Translate(3), Cutout(2)]
    batches = []
    for other in (backend, Backend()):
        words = other.random_bits(5, 6, 9 * words_of(augment)).reshape(9, -1)
        placement = placement_of(augment, other, words, (H, W))
        batch = other.gather(other.from_host(x), other.from_host(picked), dtype, placement)
        batches.append(other.to_host(batch))
    assert np.array_equal(*batches)
    assert not np.array_equal(batches[0], x[picked] / 255)


def test_a_slice_of_the_data(backend, rng):
    x, fields = images(rng), PLACEMENTS["mirrored"]
    batch = backend.gather(backend.from_host(x), slice(2, 7), "float32", on_backend(backend, fields))
    for place in range(5):
        expected = placed(x[2 + place], flip=fields["flip"][place])
        assert np.array_equal(backend.to_host(batch)[place], expected.astype("float32"))


def drawn(augmentation, count=20_000):
    backend = Backend()
    words = backend.random_bits(1, 2, count * augmentation.words).reshape(count, -1)
    return augmentation.place(backend, words, (H, W))


def test_what_is_drawn():
    """Each value as often as it should be, to four standard deviations, and no other."""
    assert drawn(Flip())["flip"].mean() == pytest.approx(0.5, abs=0.015)
    assert drawn(Flip(0.2))["flip"].mean() == pytest.approx(0.2, abs=0.012)
    assert not drawn(Flip(0))["flip"].any()
    assert drawn(Flip(1))["flip"].all()
    for offsets in (drawn(Translate(2))["down"], drawn(Translate(2))["right"]):
        values, counts = np.unique(offsets, return_counts=True)
        assert values.tolist() == [-2, -1, 0, 1, 2]
        assert np.abs(counts / offsets.size - 0.2).max() < 0.012
    assert np.abs(np.corrcoef(drawn(Translate(2))["down"], drawn(Translate(2))["right"])[0, 1]) < 0.03
    hole = drawn(Cutout(3))
    assert np.unique(hole["hole_top"]).tolist() == list(range(-1, H - 1))
    assert np.unique(hole["hole_left"]).tolist() == list(range(-1, W - 1))
    assert (hole["hole"], hole["fill"]) == (3, 128)


def small(backend, seed=0):
    model = gpucnn.Model([L.Conv2D(4, 3), L.ReLU(), L.Flatten(), L.Dense(3), L.Softmax()], (H, W, C), backend=backend)
    return model.compile(optimizers.SGD(0.1))


def weights_after(backend, rng, epochs=2, fits=1, **options):
    generator = np.random.default_rng(3)
    x, y = images(generator, 40), generator.integers(0, 3, 40)
    model = small(backend)
    for _ in range(fits):
        model.fit(x, y, epochs=epochs, batch_size=8, verbose=0, **options)
    return model.state_dict()["dense.weight"]


def test_fit_augments_and_repeats_exactly(backend, rng):
    augment = [Flip(), Translate(2), Cutout(2)]
    first, again = (weights_after(backend, rng, augment=augment) for _ in range(2))
    assert np.array_equal(first, again)
    assert np.abs(first - weights_after(backend, rng)).max() > 1e-3
    assert np.abs(first - weights_after(Backend(), rng, augment=augment)).max() < 1e-5
    assert np.array_equal(weights_after(backend, rng, augment=[]), weights_after(backend, rng))
    assert np.abs(weights_after(backend, rng, epochs=1, fits=2, augment=augment) - first).max() > 1e-4  # new draws


def test_a_single_augmentation_needs_no_list(rng):
    assert np.array_equal(
        weights_after(Backend(), rng, augment=Flip()), weights_after(Backend(), rng, augment=[Flip()])
    )


def test_a_network_learns_what_does_not_matter():
    """Bars that all lean one way while training: mirrored, they are recognised only by those trained with flips."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, 2, 400)
    x = generator.integers(0, 80, (400, 8, 8, 1)).astype("uint8")
    for image, label in zip(x, y, strict=True):
        rows = range(8) if label else (0, 0, 0, 0, 7, 7, 7, 7)
        for step, row in enumerate(rows):
            image[row, step] = 255
    scores = {}
    for augment in ((), Flip()):
        model = gpucnn.Model([L.Flatten(), L.Dense(2), L.Softmax()], (8, 8, 1), backend="numpy")
        model.compile(optimizers.SGD(0.1, momentum=0.9))
        model.fit(x[:, :, :], y, epochs=15, batch_size=50, verbose=0, augment=augment)
        scores[bool(augment)] = model.evaluate(x[:, :, ::-1].copy(), y)["accuracy"]
    assert scores[True] > 0.95
    assert scores[True] > scores[False] + 0.02


def test_augmentations_describe_themselves():
    for augmentation in (Flip(0.3), Translate(4), Cutout(8, 0)):
        assert Augmentation.from_config(augmentation.config()).config() == augmentation.config()
        assert isinstance(augmentation, Configurable)
    assert eval(repr(Cutout(8, fill=3))).fill == 3  # the repr is the call that makes it


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Flip(1.5), ConfigurationError, "Flip: probability must be between 0 and 1, not 1.5"),
        (lambda: Translate(0), ConfigurationError, "Translate: pixels must be an integer of at least 1, not 0"),
        (lambda: Cutout(2.5), ConfigurationError, "Cutout: size must be an integer of at least 1, not 2.5"),
        (lambda: Cutout(2, 300), ConfigurationError, "Cutout: fill must be a pixel's value, 0 … 255, not 300"),
        (lambda: augmented([Translate(5)]), ShapeError, r"Translate\(5\): an image of 6x5 has no 5 pixels to reflect"),
        (lambda: augmented([Flip(), Flip(0.1)]), ConfigurationError, "two of the kind Flip"),
        (lambda: augmented(["flip"]), ConfigurationError, r"takes objects of gpucnn.data.augment.*not 'flip'"),
        (lambda: augmented_features(), ShapeError, r"only images \(H, W, C\) can be augmented.*shape \(7,\)"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


def augmented(augment):
    small("numpy").fit(np.zeros((4, H, W, C), "uint8"), np.zeros(4, int), verbose=0, augment=augment)


def augmented_features():
    model = gpucnn.Model([L.Dense(3), L.Softmax()], (7,), backend="numpy").compile()
    model.fit(np.zeros((4, 7), "float32"), np.zeros(4, int), verbose=0, augment=[Flip()])
