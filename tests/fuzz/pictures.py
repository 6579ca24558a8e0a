"""Pictures damaged by structure: segments, chunks, blocks, boxes and entries stay well-formed while what they say lies.

A part is (kind, content). A picture is split into its parts, some are left out, doubled, exchanged, changed within or put in
by the thousand, and lengths and checksums are made right again: so the damage gets past the first check of a reader.
"""

import random
import struct
import zlib

NUMBERS = (0, 1, 2, 3, 8, 16, 255, 256, 1000, 9000, 32767, 65535, 65536, 1 << 20, (1 << 31) - 1, (1 << 32) - 1)
BOMB_ENTRIES = 2000


def directory(choose: random.Random) -> bytes:
    """An EXIF block: an orientation, and entries that claim the whole block."""
    rows = [struct.pack("<HHIHH", 0x0112, choose.choice((1, 3, 4, 9)), choose.choice((0, 1, 1, 9)), choose.randrange(12), 0)]
    size = 12 * BOMB_ENTRIES
    for number in range(choose.choice((0, 1, 5, BOMB_ENTRIES))):
        rows.append(struct.pack("<HHII", 0x8769 + number, choose.randrange(1, 14), choose.choice((1, size, 1 << 31)), 8))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", choose.choice((len(rows), 65535))) + b"".join(rows) + bytes(4)


def picture(data: bytes, choose: random.Random, others: list[bytes]) -> bytes:
    """A picture with some of its parts damaged; raises ValueError, IndexError or struct.error for what it cannot take apart."""
    for start, split, join, extra in FORMATS:
        if data.startswith(start) and (start != b"RIFF" or data[8:12] == b"WEBP"):
            head, parts = split(data)
            for _ in range(choose.choice((1, 1, 2, 4))):
                _damage(parts, choose, extra)
            return join(head, parts)
    if data[4:8] == b"ftyp":
        return _boxes(data, choose)
    if data[:2] in (b"II", b"MM"):
        return _tiff(data, choose)
    raise ValueError("no format with parts")


def _damage(parts: list, choose: random.Random, extra) -> None:
    at, way = choose.randrange(len(parts)), choose.randrange(7)
    if way == 0:
        del parts[at]
    elif way == 1:
        parts[at:at] = parts[at : at + choose.choice((1, 1, 3))] * choose.choice((1, 2, 30, 500))
    elif way == 2:
        other = choose.randrange(len(parts))
        parts[at], parts[other] = parts[other], parts[at]
    elif way == 3:
        parts[at:at] = [extra(choose)] * choose.choice((1, 1, 20, 2000))
    elif way == 4:
        parts[at] = (choose.choice(parts)[0], parts[at][1])
    else:
        kind, content = parts[at]
        try:
            parts[at] = (kind, zlib.compress(within(zlib.decompress(content), choose)))  # IDAT
        except zlib.error:
            parts[at] = (kind, within(content, choose))
    if not parts:
        parts.append(extra(choose))


def within(content: bytes, choose: random.Random) -> bytes:
    """Some bytes or a number of the content, exchanged; its length stays, mostly."""
    out = bytearray(content)
    for _ in range(choose.choice((1, 1, 2, 5))):
        at, size = choose.randrange(len(out) + 1), choose.choice((1, 1, 2, 4))
        if choose.random() < 0.6:
            out[at : at + size] = (choose.choice(NUMBERS) % (1 << 8 * size)).to_bytes(size, choose.choice(("little", "big")))
        elif choose.random() < 0.5 and out:
            out[at % len(out)] ^= 1 << choose.randrange(8)
        else:
            out[at:at] = out[at : at + choose.choice((1, 8, 60))] * choose.choice((1, 4))
    return bytes(out)


# -- JPEG: (marker, what follows its length; for a scan, the numbers too) -------------------------------------------------


def split_jpeg(data: bytes) -> tuple[bytes, list]:
    parts, at = [], 2
    while at < len(data):
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xD9:
            break
        end = at + 2 + length
        if marker == 0xDA:  # up to the next marker that is no restart
            while end < len(data) and not (data[end] == 0xFF and data[end + 1] not in (0, *range(0xD0, 0xD8))):
                end += 1
        parts.append((marker, data[at + 4 : end]))
        at = end
    return b"\xff\xd8", parts


def join_jpeg(head: bytes, parts: list) -> bytes:
    out = [head]
    for marker, content in parts:
        if marker in (0x01, 0xFF, *range(0xD0, 0xDA)):  # no length
            out.append(bytes((0xFF, marker)))
        elif marker == 0xDA and content:
            out.append(b"\xff\xda" + struct.pack(">H", 6 + 2 * (content[0] % 5)) + content)
        else:
            out.append(bytes((0xFF, marker)) + struct.pack(">H", min(65535, len(content) + 2)) + content)
    return b"".join(out) + b"\xff\xd9"


def extra_jpeg(choose: random.Random) -> tuple[int, bytes]:
    return choose.choice(
        (
            (0xE1, b"Exif\0\0" + directory(choose)),
            (0xE1, b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'),
            (0xE2, b"MPF\0II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", 0xB001, 4, 1, choose.choice(NUMBERS)) + bytes(4)),
            (0xE2, b"ICC_PROFILE\0" + bytes((choose.randrange(256), choose.randrange(256))) + bytes(20)),
            (0xED, b"Photoshop 3.0\x008BIM\4\4" + bytes(8)),
            (0xEE, b"Adobe\0d\0\0\0\0" + bytes((choose.randrange(4),))),
            (0xFE, b"a comment \xff\xda\0\2"),
            (choose.choice((0x01, 0x05, 0xBF, 0xD0, 0xD7, 0xD8, 0xDC, 0xDF, 0xF0, 0xFF)), b""),
            (0xDD, struct.pack(">H", choose.choice((0, 1, 2, 65535)))),
        )
    )


# -- PNG, WebP: (kind, content) -------------------------------------------------------------------------------------------


def split_png(data: bytes) -> tuple[bytes, list]:
    parts, at = [], 8
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        parts.append((kind, data[at + 8 : at + 8 + length]))
        at += 12 + length
    return data[:8], parts


def join_png(head: bytes, parts: list) -> bytes:
    sums = [(len(content), kind, content, zlib.crc32(kind + content)) for kind, content in parts]
    return head + b"".join(struct.pack(">I", n) + kind + content + struct.pack(">I", crc) for n, kind, content, crc in sums)


def extra_png(choose: random.Random) -> tuple[bytes, bytes]:
    packed = zlib.compress(bytes(choose.choice((10, 1_000_000))))
    return choose.choice(
        (
            (b"eXIf", directory(choose)),
            (b"zTXt", b"Raw profile type exif\0\0" + packed),
            (b"tEXt", b"Raw profile type exif\0\nexif\n8\n" + directory(choose).hex().encode()),
            (b"iTXt", b"XML:com.adobe.xmp\0" + bytes((choose.randrange(2),)) + b'\0\0\0tiff:Orientation="3"'),
            (b"iCCP", b"a\0\0" + packed),
            (b"tRNS", bytes(choose.choice((1, 2, 6, 300)))),
            (b"PLTE", bytes(choose.choice((3, 30, 768, 771)))),
            (b"acTL", struct.pack(">II", choose.choice(NUMBERS), 0)),
            (b"fcTL", struct.pack(">IIIIIHHBB", 0, *(choose.choice(NUMBERS) for _ in range(4)), 1, 1, choose.randrange(3), 1)),
            (b"IDAT", b""),
            (b"IDAT", packed),
        )
    )


def split_webp(data: bytes) -> tuple[bytes, list]:
    parts, at = [], 12
    while at < len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        parts.append((kind, data[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return b"", parts


def join_webp(head: bytes, parts: list) -> bytes:
    body = b"".join(kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2) for kind, content in parts)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def extra_webp(choose: random.Random) -> tuple[bytes, bytes]:
    side = choose.choice(NUMBERS) % (1 << 24)
    return choose.choice(
        (
            (b"EXIF", directory(choose)),
            (b"XMP ", b'tiff:Orientation="5"'),
            (b"ICCP", bytes(100)),
            (b"VP8X", bytes((choose.randrange(256), 0, 0, 0)) + side.to_bytes(3, "little") + b"\5\0\0"),
            (b"ANIM", bytes(6)),
            (b"ANMF", bytes(6) + side.to_bytes(3, "little") + b"\5\0\0" + bytes(4)),
            (b"ALPH", bytes((choose.randrange(256),)) + bytes(20)),
        )
    )


# -- GIF: (introducer, content) -------------------------------------------------------------------------------------------


def split_gif(data: bytes) -> tuple[bytes, list]:
    at = 13 + (6 << (data[10] & 7) if data[10] & 128 else 0)
    head, parts = data[:at], []
    while data[at : at + 1] in (b"!", b","):
        start, at = at, at + (2 if data[at] == 0x21 else 10)
        if data[start] == 0x2C:
            at += (6 << (data[at - 1] & 7) if data[at - 1] & 128 else 0) + 1
        while data[at]:
            at += 1 + data[at]
        at += 1
        parts.append((data[start : start + 1], data[start + 1 : at]))
    return head, parts


def join_gif(head: bytes, parts: list) -> bytes:
    return head + b"".join(kind + content for kind, content in parts) + b";"


def extra_gif(choose: random.Random) -> tuple[bytes, bytes]:
    sides = struct.pack("<4H", *(choose.choice(NUMBERS) % 65536 for _ in range(4)))
    return choose.choice(
        (
            (b"!", b"\xfe\x09a comment\0"),
            (b"!", b"\xf9\4" + bytes((choose.randrange(256),)) + b"\1\0\2\0"),
            (b"!", b"\xff\x0bNETSCAPE2.0\3\1\0\0\0"),
            (b",", sides + b"\0\2\2\x4c\1\0"),
        )
    )


FORMATS = (
    (b"\xff\xd8", split_jpeg, join_jpeg, extra_jpeg),
    (b"\x89PNG", split_png, join_png, extra_png),
    (b"GIF8", split_gif, join_gif, extra_gif),
    (b"RIFF", split_webp, join_webp, extra_webp),
)


# -- TIFF and AVIF: changed in place, as all offsets are absolute -------------------------------------------------------

TAGS = (256, 257, 258, 259, 262, 266, 270, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 330, 338, 339, 347)
TAGS += (513, 514, 529, 530, 531, 532, 700, 34377, 34665, 34675, 34853)


def _tiff(data: bytes, choose: random.Random) -> bytes:
    """Entries of the first directory exchanged, added by the thousand, pointed anywhere; the directory moves to the end."""
    order, big = "<" if data[:2] == b"II" else ">", 43 in data[2:4]
    word, room, places = ("Q", 8, "Q") if big else ("I", 4, "H")
    (at,) = struct.unpack_from(order + word, data, 8 if big else 4)
    (count,) = struct.unpack_from(order + places, data, at)
    form, at = f"{order}HH{word}{room}s", at + struct.calcsize(order + places)
    size = struct.calcsize(form)
    rows = [list(struct.unpack_from(form, data, at + size * row)) for row in range(count)]
    for _ in range(choose.choice((1, 1, 2, 4))):
        row, way = choose.choice(rows), choose.randrange(6)
        if way == 0:
            row[0] = choose.choice(TAGS)
        elif way == 1:
            row[1] = choose.randrange(20)
        elif way == 2:
            row[2] = choose.choice((*NUMBERS, len(data)))
        elif way in (3, 4):
            row[3] = struct.pack(order + word, choose.choice((*NUMBERS, len(data) - 1)))
        else:
            new = [choose.choice(TAGS), choose.choice((1, 3, 4, 7)), choose.choice((1, 1, 100, len(data)))]
            rows += [[*new, struct.pack(order + word, choose.choice(NUMBERS))]] * choose.choice((1, 1, 3, 2000))
    if choose.random() < 0.8:
        rows.sort(key=lambda row: row[0])
    out = data[: 8 if big else 4] + struct.pack(order + word, len(data)) + data[16 if big else 8 :]
    out += struct.pack(order + places, len(rows)) + b"".join(struct.pack(form, *row) for row in rows) + bytes(room)
    return out


def _boxes(data: bytes, choose: random.Random) -> bytes:
    """A number or a kind within the boxes that describe the picture (all but the coded numbers), at its old length."""
    end, out = data.index(b"mdat"), bytearray(data)
    for _ in range(choose.choice((1, 1, 2, 4))):
        at, size = choose.randrange(8, end), choose.choice((1, 1, 2, 4))
        value = (choose.choice(NUMBERS) % (1 << 8 * size)).to_bytes(size, "big")
        kinds = (b"irot", b"imir", b"ispe", b"infe", b"grid", b"Exif", b"iovl", b"auxC", b"a1lx", b"pitm")
        at, value = (data.index(kind, 0), choose.choice(kinds)) if (kind := choose.choice(kinds)) in data[:end] else (at, value)
        out[at : at + len(value)] = value
    return bytes(out)
