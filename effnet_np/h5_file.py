"""HDF5 files of ours read without the HDF5 library, which crashes and hangs on damaged files (our fuzzer saw both).

An HDF5 file is a tree of *objects*, each an address with a header: a list of messages such as "my shape", "my dtype", "my
numbers lie there". A group's header points to a B-tree, whose leaves list the names and addresses of its members, and to a
heap, which holds those names as text. So reading is following addresses. Each could lead anywhere, so all of it goes through
`_at`, which stays inside the file and has a budget: a circle or a bomb runs out of it.

Known is the oldest and most widely read form of the format (superblock 0; `libver="earliest"` writes it), in it plain arrays of
numbers, whole or in chunks packed by gzip and shuffle, and attributes that are one text or one number. Everything else is
refused: links to other places and files, other filters, types of other kinds.
Source: the HDF5 File Format Specification, version 3, sections II to IV, by whose names things are called here.
"""

from __future__ import annotations

import itertools
import math
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

FORMAT_VERSION = 1  # of what we write into such a file
BUDGET = 4 << 20  # bytes of everything but numbers; B7's file has 0.8 MB of it
MAX_DEPTH = 20  # groups in groups
MAX_DIMENSIONS = 8
MAX_LEVEL = 8  # of a B-tree, which has at least two children a node
NOWHERE = (1 << 64) - 1  # the address of what was never written

DATATYPES: dict[bytes, np.dtype] = {  # IV.A.2.d: class, byte order, size, and where sign, exponent and mantissa lie
    bytes.fromhex("11200f00 02000000 0000 1000 0a05000a 0f000000"): np.dtype("<f2"),
    bytes.fromhex("11201f00 04000000 0000 2000 17080017 7f000000"): np.dtype("<f4"),
    bytes.fromhex("11203f00 08000000 0000 4000 340b0034 ff030000"): np.dtype("<f8"),
    bytes.fromhex("10080000 08000000 0000 4000"): np.dtype("<i8"),
}
DATASPACE, DATATYPE, EXTERNAL, LAYOUT, FILTERS, ATTRIBUTE, MORE, SYMBOLS = 1, 3, 7, 8, 11, 12, 16, 17
LINKS = (2, 6, 10)  # of groups of a newer style, the only ones that can hold external links
HARMLESS = (0, 4, 5, 14, 18)  # nothing, fill values, times of change
GZIP, SHUFFLE = 1, 2


@dataclass(frozen=True)
class _Dataset:
    dtype: np.dtype
    shape: tuple[int, ...]
    address: int  # of the numbers, where they are not in chunks
    chunk_shape: tuple[int, ...]  # () where they are not
    chunks: dict[tuple[int, ...], tuple[int, int]]  # place in the array -> (address, bytes in the file)
    filters: tuple[int, ...]


class H5File:
    """An open .h5 file: `attributes`, `shapes` of all tensors by name ("a.b.c" is c in group a/b), and `read(name)`.

    `separator` joins a name; a group or dataset may not have it in its own.
    """

    def __init__(self, path: str | os.PathLike, separator: str = "."):
        self.path, self._separator = os.fspath(path), separator
        self._file = open(self.path, "rb")  # noqa: SIM115 - closed by close()
        try:
            self._size, self._budget, self._numbers = os.fstat(self._file.fileno()).st_size, BUDGET, 0
            root = self._root()
            self._datasets = dict(self._group(root, ""))
            if self._numbers > self._size:
                raise ValueError(f"its arrays would take {self._numbers} bytes, more than the whole file")
            self.attributes = self._attributes(root)
        except (ValueError, struct.error, IndexError) as error:
            self.close()
            raise ValueError(f"{self.path} is not a readable HDF5 checkpoint: {error!s:.500}") from error
        self.shapes = {name: dataset.shape for name, dataset in self._datasets.items()}

    def close(self) -> None:
        self._file.close()

    # -- numbers ----------------------------------------------------------------------------------------------------

    def read(self, name: str) -> np.ndarray:
        """The tensor's numbers, in an array of its own."""
        dataset = self._datasets[name]
        array = np.empty(dataset.shape, dataset.dtype)
        try:
            if not dataset.chunk_shape:
                self._fill(array, dataset.address)
            for corner, (address, stored) in dataset.chunks.items():
                chunk = self._chunk(dataset, address, stored)
                place = tuple(slice(start, start + side) for start, side in zip(corner, dataset.chunk_shape, strict=True))
                target = array[place]
                target[...] = chunk[tuple(slice(side) for side in target.shape)]
        except (ValueError, zlib.error) as error:
            raise ValueError(f"{self.path} is damaged at {name:.80}: {error!s:.500}") from error
        return array

    def _fill(self, array: np.ndarray, address: int) -> None:
        self._file.seek(address)
        if self._file.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:
            raise ValueError("it ends too early")

    def _chunk(self, dataset: _Dataset, address: int, stored: int) -> np.ndarray:
        size = math.prod(dataset.chunk_shape) * dataset.dtype.itemsize
        packed = np.empty(stored, np.uint8)
        self._fill(packed, address)
        data = packed.tobytes()
        if GZIP in dataset.filters:
            data = zlib.decompressobj().decompress(data, size + 1)  # no further than that: it may be a bomb
        if len(data) != size:
            raise ValueError(f"a chunk of it does not unpack to {size} bytes")
        if SHUFFLE in dataset.filters:  # all first bytes of the numbers, all second bytes, ...
            data = np.frombuffer(data, np.uint8).reshape(dataset.dtype.itemsize, -1).T.tobytes()
        return np.frombuffer(data, dataset.dtype).reshape(dataset.chunk_shape)

    # -- following addresses ----------------------------------------------------------------------------------------

    def _at(self, address: int, size: int, signature: bytes = b"") -> bytes:
        """Bytes of the file, which must lie in it, be within the budget and start as they should."""
        self._budget -= size + 1
        if self._budget < 0:
            raise ValueError(f"it has more than {BUDGET} bytes of headers, or they lead in a circle")
        self._file.seek(min(address, self._size))
        data = self._file.read(size)
        if len(data) != size or not data.startswith(signature):
            kind = signature.decode() or "object"
            raise ValueError(f"at byte {address} should be an {kind} of {size} bytes, which is not there")
        return data

    def _root(self) -> int:
        """The address of the root group (II.A, superblock)."""
        head = self._at(0, 96)
        if not head.startswith(b"\x89HDF\r\n\x1a\n"):
            raise ValueError("it does not start as an HDF5 file")
        if head[8:16] != bytes((0, 0, 0, 0, 0, 8, 8, 0)):
            known = 'superblock 0, which effnet_np and h5py with libver="earliest" write'
            raise ValueError(f"it was not written by effnet_np: its superblock is of version {head[8]}, known is {known}")
        base, _, end, _, _, root = struct.unpack_from("<6Q", head, 24)
        if base or end > self._size:
            raise ValueError(f"it is cut off: {end} bytes long by its header, {self._size} in fact")
        return root

    def _messages(self, address: int, name: str) -> Iterator[tuple[int, bytes]]:
        """(type, content) of each message in an object's header (IV.A.1.a)."""
        version, _, count, _, size = struct.unpack("<BBHII", self._at(address, 12))
        if version != 1:
            raise ValueError(f"{name or 'the root group'} has an object header of version {version}, known is 1")
        blocks = [(address + 16, size)]
        while blocks and count > 0:
            data, at = self._at(*blocks.pop(0)), 0
            while at + 8 <= len(data) and count > 0:
                kind, length, flags = struct.unpack_from("<HHB", data, at)
                content, at, count = data[at + 8 : at + 8 + length], at + 8 + length, count - 1
                if len(content) < length:
                    raise ValueError(f"a message in the header of {name or 'the root group'} is longer than the header")
                if kind == MORE:
                    blocks.append(struct.unpack_from("<QQ", content))
                elif flags & 2:
                    raise ValueError(f"{name} has a committed type or another part that lies elsewhere")
                elif kind in LINKS:
                    wrong = "holds soft or external links, which lead to other places and files, or is of a newer style"
                    raise ValueError(f"{name or 'the root group'} {wrong}; a checkpoint needs none of that")
                elif kind == EXTERNAL:
                    raise ValueError(f"{name} has its numbers in another file")
                elif kind in (DATASPACE, DATATYPE, LAYOUT, FILTERS, ATTRIBUTE, SYMBOLS):
                    yield kind, content
                elif kind not in HARMLESS:
                    raise ValueError(f"the header of {name or 'the root group'} has a message of type {kind}, not known here")

    def _group(self, address: int, prefix: str) -> Iterator[tuple[str, _Dataset]]:
        """All datasets in a group and below, by name. No soft links: those have no address."""
        tables = [content for kind, content in self._messages(address, prefix[:80]) if kind == SYMBOLS]
        if len(tables) != 1:
            raise ValueError(f"{prefix[:80] or 'the root'} is no group")
        if prefix.count(self._separator) > MAX_DEPTH:
            raise ValueError(f"{prefix[:80]}... is nested too deep")
        tree, heap = struct.unpack_from("<QQ", tables[0])
        size, _, names_at = struct.unpack_from("<3Q", self._at(heap, 32, b"HEAP"), 8)
        names, seen = self._at(names_at, size), set()
        for (node,) in self._tree(tree, kind=0, key=8):
            count = struct.unpack_from("<H", self._at(node, 8, b"SNOD"), 6)[0]
            for name_at, member, link_kind, _, _, _ in struct.iter_unpack("<QQIIQQ", self._at(node + 8, 40 * count)):
                name = prefix + names[name_at : names.index(b"\0", name_at)].decode()
                if link_kind == 2 or member == NOWHERE:
                    raise ValueError(f"{name[:80]} is a soft link to another place, which a checkpoint does not need")
                if self._separator in name[len(prefix) :] or name == prefix or name in seen:
                    raise ValueError(f"{name[:80]!r} is there twice, or has a name that is empty or with a {self._separator!r}")
                seen.add(name)
                parts = dict(self._messages(member, name[:80]))
                if SYMBOLS in parts:
                    yield from self._group(member, name + self._separator)
                else:
                    yield name, self._dataset(name[:80], parts)

    def _tree(self, address: int, kind: int, key: int, level: int | None = None) -> Iterator[tuple]:
        """(child,) for each leaf of a B-tree of groups, or (key, child) of chunks (III.A.1)."""
        if address == NOWHERE:
            return
        _, node_kind, node_level, count = struct.unpack_from("<4sBBH", self._at(address, 24, b"TREE"))
        if node_kind != kind or node_level > MAX_LEVEL or level not in (None, node_level):
            raise ValueError(f"the tree at byte {address} is of another kind or level than it should")
        data = self._at(address + 24, count * (key + 8))
        for at in range(0, len(data), key + 8):
            child = struct.unpack_from("<Q", data, at + key)[0]
            if node_level:
                yield from self._tree(child, kind, key, node_level - 1)
            else:
                yield (child,) if kind == 0 else (data[at : at + key], child)

    # -- what the messages say --------------------------------------------------------------------------------------

    def _dataset(self, name: str, parts: dict[int, bytes]) -> _Dataset:
        if not {DATASPACE, DATATYPE, LAYOUT} <= set(parts):
            raise ValueError(f"{name} is neither a group nor an array")
        dtype = next((dtype for code, dtype in DATATYPES.items() if parts[DATATYPE].startswith(code)), None)
        if dtype is None:
            kinds = ", ".join(str(dtype) for dtype in DATATYPES.values())
            raise ValueError(f"{name} is not a plain array of numbers ({kinds}, little-endian)")
        shape = _shape(name, parts[DATASPACE])
        full = math.prod(shape) * dtype.itemsize
        layout = parts[LAYOUT]
        if layout[:2] == b"\3\1":  # contiguous
            address, stored = struct.unpack_from("<QQ", layout, 2)
            if full and (stored != full or address + stored > self._size):
                raise ValueError(
                    f"{name} has shape {shape}, which takes {full} bytes; {stored} are at byte {address}, by the file"
                )
            self._numbers += full
            return _Dataset(dtype, shape, address if full else 0, (), {}, ())
        if layout[:2] != b"\3\2":
            raise ValueError(f"{name} is stored in a way not known here (virtual, compact, or of a newer version)")
        return self._chunked(name, dtype, shape, layout, _filters(name, parts.get(FILTERS)))

    def _chunked(self, name: str, dtype: np.dtype, shape: tuple, layout: bytes, filters: tuple) -> _Dataset:
        count, tree = struct.unpack_from("<BQ", layout, 2)
        *chunk_shape, itemsize = struct.unpack_from(f"<{count}I", layout, 11)
        if len(chunk_shape) != len(shape) or itemsize != dtype.itemsize or not shape:
            raise ValueError(f"{name} has chunks that do not fit its shape")
        if not all(0 < chunk <= side for chunk, side in zip(chunk_shape, shape, strict=True)):
            raise ValueError(f"{name} has chunks of {tuple(chunk_shape)}, which do not fit into its shape {shape}")
        chunks: dict[tuple[int, ...], tuple[int, int]] = {}
        for key, address in self._tree(tree, kind=1, key=8 + 8 * count):
            stored, mask, *corner, _ = struct.unpack(f"<II{count}Q", key)
            if mask or address + stored > self._size:
                raise ValueError(f"a chunk of {name} is not packed as it says, or not in the file")
            chunks[tuple(corner)] = (address, stored)
            self._numbers += stored
        starts = (range(0, side, chunk) for side, chunk in zip(shape, chunk_shape, strict=True))
        wanted = math.prod(-(-side // chunk) for side, chunk in zip(shape, chunk_shape, strict=True))
        if len(chunks) != wanted or set(itertools.product(*starts)) != set(chunks):
            raise ValueError(f"{name} has shape {shape}, but not the chunks of that shape: {len(chunks)} of {wanted}")
        if not math.prod(shape) * dtype.itemsize <= 1100 * sum(stored for _, stored in chunks.values()):
            raise ValueError(f"{name} has shape {shape}, far more than its bytes in the file can hold")  # gzip makes 1/1032
        return _Dataset(dtype, shape, 0, tuple(chunk_shape), chunks, filters)

    def _attributes(self, root: int) -> dict[str, str]:
        """The texts among the root's attributes; ValueError where they are not those of a file of ours."""
        found: dict[str, Any] = {}
        for kind, content in self._messages(root, ""):
            if kind == ATTRIBUTE:
                name, value = self._attribute(content)
                found[name] = value
        number = found.pop("format_version", None)
        if number is None:
            raise ValueError("it was not written by effnet_np: it has no attribute format_version")
        if not isinstance(number, int) or number < 1:
            raise ValueError("its attribute format_version is not a whole number of at least 1")
        if number > FORMAT_VERSION:
            raise ValueError(f"it has format version {number}, newer than the {FORMAT_VERSION} known here: upgrade effnet_np")
        for name in ("config", "image_processor", "id2label", "source", "revision", "sha256"):
            if not isinstance(found.setdefault(name, ""), str):
                raise ValueError(f"its attribute {name} is not a text")
        return found

    def _attribute(self, content: bytes) -> tuple[str, Any]:
        """Name and value, None for a kind of value that we do not write (IV.A.2.m)."""
        version, _, *sizes = struct.unpack_from("<BBHHH", content)
        if version not in (1, 3):
            raise ValueError(f"an attribute is of version {version}, known are 1 and 3")
        at, parts = (8, []) if version == 1 else (9, [])
        for size in sizes:  # name, datatype, dataspace: in version 1, each up to a multiple of 8 bytes
            parts.append(content[at : at + size])
            at += -(-size // 8) * 8 if version == 1 else size
        name, datatype, dataspace = parts[0].rstrip(b"\0").decode(), parts[1], parts[2]
        if _shape(f"attribute {name[:80]}", dataspace) != ():
            return name, None
        if DATATYPES.get(datatype[:12]) == np.dtype("<i8"):
            return name, struct.unpack_from("<q", content, at)[0]
        if datatype[0] & 15 == 9 and datatype[1] & 15 == 1:  # a text of any length: it lies in a global heap (III.E)
            length, heap, index = struct.unpack_from("<IQI", content, at)
            return name, self._text(heap, index, length)
        return name, None

    def _text(self, heap: int, index: int, length: int) -> str:
        if length == 0:
            return ""
        (size,) = struct.unpack_from("<Q", self._at(heap, 16, b"GCOL"), 8)
        at = heap + 16
        while at + 16 <= heap + size:
            number, _, _, stored = struct.unpack("<HHIQ", self._at(at, 16))
            if number == index and length <= stored:
                return self._at(at + 16, length).decode().rstrip("\0")
            if number == 0:
                break
            at += 16 + -(-stored // 8) * 8
        raise ValueError(f"the text {index} of the heap at byte {heap} is not there")


def _shape(name: str, content: bytes) -> tuple[int, ...]:
    version, rank = content[0], content[1]
    if version not in (1, 2) or rank > MAX_DIMENSIONS or (version == 2 and content[3] == 2):
        raise ValueError(f"{name} has {rank} dimensions, or a dataspace not known here")
    shape = struct.unpack_from(f"<{rank}Q", content, 8 if version == 1 else 4)
    if any(side > 1 << 40 for side in shape):
        raise ValueError(f"{name} has the absurd shape {shape}")
    return shape


def _filters(name: str, content: bytes | None) -> tuple[int, ...]:
    """The filters of a dataset in the order of writing: none, gzip, shuffle, or shuffle and then gzip."""
    if content is None:
        return ()
    version, count, at, found = content[0], content[1], 8 if content[0] == 1 else 2, []
    for _ in range(count):
        kind, length = struct.unpack_from("<HH", content, at)
        if kind not in (GZIP, SHUFFLE) or version not in (1, 2):
            raise ValueError(f"{name} is packed by filter {kind}; known are gzip ({GZIP}) and shuffle ({SHUFFLE})")
        if version == 1:
            values = struct.unpack_from("<H", content, at + 6)[0]
            at += 8 + -(-length // 8) * 8 + 4 * (values + values % 2)
        else:
            at += 6 + 4 * struct.unpack_from("<H", content, at + 4)[0]
        found.append(kind)
    if tuple(found) not in ((), (GZIP,), (SHUFFLE,), (SHUFFLE, GZIP)):
        raise ValueError(f"{name} is packed by the filters {found}; known are shuffle, gzip, or the one and then the other")
    return tuple(found)
