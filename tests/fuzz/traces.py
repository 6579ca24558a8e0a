"""Traces in their five forms. A folder is fuzzed as one file, a bundle: for each file a line `name size`, then its bytes."""

import io
import random
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np

import effnet_np
from effnet_np import Trace

WORDS = ["output", "input", "weight", "float32", "float64", "int8", "uint8", "NHWC", "NCHW", "OIHW", "-", "scale=0.5"]
WORDS += ["scale=nan", "scale=1e999", "zero_point=3", "zero_point=x", "0", "1", "2", "4", "8", "12", "99999999999", "-1"]
WORDS += ["../x.bin", "index.txt", "a.0", "a.5", "\x1b[31m", "layer\u202e", "x" * 600, "output/expansion.expand_conv.bin"]
HEADERS = [b"'<f4'", b"'>f4'", b"'|O'", b"'<i8'", b"'|i1'", b"True", b"False", b"(1, 2)", b"()", b"(0, 9)", b"{{{{"]
HEADERS += [b"(99999999999,)"]
_golden: Trace | None = None


def pack(folder: Path) -> bytes:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    parts = ((path.relative_to(folder).as_posix(), path.read_bytes()) for path in files)
    return join(list(parts))


def join(parts: list[tuple[str, bytes]]) -> bytes:
    return b"".join(f"{name} {len(data)}\n".encode() + data for name, data in parts)


def split(data: bytes) -> list[tuple[str, bytes]]:
    parts, at = [], 0
    while at < len(data):
        end = data.index(b"\n", at)
        name, _, size = data[at:end].decode().rpartition(" ")
        if ".." in name or name.startswith("/") or not 0 < len(name) < 200 or "\0" in name or int(size) < 0:
            raise ValueError("no bundle")
        parts.append((name, data[end + 1 : end + 1 + int(size)]))
        at = end + 1 + int(size)
    return parts


def mutate_trace(data: bytes, choose: random.Random, others: list[bytes], damage) -> bytes:
    """The contents of one file in a zip or a bundle, so that the damage gets past checksums and sizes."""
    if data.startswith(b"PK"):
        archive = zipfile.ZipFile(io.BytesIO(data))
        parts = [(info.filename, archive.read(info)) for info in archive.filelist]
    elif data.startswith(b"\x89HDF"):
        return damage(data, choose, others)
    else:
        parts = split(data)
    at = choose.randrange(len(parts))
    if choose.random() < 0.4:
        at = next((i for i, (name, _) in enumerate(parts) if name.startswith("index.")), at)
    name, content = parts[at]
    parts[at] = (name, _content(name, content, choose, others, damage))
    if choose.random() < 0.05:
        parts.append(choose.choice(parts))
    return _zipped(parts, choose) if data.startswith(b"PK") else join(parts)


def _content(name: str, content: bytes, choose: random.Random, others: list[bytes], damage) -> bytes:
    if name.startswith("index.") and choose.random() < 0.8:
        start = content.index(b"#")
        words = content[start:].decode("utf-8", "replace").split(" ")
        for _ in range(choose.choice((1, 1, 2))):
            place = choose.randrange(8, len(words))
            words[place] = choose.choice(WORDS) if choose.random() < 0.8 else choose.choice(words)
        if choose.random() < 0.2:
            words[8:8] = words[8 : 8 + choose.choice((7, 30))] * choose.choice((1, 5))
        text = " ".join(words).encode()
        if start:  # in a zip: a .npy file of bytes
            buffer = io.BytesIO()
            np.save(buffer, np.frombuffer(text, np.uint8))
            return buffer.getvalue()
        return text
    if content.startswith(b"\x93NUMPY") and choose.random() < 0.5:
        old = choose.choice((b"'<f4'", b"False", content[content.find(b"(") : content.find(b")") + 1] or b"("))
        return content.replace(old, choose.choice(HEADERS), 1)
    if choose.random() < 0.3:  # numbers that are still as many
        at = choose.randrange(max(1, len(content) - 4))
        number = choose.choice((np.nan, np.inf, 0.0, 1e38, -1e-38, 7.0))
        return content[:at] + struct.pack("<f", number) + content[at + 4 :]
    return damage(content, choose, others)


def _zipped(parts: list[tuple[str, bytes]], choose: random.Random) -> bytes:
    buffer = io.BytesIO()
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in parts:
            info = zipfile.ZipInfo(name)  # which has a date of its own
            info.compress_type = choose.choice(methods) if choose.random() < 0.1 else zipfile.ZIP_STORED
            archive.writestr(info, content)
    return buffer.getvalue()


# -- readers ----------------------------------------------------------------------------------------------------------


def _opened(path: Path) -> Path:
    """The trace in an input: the file itself, or the folder that a bundle is unpacked to."""
    if path.suffix != ".bundle":
        return path
    folder = path.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        for name, data in split(path.read_bytes()):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is no bundle: {error}") from None
    return folder


def trace(path: Path) -> None:
    with _named(path):
        loaded = Trace.load(_opened(path))
        for array in (*loaded.values(), *loaded.weights.values(), *(a for arrays in loaded.inputs.values() for a in arrays)):
            assert isinstance(array, np.ndarray)
            assert not array.flags.writeable
        repr(loaded)


def compare(path: Path) -> None:
    """As ours and as the reference, beside the block that all of the corpus is made of; and every report of it."""
    global _golden
    _golden = _golden or golden()
    with _named(path):
        loaded = Trace.load(_opened(path))
        for ours, theirs in ((loaded, _golden), (_golden, loaded)):
            result = effnet_np.compare(ours, theirs)
            page, text = result.to_html(), result.to_text()
            result.to_json()
            assert not any(ord(c) < 32 and c != "\n" for c in text + page)


class _named:  # noqa: N801 - reads as a statement
    """The runner wants each error to name the input: the folder of a bundle, or the pair that is compared, is it."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        if isinstance(error, ValueError):
            named = str(self.path.with_suffix("")) in str(error) or "nothing to compare" in str(error)
            raise ValueError(f"{self.path}: {error}" if named else f"{error}") from error


# -- corpus -----------------------------------------------------------------------------------------------------------


def golden() -> Trace:
    """A block with every kind of layer, a residual and a gate, on a picture of 6 x 6."""
    from effnet_np.architecture import BlockSpec
    from effnet_np.model import EfficientNetBlock
    from effnet_np.tracing.trace import enliven

    config = effnet_np.EfficientNetConfig.preset("b0", num_labels=3)
    spec = BlockSpec(
        kernel_size=3,
        stride=1,
        padding=(1, 1),
        index=0,
        stage=0,
        fused=False,
        in_channels=2,
        expanded_channels=6,
        out_channels=2,
        squeeze_channels=1,
        expand_ratio=3,
        residual=True,
        drop_rate=0.0,
    )
    block = EfficientNetBlock(config, spec, np.random.default_rng(0))
    enliven(block)
    with Trace(block, inputs=True, weights=True) as recorded:
        block(np.random.default_rng(1).standard_normal((1, 2, 6, 6), np.float32))
    return recorded


def corpus(put) -> None:
    import tempfile

    recorded = golden()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("plain.h5", "plain.npz"):
            recorded.save(folder / file)
            put(f"traces/{file}", (folder / file).read_bytes())
        np.savez_compressed(folder / "bare.npz", **dict(recorded))
        put("traces/bare.npz", (folder / "bare.npz").read_bytes())
        for format in ("npy", "txt", "bin"):
            recorded.save(folder / format, format, "NHWC")
            put(f"traces/{format}.bundle", pack(folder / format))
        (folder / "bare").mkdir()
        for key, array in recorded.items():
            np.save(folder / "bare" / f"{key}.npy", array)
        put("traces/bare.bundle", pack(folder / "bare"))
        put("traces/quantised.bundle", _quantised(recorded, folder / "quantised"))


def _quantised(recorded: Trace, folder: Path) -> bytes:
    (folder / "output").mkdir(parents=True)
    lines = ["# effnet_np trace 1"]
    for name, dtype in (("expansion.expand_conv", "int8"), ("expansion.expand_bn", "uint8"), ("expansion", "float16")):
        array = recorded[name]
        shape, extra = " ".join(map(str, array.shape)), " scale=0.05 zero_point=4"
        numbers = array if dtype == "float16" else np.clip(array / 0.05 + 4, 0, 100)
        numbers.astype(dtype).tofile(folder / f"output/{name}.bin")
        extra = "" if dtype == "float16" else extra
        lines.append(f"output {name} {dtype} NCHW 4 {shape} output/{name}.bin{extra}")
    (folder / "index.txt").write_text("\n".join(lines) + "\n")
    return pack(folder)
