"""The kernels' resize is Pillow's, bit for bit, wherever it is used, and Pillow's own where it is not."""

import gc

import numpy as np
import PIL.Image
import pytest

pytest.importorskip("numba")
import effnet_np  # noqa: E402
from effnet_np.images import processor  # noqa: E402
from effnet_np.images.io import load_image  # noqa: E402
from effnet_np.inference.classify import get_runner  # noqa: E402
from effnet_np.inference.stream import preprocess  # noqa: E402
from effnet_np.kernels import resize  # noqa: E402

from helpers import CHELSEA, COFFEE  # noqa: E402

LENDS = hasattr(PIL.Image.Image, "__arrow_c_array__")
PHOTOS = [np.asarray(PIL.Image.open(path).convert("RGB")) for path in (CHELSEA, COFFEE)]


def test_it_is_pillows_bit_for_bit():
    """Photographs, noise and extremes (which overshoot), up and down, and views that do not lie without gaps."""
    generator, taken = np.random.default_rng(0), 0
    for index in range(500):
        height, width = generator.integers(1, 400, 2)
        wanted = generator.integers(1, 300, 2) if index % 3 else generator.integers(1, 300, 1).repeat(2)
        kinds = (
            PHOTOS[index % 2][:height, :width],
            generator.integers(0, 256, (height, width, 3), np.uint8),
            generator.integers(0, 2, (height, width, 3)).astype(np.uint8) * np.uint8(255),
        )
        for image in kinds:
            for filter in (2, 3):
                taken += resize.takes(image, *wanted, filter)
                ours, theirs = (
                    resize.resize(image, *map(int, wanted), filter),
                    processor.resize(image, *map(int, wanted), filter),
                )
                np.testing.assert_array_equal(ours, theirs, err_msg=f"{image.shape} -> {wanted}, filter {filter}")
    assert taken > 500


def test_what_it_does_not_know_is_pillows():
    grey, rgba = PHOTOS[0][:, :, :1], np.dstack([PHOTOS[0], PHOTOS[0][:, :, :1]])
    for image, filter in ((grey, 3), (rgba, 3), (PHOTOS[0], 0), (PHOTOS[0], 1), (PHOTOS[0] / 255, 3), (PHOTOS[0][:, ::-1], 3)):
        assert not resize.takes(image, 64, 64, filter)
        np.testing.assert_array_equal(resize.resize(image, 64, 64, filter), processor.resize(image, 64, 64, filter))


@pytest.mark.parametrize("name", ["lite0", "b0"])
def test_network_input_is_what_the_processor_makes(name):
    model = get_runner("lite0", "numba", 1)
    for settings in (
        effnet_np.EfficientNetImageProcessor.preset(name),
        effnet_np.EfficientNetImageProcessor(size=224, resample=2),
    ):
        for photo in PHOTOS:
            (expected,) = settings([photo], input_data_format="channels_last")["pixel_values"]
            np.testing.assert_array_equal(resize.network_input(settings, photo), expected)
            np.testing.assert_array_equal(settings.network_input(photo, resize.resize), expected)
            np.testing.assert_array_equal(settings.network_input(photo), expected)
    for path in (CHELSEA, COFFEE):
        np.testing.assert_array_equal(preprocess(model, path), preprocess(get_runner("lite0", "numpy"), path))


def test_pixels_in_pillows_memory(tmp_path):
    """Lent without a copy, four bytes a pixel apart: the same pixels, also when the picture they are of has gone."""
    for index, (size, mode) in enumerate([((500, 375), "RGB"), ((33, 20), "RGB"), ((7, 5), "RGB"), ((60, 40), "L")]):
        PIL.Image.open(COFFEE).convert(mode).resize(size).save(path := tmp_path / f"{index}.png")
        pixels, lent = load_image(path), load_image(path, gaps=True)
        assert lent.strides == ((4 * size[0], 4, 1) if mode == "RGB" and LENDS else pixels.strides)
        gc.collect()
        np.testing.assert_array_equal(lent, pixels)
        model = get_runner("lite0", "numba", 1)
        for settings in (model.image_processor, effnet_np.EfficientNetImageProcessor.preset("b0")):
            np.testing.assert_array_equal(resize.network_input(settings, lent), settings.network_input(pixels))
    turned, clear = tmp_path / "turned.jpg", tmp_path / "clear.png"
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.open(COFFEE).convert("RGB").save(turned, exif=exif)
    PIL.Image.open(COFFEE).convert("RGB").save(clear, transparency=tuple(map(int, PHOTOS[1][0, 0])))
    for path in (turned, clear, COFFEE):
        np.testing.assert_array_equal(load_image(path, gaps=True), load_image(path))


def test_network_input_of_any_size():
    """Narrow and wide, smaller than a square and a block, enlarged too; a table of other numbers; the centre cropped."""
    generator = np.random.default_rng(1)
    for index in range(200):
        height, width = np.sort(generator.integers(1, (60, 400)[index % 2], 2))
        photo = generator.integers(0, 256, (height, width, 4), np.uint8)[:, :, :3]
        size = {"height": int(generator.integers(1, 100)), "width": int(generator.integers(1, 100))}
        cut = None if index % 3 else 0.875
        crop = {"do_center_crop": index % 5 == 0, "crop_size": 32}
        settings = effnet_np.EfficientNetImageProcessor(size=size, resample=2 + index % 2, crop_fraction=cut, **crop)
        (expected,) = settings([np.ascontiguousarray(photo)], input_data_format="channels_last")["pixel_values"]
        np.testing.assert_array_equal(resize.network_input(settings, photo), expected, err_msg=f"{photo.shape} {size}")
