"""How inputs are damaged: bytes anywhere, and the parts inside a format's checksums and lengths, so that the damage gets in."""

import functools
import io
import json
import pickletools
import random
import struct
import zipfile
import zlib

from tests.fuzz.traces import mutate_trace

NUMBERS = [0, 1, 2, 7, 8, 127, 128, 255, 256, 1000, 32767, 32768, 65535, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]
NUMBERS += [1 << 40, (1 << 63) - 1, (1 << 64) - 1]
VALUES = [
    "null",
    "true",
    "-1",
    "0",
    "1e9",
    "1e999",
    "NaN",
    "1.5",
    '""',
    '"x"',
    "[]",
    "{}",
    "[[[]]]",
    "9" * 30,
    "65537",
    '"../x"',
]
VALUES += ['"\\u0000"', "[1, 2]", '{"height": 1, "width": 65536}', "-0.0", "1e-320", '"a.bin"', "99999999", "[3]", '"\\ud800"']
KEYS = ["blocks", "__class__", "__dict__", "num_labels", "weight_map", "return_dict", "self", "fix_head_stem", "resize", "x"]
PICKLE_PARTS = [
    b"(",
    b")",
    b"]",
    b"}",
    b"0",
    b"1",
    b"2",
    b"N",
    b"q\0",
    b"h\0",
    b"h\1",
    b"R",
    b"b",
    b"s",
    b"u",
    b"a",
    b"e",
    b"t",
]
PICKLE_PARTS += [b"\x85", b"\x86", b"\x87", b"Q", b"K\5", b"M\xff\xff", b"J\xff\xff\xff\xff", b"\x8a\x09" + b"\xff" * 8 + b"\0"]
PICKLE_PARTS += [b"cposix\nsystem\n", b"ccollections\nOrderedDict\n", b"ctorch\nFloatStorage\n", b"X\2\0\0\0ab", b".", b"\x94"]


def mutate(data: bytes, kind: str, choose: random.Random, others: list[bytes]) -> bytes:
    """One damaged input from a valid file; now and then with a part of another one."""
    inside = {"torch": _torch, "safetensors": _safetensors, "json": _json, "pictures": _picture, "classify": _picture}.get(kind)
    if kind in ("trace", "compare"):
        inside = functools.partial(mutate_trace, damage=_bytes)
    if inside and choose.random() < 0.6:
        try:
            data = inside(data, choose, others)
        except (ValueError, struct.error, zipfile.BadZipFile, IndexError):
            data = _bytes(data, choose, others)
        if choose.random() < 0.8:
            return data
    return _bytes(data, choose, others)


def _bytes(data: bytes, choose: random.Random, others: list[bytes]) -> bytes:
    out = bytearray(data)
    for _ in range(choose.choice((1, 1, 1, 2, 3, 6))):
        at = choose.randrange(len(out) + 1)
        way = choose.randrange(8)
        if way == 0 and out:
            out[at % len(out)] ^= 1 << choose.randrange(8)
        elif way == 1 and out:
            out[at % len(out)] = choose.choice((0, 1, 0x7F, 0x80, 0xFF, choose.randrange(256)))
        elif way in (2, 3):
            size = choose.choice((1, 2, 4, 8))
            number = choose.choice(NUMBERS) % (1 << 8 * size)
            out[at : at + size] = number.to_bytes(size, choose.choice(("little", "big")))
        elif way == 4:
            del out[at : at + choose.choice((1, 2, 8, 64))]
        elif way == 5:
            out[at:at] = out[at : at + choose.choice((1, 4, 16, 200))] * choose.choice((1, 1, 2, 20))
        elif way == 6:
            other = choose.choice(others)
            start = choose.randrange(len(other) + 1)
            out[at : at + choose.choice((0, 4, 40))] = other[start : start + choose.choice((4, 40, 400))]
        elif choose.random() < 0.3:
            del out[at:]
    return bytes(out)


def _pickle(data: bytes, choose: random.Random) -> bytes:
    """Whole instructions left out, doubled, exchanged or put in."""
    starts = [position for _, _, position in pickletools.genops(data)] + [len(data)]
    parts = [data[a:b] for a, b in zip(starts, starts[1:], strict=False)]
    for _ in range(choose.choice((1, 1, 2, 4))):
        at = choose.randrange(len(parts))
        way = choose.randrange(5)
        if way == 0:
            del parts[at : at + choose.choice((1, 2, 5))]
        elif way == 1:
            parts.insert(at, choose.choice(PICKLE_PARTS) * choose.choice((1, 1, 1, 1000)))
        elif way == 2:
            parts[at] = choose.choice(PICKLE_PARTS)
        elif way == 3:
            other = choose.randrange(len(parts))
            parts[at], parts[other] = parts[other], parts[at]
        else:
            parts[at:at] = parts[at : at + choose.choice((1, 4, 20))] * choose.choice((1, 30))
        if not parts:
            break
    return b"".join(parts)


def _torch(data: bytes, choose: random.Random, others: list[bytes]) -> bytes:
    if not data.startswith(b"PK"):
        ends, stream = [0], io.BytesIO(data)
        for _ in range(5):
            list(pickletools.genops(stream))
            ends.append(stream.tell())
        which = choose.choice((0, 1, 2, 3, 3, 3, 3, 4))
        start, end = ends[which : which + 2]
        return data[:start] + _pickle(data[start:end], choose) + data[end:]
    entries = [
        (info.filename, zipfile.ZipFile(io.BytesIO(data)).read(info)) for info in zipfile.ZipFile(io.BytesIO(data)).filelist
    ]
    at = choose.randrange(len(entries)) if choose.random() < 0.3 else 0
    name, content = entries[at]
    if name.endswith("data.pkl"):
        content = _pickle(content, choose) if choose.random() < 0.8 else _bytes(content, choose, others)
    else:
        content = _bytes(content, choose, others)
    if choose.random() < 0.1:
        name = _bytes(name.encode(), choose, others).decode("latin1")
    entries[at] = (name, content)
    if choose.random() < 0.1:
        entries.append(choose.choice(entries))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if choose.random() < 0.1 else zipfile.ZIP_STORED) as archive:
        for name, content in entries:
            info = zipfile.ZipInfo(name)  # which has a date of its own; a plain name would get the clock's
            info.compress_type = archive.compression
            archive.writestr(info, content)
    return buffer.getvalue()


def _json(data: bytes, choose: random.Random, others: list[bytes]) -> bytes:
    """A value or a key of some object or list, exchanged; in text, so that it may also be no JSON."""
    value = json.loads(data)
    for _ in range(choose.choice((1, 1, 2, 4))):
        node = value
        while isinstance(node, (dict, list)) and node:
            key = choose.choice(list(node)) if isinstance(node, dict) else choose.randrange(len(node))
            if not isinstance(node[key], (dict, list)) or choose.random() < 0.4:
                break
            node = node[key]
        if not isinstance(node, (dict, list)) or not node:
            continue
        new = f"@{choose.choice(VALUES)}@"
        way = choose.randrange(4)
        if way == 0 and isinstance(node, dict):
            node[choose.choice(KEYS)] = new
        elif way == 1 and isinstance(node, list):
            node.append(new)
        elif way == 2:
            node.pop(key)
        else:
            node[key] = new
    text = json.dumps(value)
    for raw in VALUES:
        text = text.replace(json.dumps(f"@{raw}@"), raw)
    return text.encode()


def _safetensors(data: bytes, choose: random.Random, others: list[bytes]) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    header = data[8 : 8 + length]
    header = _json(header, choose, others) if choose.random() < 0.7 else _bytes(header, choose, others)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def _picture(data: bytes, choose: random.Random, others: list[bytes]) -> bytes:
    """PNG: a chunk's content changed and its checksum made right again. Others have no checksums."""
    if not data.startswith(b"\x89PNG"):
        return _bytes(data, choose, others)
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunks.append([data[at + 4 : at + 8], data[at + 8 : at + 8 + length]])
        at += 12 + length
    chunk = choose.choice(chunks)
    if chunk[0] == b"IDAT" and choose.random() < 0.5:
        chunk[1] = zlib.compress(_bytes(zlib.decompress(chunk[1]), choose, others))
    else:
        chunk[1] = _bytes(chunk[1], choose, others)
    if choose.random() < 0.1:
        chunks.insert(choose.randrange(len(chunks)), choose.choice(chunks))
    out = data[:8]
    for kind, content in chunks:
        out += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return out
