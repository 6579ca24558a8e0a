"""Writes tests/corpus: small valid files of every kind that is read. `python -m tests.fuzz.corpus` (needs torch)."""

import argparse
import io
import json
import zipfile
from pathlib import Path

import h5py
import numpy as np
import PIL.Image
import safetensors.torch
import torch
from safetensors.numpy import save

from tests.fuzz import traces

TIMM_CONFIG = {
    "architecture": "tf_efficientnet_b0",
    "num_classes": 3,
    "label_names": ["a", "b", "c"],
    "pretrained_cfg": {
        "tag": "in1k",
        "input_size": [3, 224, 224],
        "crop_pct": 0.875,
        "crop_mode": "center",
        "interpolation": "bicubic",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    },
}
CORPUS = Path(__file__).parent.parent / "corpus"
TENSORS = {
    "classifier.bias": np.arange(5, dtype=np.float32),
    "classifier.weight": np.arange(20, dtype=np.float32).reshape(5, 4),
    "bn.num_batches_tracked": np.array(7),
}


def put(name: str, data: bytes) -> None:
    (CORPUS / name).parent.mkdir(parents=True, exist_ok=True)
    (CORPUS / name).write_bytes(data)


def pickled(tensors, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors, buffer, **options)
    return buffer.getvalue()


def h5(libver, members: int = 0, **options) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=libver) as file:
        for name, array in TENSORS.items():
            chosen = options if array.ndim else {}
            if "chunks" in chosen and chosen["chunks"] is not True:
                chosen = chosen | {"chunks": chosen["chunks"][-array.ndim :]}
            file.create_dataset(name.replace(".", "/"), data=array, **chosen)
        for index in range(members):
            file.create_dataset(f"many/{index}", data=np.full(2, index, np.float32))
            file.attrs[f"attribute {index}"] = index
        file.attrs["format_version"] = 1
        file.attrs["config"] = '{"image_size": 64}'
        file.attrs["sha256"] = "0" * 64
    return buffer.getvalue()


KERAS = {  # a layer's name: (its class, its variables)
    "normalization": ("normalization", {"mean": np.ones(3), "variance": np.ones(3), "count": np.int32(0)}),
    "stem_conv": ("conv2d", {"kernel": np.ones((1, 1, 3, 2))}),
    "stem_bn": ("batch_normalization", dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), np.ones(2))),
    "block1a_dwconv": ("depthwise_conv2d", {"kernel": np.ones((3, 3, 2, 1))}),
    "predictions": ("dense", {"kernel": np.ones((2, 5)), "bias": np.ones(5)}),
}


def keras_config() -> str:
    """As Keras describes a model, for those layers."""
    layers = [{"class_name": "InputLayer", "config": {"batch_shape": [None, 64, 64, 3]}, "name": "input_layer"}]
    layers.append({"class_name": "Rescaling", "config": {"scale": 1 / 255, "offset": 0.0}, "name": "rescaling"})
    for name, (kind, _) in KERAS.items():
        words = kind.replace("conv2d", "conv2D").split("_")
        layers.append({"class_name": "".join(word[:1].upper() + word[1:] for word in words), "config": {}, "name": name})
    return json.dumps({"class_name": "Functional", "config": {"name": "small", "layers": layers}})


def keras_h5(numbered: bool, named: bool = True, config: str = "") -> bytes:
    """Weights in Keras 3's tree, or in that of Keras 2 and of whole .h5 models."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, (kind, variables) in KERAS.items():
            for number, (variable, array) in enumerate(variables.items()):
                place = f"layers/{kind}/vars/{number}" if numbered else f"model_weights/{name}/{name}/{variable}"
                file[place] = np.asarray(array, array.dtype if array.dtype == np.int32 else np.float32)
            if numbered and named:
                file[f"layers/{kind}/vars"].attrs["name"] = name
            if not numbered:
                file[f"model_weights/{name}"].attrs["weight_names"] = np.array([f"{name}/{key}" for key in variables], "S")
        if config:
            file.attrs["model_config"] = config
    return buffer.getvalue()


def keras_zip(weights: bytes, config: str, method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, text in (("metadata.json", "{}"), ("config.json", config), ("model.weights.h5", weights)):
            file.writestr(name, text)
    return buffer.getvalue()


def main() -> None:
    traces.corpus(put)
    put("keras/small.weights.h5", keras_h5(numbered=True))
    put("keras/whole.h5", keras_h5(numbered=False, config=keras_config()))
    put("keras/small.keras", keras_zip(keras_h5(numbered=True), keras_config()))
    put("keras/unnamed.keras", keras_zip(keras_h5(numbered=True, named=False), keras_config()))
    put("json/timm.json", json.dumps(TIMM_CONFIG).encode())
    from effnet_np import EfficientNetConfig, EfficientNetImageProcessor

    base = torch.arange(24, dtype=torch.float32)
    state = {name: torch.from_numpy(array) for name, array in TENSORS.items()}
    state |= {"view": base[3:15].reshape(3, 4).t(), "rest": base[20:]}
    put("torch/zip.bin", pickled(state))
    put("torch/legacy.pth", pickled(state, _use_new_zipfile_serialization=False))
    put("torch/module.bin", pickled(torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3)).state_dict()))
    training = {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3, "best": np.float64(0.5)}
    training |= {"optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}}
    training |= {"args": argparse.Namespace(lr=0.1), "rng": torch.arange(9, dtype=torch.uint8), "size": torch.Size([1, 2])}
    put("torch/training.pth", pickled(training))
    put("torch/training_legacy.pth", pickled(training, _use_new_zipfile_serialization=False))
    put("torch/halves.bin", pickled({"a": base.half(), "b": base.bfloat16().reshape(4, 6).t(), "c": base.double()}))
    put("safetensors/halves.safetensors", safetensors.torch.save({"a": base.half(), "b": base.bfloat16()}))
    put("safetensors/small.safetensors", save(TENSORS | {"half": np.ones((2, 2), np.float16)}, {"format": "pt"}))
    put("h5/plain.h5", h5("earliest"))
    put("h5/newer.h5", h5(("v110", "v110"), members=3))
    put("h5/newer_many.h5", h5(("v108", "v108"), members=60))
    put("h5/newer_packed.h5", h5(("v112", "v112"), chunks=(1, 2), compression="gzip", shuffle=True))
    put("h5/packed.h5", h5("earliest", chunks=True, compression="gzip", shuffle=True))

    config = EfficientNetConfig.preset("b0", num_labels=3)
    put("json/config.json", json.dumps(config.to_dict()).encode())
    put("json/preprocessor_config.json", json.dumps(EfficientNetImageProcessor.preset("b0").to_dict()).encode())
    shards = {"classifier.bias": "model-00001-of-00002.safetensors", "classifier.weight": "model-00002-of-00002.safetensors"}
    put("json/model.safetensors.index.json", json.dumps({"metadata": {"total_size": 100}, "weight_map": shards}).encode())

    rows = np.arange(12, dtype=np.uint8)[:, None, None] * 9
    pixels = (rows + np.arange(10, dtype=np.uint8)[None, :, None] * 7 + np.array([0, 60, 120], np.uint8)).astype(np.uint8)
    rgb = PIL.Image.fromarray(pixels)
    alpha = rgb.convert("RGBA")
    alpha.putalpha(PIL.Image.fromarray(pixels[:, :, 0]))
    sixteen = PIL.Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    tiff = {"compression": "tiff_lzw"}
    pictures = {
        "baseline.jpg": (rgb, "JPEG", {"exif": exif, "icc_profile": b"x" * 40}),
        "progressive.jpg": (rgb, "JPEG", {"progressive": True}),
        "cmyk.jpg": (rgb.convert("CMYK"), "JPEG", {}),
        "rgb.png": (rgb, "PNG", {"exif": exif, "icc_profile": b"x" * 40}),
        "alpha.png": (alpha, "PNG", {}),
        "palette.png": (rgb.quantize(8), "PNG", {"transparency": 2}),
        "sixteen.png": (sixteen, "PNG", {}),
        "animated.gif": (rgb.quantize(8), "GIF", {"save_all": True, "append_images": [alpha.convert("P")], "comment": b"hi"}),
        "rgb.bmp": (rgb, "BMP", {}),
        "rgb.ppm": (rgb, "PPM", {}),
        "sixteen.pgm": (sixteen, "PPM", {}),
        "lzw.tif": (rgb, "TIFF", tiff),
        "deflate.tif": (alpha, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "raw.tif": (sixteen, "TIFF", {}),
        "jpeg.tif": (rgb, "TIFF", {"compression": "jpeg"}),
        "big.tif": (rgb, "TIFF", {"big_tiff": True, "exif": exif}),
        "phone.mpo": (rgb, "MPO", {"save_all": True, "append_images": [rgb.rotate(180)], "exif": exif}),
        "rgb.avif": (rgb, "AVIF", {"exif": exif}),
        "alpha.avif": (alpha, "AVIF", {}),
        "lossy.webp": (rgb, "WEBP", {"exif": exif}),
        "lossless.webp": (alpha, "WEBP", {"lossless": True}),
        "animated.webp": (rgb, "WEBP", {"save_all": True, "append_images": [alpha]}),
    }
    for name, (image, format, options) in pictures.items():
        buffer = io.BytesIO()
        image.save(buffer, format, **options)
        put(f"pictures/{name}", buffer.getvalue())


if __name__ == "__main__":
    main()
