"""Writing HDF5, with its library, on our own data and into memory: where a disk is full, libhdf5 can only crash.

A checkpoint has one group a module and one dataset a tensor, so "efficientnet.encoder.blocks.0..." is a path; and in the root's
attributes `format_version`, `config`, `image_processor` and `id2label` (JSON), `source`, `revision`, and the `sha256`
of all tensors (see `tensors_sha256`). A trace has its arrays, and the text of their index as the attribute `index`.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from effnet_np.checkpoints.files import json_text, replacing
from effnet_np.version import __version__

FORMAT_VERSION = 1


def save_h5(model: Any, path: str | os.PathLike, source: str = "", revision: str = "") -> str:
    """Write a model to one .h5 file that `from_pretrained` reads, and give the sha256 of its tensors."""
    import h5py

    state, (config, processor) = model.state_dict(), model.described()
    id2label = config["id2label"]
    config = {key: value for key, value in config.items() if key not in ("id2label", "label2id")}
    texts = {"config": json_text(config, None), "id2label": json_text(id2label, None)}
    texts["image_processor"] = json_text(processor, None) if processor else ""
    digest = tensors_sha256(state)
    buffer = io.BytesIO()  # into memory first: where a disk is full, libhdf5 can only crash
    with h5py.File(buffer, "w", libver="earliest") as file:  # the form that h5_file.py and every HDF5 tool reads
        for name, array in state.items():
            file.create_dataset(name.replace(".", "/"), data=array)
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["effnet_np_version"] = __version__
        file.attrs.update(texts)
        file.attrs["source"], file.attrs["revision"], file.attrs["sha256"] = source, revision, digest
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
    return digest


def save_keras_h5(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], named: Mapping[str, str]) -> None:
    """Write arrays, {"layers/conv2d_1/vars/0": array}, and their groups' layers, {group: name}, as Keras 3 does."""
    import h5py

    buffer = io.BytesIO()  # as above
    with h5py.File(buffer, "w", libver="earliest") as file:
        for place, array in arrays.items():
            file.create_dataset(place, data=array)
        for group, name in named.items():
            file[group].attrs["name"] = name
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def tensors_sha256(state: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over name, dtype, shape and little-endian bytes of every tensor, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        hash_tensor(digest, name, state[name])
    return digest.hexdigest()


def hash_tensor(digest: Any, name: str, array: np.ndarray) -> None:
    little = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
    digest.update(f"{name} {little.dtype.str} {array.shape}\n".encode())
    digest.update(little.tobytes())


# -- traces ----------------------------------------------------------------------------------------------------------


class _Pages(io.RawIOBase):
    """A file in memory, of which only the pages that were written to exist."""

    SIZE = 1 << 12

    def __init__(self) -> None:
        super().__init__()
        self.pages: dict[int, bytearray] = {}  # number -> contents
        self._position = self.length = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.length}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def truncate(self, size: int | None = None) -> int:
        self.length = self._position if size is None else size
        return self.length

    def _pieces(self, size: int) -> Iterator[tuple[int, slice, slice]]:
        """(page, part of it, part of the data) for so many bytes from here on, which are then passed."""
        done = 0
        while done < size:
            page, start = divmod(self._position, self.SIZE)
            count = min(self.SIZE - start, size - done)
            yield page, slice(start, start + count), slice(done, done + count)
            self._position, done = self._position + count, done + count

    def readinto(self, buffer: Any) -> int:
        data = memoryview(buffer).cast("B")
        for page, part, where in self._pieces(max(0, min(len(data), self.length - self._position))):
            data[where] = self.pages.get(page, bytes(self.SIZE))[part]
        return len(data)

    def write(self, buffer: Any) -> int:
        data = memoryview(buffer).cast("B")
        for page, part, where in self._pieces(len(data)):
            self.pages.setdefault(page, bytearray(self.SIZE))[part] = data[where]
        self.length = max(self.length, self._position)
        return len(data)


def save_arrays_h5(
    path: str | os.PathLike,
    arrays: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    read: Callable[[str], np.ndarray],
    index: str,
) -> None:
    """Write arrays, {"group/name": (shape, dtype)}, `read` giving one's numbers; their index is the root's attribute `index`.

    libhdf5 crashes where a disk is full. So it lays the file out in memory, without the numbers, and we write all to the disk.
    """
    import h5py

    layout, places = _Pages(), {}
    with h5py.File(layout, "w", libver="earliest") as file:
        at_once = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        at_once.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        at_once.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        for place, (shape, dtype) in arrays.items():
            group = file.require_group(place.rpartition("/")[0] or "/")
            space = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)
            name, kind = place.rpartition("/")[2].encode(), h5py.h5t.py_create(dtype)
            dataset = h5py.h5d.create(group.id, name, kind, space, dcpl=at_once)
            places[place] = dataset.get_offset()  # None where there are no numbers
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["effnet_np_version"] = __version__
        file.attrs["index"] = index
    with replacing(path) as temporary, open(temporary, "wb") as out:
        for number, page in layout.pages.items():
            out.seek(number * layout.SIZE)
            out.write(page)
        for place, offset in places.items():
            if offset is not None:
                out.seek(offset)
                out.write(read(place).reshape(-1).view(np.uint8).data)
        out.truncate(layout.length)
