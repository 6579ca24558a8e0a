"""Photographs of 8 to 50 megapixels in every format, classified: `python tests/benchmark_photographs.py FOLDER [COUNT]`.

Takes photographs from a folder (and those below it), enlarges them to real sizes, writes them in all formats that are read,
with EXIF (every orientation, stored so that they come out upright), and runs `classify` on each in a process of its own.
Prints a row a photograph and a backend: megapixels, megabytes, the first label, whether the small original has the same one,
wall seconds, and peak memory over the process with the model loaded. Not a test: nothing is asserted but that all are answered.
"""

import argparse
import itertools
import json
import os
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import PIL.features
import PIL.Image

import effnet_np
from effnet_np.images.io import SUFFIXES

SHAPES = ((4, 3), (3, 2), (1, 1), (16, 9), (3, 4), (21, 5))  # width to height; the third last for phones held upright
MEGAPIXELS = (8, 12, 16, 20, 24, 32, 42, 48, 50)
FORMATS = [
    (".jpg", "JPEG", {"quality": 90}),
    (".jpg", "JPEG", {"quality": 90, "progressive": True}),
    (".jpg", "JPEG", {"quality": 90, "subsampling": 0}),
    (".mpo", "MPO", {"save_all": True}),
    (".png", "PNG", {"compress_level": 1}),
    (".tif", "TIFF", {"compression": "jpeg"}),
    (".tif", "TIFF", {"compression": "tiff_lzw"}),
    (".tif", "TIFF", {}),
    (".webp", "WEBP", {"method": 0}),
    (".bmp", "BMP", {}),
    (".ppm", "PPM", {}),
    (".gif", "GIF", {}),
]
if "avif" in PIL.features.modules and PIL.features.check("avif"):
    FORMATS.append((".avif", "AVIF", {"speed": 10}))
STORED = {  # what the camera does, so that the EXIF orientation makes it upright again
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE",
    8: "ROTATE_270",
}  # fmt: skip


def write_photograph(source: Path, target: Path, number: int) -> str:
    """The photograph, cut to a shape, enlarged and written; gives its name."""
    suffix, format, options = FORMATS[number % len(FORMATS)]
    across, down = SHAPES[number % len(SHAPES)]
    with PIL.Image.open(source) as opened:
        image = opened.convert("RGB")
    unit = min(image.width / across, image.height / down)
    left, top = (image.width - unit * across) / 2, (image.height - unit * down) / 2
    pixels = MEGAPIXELS[number % len(MEGAPIXELS)] * 1e6
    scale = (pixels / (across * down)) ** 0.5
    size = (round(across * scale), round(down * scale))
    image = image.resize(size, PIL.Image.Resampling.BICUBIC, box=(left, top, left + unit * across, top + unit * down))
    orientation, options = number % 8 + 1, dict(options)
    if format in ("JPEG", "MPO", "PNG", "TIFF", "WEBP", "AVIF"):
        exif = PIL.Image.Exif()
        exif[0x0112], exif[0x010F], exif[0x9003] = orientation, "a camera", "2024:05:01 12:00:00"
        options["exif"] = exif
        if orientation in STORED:
            image = image.transpose(PIL.Image.Transpose[STORED[orientation]])
    if format == "MPO":
        options["append_images"] = [image.resize((image.width // 4, image.height // 4))]
    path = target / f"{number:02}-{size[0]}x{size[1]}-turn{orientation}{suffix}"
    image.save(path, format, **options)
    return path.name


def measured(function) -> dict:
    """What a function gives (JSON), in a process of its own: with its seconds, and its peak of memory in megabytes."""
    idle = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        begun = time.perf_counter()
        try:
            answer = {"answer": function()}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        os.write(write, json.dumps(answer | {"seconds": time.perf_counter() - begun}).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read()
    _, _, used = os.wait4(pid, 0)
    answer = json.loads(text) if text else {"error": "the process died", "seconds": 0.0}
    return answer | {"megabytes": used.ru_maxrss / 1024 - idle / (1 << 20)}


def runners() -> dict:
    """The backends that can answer now: NumPy, and the compiled kernels where their machine code is on disk."""
    from effnet_np.kernels.backend import choose

    model = effnet_np.EfficientNetForImageClassification.from_pretrained("lite0")
    found = {"numpy": model}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runner, hint = choose(model, "auto")
    if hint is None and runner is not model:
        found["numba"] = runner
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("count", type=int, nargs="?", default=40)
    options = parser.parse_args()
    sources = sorted(path for path in options.folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not sources:
        parser.error(f"{options.folder} holds no photographs")
    step = max(1, len(sources) // options.count)
    chosen = list(itertools.islice(itertools.cycle(sources[::step]), options.count))
    found = runners()
    print(
        f"{'photograph':34} {'MB':>6}  "
        + "  ".join(f"{name:>8} s  {'peak MB':>8}" for name in found)
        + "  label (same as small)"
    )
    peaks, seconds, failed, same = dict.fromkeys(found, 0.0), dict.fromkeys(found, 0.0), 0, 0
    with tempfile.TemporaryDirectory() as temporary:
        for number, source in enumerate(chosen):
            written = measured(lambda number=number, source=source: write_photograph(source, Path(temporary), number))
            if "error" in written:
                print(f"{source} could not be written: {written['error']}")
                failed += 1
                continue
            path, row, labels = Path(temporary) / written["answer"], [], []
            for name, runner in found.items():
                used = measured(lambda path=path, runner=runner: effnet_np.classify(path, runner, 1)[0]["label"])
                failed += "error" in used
                labels.append(used.get("answer") or used["error"])
                row.append(f"{used['seconds']:10.2f}  {used['megabytes']:8.0f}")
                peaks[name], seconds[name] = max(peaks[name], used["megabytes"]), seconds[name] + used["seconds"]
            small = effnet_np.classify(np.asarray(PIL.Image.open(source).convert("RGB")), found["numpy"], 1)[0]["label"]
            same += labels[0] == small
            print(
                f"{path.name:34} {path.stat().st_size / 1e6:6.1f}  {'  '.join(row)}  {labels[0]} ({labels[0] == small})",
                flush=True,
            )
            path.unlink()
    for name in found:
        mean = seconds[name] / len(chosen)
        print(f"{name}: {len(chosen)} photographs, {failed} not answered, mean {mean:.2f} s, peak {peaks[name]:.0f} MB")
    print(f"the same first label as the small original: {same} of {len(chosen)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
