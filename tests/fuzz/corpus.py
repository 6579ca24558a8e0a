"""Writes tests/corpus: small valid files of every kind that is read. `python -m tests.fuzz.corpus` (needs torch)."""

import io
import json
from pathlib import Path

import h5py
import numpy as np
import PIL.Image
import torch
from safetensors.numpy import save

from tests.fuzz import traces

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


def h5(libver: str, **options) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=libver) as file:
        for name, array in TENSORS.items():
            file.create_dataset(name.replace(".", "/"), data=array, **(options if array.ndim else {}))
        file.attrs["format_version"] = 1
        file.attrs["config"] = '{"image_size": 64}'
        file.attrs["sha256"] = "0" * 64
    return buffer.getvalue()


def main() -> None:
    traces.corpus(put)
    from effnet_np import EfficientNetConfig, EfficientNetImageProcessor

    base = torch.arange(24, dtype=torch.float32)
    state = {name: torch.from_numpy(array) for name, array in TENSORS.items()}
    state |= {"view": base[3:15].reshape(3, 4).t(), "rest": base[20:]}
    put("torch/zip.bin", pickled(state))
    put("torch/legacy.pth", pickled(state, _use_new_zipfile_serialization=False))
    put("torch/module.bin", pickled(torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3)).state_dict()))
    put("safetensors/small.safetensors", save(TENSORS | {"half": np.ones((2, 2), np.float16)}, {"format": "pt"}))
    put("h5/plain.h5", h5("earliest"))
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
