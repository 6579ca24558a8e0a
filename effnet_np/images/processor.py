"""Pixels to network input, exactly as HF's `EfficientNetImageProcessor` does it: the same steps, order and numbers.

crop (Lite only) -> resize -> centre crop -> rescale -> normalise -> divide by std once more (`include_top`) -> layout.

The last division is a quirk of the published checkpoints: their files hold the square roots of ImageNet's standard
deviations, and dividing by those twice makes the usual (x / 255 - mean) / std.
Source: transformers 4.37.2, `models/efficientnet/image_processing_efficientnet.py` and `image_transforms.py`.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from effnet_np.checkpoints import hub
from effnet_np.checkpoints.checkpoint import read_processor_config
from effnet_np.checkpoints.files import naming, write_json
from effnet_np.hf_config import EfficientNetConfig
from effnet_np.identify import identify
from effnet_np.presets import PRESETS
from effnet_np.torch_words import wanted_dtype
from effnet_np.weights import hf, keras, lite

FIRST, LAST = "channels_first", "channels_last"
RESAMPLE_NAMES = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's numbers 0 to 5
IMAGENET_STANDARD_MEAN = IMAGENET_STANDARD_STD = (0.5, 0.5, 0.5)  # the class's defaults, by HF's names for them
CHECKPOINT_MEAN, CHECKPOINT_STD = hf.MEAN, hf.STD  # in b0's to b7's files

MAX_NETWORK_PIXELS = 1 << 22  # 2048 x 2048; B7 takes 600 x 600

FRAMEWORKS = {
    "np": ("numpy", "array"),
    "pt": ("torch", "tensor"),
    "tf": ("tensorflow", "constant"),
    "jax": ("jax.numpy", "array"),
}

_warned_of_scaled_pixels = False
_tables: dict[str, np.ndarray] = {}  # of the last processors that ran
MOST_TABLES = 64


class BatchFeature(dict):
    """What `preprocess` gives back: {"pixel_values": ...}, also readable as an attribute."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no {name!r}, only {', '.join(self)}") from None

    def to(self, *args: Any, **kwargs: Any) -> BatchFeature:
        """In place, and given back: tensors of a framework go where they are told; arrays stay on the CPU, in that dtype."""
        for key, value in self.items():
            if hasattr(value, "to"):
                self[key] = value.to(*args, **kwargs)
            else:
                dtype = wanted_dtype(*args, **kwargs)
                self[key] = value if dtype is None else np.asarray(value, dtype)
        return self


class EfficientNetImageProcessor:
    """Every option of HF's class; an option of `preprocess` wins over the one given here.

    do_resize, size {"height", "width"} (or a number, or a pair), resample 0..5 (Pillow: nearest, lanczos, bilinear, bicubic,
    box, hamming); do_center_crop, crop_size; do_rescale, rescale_factor, rescale_offset (subtract 1 afterwards);
    do_normalize, image_mean, image_std (a number, or one a channel); include_top (divide by image_std once more).

    Beyond HF's class: `size` {"shortest_edge"} keeps a picture's shape, as timm and torchvision do; the place of a centre crop
    is then rounded as theirs. `crop_fraction` cuts a centred square of that share of the shorter side out *before* the resize,
    as the Lite networks were trained. Unknown options are kept as attributes. Raises ValueError for options that cannot work.
    """

    def __init__(
        self,
        do_resize: bool = True,
        size: dict[str, int] | int | Sequence[int] | None = None,
        resample: int = 0,
        do_center_crop: bool = False,
        crop_size: dict[str, int] | int | Sequence[int] | None = None,
        rescale_factor: float = 1 / 255,
        rescale_offset: bool = False,
        do_rescale: bool = True,
        do_normalize: bool = True,
        image_mean: float | Sequence[float] | None = None,
        image_std: float | Sequence[float] | None = None,
        include_top: bool = True,
        crop_fraction: float | None = None,
        **unknown: Any,
    ):
        self.do_resize = do_resize
        self.size = size_dict(346 if size is None else size, "size", or_shortest=True)
        self.resample = _filter(resample)
        self.do_center_crop = do_center_crop
        self.crop_size = size_dict(289 if crop_size is None else crop_size, "crop_size")
        self.do_rescale = do_rescale
        self.rescale_factor = rescale_factor
        self.rescale_offset = rescale_offset
        self.do_normalize = do_normalize
        self.image_mean = _plain(IMAGENET_STANDARD_MEAN if image_mean is None else image_mean)
        self.image_std = _plain(IMAGENET_STANDARD_STD if image_std is None else image_std)
        self.include_top = include_top
        self.crop_fraction = crop_fraction
        _check_magnitude("crop_fraction", 1 if crop_fraction is None else crop_fraction)
        if crop_fraction is not None and not 0 < crop_fraction <= 1:
            raise ValueError(f"crop_fraction must be None or above 0 and at most 1, got {crop_fraction}")
        for key in ("do_resize", "do_center_crop", "do_rescale", "rescale_offset", "do_normalize", "include_top"):
            if not isinstance(getattr(self, key), (bool, int, np.bool_, type(None))):
                raise TypeError(f"{key} must be true or false, got {getattr(self, key)!r:.80}")
        _check_magnitude("rescale_factor", rescale_factor)
        for key in ("image_mean", "image_std"):
            _check_magnitude(key, getattr(self, key))
        for key, value in unknown.items():
            if key.startswith("__") or hasattr(type(self), key):
                raise ValueError(f"a processor's configuration cannot have a key {key!r}: it would replace a part of the class")
            setattr(self, key, value)

    @classmethod
    def preset(cls, name: str) -> EfficientNetImageProcessor:
        """The preprocessing that the published weights of a preset were trained with: "b0" to "b7", "lite0", "v2-s", ..."""
        if name not in PRESETS:
            raise ValueError(f"there is no preset {name!r}; choose one of {', '.join(PRESETS)}")
        size = PRESETS[name].image_size
        if name.startswith("lite"):
            return cls(**lite.preprocessing(size))
        if name.startswith("v2"):
            return cls(**keras.preprocessing(size, *(keras.IMAGENET if name.startswith("v2-b") else keras.HALF)))
        return cls(**hf.preprocessing(size))

    # -- the steps ------------------------------------------------------------------------------------------------

    def preprocess(
        self,
        images: Any,
        return_tensors: str | None = None,
        data_format: str = FIRST,
        input_data_format: str | None = None,
        **options: Any,
    ) -> BatchFeature:
        """Images -> {"pixel_values": list of arrays}, or one array (N, C, H, W) for `return_tensors="np"`.

        images: a PIL image, an array (H, W, C) or (C, H, W), a batch of them (N, ...), or a list; pixels from 0 to 255, or
        from 0 to 1 with do_rescale=False. `return_tensors` may also be "pt", "tf" or "jax" where that framework is there.
        `data_format` and `input_data_format` are "channels_first" or "channels_last"; the second is inferred where it is None,
        from which axis has 1 or 3 entries. All options of the class may be given again. Raises ValueError or TypeError.
        """
        if not set(options) <= OPTIONS:
            raise TypeError(f"preprocess() has no option {', '.join(sorted(set(options) - OPTIONS))}")
        processor = self
        if any(value is not None for value in options.values()):
            processor = type(self)(**(vars(self) | {name: value for name, value in options.items() if value is not None}))
        return processor._preprocess(images, return_tensors, data_format, input_data_format)

    __call__ = preprocess

    def _preprocess(self, images, return_tensors, data_format, input_data_format):
        arrays = [to_array(image) for image in image_list(images)]
        data_format = _layout(data_format)
        layout = infer_layout(arrays[0]) if input_data_format is None else _layout(input_data_format)
        if self.do_rescale:
            _warn_of_scaled_pixels(arrays[0])
        done = []
        for image in arrays:
            if image.ndim != 3:
                raise ValueError(f"an image needs 3 dimensions, got an array of shape {image.shape}")
            done.append(self._pixels_to_numbers(self._cut_and_resize(_to_layout(image, LAST, layout)), data_format))
        return BatchFeature(pixel_values=to_tensors(done, return_tensors))

    def network_input(self, pixels: np.ndarray, resize: Callable | None = None) -> np.ndarray:
        """One picture (H, W, C) uint8 -> (C, h, w), what `preprocess` makes of it; `resize`: what does it in Pillow's place."""
        return self._pixels_to_numbers(self._cut_and_resize(pixels, resize), FIRST)

    def _cut_and_resize(self, image: np.ndarray, resizer: Callable | None = None) -> np.ndarray:
        """(H, W, C) -> (h, w, C), the size of the network's input."""
        image = self.cut(image)
        if self.do_resize:
            image = (resizer or resize)(image, *self.resized(*image.shape[:2]), self.resample)
        if self.do_center_crop:
            image = crop(image, self.crop_size["height"], self.crop_size["width"], nearest="shortest_edge" in self.size)
        if image.shape[0] * image.shape[1] > MAX_NETWORK_PIXELS:  # a stranger's file must not let every photograph through
            size, hint = f"{image.shape[0]} x {image.shape[1]}", "set do_resize=True, or resize the image before"
            raise ValueError(f"without do_resize this image has {size} pixels, more than {MAX_NETWORK_PIXELS} in all: {hint}")
        return image

    def cut(self, image: np.ndarray) -> np.ndarray:
        """(H, W, C) -> the centred square of `crop_fraction`, if there is one."""
        if self.crop_fraction is None:
            return image
        side = max(1, int(self.crop_fraction * min(image.shape[:2])))
        return crop(image, side, side)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that the resize makes of a picture of that size, in pixels."""
        if "shortest_edge" not in self.size:
            return self.size["height"], self.size["width"]
        shorter = self.size["shortest_edge"]
        longer = int(shorter * max(height, width) / min(height, width))  # as torchvision, and HF for this word
        if shorter * longer > MAX_NETWORK_PIXELS:
            size = f"{height} x {width}"
            raise ValueError(f"with a shorter side of {shorter} pixels this image of {size} has more than {MAX_NETWORK_PIXELS}")
        return (shorter, longer) if height <= width else (longer, shorter)

    def _pixels_to_numbers(self, image: np.ndarray, data_format: str = LAST) -> np.ndarray:
        """(h, w, C) -> (h, w, C) or (C, h, w): the steps that change each number by itself."""
        if image.dtype != np.uint8:
            return _to_layout(self._arithmetic(image), data_format, LAST)
        table = self.table(image.shape[-1])
        numbers = np.empty((len(table), *image.shape[:2]), table.dtype)
        for plane, entries, pixels in zip(numbers, table, image.transpose(2, 0, 1), strict=True):
            np.take(entries, pixels, out=plane, mode="clip")  # the default mode would check each pixel, and copy the plane
        return numbers if data_format == FIRST else np.ascontiguousarray(numbers.transpose(1, 2, 0))

    def table(self, channels: int) -> np.ndarray:
        """(channels, 256): what becomes of each number that a uint8 may hold."""
        asked = (self.do_rescale, self.rescale_factor, self.rescale_offset, self.do_normalize, self.include_top)
        key = repr((asked, self.image_mean, self.image_std, channels))  # `repr` tells 1 from 1.0, whose products differ
        if key not in _tables:
            every = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], channels, axis=2)
            if len(_tables) >= MOST_TABLES:
                _tables.clear()
            _tables[key] = np.ascontiguousarray(self._arithmetic(every)[:, 0].T)
        return _tables[key]

    def _arithmetic(self, image: np.ndarray) -> np.ndarray:
        if self.do_rescale:
            image = rescale(image, self.rescale_factor, self.rescale_offset)
        if self.do_normalize:
            image = normalize(image, self.image_mean, self.image_std)
        if self.include_top:
            image = normalize(image, 0, self.image_std)
        return image

    # -- single steps, as HF's class offers them --------------------------------------------------------------------

    def resize(self, image, size, resample: int = 0, data_format: str | None = None, input_data_format: str | None = None):
        """Resize to `size` with Pillow, which computes in uint8: a float image between 0 and 1 passes through 0 to 255."""
        layout = infer_layout(image) if input_data_format is None else _layout(input_data_format)
        resized = resize(_to_layout(image, LAST, layout), **size_dict(size, "size"), resample=_filter(resample))
        return _to_layout(resized, layout if data_format is None else _layout(data_format), LAST)

    def center_crop(self, image, size, data_format: str | None = None, input_data_format: str | None = None):
        """The middle of the image, `size` large; see `crop` for an image that is smaller than that."""
        layout = infer_layout(image) if input_data_format is None else _layout(input_data_format)
        wanted = size_dict(size, "crop_size")
        cropped = crop(_to_layout(image, LAST, layout), wanted["height"], wanted["width"])
        return _to_layout(cropped, layout if data_format is None else _layout(data_format), LAST)

    def rescale(self, image, scale: float, offset: bool = True):
        """image * scale, and minus 1 where `offset`: float32."""
        return rescale(image, scale, offset)

    def normalize(self, image, mean, std, input_data_format: str | None = None):
        """(image - mean) / std, each a number or one a channel; whole numbers become float32, floats keep their type."""
        layout = infer_layout(image) if input_data_format is None else _layout(input_data_format)
        return _to_layout(normalize(_to_layout(image, LAST, layout), mean, std), layout, LAST)

    # -- files ----------------------------------------------------------------------------------------------------

    @classmethod
    def from_dict(cls, fields: dict[str, Any], **overrides: Any) -> EfficientNetImageProcessor:
        """A processor from HF's dictionary (preprocessor_config.json); overrides win, and must be options, or in `fields`."""
        if not isinstance(fields, dict):
            raise TypeError(f"a processor's configuration is a dictionary, got {type(fields).__name__}")
        if not set(overrides) <= OPTIONS | set(fields):
            raise TypeError(f"there is no option {', '.join(sorted(set(overrides) - OPTIONS - set(fields)))}")
        fields = {key: value for key, value in fields.items() if key not in ("image_processor_type", "feature_extractor_type")}
        return cls(**copy.deepcopy(fields | overrides))

    def to_dict(self) -> dict[str, Any]:
        fields = copy.deepcopy(vars(self))
        if self.crop_fraction is None:  # HF has no such option
            del fields["crop_fraction"]
        return fields | {"image_processor_type": "EfficientNetImageProcessor"}

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike, **options: Any) -> EfficientNetImageProcessor:
        """Read preprocessor_config.json from a folder, a file, a preset's short name or a hub id; options override fields."""
        hub_options, overrides = hub.split_options(options)
        path = hub.resolve(source, **hub_options)
        found = read_processor_config(path, overrides.pop("architecture", None))
        fields = found if isinstance(found, dict) else identify(found, EfficientNetConfig.preset)[1]
        with naming(path):
            return cls.from_dict(fields, **overrides)

    def save_pretrained(self, folder: str | os.PathLike) -> str:
        """Write `folder`/preprocessor_config.json as HF does, and give its path."""
        return write_json(folder, "preprocessor_config.json", self.to_dict())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EfficientNetImageProcessor) and vars(self) == vars(other)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in vars(self).items())})"


def find_processor(source: Any) -> EfficientNetImageProcessor | None:
    """A processor itself (or None), a preset's ("b0".."b7", "lite0": nothing is fetched), that of a folder, file or hub id."""
    if source is None or isinstance(source, EfficientNetImageProcessor):
        return source
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"image_processor must be an EfficientNetImageProcessor or where to find one, got {source!r:.80}")
    if isinstance(source, str) and source in PRESETS:
        return EfficientNetImageProcessor.preset(source)
    return EfficientNetImageProcessor.from_pretrained(source)


OPTIONS = frozenset(inspect.signature(EfficientNetImageProcessor).parameters) - {"unknown"}


# -- the steps: (H, W, C) -> (H, W, C) ----------------------------------------------------------------------------------


def crop(image: np.ndarray, height: int, width: int, nearest: bool = False) -> np.ndarray:
    """The middle of an image; where the image is smaller than that, zeros on both sides of it.

    HF puts as many zeros before as after, so where an odd number is wanting, the result is one pixel short. Where the image is
    larger by an odd number of pixels, HF starts at the lower half, and with `nearest` at the even one, as torchvision.
    """
    rest = image.shape[0] - height, image.shape[1] - width
    top, left = (round(side / 2) if nearest else side // 2 for side in rest)
    image = image[max(top, 0) :, max(left, 0) :][:height, :width]
    before = [(wanted - have) // 2 for wanted, have in zip((height, width), image.shape, strict=False)]
    return np.pad(image, [(before[0],) * 2, (before[1],) * 2, (0, 0)]) if any(before) else image


def resize(image: np.ndarray, height: int, width: int, resample: int) -> np.ndarray:
    """Pillow's resize, of uint8; floats between 0 and 1 pass through 0 to 255 and come back as float32."""
    import PIL.Image

    if image.shape[-1] > 4 or image.size == 0:
        raise ValueError(f"only images of 1 to 4 channels and some pixels can be resized, got shape {image.shape}")
    scaled = _needs_scaling(image)
    pixels = (image * 255).astype(np.float32) if scaled else image  # float32 before truncation, as HF
    pixels = pixels.astype(np.uint8, copy=False)
    picture = PIL.Image.fromarray(pixels[:, :, 0] if pixels.shape[-1] == 1 else pixels)
    resized = np.array(picture.resize((width, height), resample=resample)).reshape(height, width, -1)
    return rescale(resized, 1 / 255, offset=False) if scaled else resized


def rescale(image: np.ndarray, scale: float, offset: bool) -> np.ndarray:
    rescaled = (image * scale).astype(np.float32)
    return rescaled - 1 if offset else rescaled


def normalize(image: np.ndarray, mean: Any, std: Any) -> np.ndarray:
    """Whole numbers become float32, floats keep their type, and so do mean and std."""
    image = image if image.dtype.kind == "f" else image.astype(np.float32)
    mean, std = (_per_channel(name, value, image.shape[-1]) for name, value in (("mean", mean), ("std", std)))
    return (image - mean.astype(image.dtype)) / std.astype(image.dtype)


# -- images in, tensors out -------------------------------------------------------------------------------------------


def image_list(images: Any) -> list[Any]:
    """One image, a batch in one array, or a sequence of images -> a list of images."""
    if isinstance(images, (list, tuple)):
        if not images:
            raise ValueError("there are no images: the list is empty")
        return list(images)
    if not _is_picture(images) and np.ndim(images) == 4:
        return list(images)
    return [images]


def to_array(image: Any) -> np.ndarray:
    """A PIL image, an array, or a tensor on the CPU -> the array of its pixels. Raises TypeError for anything else."""
    if not _is_picture(image) and not hasattr(image, "__array__"):
        raise TypeError(f"an image must be a PIL image, a NumPy array or a tensor, got {type(image).__name__}")
    array = np.asarray(image)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"an image's pixels must be numbers, got an array of {array.dtype}")
    return array


def to_tensors(arrays: list[np.ndarray], framework: str | None) -> Any:
    """None: the list as it is; "np", "pt", "tf", "jax": one array or tensor (N, ...)."""
    if framework is None:
        return arrays
    framework = getattr(framework, "value", framework)
    if framework not in FRAMEWORKS:
        raise ValueError(f"return_tensors must be None or one of {', '.join(FRAMEWORKS)}, got {framework!r}")
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise ValueError(f"images of different shapes {sorted(shapes)} make no batch: resize them, or use return_tensors=None")
    module, function = FRAMEWORKS[framework]
    try:
        return getattr(importlib.import_module(module), function)(np.stack(arrays))
    except ImportError as error:
        package = module.split(".")[0]
        text = f"return_tensors={framework!r} needs {package}, which is not installed: pip install {package}"
        raise ImportError(text) from error


def infer_layout(image: np.ndarray) -> str:
    """The axis with 1 or 3 entries holds the channels; the first is asked first (HF's rule)."""
    if image.ndim != 3:
        raise ValueError(f"an image needs 3 dimensions, (H, W, C) or (C, H, W), got shape {image.shape}")
    for axis, layout in ((0, FIRST), (2, LAST)):
        if image.shape[axis] in (1, 3):
            return layout
    hint = 'say which axis holds the channels: input_data_format="channels_first" or "channels_last"'
    raise ValueError(f"neither end of the shape {image.shape} is 1 or 3; {hint}")


def size_dict(size: Any, name: str, or_shortest: bool = False) -> dict[str, int]:
    """224, (224, 224) or {"height": 224, "width": 224} -> the last; {"shortest_edge": 224}, where it may be that, is itself."""
    if or_shortest and isinstance(size, dict) and set(size) == {"shortest_edge"}:
        return {"shortest_edge": size_dict(size["shortest_edge"], name)["height"]}
    if isinstance(size, (int, np.integer)) and not isinstance(size, bool):
        size = (size, size)
    if isinstance(size, (tuple, list)) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    if not isinstance(size, dict) or set(size) != {"height", "width"}:
        raise ValueError(
            f'{name} must be a number, a pair (height, width) or {{"height": ..., "width": ...}}, got {size!r:.80}'
        )
    size = {side: _plain(length) for side, length in size.items()}
    if not all(isinstance(side, int) and 1 <= side <= 1 << 16 for side in size.values()):
        raise ValueError(f"{name} must be whole numbers between 1 and 65536, got {size!r:.80}")
    if size["height"] * size["width"] > MAX_NETWORK_PIXELS:  # a stranger's file must not ask for gigabytes
        raise ValueError(f"{name} must be at most {MAX_NETWORK_PIXELS} pixels in all, got {size['height']} x {size['width']}")
    return size


def _check_magnitude(name: str, value: Any) -> None:
    """Numbers that neither vanish nor overflow in float32."""
    values: list[Any] = list(value) if isinstance(value, (list, tuple)) else np.asarray(value).reshape(-1).tolist()
    for entry in values:
        if isinstance(entry, bool) or not isinstance(entry, (int, float, np.integer, np.floating)):
            raise TypeError(f"{name} must be a number or a list of numbers, got {value!r:.80}")
        magnitude: Any = abs(entry)
        if magnitude != 0 and not 1e-10 <= magnitude <= 1e10:  # NaN, too
            raise ValueError(f"{name} must lie between 1e-10 and 1e10, got {value!r:.80}")


def _plain(value: Any) -> Any:
    """A number or a list of its own: no tuple, which JSON would turn into a list, and no array, which it cannot hold."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    return [_plain(entry) for entry in value] if isinstance(value, (tuple, list)) else value


def _is_picture(image: Any) -> bool:
    return hasattr(image, "getbands")  # a PIL image, asked without importing Pillow


def _layout(name: Any) -> str:
    name = getattr(name, "value", name)  # HF's ChannelDimension is an enum of these strings
    if name not in (FIRST, LAST):
        raise ValueError(f"a data format must be {FIRST!r} or {LAST!r}, got {name!r}")
    return name


def _to_layout(image: np.ndarray, target: str, layout: str) -> np.ndarray:
    if target == layout:
        return image
    return image.transpose(2, 0, 1) if target == FIRST else image.transpose(1, 2, 0)


def _filter(resample: Any) -> int:
    if isinstance(resample, bool) or resample not in range(len(RESAMPLE_NAMES)):
        names = ", ".join(f"{number} {name}" for number, name in enumerate(RESAMPLE_NAMES))
        raise ValueError(f"resample must be one of {names}; got {resample!r}")
    return int(resample)


def _per_channel(name: str, value: Any, channels: int) -> np.ndarray:
    array = np.asarray(value, np.float64)
    if array.ndim > 1 or (array.ndim == 1 and len(array) != channels):
        raise ValueError(f"image_{name} must be one number or {channels}, one a channel of the image, got {value!r:.80}")
    if not np.isfinite(array).all() or (name == "std" and not array.all()):
        raise ValueError(f"image_{name} must be finite{', and not zero' if name == 'std' else ''}, got {value!r:.80}")
    return np.broadcast_to(array, channels)


def _needs_scaling(image: np.ndarray) -> bool:
    """False where the pixels are whole numbers from 0 to 255, True where they lie between 0 and 1 (HF's rule)."""
    if image.dtype == np.uint8:
        return False
    low, high = image.min(), image.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("the image holds NaN or infinite pixels")
    whole = np.allclose(image, image.astype(int))
    if low < 0 or high > (255 if whole else 1):
        range_ = "0 to 255 for whole numbers" if whole else "0 to 1 for other numbers"
        raise ValueError(f"to be resized, pixels must lie in {range_}; these lie between {low} and {high}")
    return not whole


def _warn_of_scaled_pixels(image: np.ndarray) -> None:
    global _warned_of_scaled_pixels
    if image.dtype != np.uint8 and not _warned_of_scaled_pixels and image.min() >= 0 and image.max() <= 1:
        _warned_of_scaled_pixels = True
        text = "these pixels lie between 0 and 1 already and are about to be rescaled again; if so, pass do_rescale=False"
        warnings.warn(text, UserWarning, stacklevel=4)
