"""HDF5 files read without the HDF5 library, which crashes and hangs on damaged files (our fuzzer saw both).

An HDF5 file is a tree of *objects*, each an address with a header: a list of messages such as "my shape", "my dtype", "my
numbers lie there", "I have a member of that name at that address". So reading is following addresses. Each could lead anywhere,
so all of it goes through `_at`, which stays inside the file and has a budget: a circle or a bomb runs out of it.

There are two generations of almost everything. The older (superblock 0, `libver="earliest"`) lists a group's members in a tree
and their names in a heap. The newer (superblocks 2 and 3, `libver="latest"`) puts the members into the group's header or, from
eight on, into a "fractal heap" that a second kind of B-tree points into, and has a checksum in each piece, which is compared.
Known are, in both, plain arrays of numbers, whole or in chunks packed by gzip and shuffle, and attributes that are one text or
one number. Everything else is refused: links to other places and files, other filters, types of other kinds.
Source: the HDF5 File Format Specification, version 3, sections II to IV, by whose names things are called here.
"""

from __future__ import annotations

import itertools
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np

from effnet_np.checkpoints.files import open_file

BUDGET = 4 << 20  # bytes of everything but numbers; B7's file has 0.8 MB of it
MAX_DEPTH = 20  # groups in groups
MAX_DIMENSIONS = 8
MAX_LEVEL = 8  # of a B-tree, which has at least two children a node
MAX_CHUNKS = 1 << 16  # of one array
NOWHERE = (1 << 64) - 1  # the address of what was never written

DATATYPES: dict[bytes, np.dtype] = {  # IV.A.2.d: class, byte order, size, and where sign, exponent and mantissa lie
    bytes.fromhex("11200f00 02000000 0000 1000 0a05000a 0f000000"): np.dtype("<f2"),
    bytes.fromhex("11201f00 04000000 0000 2000 17080017 7f000000"): np.dtype("<f4"),
    bytes.fromhex("11203f00 08000000 0000 4000 340b0034 ff030000"): np.dtype("<f8"),
    bytes.fromhex("10080000 04000000 0000 2000"): np.dtype("<i4"),
    bytes.fromhex("10080000 08000000 0000 4000"): np.dtype("<i8"),
}
DATASPACE, LINK_INFO, DATATYPE, LINK, EXTERNAL, LAYOUT, FILTERS, ATTRIBUTE, MORE, SYMBOLS, ATTRIBUTE_INFO = (
    *(1, 2, 3, 6, 7, 8, 11, 12, 16, 17, 21),
)
READ = {DATASPACE, LINK_INFO, DATATYPE, LINK, LAYOUT, FILTERS, ATTRIBUTE, SYMBOLS, ATTRIBUTE_INFO}
HARMLESS = {0, 4, 5, 10, 14, 18, 22}  # nothing, fill values, sizes of groups, times of change, how many links lead here
GZIP, SHUFFLE = 1, 2
HARD, SOFT, OUTSIDE = 0, 1, 64  # kinds of links


# -- the structures, as they lie in the file: each with its form in the letters of Python's struct; all is little-endian --

Kind = TypeVar("Kind", bound=type)
FORMS: dict[type, str] = {}


def laid_out(form: str) -> Callable[[Kind], Kind]:
    def register(kind: Kind) -> Kind:
        FORMS[kind] = form
        return kind

    return register


@laid_out("<8s8sHHI6Q24x")
class SuperblockV0(NamedTuple):
    """
    +-----------+----------+----------------+-------+------------+-----+--------+-------------+------+----------+
    | signature | versions | K, K, flags    | base  | free space | end | driver | name offset | root | 24 bytes |
    | 8         | 8        | 2, 2, 4        | 8     | 8          | 8   | 8      | 8           | 8    | of cache |
    +-----------+----------+----------------+-------+------------+-----+--------+-------------+------+----------+
    """

    signature: bytes
    versions: bytes  # of five parts, then how many bytes an address and a length have
    leaf_k: int
    internal_k: int
    flags: int
    base: int
    free_space: int
    end: int  # bytes of the file
    driver: int
    name_offset: int
    root: int  # address of the root group's header


@laid_out("<8s4B4QI")
class SuperblockV2(NamedTuple):
    """
    +-----------+---------+------------------+-------+------+-----------+-----+------+----------+
    | signature | version | address, length  | flags | base | extension | end | root | checksum |
    | 8         | 1       | 1, 1             | 1     | 8    | 8         | 8   | 8    | 4        |
    +-----------+---------+------------------+-------+------+-----------+-----+------+----------+
    """

    signature: bytes
    version: int
    address_size: int
    length_size: int
    flags: int
    base: int
    extension: int
    end: int
    root: int
    checksum: int


@laid_out("<BxHII4x")
class ObjectHeaderV1(NamedTuple):
    """
    +---------+---+----------+------------+------+---------+
    | version | 0 | messages | references | size | padding |  then `size` bytes of messages
    | 1       | 1 | 2        | 4          | 4    | 4       |
    +---------+---+----------+------------+------+---------+
    """

    version: int
    messages: int
    references: int
    size: int


@laid_out("<HHB3x")
class MessageV1(NamedTuple):
    """
    +------+------+-------+---+
    | kind | size | flags | 0 |  then `size` bytes
    | 2    | 2    | 1     | 3 |
    +------+------+-------+---+
    """

    kind: int
    size: int
    flags: int


@laid_out("<BHB")
class MessageV2(NamedTuple):
    """
    +------+------+-------+------------------------------------+
    | kind | size | flags | order of creation, where it is kept|  then `size` bytes
    | 1    | 2    | 1     | 2                                  |
    +------+------+-------+------------------------------------+
    """

    kind: int
    size: int
    flags: int


@laid_out("<4sB3x3Q")
class LocalHeap(NamedTuple):
    """
    +--------+---------+---+------+-----------+-----------------+
    | "HEAP" | version | 0 | size | free list | address of data |
    | 4      | 1       | 3 | 8    | 8         | 8               |
    +--------+---------+---+------+-----------+-----------------+
    """

    signature: bytes
    version: int
    size: int
    free: int
    data: int


@laid_out("<4sBxH")
class SymbolNode(NamedTuple):
    """
    +--------+---------+---+---------+
    | "SNOD" | version | 0 | entries |  then so many entries
    | 4      | 1       | 1 | 2       |
    +--------+---------+---+---------+
    """

    signature: bytes
    version: int
    entries: int


@laid_out("<QQI4x16x")
class SymbolEntry(NamedTuple):
    """
    +----------------+--------+------+---+----------+
    | offset of name | header | kind | 0 | of cache |
    | 8              | 8      | 4    | 4 | 16       |
    +----------------+--------+------+---+----------+
    """

    name: int  # in the heap
    header: int
    kind: int  # 2: a soft link


@laid_out("<4sBBH16x")
class TreeNode(NamedTuple):
    """
    +--------+------+-------+----------+------+-------+
    | "TREE" | kind | level | children | left | right |  then a key and an address for each, then a key
    | 4      | 1    | 1     | 2        | 8    | 8     |
    +--------+------+-------+----------+------+-------+
    """

    signature: bytes
    kind: int  # 0: of members, 1: of chunks
    level: int  # 0: the children are leaves
    children: int


@laid_out("<4sBBIHHBBQHQI")
class TreeV2(NamedTuple):
    """
    +--------+---------+------+-----------+-------------+-------+-------------+------+-----------------+-------+----------+
    | "BTHD" | version | kind | node size | record size | depth | split, merge| root | records in root | total | checksum |
    | 4      | 1       | 1    | 4         | 2           | 2     | 1, 1        | 8    | 2               | 8     | 4        |
    +--------+---------+------+-----------+-------------+-------+-------------+------+-----------------+-------+----------+
    """

    signature: bytes
    version: int
    kind: int  # 5: members by name, 8: attributes by name
    node_size: int
    record_size: int
    depth: int
    split: int
    merge: int
    root: int
    root_records: int
    total: int
    checksum: int


@laid_out("<4sBHHBI96sHQQHHQHI")
class FractalHeap(NamedTuple):
    """
    +--------+---------+-----------+--------------+-------+-----------------+------------------------------------------+
    | "FRHP" | version | id length | filters' len | flags | largest object  | 12 numbers on free, huge and tiny objects |
    | 4      | 1       | 2         | 2            | 1     | 4               | 96                                       |
    +--------+---------+-----------+--------------+-------+-----------------+------------------------------------------+
    | width | first block's size | largest direct block | bits of offsets | rows at first | root | rows | checksum |
    | 2     | 8                  | 8                    | 2               | 2             | 8    | 2    | 4        |
    +-------+--------------------+----------------------+-----------------+---------------+------+------+----------+
    """

    signature: bytes
    version: int
    id_length: int
    filters_length: int
    flags: int  # 2: direct blocks have a checksum
    max_object: int
    counts: bytes
    width: int  # blocks a row
    first_size: int
    max_direct: int
    offset_bits: int
    first_rows: int
    root: int
    rows: int  # of the root; 0: the root is a direct block
    checksum: int

    @property
    def offset_size(self) -> int:
        return -(-self.offset_bits // 8)

    @property
    def length_size(self) -> int:
        return min(-(-(self.max_direct.bit_length() - 1) // 8), (self.max_object.bit_length() - 1) // 8 + 1)

    def row(self, row: int) -> tuple[int, int]:
        """(where it starts, how large each of its blocks is): the first two rows have blocks of one size, then they double."""
        return (self.width * self.first_size << row - 1, self.first_size << row - 1) if row else (0, self.first_size)


@laid_out("<4sBBBBQQI")
class FixedArray(NamedTuple):
    """
    +--------+---------+--------+------------+-----------+---------+------------+----------+
    | "FAHD" | version | client | entry size | page bits | entries | data block | checksum |
    | 4      | 1       | 1      | 1          | 1         | 8       | 8          | 4        |
    +--------+---------+--------+------------+-----------+---------+------------+----------+
    """

    signature: bytes
    version: int
    client: int  # 0: entries are addresses; 1: address, size in the file, filters left out
    entry_size: int
    page_bits: int
    entries: int
    data: int
    checksum: int


@laid_out("<HH4xQ")
class GlobalHeapObject(NamedTuple):
    """
    +--------+------------+---+------+
    | number | references | 0 | size |  then `size` bytes, up to a multiple of 8
    | 2      | 2          | 4 | 8    |
    +--------+------------+---+------+
    """

    number: int
    references: int
    size: int


Structure = TypeVar("Structure")


def size_of(kind: type) -> int:
    return struct.calcsize(FORMS[kind])


def parse(kind: type[Structure], data: bytes, at: int = 0) -> Structure:
    return kind(*struct.unpack_from(FORMS[kind], data, at))


@dataclass(frozen=True)
class Dataset:
    dtype: np.dtype
    shape: tuple[int, ...]
    address: int  # of the numbers, where they are not in chunks
    chunk_shape: tuple[int, ...] = ()  # () where they are not
    chunks: Any = None  # place in the array -> (address, bytes in the file)
    filters: tuple[int, ...] = ()


class Chunk(NamedTuple):
    """Where a chunk of an array lies, and its bytes there."""

    address: int
    stored: int


class H5File:
    """An open .h5 file: `attributes`, `shapes` of all tensors by name ("a.b.c" is c in group a/b), and `read(name)`.

    `separator` joins a name; a group or dataset may not have it in its own. `attributes` are those of the root group: a text, a
    whole number, or None for one that is neither.
    """

    def __init__(self, path: str | os.PathLike, separator: str = ".", file: BinaryIO | None = None):
        self.path, self._separator = os.fspath(path), separator
        self._file: Any = open_file(path) if file is None else file
        try:
            self._size, self._budget, self._numbers = self._file.seek(0, os.SEEK_END), BUDGET, 0
            self._groups: dict[str, list[tuple[int, bytes]]] = {}  # the messages of each group that is not the root
            self._blocks: dict[tuple[bytes, int], bytes] = {}  # of fractal heaps, by signature and address
            parts = list(self._messages(self._root(), ""))
            self._datasets = dict(self._group(parts, ""))
            if self._numbers > self._size:
                raise ValueError(f"its arrays would take {self._numbers} bytes, more than the whole file")
            self.attributes = dict(self._attribute(content) for content in self._attributes(parts))
        except (ValueError, struct.error, IndexError) as error:
            self.close()
            if not isinstance(error, ValueError):
                error = ValueError("one of its parts ends too early")
            raise ValueError(f"{self.path} is not a readable HDF5 checkpoint: {error!s:.500}") from error
        self._blocks = {}
        self.shapes = {name: dataset.shape for name, dataset in self._datasets.items()}
        self.numbers = sum(math.prod(shape) for shape in self.shapes.values())

    def close(self) -> None:
        self._file.close()

    def attributes_of(self, group: str) -> dict[str, Any]:
        """Those of another group than the root, of the same kinds. Raises ValueError."""
        try:
            return dict(self._attribute(content) for content in self._attributes(self._groups.get(group, [])))
        except (struct.error, IndexError) as error:
            raise ValueError(f"an attribute of {group:.80} ends too early") from error

    # -- numbers ----------------------------------------------------------------------------------------------------

    def read(self, name: str) -> np.ndarray:
        """The tensor's numbers, in an array of its own."""
        dataset = self._datasets[name]
        array = np.empty(dataset.shape, dataset.dtype)
        try:
            if not dataset.chunk_shape:
                self._fill(array, dataset.address)
            for corner, chunk in (dataset.chunks or {}).items():
                place = tuple(slice(start, start + side) for start, side in zip(corner, dataset.chunk_shape, strict=True))
                target = array[place]
                target[...] = self._unpacked(dataset, chunk)[tuple(slice(side) for side in target.shape)]
        except (ValueError, zlib.error) as error:
            raise ValueError(f"{self.path} is damaged at {name:.80}: {error!s:.500}") from error
        return array

    def _fill(self, array: np.ndarray, address: int) -> None:
        self._file.seek(address)
        if self._file.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:
            raise ValueError("it ends too early")

    def _unpacked(self, dataset: Dataset, chunk: Chunk) -> np.ndarray:
        size = math.prod(dataset.chunk_shape) * dataset.dtype.itemsize
        packed = np.empty(chunk.stored, np.uint8)
        self._fill(packed, chunk.address)
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
            kind = signature[:4].decode("latin1") or "object"
            raise ValueError(f"at byte {address} should be an {kind} of {size} bytes, which is not there")
        return data

    def _checked(self, address: int, size: int, signature: bytes) -> bytes:
        """Bytes as `_at` gives them, of which the last four are the checksum of those before."""
        data = self._at(address, size, signature)
        if lookup3(data[:-4]) != int.from_bytes(data[-4:], "little"):
            kind = signature[:4].decode("latin1")
            raise ValueError(f"the {kind} at byte {address} does not have its checksum: it is damaged")
        return data

    def _structure(self, kind: type[Structure], address: int, signature: bytes = b"") -> Structure:
        read = self._checked if "checksum" in kind._fields else self._at  # type: ignore[attr-defined]
        return parse(kind, read(address, size_of(kind), signature))

    def _root(self) -> int:
        """The address of the root group (II.A, superblock)."""
        signature = b"\x89HDF\r\n\x1a\n"
        version = self._at(0, 9)[8]
        if not self._at(0, 8).startswith(signature):
            raise ValueError("it does not start as an HDF5 file")
        if version in (2, 3):
            block: Any = parse(SuperblockV2, self._checked(0, size_of(SuperblockV2), signature[:4]))
            if block.flags & 5:
                raise ValueError("the program that wrote it did not close it")
            sizes, extended = (block.address_size, block.length_size), block.extension != NOWHERE
        else:
            block = self._structure(SuperblockV0, 0)
            sizes, extended = tuple(block.versions[5:7]), block.versions[:5] + block.versions[7:] != bytes(6)
        if version not in (0, 2, 3) or extended or sizes != (8, 8):
            raise ValueError(f"its superblock is of version {version} or has extensions; known are 0, 2 and 3 without them")
        if block.base or block.end > self._size:
            raise ValueError(f"it is cut off: {block.end} bytes long by its header, {self._size} in fact")
        return block.root

    # -- an object's header: messages ---------------------------------------------------------------------------------

    def _messages(self, address: int, name: str) -> Iterator[tuple[int, bytes]]:
        """(kind, content) of each message in an object's header that is of use (IV.A.1)."""
        name = name or "the root group"
        newer = self._at(address, 4) == b"OHDR"
        for kind, flags, content in self._messages_v2(address) if newer else self._messages_v1(address, name):
            if flags & 2:
                raise ValueError(f"{name} has a committed type or another part that lies elsewhere")
            if kind == EXTERNAL:
                raise ValueError(f"{name} has its numbers in another file")
            if kind in READ:
                yield kind, content
            elif kind not in HARMLESS:
                raise ValueError(f"the header of {name} has a message of type {kind}, not known here")

    def _messages_v1(self, address: int, name: str) -> Iterator[tuple[int, int, bytes]]:
        header = self._structure(ObjectHeaderV1, address)
        if header.version != 1:
            raise ValueError(f"{name} has an object header of version {header.version}, known are 1 and 2")
        blocks, left = [(address + size_of(ObjectHeaderV1), header.size)], header.messages
        while blocks and left > 0:
            data, at = self._at(*blocks.pop(0)), 0
            while at + size_of(MessageV1) <= len(data) and left > 0:
                message = parse(MessageV1, data, at)
                at, left = at + size_of(MessageV1), left - 1
                content, at = data[at : at + message.size], at + message.size
                if len(content) < message.size:
                    raise ValueError(f"a message in the header of {name} is longer than the header")
                if message.kind == MORE:
                    blocks.append(struct.unpack_from("<QQ", content))  # address, length
                else:
                    yield message.kind, message.flags, content

    def _messages_v2(self, address: int) -> Iterator[tuple[int, int, bytes]]:
        """After "OHDR", version and flags, by the flags: times (16), limits of attributes (4), size of messages (1 to 8)."""
        flags = self._at(address, 6)[5]
        start = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        size_size = 1 << (flags & 3)
        size = int.from_bytes(self._at(address, start + size_size)[start:], "little")
        extra = 2 if flags & 4 else 0  # the order of creation
        data = self._checked(address, start + size_size + size + 4, b"OHDR\2")
        blocks = [data[start + size_size : -4]]
        while blocks:
            data, at = blocks.pop(0), 0
            while at + size_of(MessageV2) + extra <= len(data):
                message = parse(MessageV2, data, at)
                at += size_of(MessageV2) + extra
                content, at = data[at : at + message.size], at + message.size
                if len(content) < message.size:
                    raise ValueError(f"a message in the header at byte {address} is longer than the header")
                if message.kind == MORE:
                    where, length = struct.unpack_from("<QQ", content)
                    blocks.append(self._checked(where, length, b"OCHK")[4:-4])
                else:
                    yield message.kind, message.flags, content

    # -- groups -------------------------------------------------------------------------------------------------------

    def _group(self, parts: list[tuple[int, bytes]], prefix: str) -> Iterator[tuple[str, Dataset]]:
        """All datasets in a group and below, by name."""
        where, seen = prefix[:80] or "the root", set()
        if not _is_group(parts):
            raise ValueError(f"{where} is no group")
        if prefix.count(self._separator) > MAX_DEPTH:
            raise ValueError(f"{where}... is nested too deep")
        for own_name, address in self._members(parts, where):
            name = prefix + own_name
            if self._separator in own_name or not own_name or name in seen:
                raise ValueError(f"{name[:80]!r} is there twice, or has a name that is empty or with a {self._separator!r}")
            seen.add(name)
            inner = list(self._messages(address, name[:80]))
            if _is_group(inner):
                self._groups[name] = inner
                yield from self._group(inner, name + self._separator)
            else:
                yield name, self._dataset(name[:80], dict(inner))

    def _members(self, parts: list[tuple[int, bytes]], where: str) -> Iterator[tuple[str, int]]:
        """(name, address of the header) of each member of a group."""
        for kind, content in parts:
            if kind == SYMBOLS:
                tree, heap = struct.unpack_from("<QQ", content)
                yield from self._members_v1(tree, heap, where)
            elif kind == LINK:
                yield _link(content)
            elif kind == LINK_INFO:  # version, flags, (order of creation, 8), fractal heap, tree of names
                heap, tree = struct.unpack_from("<QQ", content, 10 if content[1] & 1 else 2)
                if heap != NOWHERE:
                    for record in self._tree_v2(tree, kind=5):
                        yield _link(self._heap_object(heap, record[4:]))  # after the hash of the name

    def _members_v1(self, tree: int, heap: int, where: str) -> Iterator[tuple[str, int]]:
        header = self._structure(LocalHeap, heap, b"HEAP")
        names = self._at(header.data, header.size)
        for _, node in self._tree(tree, kind=0, key=8):
            count = self._structure(SymbolNode, node, b"SNOD").entries
            entries = self._at(node + size_of(SymbolNode), count * size_of(SymbolEntry))
            for index in range(count):
                entry = parse(SymbolEntry, entries, index * size_of(SymbolEntry))
                name = names[entry.name : names.index(b"\0", entry.name)].decode()
                if entry.kind == 2 or entry.header == NOWHERE:
                    raise ValueError(
                        f"{name[:80]} in {where} is a soft link to another place, which a checkpoint does not need"
                    )
                yield name, entry.header

    def _tree(self, address: int, kind: int, key: int, level: int | None = None) -> Iterator[tuple[bytes, int]]:
        """(key, child) for each leaf of a B-tree of members or chunks (III.A.1)."""
        if address == NOWHERE:
            return
        node = self._structure(TreeNode, address, b"TREE")
        if node.kind != kind or node.level > MAX_LEVEL or level not in (None, node.level):
            raise ValueError(f"the tree at byte {address} is of another kind or level than it should")
        data = self._at(address + size_of(TreeNode), node.children * (key + 8))
        for at in range(0, len(data), key + 8):
            (child,) = struct.unpack_from("<Q", data, at + key)
            if node.level:
                yield from self._tree(child, kind, key, node.level - 1)
            else:
                yield data[at : at + key], child

    # -- groups and attributes of the newer generation ------------------------------------------------------------------

    def _tree_v2(self, address: int, kind: int) -> Iterator[bytes]:
        """Each record of a version 2 B-tree (III.A.2)."""
        tree = self._structure(TreeV2, address, b"BTHD")
        if tree.kind != kind or tree.depth > MAX_LEVEL or not tree.record_size or tree.node_size < 10 + tree.record_size:
            raise ValueError(f"the tree at byte {address} is of another kind or level than it should")
        # A pointer to a child says how many records it has, and, from level 2 on, how many there are below it: in as few bytes
        # as their largest possible number needs.
        most = [(tree.node_size - 10) // tree.record_size]  # records below a node of each level
        count_size = _bytes_for(most[0])
        pointer_sizes = [0]
        for level in range(1, tree.depth + 1):
            pointer_sizes.append(8 + count_size + (_bytes_for(most[-1]) if level > 1 else 0))
            own = (tree.node_size - 10 - pointer_sizes[-1]) // (tree.record_size + pointer_sizes[-1])
            most.append((own + 1) * most[-1] + own)

        def below(address: int, level: int, count: int) -> Iterator[bytes]:
            pointers = (count + 1) * pointer_sizes[level]
            size = 10 + count * tree.record_size + pointers
            data = self._checked(address, size, b"BTIN" if level else b"BTLF")
            for index in range(count):
                yield data[6 + index * tree.record_size : 6 + (index + 1) * tree.record_size]
            for index in range(count + 1 if level else 0):
                at = 6 + count * tree.record_size + index * pointer_sizes[level]
                child, records = int.from_bytes(data[at : at + 8], "little"), data[at + 8 : at + 8 + count_size]
                yield from below(child, level - 1, int.from_bytes(records, "little"))

        if tree.root != NOWHERE:
            yield from below(tree.root, tree.depth, tree.root_records)

    def _heap_object(self, address: int, identity: bytes) -> bytes:
        """An object of a fractal heap (III.G): its id says where it starts in the heap's own space, and how long it is."""
        if (b"FRHP", address) not in self._blocks:
            self._blocks[b"FRHP", address] = self._checked(address, size_of(FractalHeap), b"FRHP")
        heap = parse(FractalHeap, self._blocks[b"FRHP", address])
        if heap.filters_length or not 0 < heap.offset_bits <= 64 or not heap.width or not heap.first_size or heap.rows > 64:
            raise ValueError(f"the heap at byte {address} is packed, or describes no space")
        if identity[0] & 0xF0:
            raise ValueError(f"the heap at byte {address} holds an object of a kind that is not known here (huge or tiny)")
        offset = int.from_bytes(identity[1 : 1 + heap.offset_size], "little")
        length = int.from_bytes(identity[1 + heap.offset_size : 1 + heap.offset_size + heap.length_size], "little")
        block, start, size = self._heap_block(heap, offset)
        at = offset - start
        if (b"FHDB", block) not in self._blocks:
            self._blocks[b"FHDB", block] = self._direct_block(heap, block, size)
        if at + length > size:
            raise ValueError(f"an object of the heap at byte {address} does not lie in its block")
        return self._blocks[b"FHDB", block][at : at + length]

    def _heap_block(self, heap: FractalHeap, offset: int) -> tuple[int, int, int]:
        """(address, start in the heap's space, size) of the direct block that holds this offset."""
        block, start, size, rows = heap.root, 0, heap.first_size, heap.rows
        while rows:  # an indirect block: rows of `width` blocks each
            row = 0
            while row + 1 < rows and offset - start >= heap.row(row + 1)[0]:
                row += 1
            first, size = heap.row(row)
            column = (offset - start - first) // size
            if column >= heap.width:
                break
            if (b"FHIB", block) not in self._blocks:
                length = 13 + heap.offset_size + rows * heap.width * 8 + 4
                self._blocks[b"FHIB", block] = self._checked(block, length, b"FHIB")
            at = 13 + heap.offset_size + (row * heap.width + column) * 8
            (block,) = struct.unpack_from("<Q", self._blocks[b"FHIB", block], at)
            start += first + column * size
            rows = 0 if size <= heap.max_direct else (size // (heap.first_size * heap.width)).bit_length()
        if not start <= offset < start + size or size > heap.max_direct:
            raise ValueError(f"a heap has no block for its byte {offset}")
        return block, start, size

    def _direct_block(self, heap: FractalHeap, address: int, size: int) -> bytes:
        """After "FHDB" a version, the heap's address, where it is in its space, and, if so flagged, a checksum of the rest."""
        data = self._at(address, size, b"FHDB")
        at = 13 + heap.offset_size
        if heap.flags & 2 and lookup3(data[:at] + bytes(4) + data[at + 4 :]) != int.from_bytes(data[at : at + 4], "little"):
            raise ValueError(f"the FHDB at byte {address} does not have its checksum: it is damaged")
        return data

    # -- what the messages say --------------------------------------------------------------------------------------

    def _dataset(self, name: str, parts: dict[int, bytes]) -> Dataset:
        if not {DATASPACE, DATATYPE, LAYOUT} <= set(parts):
            raise ValueError(f"{name} is neither a group nor an array")
        dtype = _dtype(parts[DATATYPE])
        if dtype is None:
            kinds = ", ".join(str(dtype) for dtype in DATATYPES.values())
            raise ValueError(f"{name} is not a plain array of numbers ({kinds}, little-endian)")
        shape = _shape(name, parts[DATASPACE])
        full = math.prod(shape) * dtype.itemsize
        layout = parts[LAYOUT]
        if layout[0] not in (3, 4, 5) or layout[1] not in (1, 2):
            raise ValueError(f"{name} is stored in a way not known here (virtual, compact, or of a newer version)")
        if layout[1] == 1:  # contiguous
            address, stored = struct.unpack_from("<QQ", layout, 2)
            if full and (stored != full or address + stored > self._size):
                raise ValueError(
                    f"{name} has shape {shape}, which takes {full} bytes; {stored} are at byte {address}, by the file"
                )
            self._numbers += full
            return Dataset(dtype, shape, address if full else 0)
        filters = _filters(name, parts.get(FILTERS))
        chunk_shape = _chunk_shape(name, layout, shape, dtype)
        wanted = math.prod(-(-side // chunk) for side, chunk in zip(shape, chunk_shape, strict=True))
        if layout[0] == 3:
            chunks = self._chunks_v3(name, layout, len(shape))
        else:
            size = math.prod(chunk_shape) * dtype.itemsize
            chunks = self._chunks_v4(name, layout, shape, chunk_shape, size, bool(filters))
        starts = (range(0, side, chunk) for side, chunk in zip(shape, chunk_shape, strict=True))
        if len(chunks) != wanted or set(itertools.product(*starts)) != set(chunks):
            raise ValueError(f"{name} has shape {shape}, but not the chunks of that shape: {len(chunks)} of {wanted}")
        if any(chunk.address + chunk.stored > self._size for chunk in chunks.values()):
            raise ValueError(f"a chunk of {name} is not packed as it says, or not in the file")
        stored = sum(chunk.stored for chunk in chunks.values())
        self._numbers += stored
        if not full <= 1100 * stored:
            raise ValueError(f"{name} has shape {shape}, far more than its bytes in the file can hold")  # gzip makes 1/1032
        return Dataset(dtype, shape, 0, chunk_shape, chunks, filters)

    def _chunks_v3(self, name: str, layout: bytes, rank: int) -> dict[tuple[int, ...], Chunk]:
        """Version, class, dimensions (of the chunk and of an entry), address of a B-tree with a leaf a chunk."""
        count, tree = struct.unpack_from("<BQ", layout, 2)
        chunks = {}
        for key, address in self._tree(tree, kind=1, key=8 + 8 * count):
            stored, mask, *corner, _ = struct.unpack(f"<II{count}Q", key)
            if mask:
                raise ValueError(f"a chunk of {name} is not packed as it says, or not in the file")
            chunks[tuple(corner)] = Chunk(address, stored)
        return chunks

    def _chunks_v4(
        self, name: str, layout: bytes, shape: tuple, chunk_shape: tuple, size: int, packed: bool
    ) -> dict[tuple[int, ...], Chunk]:
        """Version, class, flags, dimensions, bytes of each, the dimensions; then what kind of index lists the chunks."""
        at = 5 + (len(shape) + 1) * layout[4]
        index, flags = layout[at], layout[2]
        grid = [range(0, side, chunk) for side, chunk in zip(shape, chunk_shape, strict=True)]
        count = math.prod(len(starts) for starts in grid)
        if count > MAX_CHUNKS or flags & 1:
            raise ValueError(f"{name} has {count} chunks, more than the {MAX_CHUNKS} allowed, or some that are not packed")
        if index == 1 and flags & 2:  # one chunk, packed: its size, filters left out, address
            stored, mask, address = struct.unpack_from("<QIQ", layout, at + 1)
            found = [Chunk(address, stored)] if not mask else []
        elif index == 1:
            found = [Chunk(struct.unpack_from("<Q", layout, at + 1)[0], size)]
        elif index == 2:  # one after the other
            (address,) = struct.unpack_from("<Q", layout, at + 1)
            found = [Chunk(address + number * size, size) for number in range(count)]
        elif index == 3:  # a fixed array: bits of a page, address
            found = self._fixed_array(struct.unpack_from("<Q", layout, at + 2)[0], count, size, packed)
        else:
            raise ValueError(f"{name} can grow, which lists its chunks in a way not known here")
        corners = itertools.product(*grid)
        return {corner: chunk for corner, chunk in zip(corners, found, strict=False) if chunk.address != NOWHERE}

    def _fixed_array(self, address: int, count: int, size: int, packed: bool) -> list[Chunk]:
        """What a fixed array lists (III.H): in one piece, or in pages, each with a checksum."""
        header = self._structure(FixedArray, address, b"FAHD")
        if header.entries != count or header.client != packed or header.entry_size not in ((range(13, 21)) if packed else (8,)):
            raise ValueError(f"the list of chunks at byte {address} is not of {count} chunks")
        if header.page_bits > 32:
            raise ValueError(f"the list of chunks at byte {address} has pages of 2^{header.page_bits} entries")
        page, start = 1 << header.page_bits, 14  # "FADB", version, client, the header's address
        if count <= page:
            data = self._checked(header.data, start + count * header.entry_size + 4, b"FADB")
            entries = data[start:-4]
        else:
            pages = -(-count // page)
            at = header.data + start + -(-pages // 8) + 4  # after a bit a page, which says whether it was written
            self._checked(header.data, at - header.data, b"FADB")
            entries = b""
            for first in range(0, count, page):
                length = min(page, count - first) * header.entry_size + 4
                entries, at = entries + self._checked(at, length, b"")[:-4], at + length
        chunks = []
        for at in range(0, len(entries), header.entry_size):
            entry = entries[at : at + header.entry_size]
            if packed and int.from_bytes(entry[-4:], "little"):
                break  # a filter was left out: too few chunks
            stored = int.from_bytes(entry[8:-4], "little") if packed else size
            chunks.append(Chunk(int.from_bytes(entry[:8], "little"), stored))
        return chunks

    def _attributes(self, parts: list[tuple[int, bytes]]) -> Iterator[bytes]:
        """The attribute messages of a header, those that lie in a fractal heap included."""
        for kind, content in parts:
            if kind == ATTRIBUTE:
                yield content
            elif kind == ATTRIBUTE_INFO:  # version, flags, (order of creation, 2), fractal heap, tree of names
                heap, tree = struct.unpack_from("<QQ", content, 4 if content[1] & 1 else 2)
                if heap != NOWHERE:
                    for record in self._tree_v2(tree, kind=8):
                        yield self._heap_object(heap, record[:8])

    def _attribute(self, content: bytes) -> tuple[str, Any]:
        """Name and value, None for one that is neither a text nor a whole number (IV.A.2.m)."""
        version, flags, *sizes = struct.unpack_from("<BBHHH", content)
        if version not in (1, 3) or (version == 3 and flags):
            raise ValueError(f"an attribute is of version {version}, known are 1 and 3, with a type of its own")
        at, parts = (8, []) if version == 1 else (9, [])
        for size in sizes:  # name, datatype, dataspace: in version 1, each up to a multiple of 8 bytes
            parts.append(content[at : at + size])
            at += -(-size // 8) * 8 if version == 1 else size
        name, datatype, dataspace = parts[0].rstrip(b"\0").decode(), parts[1], parts[2]
        if _shape(f"attribute {name[:80]}", dataspace) != ():
            return name, None
        if _dtype(datatype) == np.dtype("<i8"):
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
            found = self._structure(GlobalHeapObject, at)
            if found.number == index and length <= found.size:
                return self._at(at + 16, length).decode().rstrip("\0")
            if found.number == 0:
                break
            at += 16 + -(-found.size // 8) * 8
        raise ValueError(f"the text {index} of the heap at byte {heap} is not there")


def _is_group(parts: list[tuple[int, bytes]]) -> bool:
    return any(kind in (SYMBOLS, LINK_INFO) for kind, _ in parts)


def _link(content: bytes) -> tuple[str, int]:
    """Name and address in a link message: version, flags, by those (kind, 1) (order, 8) (letters, 1), length, name, address."""
    flags, at, kind = content[1], 2, HARD
    if flags & 8:
        kind, at = content[2], 3
    at += (8 if flags & 4 else 0) + (1 if flags & 16 else 0)
    width = 1 << (flags & 3)
    length, at = int.from_bytes(content[at : at + width], "little"), at + width
    name = content[at : at + length].decode()
    if kind != HARD:
        where = {SOFT: "a soft link to another place", OUTSIDE: "an external link to another file"}.get(kind, "an unknown link")
        raise ValueError(f"{name[:80]} is {where}, which a checkpoint does not need")
    return name, struct.unpack_from("<Q", content, at + length)[0]


def _dtype(content: bytes) -> np.dtype | None:
    """The type of a datatype message, of whose versions 1 to 5 these types are the same."""
    if not 1 <= content[0] >> 4 <= 5:
        return None
    normal = bytes([content[0] & 15 | 16]) + content[1:]
    return next((dtype for code, dtype in DATATYPES.items() if normal.startswith(code)), None)


def _chunk_shape(name: str, layout: bytes, shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, ...]:
    if layout[0] == 3:
        sides = struct.unpack_from(f"<{layout[2]}I", layout, 11)
    else:
        count, width = layout[3], layout[4]
        if width not in range(1, 9) or len(layout) < 5 + count * width:
            raise ValueError(f"{name} has chunks that do not fit its shape")
        sides = tuple(int.from_bytes(layout[5 + i * width : 5 + (i + 1) * width], "little") for i in range(count))
    *chunk_shape, itemsize = sides
    if len(chunk_shape) != len(shape) or itemsize != dtype.itemsize or not shape:
        raise ValueError(f"{name} has chunks that do not fit its shape")
    if not all(0 < chunk <= side for chunk, side in zip(chunk_shape, shape, strict=True)):
        raise ValueError(f"{name} has chunks of {tuple(chunk_shape)}, which do not fit into its shape {shape}")
    return tuple(chunk_shape)


def _bytes_for(number: int) -> int:
    return (max(1, number).bit_length() - 1) // 8 + 1


MASK = 0xFFFFFFFF


def lookup3(data: bytes) -> int:
    """Bob Jenkins' hash, the checksum of the newer generation (his lookup3.c, `hashlittle` with 0 to start from)."""
    a = b = c = (0xDEADBEEF + len(data)) & MASK
    if not data:
        return c
    whole = (len(data) - 1) // 12 * 12  # the last 1 to 12 bytes are another matter
    for x, y, z in struct.iter_unpack("<III", data[:whole]):
        a, b, c = a + x & MASK, b + y & MASK, c + z & MASK
        a = a - c & MASK ^ (c << 4 & MASK | c >> 28)
        c = c + b & MASK
        b = b - a & MASK ^ (a << 6 & MASK | a >> 26)
        a = a + c & MASK
        c = c - b & MASK ^ (b << 8 & MASK | b >> 24)
        b = b + a & MASK
        a = a - c & MASK ^ (c << 16 & MASK | c >> 16)
        c = c + b & MASK
        b = b - a & MASK ^ (a << 19 & MASK | a >> 13)
        a = a + c & MASK
        c = c - b & MASK ^ (b << 4 & MASK | b >> 28)
        b = b + a & MASK
    x, y, z = struct.unpack("<III", data[whole:].ljust(12, b"\0"))
    a, b, c = a + x & MASK, b + y & MASK, c + z & MASK
    c = (c ^ b) - (b << 14 & MASK | b >> 18) & MASK
    a = (a ^ c) - (c << 11 & MASK | c >> 21) & MASK
    b = (b ^ a) - (a << 25 & MASK | a >> 7) & MASK
    c = (c ^ b) - (b << 16 & MASK | b >> 16) & MASK
    a = (a ^ c) - (c << 4 & MASK | c >> 28) & MASK
    b = (b ^ a) - (a << 14 & MASK | a >> 18) & MASK
    return (c ^ b) - (b << 24 & MASK | b >> 8) & MASK


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
