"""Augmentation: what each does to an image, in plain loops; the same bits on every backend; the errors."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

import gpucnn
from gpucnn import datasets, optimizers, schedules
from gpucnn import layers as L
from gpucnn.backends import Backend
from gpucnn.backends.image_transform import FIXED_ONE, ImageTransform
from gpucnn.core.config import Configurable
from gpucnn.data.augment import (
    AlternatingFlip,
    Augmentation,
    AugmentationPipeline,
    Cutout,
    Flip,
    RandomCrop,
    Rotate,
    Sample,
    Translate,
    count_random_words,
)
from gpucnn.data.synthetic import synthetic_digits
from gpucnn.errors import ConfigurationError, ShapeError

H, W, C = 6, 5, 3


def images(rng, count=9):
    return rng.integers(0, 256, (count, H, W, C)).astype("uint8")


FAR = 3 * H  # pixels, further than any shift reaches


def rotated(image, cosine, sine, rotation_fill):
    """One image by plain loops over single pixels, in fractions; half of a unit is rounded up."""
    height, width = image.shape[:2]
    result = np.zeros(image.shape, object)
    for h in range(height):
        for w in range(width):
            down, across = h - Fraction(height - 1, 2), w - Fraction(width - 1, 2)
            row = Fraction(cosine, FIXED_ONE) * down + Fraction(sine, FIXED_ONE) * across + Fraction(height - 1, 2)
            column = Fraction(cosine, FIXED_ONE) * across - Fraction(sine, FIXED_ONE) * down + Fraction(width - 1, 2)
            row, column = (Fraction(math.floor(place * 256 + Fraction(1, 2)), 256) for place in (row, column))
            for i in (math.floor(row), math.floor(row) + 1):
                for j in (math.floor(column), math.floor(column) + 1):
                    weight = (1 - abs(row - i)) * (1 - abs(column - j))
                    inside = 0 <= i < height and 0 <= j < width
                    for c in range(image.shape[2]):
                        result[h, w, c] += weight * (int(image[i, j, c]) if inside else rotation_fill)
    return result


def rounded(values):
    return np.vectorize(lambda value: math.floor(value + Fraction(1, 2)), otypes=[float])(values)


def transformed(
    image,
    shift_y=0,
    shift_x=0,
    crop_size=(H, W),
    border=None,
    flip=0,
    cutout_top=0,
    cutout_left=0,
    cutout=0,
    cutout_fill=0,
    **rotation,
):
    """One image by plain loops; NumPy pads it."""
    OH, OW = crop_size
    result = np.zeros((OH, OW, C))
    options = {"mode": "reflect"} if border is None else {"constant_values": border}
    if rotation:
        image = rounded(rotated(image, **rotation))
    wide = np.pad(image, ((FAR, FAR), (FAR, FAR), (0, 0)), **options)
    for h in range(OH):
        for w in range(OW):
            column = OW - 1 - w if flip else w
            pixel = wide[FAR + h - shift_y, FAR + column - shift_x]
            inside = cutout_top <= h < cutout_top + cutout and cutout_left <= w < cutout_left + cutout
            result[h, w] = cutout_fill / 255 if inside else pixel / 255
    return result


ROTATED = {
    # nothing; a quarter, which lands between pixels; about 30° to the right; 20 % larger; 100° to the left and smaller
    "cosine": [FIXED_ONE, 0, 14189, 13653, -4000],
    "sine": [0, FIXED_ONE, -8192, 0, 22000],
    "rotation_fill": 60,
}

TRANSFORMS = {
    "nothing": {},
    "shifted": {"shift_y": [-4, -1, 0, 1, 5], "shift_x": [4, 2, 0, -3, -4]},
    "cropped": {"shift_y": [-2, -1, 0, -2, 0], "shift_x": [0, -1, -2, -2, 0], "crop_size": (4, 3)},
    "padded and cropped": {
        "shift_y": [2, -3, 1, 0, -6],
        "shift_x": [-1, 2, 0, 9, -4],
        "crop_size": (5, 4),
        "border": 33,
    },
    "larger": {"shift_y": [0, 3, 2, 1, 3], "shift_x": [3, 0, 1, 1, 2], "crop_size": (9, 8), "flip": [1, 0, 1, 0, 1]},
    "flipped": {"flip": [1, 0, 1, 0, 0]},
    "shifted over a value": {"shift_y": [-4, -1, 0, 1, 6], "shift_x": [5, 2, 0, -3, -4], "border": 200},
    "cutout only": {"cutout_top": [-2, 0, 4, 5, 2], "cutout_left": [1, -1, 3, 4, 2], "cutout": 3, "cutout_fill": 77},
    "rotated": ROTATED,
    "rotated, shifted, flipped": ROTATED
    | {"shift_y": [1, -2, 0, 1, 0], "shift_x": [0, 2, -1, 0, 1], "flip": [1, 0, 1, 0, 1]},
    "rotated and cropped": ROTATED
    | {"shift_y": [-2, 3, 0, 1, -6], "shift_x": [0, 2, -4, -2, 1], "crop_size": (4, 4), "border": 3},
    "all": {
        "shift_y": [-4, -1, 0, 1, 5],
        "shift_x": [4, 2, 0, -3, -4],
        "flip": [1, 0, 1, 1, 0],
        "cutout_top": [-2, 0, 4, 5, 2],
        "cutout_left": [1, -1, 3, 4, 2],
        "cutout": 2,
        "cutout_fill": 200,
    },
    "all, cropped": {
        "shift_y": [-4, -1, 0, 1, 5],
        "shift_x": [4, 2, 0, -3, -4],
        "crop_size": (4, 7),
        "border": 9,
        "flip": [1, 0, 1, 1, 0],
        "cutout_top": [-2, 0, 4, 3, 2],
        "cutout_left": [1, -1, 6, 4, 2],
        "cutout": 2,
        "cutout_fill": 200,
    },
}


def on_backend(backend, fields):
    return ImageTransform(
        **{
            name: backend.from_host(np.array(value, "int32")) if isinstance(value, list) else value
            for name, value in fields.items()
        }
    )


@pytest.mark.parametrize("kind", ["uint8", "float32"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_augment_meaning(backend, rng, name, kind):
    """Picked out of order, and twice. Turned floats are not rounded to whole pixel values, as turned bytes are."""
    x, fields, picked = images(rng), TRANSFORMS[name], [7, 0, 3, 3, 8]
    data = x if kind == "uint8" else x.astype("float32") / 255
    batch = backend.load_batch(
        backend.from_host(data), backend.from_host(np.array(picked)), "float32", on_backend(backend, fields)
    )
    assert batch.dtype == "float32"
    for place, number in enumerate(picked):
        one = {key: value[place] if isinstance(value, list) else value for key, value in fields.items()}
        difference = np.abs(backend.to_host(batch)[place] - transformed(x[number], **one).astype("float32"))
        assert difference.max() <= (0 if kind == "uint8" or "cosine" not in fields else 0.5001 / 255), place


def test_rotate_of_floats_interpolates_four_pixels(backend, rng):
    x = images(rng)[:5]
    data = backend.from_host(x / 255)
    batch = backend.to_host(backend.load_batch(data, slice(0, 5), "float64", on_backend(backend, ROTATED)))
    for n in range(5):
        expected = rotated(x[n], ROTATED["cosine"][n], ROTATED["sine"][n], ROTATED["rotation_fill"]).astype(float) / 255
        assert np.abs(batch[n] - expected).max() < 1e-12


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_rotate_by_quarter_turns_is_exact(backend, rng, quarters):
    """Counter-clockwise, as NumPy turns a square image; both signs of each axis."""
    x = rng.integers(0, 256, (4, 7, 7, 2)).astype("uint8")
    cosine, sine = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarters]
    transform = on_backend(backend, {"cosine": [cosine * FIXED_ONE] * 4, "sine": [sine * FIXED_ONE] * 4})
    batch = backend.load_batch(backend.from_host(x), slice(0, 4), "float64", transform)
    assert np.array_equal(backend.to_host(batch), np.rot90(x, quarters, axes=(1, 2)) / 255)


@pytest.mark.parametrize("shape", [(28, 28, 1), (40, 9, 3), (5, 300, 1), (1, 1, 1), (130, 140, 1)])
def test_rotate_agrees_with_the_portable_kernel(backend, shape):
    """Many sizes and angles, so that places fall far outside and on every edge; in pieces, and one image at a time."""
    generator = np.random.default_rng(1)
    x = generator.integers(0, 256, (70, *shape)).astype("uint8")
    x[:10] = 255
    angles, inverses = generator.uniform(-4, 4, 70), generator.uniform(0.5, 2, 70)
    fields = {"cosine": (FIXED_ONE * inverses * np.cos(angles)).astype("int32"), "rotation_fill": 255}
    fields["sine"] = (FIXED_ONE * inverses * np.sin(angles)).astype("int32")
    batches = []
    for other in (backend, Backend()):
        arrays = {key: other.from_host(value) if key != "rotation_fill" else value for key, value in fields.items()}
        batches.append(
            other.to_host(other.load_batch(other.from_host(x), slice(0, 70), "float32", ImageTransform(**arrays)))
        )
    assert np.array_equal(*batches)
    assert batches[0].max() == 1


LISTS = [
    [Flip(), Translate(3), Cutout(2)],
    [RandomCrop(padding=2), AlternatingFlip()],
    [Cutout(2), RandomCrop((4, 5), padding=1, mode="reflect"), Flip()],
    [Rotate(30, 0.3, fill=20)],
    [Flip(), Rotate(180), Translate(1), Cutout(2)],
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("augment", LISTS, ids=str)
def test_augment_gives_the_same_bits_on_every_backend(backend, rng, augment, dtype):
    x, picked = images(rng), rng.permutation(9)
    batches = []
    for other in (backend, Backend()):
        words = other.random_bits(5, 6, 9 * count_random_words(augment)).reshape(9, -1)
        per_image = other.random_bits(7, 8, 9 * count_random_words(augment, per_image=True)).reshape(9, -1)
        on_device = other.from_host(picked)
        transform = AugmentationPipeline(augment, other, (H, W), per_image).sample(words, on_device)
        batches.append(other.to_host(other.load_batch(other.from_host(x), on_device, dtype, transform)))
    assert np.array_equal(*batches)
    assert batches[0].shape != x.shape or not np.array_equal(batches[0], x[picked] / 255)


def test_augment_of_a_slice_of_the_data(backend, rng):
    x, fields = images(rng), TRANSFORMS["flipped"]
    batch = backend.load_batch(backend.from_host(x), slice(2, 7), "float32", on_backend(backend, fields))
    for place in range(5):
        expected = transformed(x[2 + place], flip=fields["flip"][place])
        assert np.array_equal(backend.to_host(batch)[place], expected.astype("float32"))


def drawn(augmentation, count=20_000, epoch=0):
    backend = Backend()
    words = backend.random_bits(1, 2, count * augmentation.random_words).reshape(count, -1)
    size = augmentation.result_size((H, W))
    return augmentation.sample(backend, Sample(words, (H, W), size, epoch, augmentation.lookup_tables()))


def test_augment_draws_every_value_as_often_as_it_should():
    """Each value as often as it should be, to four standard deviations, and no other."""
    assert drawn(Flip())["flip"].mean() == pytest.approx(0.5, abs=0.015)
    assert drawn(Flip(0.2))["flip"].mean() == pytest.approx(0.2, abs=0.012)
    assert not drawn(Flip(0))["flip"].any()
    assert drawn(Flip(1))["flip"].all()
    assert drawn(AlternatingFlip())["flip"].mean() == pytest.approx(0.5, abs=0.015)
    for offsets in (drawn(Translate(2))["shift_y"], drawn(Translate(2))["shift_x"]):
        values, counts = np.unique(offsets, return_counts=True)
        assert values.tolist() == [-2, -1, 0, 1, 2]
        assert np.abs(counts / offsets.size - 0.2).max() < 0.012
    assert np.abs(np.corrcoef(drawn(Translate(2))["shift_y"], drawn(Translate(2))["shift_x"])[0, 1]) < 0.03
    cutout = drawn(Cutout(3))
    assert np.unique(cutout["cutout_top"]).tolist() == list(range(-1, H - 1))
    assert np.unique(cutout["cutout_left"]).tolist() == list(range(-1, W - 1))
    assert (cutout["cutout"], cutout["cutout_fill"]) == (3, 128)


def test_rotate_draws_angles_and_factors_evenly():
    """Between their limits, and independently; with the precision of 1/16384 that cosines have."""
    turns = drawn(Rotate(20, 0.25))
    cosine, sine = turns["cosine"] / FIXED_ONE, turns["sine"] / FIXED_ONE
    angles, factors = np.degrees(np.arctan2(sine, cosine)), 1 / np.hypot(cosine, sine)
    for values, middle, reach in ((angles, 0, 20), (factors, 1, 0.25)):
        assert np.abs(values - middle).max() == pytest.approx(reach, rel=1e-3)
        counts, _ = np.histogram(values, 10, (middle - 1.001 * reach, middle + 1.001 * reach))
        assert np.abs(counts / values.size - 0.1).max() < 0.01
    assert abs(np.corrcoef(angles, factors)[0, 1]) < 0.03
    assert (
        np.abs(
            np.sqrt((drawn(Rotate(180))["cosine"] / FIXED_ONE) ** 2 + (drawn(Rotate(180))["sine"] / FIXED_ONE) ** 2) - 1
        ).max()
        < 1e-4
    )
    some = drawn(Rotate(20))["sine"]
    assert some.max() == -some.min() == round(FIXED_ONE * math.sin(math.radians(20)))
    nothing = drawn(Rotate(0))
    assert (set(nothing["cosine"]), set(nothing["sine"])) == ({FIXED_ONE}, {0})


class Seen(L.Layer):
    """Keeps what it is given in training, as host arrays."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, x, *, train):
        if train:
            self.batches.append(self.backend.to_host(x).copy())
        return x, lambda dy: dy


def shown(backend, augment, epochs, *, seed=0, shuffle=True, count=30, feed=False):
    """The images that a model is given, by their number, in each of several fits: (epochs, P, …)."""
    x = np.arange(count * 2, dtype="uint8").reshape(count, 1, 2, 1)  # each image is told by its pixels
    seen = Seen()
    model = gpucnn.Model([seen, L.Flatten(), L.Dense(2), L.Softmax()], (1, 2, 1), seed=seed, backend=backend)
    model.compile(jit=False)
    for some in epochs:
        model.fit(x, np.zeros(count, int), epochs=some, batch_size=8, augment=augment, shuffle=shuffle, verbose=0)
    pixels = np.rint(np.concatenate(seen.batches) * 255).astype(int).reshape(sum(epochs), count, 2)
    return [epoch[epoch.min(axis=1).argsort()] for epoch in pixels]


@pytest.mark.parametrize("shuffle", [True, False])
def test_alternating_flip_alternates_from_epoch_to_epoch(backend, shuffle):
    """By chance in the first epoch, and then never twice the same way, whatever the order, also in a second fit."""
    mirrored = mirrored_in(shown(backend, AlternatingFlip(), [3, 2], shuffle=shuffle))
    assert 5 < mirrored[0].sum() < 25
    for before, after in pairwise(mirrored):
        assert (before != after).all()
    other_order = mirrored_in(shown(backend, AlternatingFlip(), [1], shuffle=not shuffle))
    assert np.array_equal(other_order[0], mirrored[0])
    other_seed = mirrored_in(shown(backend, AlternatingFlip(), [1], seed=1))
    assert 5 < (other_seed[0] != mirrored[0]).sum() < 25


def mirrored_in(epochs):
    return [epoch[:, 0] > epoch[:, 1] for epoch in epochs]


def test_augment_lasting_draws_belong_to_the_sample(backend):
    """Next to an augmentation that draws for each batch; every second image of a batch is a copy of the first."""
    per_image = np.array([[2**31], [2**31 - 1], [0], [2**32 - 1]], "uint32")
    words, picked = np.array([[7, 8, 0, 1], [9, 10, 1, 2], [11, 12, 2, 0]], "uint32"), np.array([3, 0, 1])
    pipeline = AugmentationPipeline(
        [Cutout(1), AlternatingFlip(), Translate(1)], backend, (H, W), backend.from_host(per_image)
    )
    for epoch, expected in enumerate([[1, 1, 0], [0, 0, 1], [1, 1, 0]]):
        pipeline.begin_epoch(epoch)
        for number in (backend.from_host(picked), slice(0, 3)):
            transform = pipeline.sample(backend.from_host(words), number)
            assert transform.flip.dtype == "int32"
            flips = backend.to_host(transform.flip).tolist()
            assert flips == (expected if not isinstance(number, slice) else [int(f) ^ epoch % 2 for f in (1, 0, 0)])
            assert backend.to_host(transform.cutout_top).tolist() == [7 % H, 9 % H, 11 % H]
            assert backend.to_host(transform.shift_y).tolist() == [-1, 0, 1]
            assert backend.to_host(transform.shift_x).tolist() == [0, 1, -1]


def test_alternating_flip_shows_each_image_both_ways():
    """What it is for: after two epochs every image was seen both ways, of chance flips only about half of them."""
    both = [
        sum(epochs[0][:, 0] != epochs[1][:, 0])
        for epochs in (shown("numpy", f, [2]) for f in (AlternatingFlip(), Flip()))
    ]
    assert both[0] == 30
    assert both[1] < 25


@pytest.mark.parametrize(
    ("crop", "padding", "size"),
    [
        (RandomCrop(padding=2), 2, (H, W)),
        (RandomCrop(padding=1, fill=70), 1, (H, W)),
        (RandomCrop((4, 3), padding=0), 0, (4, 3)),
        (RandomCrop(4, padding=3, mode="reflect"), 3, (4, 4)),
    ],
)
def test_random_crop_takes_parts_of_the_padded_image(backend, rng, crop, padding, size):
    """Each part with the same chance: every first pixel is drawn, and what is cut out is there in the padded image."""
    x, (OH, OW) = images(rng), size
    options = {"mode": "reflect"} if crop.mode == "reflect" else {"constant_values": crop.fill}
    wide = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)), **options) if padding else x
    tops, lefts = wide.shape[1] - OH + 1, wide.shape[2] - OW + 1
    words = rng.integers(0, 2**32, (9, 2)).astype("uint32")
    transform = AugmentationPipeline([crop], backend, (H, W)).sample(backend.from_host(words))
    batch = backend.load_batch(backend.from_host(x), slice(0, 9), "float32", transform)
    assert batch.shape == (9, OH, OW, C)
    for n, image in enumerate(backend.to_host(batch)):
        top, left = words[n] % (tops, lefts)
        expected = wide[n, top : top + OH, left : left + OW]
        assert np.array_equal(np.rint(image * 255), expected), n
    many = drawn(crop)
    for what, count in (("shift_y", tops), ("shift_x", lefts)):
        values, counts = np.unique(many[what], return_counts=True)
        assert values.tolist() == list(range(padding - count + 1, padding + 1))
        assert np.abs(counts / many[what].size - 1 / count).max() < 0.015


def test_fit_crops_larger_images(backend):
    """To the size that the model takes; validation and inference keep to that size."""
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 256, (24, H + 3, W + 2, C)).astype("uint8"), rng.integers(0, 3, 24)
    model = small(backend)
    before = model.state_dict()["dense.weight"]
    augment = [RandomCrop((H, W), padding=0), Cutout(2)]
    model.fit(x, y, epochs=2, batch_size=8, verbose=0, augment=augment, validation_data=(x[:, :H, :W], y))
    assert np.abs(model.state_dict()["dense.weight"] - before).max() > 1e-3
    other = small(Backend())
    other.fit(x, y, epochs=2, batch_size=8, verbose=0, augment=augment)
    assert np.abs(model.state_dict()["dense.weight"] - other.state_dict()["dense.weight"]).max() < 1e-5
    with pytest.raises(ShapeError, match="the model takes"):
        model.evaluate(x, y)


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


def test_fit_with_augmentation_is_reproducible(backend, rng):
    augment = [Flip(), Translate(2), Cutout(2)]
    first, again = (weights_after(backend, rng, augment=augment) for _ in range(2))
    assert np.array_equal(first, again)
    assert np.abs(first - weights_after(backend, rng)).max() > 1e-3
    assert np.abs(first - weights_after(Backend(), rng, augment=augment)).max() < 1e-5
    assert np.array_equal(weights_after(backend, rng, augment=[]), weights_after(backend, rng))
    assert np.abs(weights_after(backend, rng, epochs=1, fits=2, augment=augment) - first).max() > 1e-4  # new draws


def test_augment_takes_a_single_augmentation(rng):
    assert np.array_equal(
        weights_after(Backend(), rng, augment=Flip()), weights_after(Backend(), rng, augment=[Flip()])
    )


@pytest.mark.parametrize("flip", [Flip(), AlternatingFlip()], ids=str)
def test_augment_by_flips_generalizes_to_flipped_images(flip):
    """Bars that all lean one way while training: mirrored, they are recognised only by those trained with flips."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, 2, 400)
    x = generator.integers(0, 80, (400, 8, 8, 1)).astype("uint8")
    for image, label in zip(x, y, strict=True):
        rows = range(8) if label else (0, 0, 0, 0, 7, 7, 7, 7)
        for step, row in enumerate(rows):
            image[row, step] = 255
    scores = {}
    for augment in ((), flip):
        model = gpucnn.Model([L.Flatten(), L.Dense(2), L.Softmax()], (8, 8, 1), backend="numpy")
        model.compile(optimizers.SGD(0.1, momentum=0.9))
        model.fit(x[:, :, :], y, epochs=15, batch_size=50, verbose=0, augment=augment)
        scores[bool(augment)] = model.evaluate(x[:, :, ::-1].copy(), y)["accuracy"]
    assert scores[True] > 0.95
    assert scores[True] > scores[False] + 0.02


@pytest.fixture(scope="module")
def few_digits():
    """300 digits to learn from and 1000 to be asked about: of MNIST where it is there, else drawn."""
    if datasets.available("mnist") is None:
        return synthetic_digits(300, 0), synthetic_digits(1000, 1)
    (x_train, y_train), (x_test, y_test) = datasets.mnist()
    return (x_train[:300], y_train[:300]), (x_test[:1000], y_test[:1000])


def accuracies(few_digits, augment):
    train, test = few_digits
    for seed in range(2):
        convolutions = [L.Conv2D(8, 5, strides=2), L.ReLU(), L.Conv2D(16, 3, strides=2), L.ReLU()]
        network = [L.Normalization(0.13, 0.31), *convolutions, L.Flatten(), L.Dense(10), L.Softmax()]
        model = gpucnn.Model(network, (28, 28, 1), seed=seed, backend="numpy")
        model.compile(optimizers.SGD(schedules.OneCycle(0.05), momentum=0.9))
        model.fit(*train, epochs=40, batch_size=30, verbose=0, augment=augment)
        yield model.evaluate(*test)["accuracy"]


@pytest.fixture(scope="module")
def plain_accuracies(few_digits):
    return list(accuracies(few_digits, []))


@pytest.mark.parametrize("augment", [RandomCrop(padding=2), Rotate(15, 0.15)], ids=str)
def test_augment_improves_accuracy_on_few_digits(few_digits, plain_accuracies, augment):
    """By 10 points and more, where seeds differ by 3 at most."""
    assert min(accuracies(few_digits, augment)) > max(plain_accuracies) + 0.06


def test_augmentations_describe_themselves():
    for augmentation in (
        Flip(0.3),
        AlternatingFlip(),
        Translate(4),
        RandomCrop((4, 5), 2, "reflect", 9),
        Rotate(9, 0.1),
        Cutout(8, 0),
    ):
        assert Augmentation.from_config(augmentation.config()).config() == augmentation.config()
        assert isinstance(augmentation, Configurable)
    assert eval(repr(Cutout(8, fill=3))).fill == 3  # the repr is the call that makes it


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Flip(1.5), ConfigurationError, "Flip: probability must be a number .* at most 1, not 1.5"),
        (lambda: Translate(0), ConfigurationError, "Translate: pixels must be a positive integer, not 0"),
        (lambda: Cutout(2.5), ConfigurationError, "Cutout: size must be a positive integer, not 2.5"),
        (
            lambda: Cutout(2, 300),
            ConfigurationError,
            "fill, a pixel's value, must be an integer from 0 to 255, not 300",
        ),
        (lambda: augmented([Translate(5)]), ShapeError, r"Translate\(5\): an image of 6x5 has no 5 pixels to reflect"),
        (
            lambda: RandomCrop(0),
            ConfigurationError,
            "RandomCrop: size must be an integer of at least 1 or a pair of them, not 0",
        ),
        (
            lambda: RandomCrop((1, 2, 3)),
            ConfigurationError,
            "RandomCrop: size must be an integer of at least 1 or a pair",
        ),
        (
            lambda: RandomCrop(padding=-1),
            ConfigurationError,
            "RandomCrop: padding must be an integer of at least 0",
        ),
        (lambda: RandomCrop(mode="wrap"), ConfigurationError, "mode must be one of 'zeros', 'reflect', not 'wrap'"),
        (
            lambda: RandomCrop(fill=256),
            ConfigurationError,
            "RandomCrop: fill, a pixel's value, must be an integer from 0 to 255, not 256",
        ),
        (
            lambda: augmented([RandomCrop(4)]),
            ConfigurationError,
            r"RandomCrop\(size=4\) makes images of 4x4, but the model takes 6x5; give both the same size",
        ),
        (
            lambda: augmented([RandomCrop((H, W), padding=1)], (3, 4)),
            ShapeError,
            r"an image of 3x4 with 1 pixels of padding is too small for a crop of 6x5",
        ),
        (lambda: augmented([RandomCrop(padding=5, mode="reflect")]), ShapeError, "6x5 has no 5 pixels to reflect"),
        (
            lambda: augmented([RandomCrop(), Translate(2)]),
            ConfigurationError,
            "and each translates images; remove one",
        ),
        (lambda: augmented([Flip(), Flip(0.1)]), ConfigurationError, "augment has two of Flip"),
        (
            lambda: augmented([AlternatingFlip(), Cutout(2), Flip(0.2)]),
            ConfigurationError,
            r"has AlternatingFlip\(\) and Flip\(probability=0.2\), and each flips images; remove one of them",
        ),
        (lambda: augmented(["flip"]), ConfigurationError, r"takes objects of gpucnn.data.augment.*not 'flip'"),
        (lambda: augmented_features(), ShapeError, r"only images \(H, W, C\) can be augmented.*shape \(7,\)"),
    ],
)
def test_augment_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


def augmented(augment, size=(H, W)):
    small("numpy").fit(np.zeros((4, *size, C), "uint8"), np.zeros(4, int), verbose=0, augment=augment)


def augmented_features():
    model = gpucnn.Model([L.Dense(3), L.Softmax()], (7,), backend="numpy").compile()
    model.fit(np.zeros((4, 7), "float32"), np.zeros(4, int), verbose=0, augment=[Flip()])
