"""A .safetensors file: 8 bytes with the header's length, a JSON header that says where each tensor lies, the numbers."""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from effnet_np.checkpoints.files import MAX_JSON, open_file, parse_json
from effnet_np.checkpoints.torch_file import BFLOAT16, widened

DTYPES: dict[str, np.dtype] = {
    "BF16": BFLOAT16,
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
}


class SafetensorsFile:
    """An open file: `shapes` of all tensors by name, `metadata` (texts by name), and `read(name)` for the numbers of one."""

    def __init__(self, path: str | os.PathLike, file: BinaryIO | None = None):
        self.path, self.metadata = Path(path), dict[str, str]()
        self._file = open_file(path) if file is None else file
        try:
            self._tensors = self._header()
        except ValueError as error:
            self.close()
            raise ValueError(f"{path} is not a readable safetensors file: {error!s:.500}") from error
        self.shapes = {name: shape for name, (_, shape, _) in self._tensors.items()}
        self.numbers = sum(math.prod(shape) for shape in self.shapes.values())

    def _header(self) -> dict[str, tuple[np.dtype, tuple[int, ...], int]]:
        """Name -> (dtype, shape, position in the file). The tensors must fill the file without a gap or an overlap."""
        size = os.fstat(self._file.fileno()).st_size
        (length,) = struct.unpack("<Q", self._file.read(8).ljust(8, b"\xff"))
        if length > min(MAX_JSON, size - 8):
            raise ValueError(f"its header would be {length} bytes long; {min(MAX_JSON, max(size - 8, 0))} are possible here")
        tensors: dict[str, tuple[np.dtype, tuple[int, ...], int]] = {}
        spans, start = [], 8 + length
        for name, entry in parse_json(self._file.read(length), "its header").items():
            if name == "__metadata__":
                if not isinstance(entry, dict) or not all(isinstance(text, str) for text in entry.values()):
                    raise ValueError("its __metadata__ is not an object of texts")
                self.metadata = entry
                continue
            dtype, shape, begin, end = _entry(name, entry)
            tensors[name] = (dtype, shape, start + begin)
            spans.append((begin, end))
        reached = 0
        for begin, end in sorted(spans):
            if begin != reached:
                raise ValueError(f"its tensors overlap or leave a gap: one ends at byte {reached}, the next starts at {begin}")
            reached = end
        if start + reached != size:
            raise ValueError(f"its tensors end at byte {start + reached}, but the file has {size}")
        return tensors

    def read(self, name: str) -> np.ndarray:
        """The tensor's numbers, in an array of its own; bfloat16 as float32, which holds each of its numbers."""
        dtype, shape, position = self._tensors[name]
        array = np.empty(shape, dtype)
        self._file.seek(position)
        if self._file.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:  # type: ignore[attr-defined]
            raise ValueError(f"{self.path} is damaged at {name}: it ends too early")
        return widened(array)

    def close(self) -> None:
        self._file.close()


def _entry(name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """What the header says of one tensor: dtype, shape, first byte and the byte after the last."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name[:80]!r} is not described by dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        raise ValueError(f"{name[:80]} has dtype {str(kind)[:80]}; only {', '.join(DTYPES)} can be read")
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise ValueError(f"shape and data_offsets of {name[:80]} must be lists of whole numbers, two in the second")
    begin, end = offsets
    if end - begin != math.prod(shape) * DTYPES[kind].itemsize:
        raise ValueError(f"{name[:80]} of shape {shape} and dtype {kind} does not fill its bytes {begin} to {end}")
    return DTYPES[kind], tuple(shape), begin, end


def _counts(values: Any) -> bool:
    """Whether these are a list of at most 8 whole numbers from 0 to 2^40."""
    return isinstance(values, list) and len(values) <= 8 and all(type(v) is int and 0 <= v <= 1 << 40 for v in values)
