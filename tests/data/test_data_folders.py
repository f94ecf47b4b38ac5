"""Folders of image files: formats, greys and colours, sizes, and layouts that are refused with a remedy."""

import subprocess
import sys
import unicodedata
import warnings

import numpy as np
import pytest
from PIL import Image

from gpucnn import datasets
from gpucnn.data.folders import natural_key, read_image_folder
from gpucnn.errors import ConfigurationError, DataError

GREY = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], -1)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def read_one(folder, pixels, name="a.png", **options):
    """Return how one image comes back."""
    save(folder / "class" / name, pixels, **options)
    images, labels, names = read_image_folder(folder)
    assert labels.tolist() == [0]
    assert names == ["class"]
    return images[0]


def test_classes_and_files_come_in_natural_order(tmp_path):
    for number in (10, 9, 1):
        for file in (2, 11):
            save(tmp_path / str(number) / f"{file}.png", np.full((2, 3), number * file, np.uint8))
    images, labels, names = read_image_folder(str(tmp_path))
    assert names == ["1", "9", "10"]
    assert images.shape == (6, 2, 3, 1)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert images[:, 0, 0, 0].tolist() == [2, 11, 18, 99, 20, 110]


def test_natural_key():
    names = ["b", "a10", "A9", "a9b", "10", "9", "a", "007"]
    assert sorted(names, key=natural_key) == ["007", "9", "10", "a", "A9", "a9b", "a10", "b"]


def test_photographs_are_set_upright(tmp_path):
    """A camera that was held sideways notes so in the file and leaves the pixels as they lie."""
    sideways = Image.Exif()
    sideways[0x0112] = 6  # the file's first row is the picture's right edge
    pixels = read_one(tmp_path, np.kron(GREY, np.ones((8, 8), np.uint8)), "a.jpg", exif=sideways, quality=95)
    assert pixels.shape == (48, 32, 1)
    expected = np.rot90(np.kron(GREY, np.ones((8, 8), np.uint8)), -1)
    assert np.abs(pixels[..., 0].astype(int) - expected).max() < 12


def test_hidden_files_and_litter_are_left_out(tmp_path):
    save(tmp_path / "class" / "a.png", GREY)
    for name in (".DS_Store", "Thumbs.db", "class/.hidden.png", "class/desktop.ini"):
        (tmp_path / name).write_text("no image")
    for name in (".git", "__MACOSX", ".ipynb_checkpoints"):
        (tmp_path / name).mkdir()
    assert len(read_image_folder(tmp_path)[0]) == 1


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.gif", "a.webp", "no suffix at all"])
@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
def test_lossless_formats_come_back_exactly(tmp_path, name, pixels):
    form = name.partition(".")[2].upper() or "PNG"
    loaded = read_one(tmp_path, pixels, name, format=form, **({"lossless": True} if form == "WEBP" else {}))
    np.testing.assert_array_equal(loaded, pixels.reshape(4, 6, -1))


def test_jpeg_is_read_in_grey_and_in_colour(tmp_path):
    for name, pixels in (("grey", GREY), ("colour", COLOUR)):
        loaded = read_one(tmp_path / name, pixels, "a.JPG", quality=98, subsampling=0)
        expected = pixels.reshape(4, 6, -1)
        assert loaded.shape == expected.shape
        assert np.abs(loaded.astype(int) - expected).max() < 12


def test_images_are_all_colour_where_one_is(tmp_path):
    save(tmp_path / "a" / "grey.png", GREY)
    save(tmp_path / "b" / "colour.png", COLOUR)
    images, _, _ = read_image_folder(tmp_path)
    np.testing.assert_array_equal(images[0], np.stack([GREY] * 3, -1))
    np.testing.assert_array_equal(images[1], COLOUR)


def test_grey_stored_in_colour_is_grey(tmp_path):
    loaded = read_one(tmp_path / "rgb", np.stack([GREY] * 3, -1))
    np.testing.assert_array_equal(loaded, GREY[..., np.newaxis])
    grey = Image.fromarray(GREY).convert("P", palette=Image.Palette.ADAPTIVE)
    assert grey.mode == "P"
    np.testing.assert_array_equal(read_one(tmp_path / "grey", grey)[..., 0], GREY)
    colour = Image.fromarray(COLOUR).quantize(256)
    assert read_one(tmp_path / "colour", colour).shape == (4, 6, 3)


def test_transparent_pixels_are_laid_over_black(tmp_path):
    alpha = np.zeros_like(GREY)
    alpha[:2] = 255
    alpha[2] = 128
    expected = COLOUR.astype(float) * alpha[..., np.newaxis] / 255
    loaded = read_one(tmp_path / "rgba", np.dstack([COLOUR, alpha]))
    assert np.abs(loaded - expected).max() <= 1
    assert not loaded[3].any()
    grey = read_one(tmp_path / "la", Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)]))
    assert grey.shape == (4, 6, 1)
    assert np.abs(grey[..., 0] - GREY * (alpha / 255)).max() <= 1
    keyed = read_one(tmp_path / "key", GREY, transparency=int(GREY[0, 3]))
    assert keyed.shape == (4, 6, 1)
    assert keyed[0, 3, 0] == 0
    assert keyed[0, 4, 0] == GREY[0, 4]


def test_sixteen_bits_are_scaled_and_one_bit_is_black_and_white(tmp_path):
    deep = GREY.astype(np.uint16) * 257
    np.testing.assert_array_equal(read_one(tmp_path / "deep", deep)[..., 0], GREY)
    flat = read_one(tmp_path / "flat", Image.fromarray(GREY > 100))
    np.testing.assert_array_equal(flat[..., 0], np.where(GREY > 100, 255, 0))


def test_gif_gives_its_first_frame(tmp_path):
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    loaded = read_one(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(loaded[..., 0], GREY)


def test_size_resizes_with_averaging(tmp_path):
    checks = np.indices((16, 8)).sum(0) % 2 * 200
    save(tmp_path / "a" / "checks.png", checks.astype(np.uint8))
    save(tmp_path / "a" / "flat.png", np.full((3, 5, 3), (77, 78, 79), np.uint8))
    images, _, _ = read_image_folder(tmp_path, size=(4, 2))
    assert images.shape == (2, 4, 2, 3)
    assert np.abs(images[0].astype(int) - 100).max() < 12  # without averaging it would be 0 and 200
    assert (images[1] == (77, 78, 79)).all()
    assert read_image_folder(tmp_path, size=np.int64(7))[0].shape == (2, 7, 7, 3)


def test_mixed_sizes_name_two_files_and_the_remedy(tmp_path):
    save(tmp_path / "a" / "one.png", GREY)
    save(tmp_path / "b" / "two.png", COLOUR[:3])
    with pytest.raises(DataError, match=r"one\.png is 4x6 pixels .*two\.png is 3x6; .* size=\(4, 6\)"):
        read_image_folder(tmp_path)


@pytest.mark.parametrize("size", [0, -1, (3, 0), (3,), (1, 2, 3), 2.5, "3", True, (2.0, 2)])
def test_size_out_of_range_is_refused(tmp_path, size):
    save(tmp_path / "a" / "one.png", GREY)
    with pytest.raises(ConfigurationError, match=r"size.* must be"):
        read_image_folder(tmp_path, size=size)


def test_layouts_that_are_refused(tmp_path):
    with pytest.raises(DataError, match="absent: does not exist"):
        read_image_folder(tmp_path / "absent")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="file: is a file; expected a folder"):
        read_image_folder(tmp_path / "file")
    (tmp_path / "zero").mkdir()
    with pytest.raises(DataError, match="zero: holds no sub-folders and no images"):
        read_image_folder(tmp_path / "zero")
    save(tmp_path / "set" / "a" / "one.png", GREY)
    with pytest.raises(DataError, match=r"holds no sub-folders but 1 image files, one\.png first; .* sort"):
        read_image_folder(tmp_path / "set" / "a")
    (tmp_path / "set" / "b").mkdir()
    with pytest.raises(DataError, match=f"one class's folder; pass its parent {tmp_path / 'set'}$"):
        read_image_folder(tmp_path / "set" / "a")
    with pytest.raises(DataError, match="b: this class folder holds no file"):
        read_image_folder(tmp_path / "set")
    with pytest.raises(DataError, match=r"set: holds the folder 'a' .* 'set' is not a class but holds"):
        read_image_folder(tmp_path)


def test_image_files_that_are_damaged_are_named(tmp_path):
    good = save(tmp_path / "a" / "one.png", np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8))
    bad = tmp_path / "a" / "two.png"
    bad.write_text("notes")
    with pytest.raises(DataError, match=r"two\.png: is not a supported image.* looks like a text file"):
        read_image_folder(tmp_path)
    Image.fromarray(GREY).save(bad, "TIFF")
    with pytest.raises(DataError, match=r"two\.png: is not a supported image.* Expected PNG, JPEG, BMP, GIF or WebP"):
        read_image_folder(tmp_path)
    bad.write_bytes(good.read_bytes()[:900])
    with pytest.raises(DataError, match=r"two\.png: cannot be decoded \(.+\); .* replace or remove"):
        read_image_folder(tmp_path)
    bad.write_bytes(b"")
    with pytest.raises(DataError, match=r"two\.png: is empty"):
        read_image_folder(tmp_path)


@pytest.mark.parametrize("limit", [20, 10])  # Pillow warns above the limit and raises above twice the limit
def test_decompression_bomb_is_an_error(tmp_path, monkeypatch, limit):
    save(tmp_path / "a" / "one.png", GREY)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in a program of a user who looks away
        with pytest.raises(DataError, match=rf"one\.png: .*24 pixels.* Expected at most {limit} pixels"):
            read_image_folder(tmp_path)


def test_pillow_is_imported_only_when_needed():
    code = "import sys, gpucnn.data.folders, gpucnn.data.cifar; print('PIL' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_classes_whose_accents_are_written_in_two_ways_are_one(tmp_path):
    """As macOS' archives write them, and as others do; the order of classes is the same in both."""
    for split, name in (("train", "caf\u00e9"), ("test", "cafe\u0301")):
        for folder in (name, "cafz", "cafa"):
            (tmp_path / split / folder).mkdir(parents=True)
            Image.new("L", (4, 4), {"cafz": 3, "cafa": 1}.get(folder, 2)).save(tmp_path / split / folder / "1.png")
    data = datasets.image_folder(tmp_path)
    (x_train, y_train), (x_test, y_test) = data
    assert [unicodedata.normalize("NFC", name) for name in data.class_names] == ["cafa", "cafz", "caf\u00e9"]
    assert x_train[:, 0, 0, 0].tolist() == x_test[:, 0, 0, 0].tolist() == [1, 3, 2]
    assert y_train.tolist() == y_test.tolist() == [0, 1, 2]


def test_classes_that_look_alike_are_named(tmp_path):
    for name in ("caf\u00e9", "cafe\u0301", "dog"):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / name / "1.png")
    with pytest.raises(DataError, match=r"the classes 'caf.*' and 'caf.*' are the same name"):
        read_image_folder(tmp_path)


def test_folders_beside_the_splits_are_left_out_with_a_warning(tmp_path):
    for place in ("train/cat", "train/dog", "test/cat", "test/dog", "models", "plots/old"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / place / "1.png")
    data = datasets.image_folder(tmp_path)
    assert data.class_names == ["cat", "dog"]
    assert data.source.endswith("test, without models, plots beside them")


def test_split_for_test_without_classes_is_named(tmp_path):
    for place in ("train/cat", "train/dog", "test"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / place / "1.png")
    with pytest.raises(DataError, match=r"test: holds no sub-folders, while .*train holds one for each class"):
        datasets.image_folder(tmp_path)
