"""What is fuzzed: each reader is a function from a file (or bytes) that returns, or raises one of its documented errors."""

from pathlib import Path

import numpy as np
import PIL.features

import effnet_np
from effnet_np.checkpoints import checkpoint, hub
from effnet_np.checkpoints.keras_file import KerasFile
from effnet_np.checkpoints.safetensors_file import SafetensorsFile
from effnet_np.checkpoints.torch_file import BFLOAT16, TorchFile
from effnet_np.config_checks import MAX_WEIGHTS_L2, num_weights
from effnet_np.images.io import load_image
from effnet_np.images.processor import EfficientNetImageProcessor
from tests.fuzz import traces

MAX_PIXELS = 1_000_000
AVIF = "avif" in PIL.features.modules and PIL.features.check("avif")  # Pillow 11.3 and newer
FILE_ERRORS = (ValueError, TypeError, FileNotFoundError)
_model = None


def _read_all(reader) -> None:
    try:
        for name, shape in reader.shapes.items():
            array = reader.read(name)
            assert array.shape == shape, f"{name}: {array.shape} read, {shape} announced"
            assert array.dtype.kind in "fiub", array.dtype
    finally:
        reader.close()


def torch(path: Path) -> None:
    _read_all(TorchFile(path))
    checkpoint.Checkpoint(path).close()


def safetensors(path: Path) -> None:
    """What we accept, the library of that name must read as the same numbers."""
    from safetensors.numpy import load_file

    reader = SafetensorsFile(path)
    if any(dtype == BFLOAT16 for dtype, *_ in reader._tensors.values()):
        _read_all(reader)  # the library cannot give these to NumPy
        return
    theirs = load_file(path)
    assert {name: array.shape for name, array in theirs.items()} == reader.shapes
    for name, array in theirs.items():
        assert reader.read(name).tobytes() == array.tobytes(), name
    _read_all(reader)


def h5(path: Path) -> None:
    _read_all(checkpoint.H5File(path))
    checkpoint.Checkpoint(path).close()


def keras(path: Path) -> None:
    reader = checkpoint.open_weights(path)
    if isinstance(reader, KerasFile):
        reader.preprocessing()
        reader.input_size()
    _read_all(reader)
    effnet_np.EfficientNetConfig.from_pretrained(path, architecture="EfficientNetB0")


def _described(cls):
    """A configuration that is accepted can be written down, and is the same again."""

    def read(path: Path) -> None:
        value = cls.from_pretrained(path)
        assert cls.from_dict(value.to_dict()).to_dict() == value.to_dict()
        if cls is effnet_np.EfficientNetConfig:
            assert 0 < num_weights(value) <= MAX_WEIGHTS_L2

    return read


DESCRIPTIONS = {
    "config.json": _described(effnet_np.EfficientNetConfig),
    "timm.json": _described(effnet_np.EfficientNetConfig),
    "preprocessor_config.json": _described(EfficientNetImageProcessor),
    "model.safetensors.index.json": hub.read_weight_map,
}


def json(path: Path) -> None:
    """Read as each kind of description; it counts as accepted if it is as the one that it was made from."""
    for name, read in DESCRIPTIONS.items():
        try:
            read(path)
        except FILE_ERRORS:
            if name == path.name:
                raise


def pictures(data: bytes) -> None:
    pixels = load_image(data, 3, MAX_PIXELS)
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert 0 < pixels.size <= 3 * MAX_PIXELS


def classify(data: bytes) -> None:
    """The whole of classify(bytes), with a network at an eighth of B0's width."""
    global _model
    if _model is None:
        config = effnet_np.EfficientNetConfig.preset("b0", width_coefficient=0.125, hidden_dim=160, num_labels=5, image_size=64)
        _model = effnet_np.EfficientNetForImageClassification(config, seed=0)
        _model.image_processor = EfficientNetImageProcessor(size=64)
    predictions = effnet_np.classify(data, _model, max_pixels=MAX_PIXELS)
    assert len(predictions) == 5
    assert abs(sum(prediction["score"] for prediction in predictions) - 1) < 1e-3


# name: (function, whether it takes a path, folder of the corpus)
READERS = {
    "torch": (torch, True, "torch"),
    "safetensors": (safetensors, True, "safetensors"),
    "h5": (h5, True, "h5"),
    "keras": (keras, True, "keras"),
    "json": (json, True, "json"),
    "pictures": (pictures, False, "pictures"),
    "classify": (classify, False, "pictures"),
    "trace": (traces.trace, True, "traces"),
    "compare": (traces.compare, True, "traces"),
}
