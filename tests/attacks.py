"""Checkpoints from a stranger who means harm: each attack is built here, with the words that its refusal must hold.

`python tests/attacks.py` runs all of them, each in a child process, and prints name, kilobytes and seconds spent on refusing.
It imports no torch: the pickles are written instruction by instruction.
"""

import io
import json
import os
import resource
import shutil
import struct
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
from safetensors.numpy import save

import effnet_np

ATTACKS = {}  # name: (function from an empty folder to what is loaded, words of the error)
CONFIG = effnet_np.EfficientNetConfig.preset("b0", width_coefficient=0.125, hidden_dim=160, image_size=64, num_labels=5)


def attack(words, name=None):
    def register(build):
        assert (name or build.__name__) not in ATTACKS, name
        ATTACKS[name or build.__name__] = (build, words)
        return build

    return register


def refused(source):
    """The error with which a checkpoint is refused; None if it was not."""
    try:
        effnet_np.EfficientNetForImageClassification.from_pretrained(source)
    except (ValueError, TypeError, FileNotFoundError) as error:
        return error
    return None


def with_config(folder, name, data, **fields):
    """A folder of config.json and one weight file, as HF makes it."""
    (folder / "config.json").write_text(json.dumps(CONFIG.to_dict() | fields))
    (folder / name).write_bytes(data)
    return folder


def good_state():
    return effnet_np.EfficientNetForImageClassification(CONFIG, seed=0).state_dict()


# -- pickles, written by hand ------------------------------------------------------------------------------------------


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value):
    return b"J" + struct.pack("<i", value) if abs(value) < 1 << 31 else b"\x8a\x08" + struct.pack("<q", value)


def tuple_of(values):
    return b"(" + b"".join(number(value) for value in values) + b"t"


def storage(key="0", numel=4, kind="ctorch\nFloatStorage\n", tag="storage", more=b""):
    return b"(" + text(tag) + kind.encode() + text(key) + text("cpu") + number(numel) + more + b"tQ"


def tensor(shape=(4,), strides=(1,), offset=0, where=None):
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + (where or storage()) + number(offset) + tuple_of(shape) + tuple_of(strides)
    return call + b"\x89ccollections\nOrderedDict\n)RtR"


def state(*values):
    return b"\x80\x02}(" + b"".join(text(f"t{index}") + value for index, value in enumerate(values)) + b"u."


def archive(pickle, storages=None, extra=(), method=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of entries with the same name
        file.writestr("archive/data.pkl", pickle, method)
        for key, data in (storages or {"0": bytes(16)}).items():
            file.writestr(f"archive/data/{key}", data)
        for name, data, *how in extra:
            file.writestr(name, data, *how)
    return buffer.getvalue()


def legacy(pickle, keys=("0",), tail=None, header=None):
    start = header or b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}" + text("little_endian") + b"\x88s."
    names = b"\x80\x02](" + b"".join(text(key) for key in keys) + b"e."
    return start + pickle + names + (struct.pack("<q", 4) + bytes(16) if tail is None else tail)


def pickle_attack(name, words, pickle):
    """The same pickle in both of PyTorch's formats."""
    attack(words, f"zip: {name}")(lambda folder: with_config(folder, "pytorch_model.bin", archive(pickle)))
    attack(words, f"legacy: {name}")(lambda folder: with_config(folder, "pytorch_model.bin", legacy(pickle)))


needless = "which a state dict does not need"
pickle_attack("global posix.system", f"names 'posix.system', {needless}", state(b"cposix\nsystem\n(" + text("id") + b"tR"))
pickle_attack("global eval", f"names 'builtins.eval', {needless}", state(b"cbuiltins\neval\n(" + text("1") + b"tR"))
pickle_attack("global torch.load", f"names 'torch.load', {needless}", state(b"ctorch\nload\n)R"))
pickle_attack("global without a call", "names 'os.environ'", state(b"cos\nenviron\n"))
pickle_attack("global by the stack", "instruction STACK_GLOBAL", state(text("posix") + text("system") + b"\x93"))
pickle_attack("global by INST", "instruction INST", state(b"(iposix\nsystem\n"))
pickle_attack("call by OBJ", "instruction OBJ", state(b"(ccollections\nOrderedDict\no"))
pickle_attack("call by NEWOBJ", "applies NEWOBJ to collections.OrderedDict", state(b"ccollections\nOrderedDict\n)\x81"))
pickle_attack("extension registry", "instruction EXT1", state(b"\x82\x01"))
pickle_attack("persistent id as text", "instruction PERSID", state(b"P0\n"))
pickle_attack("number as text", "instruction INT", state(b"I1\n"))
pickle_attack("REDUCE on a dictionary", "applies REDUCE to a dict", state(b"})R"))
pickle_attack(
    "REDUCE with other arguments", "calls collections.OrderedDict with arguments", state(b"ccollections\nOrderedDict\n}R")
)
pickle_attack("REDUCE on a storage type", "calls torch.FloatStorage with arguments", state(b"ctorch\nFloatStorage\n)R"))
pickle_attack("tensor of no storage", "calls torch._utils._rebuild_tensor_v2 with arguments", state(tensor(where=b"}")))
pickle_attack("BUILD on a tensor", "applies BUILD to a TensorView", state(tensor() + b"}b"))
pickle_attack("BUILD with a tuple", "applies BUILD to a tuple", state(b"})b"))
pickle_attack("SETITEM on a tensor", "applies SETITEM to a TensorView", state(tensor() + text("a") + text("b") + b"s"))
pickle_attack("SETITEM on a list", "applies SETITEM to a list", state(b"]" + text("a") + text("b") + b"s"))
pickle_attack("SETITEM with a tuple as key", "applies SETITEM to a tuple", state(b"})" + text("b") + b"s"))
pickle_attack("SETITEMS of three", "sets a key without a value", state(b"}(" + text("a") * 3 + b"u"))
pickle_attack("APPEND on a dictionary", "applies APPEND to a dict", state(b"}" + text("a") + b"a"))
pickle_attack("empty stack", "at byte [0-9]+ its pickle is malformed .IndexError", b"\x80\x02a.")
pickle_attack("memo of nothing", "is malformed [(]KeyError[)]", state(b"h\x07"))
pickle_attack("no end", "ends too early|exhausted|it holds a list|pickle", state(tensor())[:-1])
pickle_attack("state is a list", "it holds a list, not a dictionary", b"\x80\x02].")
pickle_attack("tensor without a name", "is a dict, not a tensor under a name", state(b"}"))
pickle_attack("number as name", "'5' is a TensorView, not a tensor under a name", b"\x80\x02}K\x05" + tensor() + b"s.")
doubling = b")" + b"".join(b"q%ch%c\x86" % (level, level) for level in range(200))  # a tuple of itself and itself, 200 times
pickle_attack("memo bomb as a value", "is a tuple, not a tensor", state(doubling))
pickle_attack("memo bomb as a key", "applies SETITEM to a tuple", state(b"}" + doubling + b"Ns"))
pickle_attack("memo bomb as a shape", "with arguments that it does not take", state(tensor().replace(tuple_of((4,)), doubling)))
pickle_attack("nested 100,000 deep", "is a tuple, not a tensor", state(b")" + b"\x85" * 100_000))
pickle_attack("list in itself", "is a list, not a tensor", state(b"]q\0h\0a"))
pickle_attack("a million steps", "takes more than 300000 steps", state(b"N" + b"q\0h\0" * 400_000))
pickle_attack("a million dictionaries", "takes more than 300000 steps", state(b"(" + b"}" * 1_000_000 + b"t"))
# Python's hash of a whole number is its remainder by 2^61 - 1: all of these fall into one place of a dictionary.
colliding = b"".join(b"\x8a\x0b" + (index * ((1 << 61) - 1)).to_bytes(11, "little") + b"N" for index in range(50_000))
pickle_attack("keys that collide", "has a number for a key that is not below", state(b"}(" + colliding + b"u"))
pickle_attack("a key below zero", "has a number for a key that is not below", state(b"}" + number(-1) + b"Ns"))
pickle_attack("Namespace as a weight", "is a argparse.Namespace, not a tensor", state(b"cargparse\nNamespace\n)\x81}b"))
pickle_attack(
    "Namespace made of a tensor", "applies NEWOBJ to argparse", state(b"cargparse\nNamespace\n" + tensor() + b"\x85\x81")
)
pickle_attack("a function as a weight", "is a _codecs.encode, not a tensor", state(b"c_codecs\nencode\n"))
pickle_attack("a NumPy number as a weight", "is a numpy.dtype, not a tensor", state(b"cnumpy\ndtype\n" + doubling + b"R"))
pickle_attack("attributes of a function", "applies BUILD to a torch._utils", state(b"ctorch._utils\n_rebuild_tensor_v2\n}b"))
pickle_attack(
    "parameter of no tensor", "calls torch._utils._rebuild_parameter", state(b"ctorch._utils\n_rebuild_parameter\n(}\x89tR")
)


def wrapped(name, inner):
    return b"\x80\x02}" + text(name) + inner[2:-1] + b"s."


pickle_attack("wrapped in state_dict, model and more", "entry .* is a dict, not a tensor",
              wrapped("state_dict", wrapped("model", wrapped("net", wrapped("module", state(tensor()))))))  # fmt: skip
pickle_attack(
    "wrapped around numbers", "entry 'x' is a int, not a tensor", wrapped("model", b"\x80\x02}" + text("x") + b"K\1s.")
)
pickle_attack("wrapped in itself", "is a dict, not a tensor", b"\x80\x02}q\0" + text("model") + b"h\0s.")
pickle_attack("text of 1 MB", "a text of 1000000 characters", state(text("x" * 1_000_000)))
pickle_attack("long equal keys", "a text of 500000 characters", state(b"}" + (text("x" * 500_000) + b"Ns") * 3))
lies = "refers to something that is not a storage of numbers"
pickle_attack("id: no storage", lies, state(tensor(where=storage(tag="module"))))
pickle_attack("id: a text", lies, state(text("0") + b"Q"))
pickle_attack(
    "id: complex", "names 'torch.ComplexFloatStorage'", state(tensor(where=storage(kind="ctorch\nComplexFloatStorage\n")))
)
pickle_attack("id: a function as type", lies, state(tensor(where=storage(kind="ccollections\nOrderedDict\n"))))
pickle_attack("id: a path as key", lies, state(tensor(where=storage(key="../data.pkl"))))
pickle_attack("id: fewer than no numbers", lies, state(tensor(where=storage(numel=-4))))
pickle_attack("id: 2^60 numbers", lies, state(tensor(where=storage(numel=1 << 60))))
pickle_attack("id: a view of a storage", lies, state(tensor(where=storage(more=tuple_of((1, 2))))))
pickle_attack(
    "id: two sizes of one storage",
    "should|describe storage '0' differently",
    state(tensor(), tensor(where=storage(numel=2), shape=(2,))),
)
pickle_attack("id: a storage that is not there", "not in the file|belongs to no tensor", state(tensor(where=storage(key="9"))))
pickle_attack("view past the end", "reaches beyond its storage of 4 numbers", state(tensor(shape=(5,))))
pickle_attack("view from beyond", "reaches beyond its storage", state(tensor(offset=1)))
pickle_attack("view of nothing from beyond", "reaches beyond its storage", state(tensor(shape=(0,), offset=5)))
pickle_attack("view with a negative offset", "with arguments that it does not take", state(tensor(offset=-1)))
pickle_attack("negative stride", "with arguments that it does not take", state(tensor(strides=(-1,))))
pickle_attack("stride zero", "entries of t0 overlap", state(tensor(strides=(0,))))
pickle_attack("stride zero, a terabyte", "entries of t0 overlap", state(tensor(shape=(1 << 38,), strides=(0,))))
pickle_attack("overlapping strides", "entries of t0 overlap", state(tensor(shape=(2, 2), strides=(1, 1))))
pickle_attack("more strides than sides", "1 dimensions but 2 strides", state(tensor(strides=(1, 1))))
pickle_attack("nine dimensions", "with arguments that it does not take", state(tensor(shape=(1,) * 9, strides=(1,) * 9)))
pickle_attack("storage shorter than it says", "should (be|hold)", state(tensor(where=storage(numel=400), shape=(400,))))
pickle_attack("storage of a terabyte", "should (be|hold)", state(tensor(where=storage(numel=1 << 38), shape=(1 << 38,))))


def zip_attack(name, words, *arguments, change=lambda data: data, **options):
    attack(words, f"zip: {name}")(
        lambda folder: with_config(folder, "pytorch_model.bin", change(archive(*arguments, **options)))
    )


GOOD = state(tensor())


def patched(old, new, which=-1):
    """Replace bytes from the `which`-th "PK" + old on: headers of the zip itself."""

    def change(data):
        at = [index for index in range(len(data)) if data.startswith(old, index)][which]
        return data[:at] + new(data[at:])

    return change


def field(offset, data):
    return lambda tail: tail[:offset] + data + tail[offset + len(data) :]


CENTRAL = b"PK\1\2"
zip_attack("bomb as pickle", "data.pkl is compressed", b"\x80\x02" + b"N0" * 50_000_000 + b".", method=zipfile.ZIP_DEFLATED)
zip_attack(
    "bomb as byteorder",
    "byteorder is compressed",
    GOOD,
    extra=[("archive/byteorder", bytes(200_000_000), zipfile.ZIP_DEFLATED)],
)
zip_attack(
    "byteorder of 100 MB", "byteorder holds 100000000 bytes, more", GOOD, extra=[("archive/byteorder", bytes(100_000_000))]
)
zip_attack("big-endian", "big-endian", GOOD, extra=[("archive/byteorder", b"big")])
zip_attack(
    "compressed storage",
    "should be 16 uncompressed bytes",
    GOOD,
    {"1": b""},
    extra=[("archive/data/0", bytes(16), zipfile.ZIP_DEFLATED)],
)
zip_attack("pickle of 3 MB", "data.pkl holds 3000000 bytes, more", b"N" * 3_000_000)
zip_attack("a storage twice", "two of its entries have the same name", GOOD, extra=[("archive/data/0", bytes(16))])
zip_attack("the pickle twice", "one <folder>/data.pkl, found 2", GOOD, extra=[("archive/data.pkl", GOOD)])
zip_attack("two folders", "one <folder>/data.pkl, found 2", GOOD, extra=[("other/data.pkl", GOOD)])
zip_attack("entry ../x", "'../../x' is named like a path to another folder", GOOD, extra=[("../../x", b"")])
zip_attack("entry /etc/x", "'/etc/x' is named like a path", GOOD, extra=[("/etc/x", b"")])
zip_attack("entry ..\\x", "is named like a path", GOOD, extra=[("archive\\..\\x", b"")])
zip_attack("encrypted", "encrypted", GOOD, change=patched(CENTRAL, field(8, b"\1\0"), 0))
zip_attack("unknown compression", "data.pkl is compressed", GOOD, change=patched(CENTRAL, field(10, b"\x63\0"), 0))
zip_attack("version 25.5", "zip file version", GOOD, change=patched(CENTRAL, field(6, b"\xff\0"), 0))
zip_attack(
    "entry beyond the file",
    "is not a readable PyTorch checkpoint",
    GOOD,
    change=patched(CENTRAL, field(42, b"\xff\xff\xff\x7f"), 0),
)
zip_attack("pickle with a wrong checksum", "Bad CRC-32", GOOD, change=patched(CENTRAL, field(16, b"\0\0\0\0"), 0))
zip_attack(
    "100,000 entries", "is not a readable PyTorch checkpoint", GOOD, extra=[(f"a/{index}", b"") for index in range(100_000)]
)
fake = b"PK\3\4" + struct.pack("<HHHHHIIIHH", 20, 0, 0, 0, 0, 0, 0, 0, 4000, 0) + b"y" * 4000  # an entry in an entry
zip_attack(
    "another name of 4,000 letters",
    "File name in directory 'archive/data.pkl' and header b'yyy",
    GOOD,
    {"0": bytes(16), "1": fake},
    change=lambda data: patched(CENTRAL, field(42, struct.pack("<I", data.index(fake))), 0)(data),
)
zip_attack("cut off", "not a zip file", GOOD, change=lambda data: data[:-30])


def _lie(data):
    """The entry of storage 1 claims four gigabytes, in both of its sizes."""
    return patched(CENTRAL, field(20, struct.pack("<II", 4_000_000_032, 4_000_000_032)), 2)(data)


two_storages = state(tensor(), tensor(where=storage("1", 1_000_000_008), shape=(1_000_000_008,)))
zip_attack(
    "a storage that claims 4 GB",
    "its storages would hold 4000000048 bytes, more than the whole file",
    two_storages,
    {"0": bytes(16), "1": b"x"},
    change=_lie,
)


def legacy_attack(name, words, *arguments, **options):
    attack(words, f"legacy: {name}")(lambda folder: with_config(folder, "pytorch_model.bin", legacy(*arguments, **options)))


legacy_attack("no magic number", "starts neither as a zip nor", GOOD, header=b"\x80\x02K\x05.")
legacy_attack(
    "big-endian",
    "its header is not that of protocol 1001",
    GOOD,
    header=legacy(b"").split(b"\x80\x02}")[0] + b"\x80\x02}" + text("little_endian") + b"\x89s.",
)
legacy_attack("count of numbers lies", "should hold 4 numbers; the file says 9", GOOD, tail=struct.pack("<q", 9) + bytes(36))
legacy_attack("count is negative", "should hold 4 numbers; the file says -1", GOOD, tail=struct.pack("<q", -1) + bytes(16))
legacy_attack("numbers cut off", "or ends sooner", GOOD, tail=struct.pack("<q", 4) + bytes(15))
legacy_attack("no numbers", "or ends sooner", GOOD, tail=b"")
legacy_attack("a key twice", "not a list of different names", GOOD, keys=("0", "0"))
legacy_attack("pickle of 30 MB", "pickle", b"\x80\x02" + b"N0" * 15_000_000 + b".")


# -- safetensors -------------------------------------------------------------------------------------------------------


def safetensors_attack(name, words, header, data=bytes(16), length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    whole = struct.pack("<Q", len(raw) if length is None else length) + raw + data
    attack(words, f"safetensors: {name}")(lambda folder: with_config(folder, "model.safetensors", whole))


def entry(dtype="F32", shape=(4,), offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


safetensors_attack("empty", "its header would be", b"", b"", 0xFFFFFFFFFFFFFFFF)
safetensors_attack("header of 2^63 bytes", "its header would be 9223372036854775808 bytes long", {"a": entry()}, length=1 << 63)
safetensors_attack(
    "header past the end", "its header would be 1000 bytes long; 84 are possible", b'{"a": 1}' + b" " * 60, length=1000
)
safetensors_attack("header of 90 MB", "its header would be 90000000 bytes long; 2097152", b"{" + b" " * 89_999_998 + b"}")
safetensors_attack("header of 2 MB of lists", "more than 20000 objects and lists", b'{"a": [' + b"[]," * 600_000 + b"[]]}")
safetensors_attack(
    "header of 2 MB of names", "is not described by dtype", b"{" + b",".join(b'"%x":0' % n for n in range(190_000)) + b"}"
)
safetensors_attack("header 100,000 deep", "more than 20000 objects and lists", b'{"a":' * 100_000 + b"1" + b"}" * 100_000)
safetensors_attack("header 500 deep", "more than 20 deep", b'{"a":' * 500 + b"1" + b"}" * 500)
safetensors_attack("header is a list", "must hold a JSON object, got a list", b"[1]")
safetensors_attack("header is no JSON", "does not hold valid JSON", b"{oops}")
safetensors_attack("header is no UTF-8", "does not hold valid JSON", b'{"\xff": 1}')
safetensors_attack("header with a NaN", "NaN is no number of JSON", b'{"a": NaN}')
safetensors_attack("a name twice", "a key stands twice", b'{"a": 1, "a": 2}')
safetensors_attack(
    "overlap",
    "overlap or leave a gap: one ends at byte 16, the next starts at 8",
    {"a": entry(), "b": entry(offsets=(8, 24))},
    bytes(24),
)
safetensors_attack("the same bytes twice", "overlap or leave a gap", {"a": entry(), "b": entry()})
safetensors_attack(
    "gap", "overlap or leave a gap: one ends at byte 0, the next starts at 4", {"a": entry(offsets=(4, 20))}, bytes(20)
)
safetensors_attack("out of range", "but the file has", {"a": entry(offsets=(0, 16))}, bytes(8))
safetensors_attack("a terabyte", "but the file has", {"a": entry(shape=(1 << 38,), offsets=(0, 1 << 40))})
safetensors_attack("bytes left over", "but the file has", {"a": entry()}, bytes(99))
safetensors_attack("offsets backwards", "does not fill its bytes 16 to 0", {"a": entry(offsets=(16, 0))})
safetensors_attack("offsets negative", "must be lists of whole numbers", {"a": entry(offsets=(-16, 0))})
safetensors_attack("three offsets", "two in the second", {"a": entry(offsets=(0, 8, 16))})
safetensors_attack("shape of another size", "does not fill its bytes 0 to 16", {"a": entry(shape=(5,))})
safetensors_attack("shape that overflows", "does not fill its bytes", {"a": entry(shape=(1 << 33, 1 << 33))})
safetensors_attack("shape with a fraction", "must be lists of whole numbers", {"a": entry(shape=(4.0,))})
safetensors_attack("shape with truth in it", "must be lists of whole numbers", {"a": entry(shape=(True, 4))})
safetensors_attack("ten dimensions", "must be lists of whole numbers", {"a": entry(shape=(1,) * 9 + (4,))})
safetensors_attack("dtype F8", "a has dtype F8_E5M2; only BF16, F16, F32, F64, I64 can be read", {"a": entry("F8_E5M2", (16,))})
safetensors_attack("dtype invented", "a has dtype X99", {"a": entry("X99")})
safetensors_attack("dtype is a list", r"a has dtype \['F32'\]", {"a": entry(["F32"])})
safetensors_attack("a name of 100,000 letters", "longer than 500 characters", {"a" * 100_000: entry()})
safetensors_attack("entry is a number", "is not described by dtype, shape and data_offsets", {"a": 5})
safetensors_attack(
    "metadata of numbers", "its __metadata__ is not an object of texts", {"__metadata__": {"a": 1}, "a": entry()}
)


def weights_attack(name, words, **changes):
    """A good file in which some tensors are others."""

    def build(folder):
        return with_config(folder, "model.safetensors", save(good_state() | changes))

    attack(words, f"weights: {name}")(build)


BIAS, VARIANCE = "classifier.bias", "efficientnet.embeddings.batchnorm.running_var"
nonfinite = (
    "classifier.bias in .*model.safetensors holds NaN or infinite numbers; to load it all the same, pass allow_nonfinite"
)
weights_attack("NaN", nonfinite, **{BIAS: np.array([0, 1, np.nan, 0, 0], np.float32)})
weights_attack("infinite", nonfinite, **{BIAS: np.array([0, 1, -np.inf, 0, 0], np.float32)})
weights_attack("too large for float32", nonfinite, **{BIAS: np.array([0, 1, 1e300, 0, 0])})
weights_attack("whole numbers", "holds int64, where float32 is expected", **{BIAS: np.zeros(5, np.int64)})
weights_attack("negative variance", "has negative variances", **{VARIANCE: np.full(8, -1, np.float32)})
weights_attack("of another shape", "classifier.bias: expected [(]5,[)], got [(]6,[)]", **{BIAS: np.zeros(6, np.float32)})
weights_attack("one too many", "unexpected [(]1[)]:\n    extra", extra=np.zeros(3, np.float32))
many = {f"classifier.{index}": np.zeros(0, np.float32) for index in range(6000)}
weights_attack("6,000 tensors too many", "unexpected [(]6000[)]", **many)
twins = {"_conv_stem.weight": np.zeros(3, np.float32), "efficientnet.embeddings.convolution.weight": np.zeros(3, np.float32)}
weights_attack("under two names", "does not fit this model.*unexpected .*_conv_stem.weight.*wrong shape", **twins)


# -- HDF5 --------------------------------------------------------------------------------------------------------------


def h5_attack(name, words, libver="earliest", version=1, change=lambda data: data, **attributes):
    def register(write):
        def build(folder):
            with h5py.File(folder / "model.h5", "w", libver=libver) as file:
                if version is not None:
                    file.attrs["format_version"] = version
                for key, value in ({"config": json.dumps(CONFIG.to_dict())} | attributes).items():
                    file.attrs[key] = value
                if write:
                    write(file)
            (folder / "model.h5").write_bytes(change((folder / "model.h5").read_bytes()))
            return folder / "model.h5"

        attack(words, f"h5: {name}")(build)
        return write

    return register


linked = "is a soft link|is an external link"
h5_attack("soft link", linked)(lambda file: file.__setitem__("a", h5py.SoftLink("/b")))
h5_attack("soft link, deep", linked)(lambda file: file.__setitem__("a/b/c/d", h5py.SoftLink("/x")))
h5_attack("external link", linked)(lambda file: file.__setitem__("a", h5py.ExternalLink("/etc/passwd", "/")))
h5_attack("external link, deep", linked)(lambda file: file.__setitem__("a/b/c", h5py.ExternalLink("other.h5", "/x")))
h5_attack("external numbers", "a has its numbers in another file")(
    lambda file: file.create_dataset("a", (4,), "f4", external=[("/etc/passwd", 0, 16)])
)


@h5_attack("virtual dataset", "newer|virtual|dataspace not known")
def _virtual(file):
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4,))
    file.create_virtual_dataset("a", layout)


packed = "a is packed by filter"
ones = np.ones((64, 64), np.float32)
h5_attack("filter lzf", f"{packed} 32000")(lambda file: file.create_dataset("a", data=ones, compression="lzf"))
h5_attack("filter fletcher32", f"{packed} 3")(lambda file: file.create_dataset("a", data=ones, fletcher32=True))
h5_attack("filter scaleoffset", f"{packed} 6")(lambda file: file.create_dataset("a", data=ones.astype("i8"), scaleoffset=3))
h5_attack("shape of a terabyte, nothing stored", "takes 1099511627776 bytes; .* by the file")(
    lambda file: file.create_dataset("a", (1 << 38,), "f4")
)
h5_attack("shape of a terabyte in chunks", "but not the chunks of that shape: 0 of")(
    lambda file: file.create_dataset("a", (1 << 38,), "f4", chunks=(1 << 20,), compression="gzip")
)
h5_attack("some chunks missing", "but not the chunks of that shape: 1 of 4")(
    lambda file: file.create_dataset("a", (64,), "f4", chunks=(16,)).__setitem__(slice(0, 16), 1)
)
h5_attack("chunk larger than the array", "do not fit into its shape")(
    lambda file: file.create_dataset("a", data=np.ones(4, "f4"), maxshape=(None,), chunks=(1 << 28,), compression="gzip")
)


@h5_attack("gzip bomb", "far more than its bytes")
def _bomb(file):
    data = file.create_dataset("a", (1 << 20,), "f4", chunks=(1 << 20,), compression="gzip")
    data.id.write_direct_chunk((0,), zlib.compress(b"")[:8])


@h5_attack("chunk without its filter", "a chunk of a is not packed as it says")
def _masked(file):
    data = file.create_dataset("a", (4,), "f4", chunks=(4,), compression="gzip")
    data.id.write_direct_chunk((0,), bytes(16), filter_mask=1)


def _four_gigabytes(data):
    at = data.index(b"TREE\1") + 24  # the key of the first chunk: its size, its mask, its place
    return data[:at] + b"\xff" * 4 + data[at + 4 :]


@h5_attack("chunk of 4 GB", "a chunk of a is not packed as it says, or not in the file", change=_four_gigabytes)
def _long_chunk(file):
    file.create_dataset("a", data=np.ones(4, "f4"), chunks=(4,), compression="gzip")


@h5_attack("gzip bomb in a full chunk", "damaged at classifier.bias: a chunk of it does not unpack to 20 bytes")
def _hidden_bomb(file):
    for name, array in good_state().items():
        if name != "classifier.bias":
            file[name.replace(".", "/")] = array
    data = file.create_dataset("classifier/bias", (5,), "f4", chunks=(5,), compression="gzip")
    data.id.write_direct_chunk((0,), zlib.compress(bytes(300_000_000)))


plain = "is not a plain array of numbers"
h5_attack("object dtype", plain)(lambda file: file.create_dataset("a", data=["x", "y"], dtype=h5py.string_dtype()))
h5_attack("lists of numbers", plain)(lambda file: file.create_dataset("a", (2,), h5py.vlen_dtype(np.float32)))
h5_attack("references", plain)(lambda file: file.create_dataset("a", (2,), h5py.ref_dtype))
h5_attack("records", plain)(lambda file: file.create_dataset("a", (2,), [("x", "f4"), ("y", "i8")]))
h5_attack("texts", plain)(lambda file: file.create_dataset("a", data=np.array([b"abcd"])))
h5_attack("big-endian", plain)(lambda file: file.create_dataset("a", data=np.ones(3, ">f4")))
h5_attack("complex", plain)(lambda file: file.create_dataset("a", data=np.ones(3, np.complex64)))


@h5_attack("committed type", "committed type|neither a group nor an array")
def _committed(file):
    file["type"] = np.dtype("f4")
    file.create_dataset("a", (3,), dtype=file["type"])


h5_attack("no dataspace", "dataspace not known")(lambda file: file.create_dataset("a", data=h5py.Empty("f4")))
h5_attack("group in itself", "nested too deep")(lambda file: file.create_group("a").__setitem__("a", file))


@h5_attack("circles that branch", "is nested too deep|lead in a circle")
def _circles(file):
    for name in "abcdefgh":
        file[name] = file["/"]


h5_attack("groups 200 deep", "is nested too deep")(lambda file: file.create_dataset("/".join("a" * 200), data=1.0))
h5_attack("name with a dot", "empty or with a '.'")(lambda file: file.create_dataset("a.b", data=1.0))


@h5_attack("100,000 groups", "more than 4194304 bytes of headers")
def _groups(file):
    for index in range(20_000):
        file.create_group(str(index))


# The newer generation: superblocks 2 and 3, links in headers and fractal heaps, checksums everywhere.
LATEST = ("v110", "v110")


def newer_attack(name, words, **options):
    return h5_attack(f"newer: {name}", words, libver=LATEST, **options)


def _many(file, count=20):
    for index in range(count):
        file.create_dataset(f"many/a{index}", data=np.ones(3, "f4"))


def resealed(signature, offset, new, which=0, size=None):
    """Bytes of the structure with that signature replaced, and its checksum made right again."""

    def change(data):
        from effnet_np.checkpoints.h5_file import lookup3

        at = -1
        for _ in range(which + 1):
            at = data.index(signature, at + 1)
        data = bytearray(data)
        data[at + offset : at + offset + len(new)] = new
        end = at + (size if size is not None else {b"FRHP": 142, b"BTHD": 34}[signature])
        data[end : end + 4] = struct.pack("<I", lookup3(bytes(data[at:end])))
        return bytes(data)

    return change


def spoiled(signature, offset):
    def change(data):
        at = data.index(signature) + offset
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    return change


newer_attack("soft link", linked)(lambda file: file.__setitem__("a", h5py.SoftLink("/b")))
newer_attack("external link", linked)(lambda file: file.__setitem__("a", h5py.ExternalLink("/etc/passwd", "/")))
newer_attack("soft links in a heap", linked)(
    lambda file: [file.__setitem__(f"g/a{n}", h5py.SoftLink("/b")) for n in range(20)] and None
)
newer_attack("external links in a heap", linked)(
    lambda file: [file.__setitem__(f"g/a{n}", h5py.ExternalLink("x.h5", "/b")) for n in range(20)] and None
)
newer_attack("external numbers", "a has its numbers in another file")(
    lambda file: file.create_dataset("a", (4,), "f4", external=[("/etc/passwd", 0, 16)])
)
newer_attack("virtual dataset", "newer|virtual|dataspace not known")(_virtual)
newer_attack("committed type", "committed type|neither a group nor an array")(_committed)
newer_attack("group in itself", "nested too deep")(lambda file: file.create_group("a").__setitem__("a", file))
newer_attack("circles that branch", "is nested too deep|lead in a circle")(_circles)
newer_attack("array that can grow", "can grow, which lists its chunks")(
    lambda file: file.create_dataset("a", (64,), "f4", maxshape=(None,), chunks=(8,))
)
newer_attack("terabyte in chunks of one", "chunks, more than the 65536 allowed")(
    lambda file: file.create_dataset("a", (1 << 38,), "f4", chunks=(1,))
)
newer_attack("some chunks missing", "but not the chunks of that shape: 1 of 4")(
    lambda file: file.create_dataset("a", (64,), "f4", chunks=(16,)).__setitem__(slice(0, 16), 1)
)
newer_attack("filter lzf", f"{packed} 32000")(lambda file: file.create_dataset("a", data=ones, compression="lzf"))
newer_attack("chunk without its filter", "but not the chunks of that shape|not packed as it says")(_masked)
newer_attack("gzip bomb", "far more than its bytes")(_bomb)
for _signature, _offset in ((b"\x89HDF", 20), (b"OHDR", 9), (b"FRHP", 8), (b"BTHD", 6), (b"BTLF", 8), (b"FHDB", 60)):
    _named = _signature.decode("latin1").strip("\x89")
    newer_attack(f"{_named} changed", f"{_named} at byte [0-9]+ does not have its checksum|not there|would|is of another",
                 change=spoiled(_signature, _offset))(_many)  # fmt: skip
newer_attack("still open", "the program that wrote it did not close it", change=resealed(b"\x89HDF", 11, b"\1", size=44))(_many)
newer_attack("with an extension", "or has extensions", change=resealed(b"\x89HDF", 20, bytes(8), size=44))(_many)
newer_attack("short addresses", "or has extensions", change=resealed(b"\x89HDF", 9, b"\4\4", size=44))(_many)
newer_attack("root nowhere", "which is not there", change=resealed(b"\x89HDF", 36, b"\xff" * 8, size=44))(_many)
newer_attack("cut off", "it is cut off", change=lambda data: data[:-100])(_many)
newer_attack("heap of no width", "describes no space", change=resealed(b"FRHP", 110, b"\0\0"))(_many)
newer_attack("heap of first blocks of nothing", "describes no space", change=resealed(b"FRHP", 112, bytes(8)))(_many)
newer_attack(
    "heap of 2^60 bytes",
    "which is not there|does not lie|more than",
    change=resealed(b"FRHP", 112, struct.pack("<QQ", 1 << 60, 1 << 60)),
)(_many)
newer_attack("heap of 65,000 rows", "describes no space", change=resealed(b"FRHP", 140, b"\xff\xff"))(_many)
newer_attack("heap of 64 rows", "FHIB|which is not there", change=resealed(b"FRHP", 140, b"\x40\0"))(_many)
newer_attack("heap with filters", "is packed, or describes no space", change=resealed(b"FRHP", 7, b"\5\0"))(_many)
newer_attack(
    "heap's root is its header",
    "FHDB",
    change=lambda data: resealed(b"FRHP", 132, struct.pack("<Q", data.index(b"FRHP")))(data),
)(_many)
newer_attack("tree of another kind", "is of another kind or level", change=resealed(b"BTHD", 5, b"\x08"))(_many)
newer_attack("tree 60,000 levels high", "is of another kind or level", change=resealed(b"BTHD", 12, b"\xff\xff"))(_many)
newer_attack("tree one level high", "BTIN", change=resealed(b"BTHD", 12, b"\1\0"))(_many)
newer_attack("tree of records of nothing", "is of another kind or level", change=resealed(b"BTHD", 10, b"\0\0"))(_many)
newer_attack("tree of 65,535 records", "BTLF", change=resealed(b"BTHD", 24, b"\xff\xff"))(_many)
newer_attack("tree of nodes of nothing", "is of another kind or level", change=resealed(b"BTHD", 6, bytes(4)))(_many)


# -- Keras' files, and timm's configuration -----------------------------------------------------------------------------


def keras_config(*layers):
    """A configuration of these layers, (class, name, fields), before a first convolution."""
    described = [{"class_name": kind, "name": name, "config": fields} for kind, name, fields in layers]
    described.append({"class_name": "Conv2D", "name": "stem_conv", "config": {}})
    return json.dumps({"config": {"layers": described}})


def keras_weights(**more):
    """Two layers, by whose names the file is Keras', and more arrays, by place."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["stem_conv/stem_conv/kernel"] = np.ones((3, 3, 3, 4), np.float32)
        file["block1a_dwconv/block1a_dwconv/kernel"] = np.ones((3, 3, 4, 1), np.float32)
        for place, array in more.items():
            file[place] = array
    return buffer.getvalue()


def keras_zip(config=None, weights=None, method=zipfile.ZIP_STORED, more=(), change=lambda data: data):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of entries with the same name
        entries = [("config.json", keras_config() if config is None else config)]
        for name, data in [*entries, ("model.weights.h5", keras_weights() if weights is None else weights), *more]:
            if data != b"":
                file.writestr(name, data)
    return change(buffer.getvalue())


def keras_attack(name, words, **options):
    def build(folder):
        (folder / "model.keras").write_bytes(keras_zip(**options))
        return folder / "model.keras"

    attack(words, f"keras: {name}")(build)


def keras_h5_attack(name, words, **more):
    def build(folder):
        (folder / "model.weights.h5").write_bytes(keras_weights(**more))
        return folder / "model.weights.h5"

    attack(words, f"keras h5: {name}")(build)


def moved(data):
    """The list of entries says that the weights start 4 GB further on."""
    at = data.index(b"model.weights.h5", data.index(b"PK\1\2")) - 46
    return data[: at + 42] + b"\xf0\xff\xff\xff" + data[at + 46 :]


def flipped(data):
    at = data.index(b"stem_conv", data.index(b"model.weights.h5"))
    return data[:at] + b"X" + data[at + 1 :]


keras_attack("not a zip", "is not a readable .keras file", change=lambda data: b"x" * 100)
keras_attack("cut off", "is not a readable .keras file", change=lambda data: data[:-300])
keras_attack("compressed", "config.json is compressed or encrypted", method=zipfile.ZIP_DEFLATED)
keras_attack("no weights", "it holds no model.weights.h5", weights=b"")
keras_attack("no configuration", "it holds no config.json", config=b"")
keras_attack("two of one name", "two of one name", more=[("config.json", "{}")])
keras_attack("10,000 entries", "more than 100 entries", more=[(f"{n}", "x") for n in range(10_000)])
keras_attack("entry behind the end", "is not where the list|ends after|not a readable .keras", change=moved)
keras_attack("a byte changed", "model.weights.h5 does not have the checksum", change=flipped)
keras_attack("configuration of 3 MB", "larger than 2097152 bytes", config="{" + " " * 3_000_000 + "}")
keras_attack("configuration of brackets", "more than 200000 objects", config='{"a": [' + "[]," * 300_000 + "[]]}")
keras_attack("configuration nested deep", "valid JSON|more than 20 deep", config='{"a":' * 5000 + "1" + "}" * 5000)
keras_attack("configuration is a list", "must hold a JSON object", config="[]")
keras_attack("no layers", "lists no layers", config='{"config": {"layers": 5}}')
keras_attack("a layer without a class", "a layer without a class or a name", config='{"config": {"layers": [{"config": {}}]}}')
keras_attack("weights that are no HDF5", "is not a readable HDF5", weights=b"PK" * 100)
keras_attack(
    "rescaling by nothing", "numbers that cannot be", config=keras_config(("Rescaling", "r", {"scale": 0, "offset": 0}))
)
keras_attack("rescaling by a text", "something else than numbers", config=keras_config(("Rescaling", "r", {"scale": "x"})))
keras_attack("rescaling by a list", "7 numbers, where 1 or 3", config=keras_config(("Rescaling", "r", {"scale": [1] * 7})))
keras_attack(
    "negative variance", "numbers that cannot be", config=keras_config(("Normalization", "n", {"mean": 0, "variance": -1}))
)
keras_h5_attack("one name twice", "holds stem_conv.kernel twice", **{"x/stem_conv/kernel": np.ones(3, np.float32)})
keras_h5_attack("not a network of Keras", "is a checkpoint of Keras.*of none of its networks")
keras_h5_attack(
    "statistics of a million",
    "its layer Normalization is not one of 3 channels",
    **{f"normalization/normalization/{key}": np.ones(1_000_000, np.float32) for key in ("mean", "variance")},
)
keras_h5_attack("layers by number alone", "does not say which layer", **{"layers/conv2d/vars/0": np.ones(3, np.float32)})
keras_h5_attack("layers elsewhere", linked, **{"layers": h5py.SoftLink("/etc")})
keras_h5_attack("layers in another file", linked, **{"layers": h5py.ExternalLink("/etc/passwd", "/")})


def timm_attack(name, words, **fields):
    def build(folder):
        described = {"architecture": "tf_efficientnet_b0", "pretrained_cfg": TIMM_PRETRAINED | fields.pop("pretrained", {})}
        (folder / "config.json").write_text(json.dumps(described | fields))
        state = {
            "conv_stem.weight": np.ones((4, 3, 3, 3), np.float32),
            "blocks.0.0.conv_dw.weight": np.ones((4, 1, 3, 3), "f4"),
        }
        (folder / "model.safetensors").write_bytes(save(state))
        return folder

    attack(words, f"timm: {name}")(build)


TIMM_PRETRAINED = {"input_size": [3, 224, 224], "mean": [0.5] * 3, "std": [0.5] * 3}
timm_attack("another network", "has no architecture 'resnet50' that is known", architecture="resnet50")
timm_attack("architecture is a list", "its architecture is not a text", architecture=["b0"])
timm_attack("a network of 480 million numbers", "describes a network of 4[78].* numbers", architecture="tf_efficientnet_l2")
timm_attack("pretrained_cfg is a text", "its pretrained_cfg is not an object", pretrained_cfg="x")
timm_attack("input of a terapixel", "its input_size must be", pretrained={"input_size": [3, 1 << 20, 1 << 20]})
timm_attack("input that is no list", "its input_size must be", pretrained={"input_size": "big"})
timm_attack("crop_pct of nothing", "its crop_pct must be a number from 0.1 to 1", pretrained={"crop_pct": 1e-9})
timm_attack("crop_mode unknown", "is not known here", pretrained={"crop_mode": "border"})
timm_attack("interpolation is a list", "is not known here", pretrained={"interpolation": ["bicubic"]})
timm_attack("a billion classes", "num_labels must be a whole number", num_classes=10**9)
timm_attack("mean of a million", "describes a network", pretrained={"mean": [0.5] * 1000})


h5_attack("no version", "was not written by effnet_np", version=None)(None)
h5_attack("version from the future", "newer than the 1 known here: upgrade", version=2)(None)
h5_attack("version zero", "format_version is not a whole number of at least 1", version=0)(None)
h5_attack("version as text", "format_version is not a whole number", version="1")(None)
h5_attack("version of four numbers", "format_version is not a whole number|not written", version=np.arange(4))(None)
h5_attack("configuration is a number", "attribute config is not a text", config=5)(None)
h5_attack("configuration of 3 MB", "is larger than 2097152 bytes", config='{"a": "' + "x" * 3_000_000 + '"}')(None)
h5_attack("configuration of 30 MB", "more than 4194304 bytes of headers", config='{"a": "' + "x" * 30_000_000 + '"}')(None)
h5_attack("configuration is a list", "must hold a JSON object, got a list", config="[1]")(None)
h5_attack("cut off", "it is cut off", change=lambda data: data[:-100])(lambda file: file.create_dataset("a", data=ones))
h5_attack("not HDF5", "should be an object of 96 bytes|does not start as an HDF5 file", change=lambda data: b"CDF" + data[3:])(
    None
)


# -- descriptions ------------------------------------------------------------------------------------------------------


def config_attack(name, words, raw=None, **fields):
    def build(folder):
        with_config(folder, "model.safetensors", save({"a": np.zeros(3, np.float32)}), **fields)
        if raw is not None:
            (folder / "config.json").write_bytes(raw)
        return folder

    attack(words, f"config: {name}")(build)


config_attack("100,000 deep", "more than 20000 objects and lists", b'{"a":' * 100_000 + b"1" + b"}" * 100_000)
config_attack("500 deep", "more than 20 deep in each other", b'{"a":' * 500 + b"1" + b"}" * 500)
config_attack("of 200 MB", "is larger than 2097152 bytes", b'{"a": "' + b"x" * 200_000_000 + b'"}')
config_attack("of 2 MB of texts", "id2label", b'{"id2label": [' + '"a\u00e9",'.encode() * 340_000 + b'"x"]}')
config_attack("a list", "must hold a JSON object, got a list", b"[]")
config_attack("no JSON", "does not hold valid JSON", b"{]")
config_attack("no UTF-8", "does not hold valid JSON: .*utf-8", b'{"a": "\xff"}')
config_attack("a NaN", "NaN is no number of JSON", b'{"batch_norm_eps": NaN}')
config_attack("an infinity", "does not hold valid JSON: 1e999 is too large a number", b'{"batch_norm_eps": 1e999}')
config_attack("an infinity in a key of nobody's", "1e999 is too large a number", b'{"extra": [1e999]}')
config_attack("half a character", "does not hold valid JSON: .*surrogates not allowed", b'{"id2label": {"0": "\\ud800"}}')
config_attack("a key twice", "a key stands twice", b'{"image_size": 64, "image_size": 65}')
config_attack("width of 1e9", "width_coefficient must be finite and at most 10000", width_coefficient=1e9)
config_attack("width of 10^400", "width_coefficient must be finite", b'{"width_coefficient": 1' + b"0" * 400 + b"}")
config_attack("width of 9999", "hidden_dim", width_coefficient=9999)
config_attack("billions of numbers", "would have [0-9]+ numbers, more than the", width_coefficient=48, hidden_dim=61440)
config_attack("hidden_dim of 1e9", "hidden_dim must be at most 65536", hidden_dim=10**9)
config_attack("depth of 1e9", "depth_coefficient must be finite and at most", depth_coefficient=1e9)
config_attack("depth of 9999", "make [0-9]+ blocks, more than the 1000", depth_coefficient=9999)
config_attack("repeats of 1e9", "num_block_repeats.0. must be at most 65536", num_block_repeats=[10**9] * 7)
config_attack("a billion channels", "num_channels must be at most", num_channels=10**9)
config_attack(
    "a billion labels",
    "num_labels must be a whole number of at least 0 and at most 100000",
    id2label=None,
    label2id=None,
    num_labels=10**9,
)
config_attack("a million stages", "kernel_sizes has 100000 entries", kernel_sizes=[3] * 100_000)
config_attack("a million paddings", "depthwise_padding has 500000 entries", depthwise_padding=[0] * 500_000)
config_attack("expand_ratio of 60,000", "would have [0-9]+ numbers", expand_ratios=[60_000] * 7)
config_attack("kernels of 60,000", "would have [0-9]+ numbers", kernel_sizes=[60_000] * 7)
config_attack("list is a text", "kernel_sizes must be a list of whole numbers, got 'abc'", kernel_sizes="abc")
config_attack("list in a list", "strides.0. must be a whole number", strides=[[1]] * 7)
config_attack("flag is a text", "fix_head_stem must be true or false, got 'false'", fix_head_stem="false")
config_attack("labels are a list", "id2label and label2id must be dictionaries", id2label=["a"])
config_attack("a label is a list", "the labels in id2label must be texts", id2label={"0": ["a"]})
config_attack("replaces a method", "cannot have a key 'blocks'", blocks=5)
config_attack("replaces the class", "cannot have a key '__class__'", __class__="x")
config_attack("replaces all attributes", "cannot have a key '__dict__'", __dict__={})
multiples = [index * ((1 << 61) - 1) for index in range(60_000)]
config_attack("labels' numbers that collide", "must number its [0-9]+ labels from 0", id2label={str(n): "a" for n in multiples})
config_attack("labels that collide", "a label is a number of 2", id2label=dict(enumerate(multiples)))
config_attack("labels' names that collide", "must number its [0-9]+ labels|more than", id2label=dict.fromkeys(multiples, "a"))
thin = {"width_coefficient": 51.2, "hidden_dim": 65536, "out_channels": [1] * 7, "in_channels": [32] + [1] * 6}
thin |= {"expand_ratios": [1] * 7, "squeeze_expansion_ratio": 0.01}
labels = {"id2label": {str(index): "" for index in range(100_000)}, "label2id": None}
config_attack("a classifier of 100,000 x 65,536", "would have 65[0-9]{8} numbers, more than the", **thin, **labels)
labels = {"id2label": {str(index): "" for index in range(4000)}, "label2id": None}
config_attack("a classifier that the weights are not", "describes a network of 26[0-9]{7} numbers, but the", **thin, **labels)
config_attack("another model", "describes a model of type 'bert'", model_type="bert")
config_attack(
    "a network that the weights are not",
    "describes a network of [0-9]+ numbers, but the weights have 3",
    **effnet_np.EfficientNetConfig.preset("b7").to_dict(),
)


def processor_attack(name, words, **fields):
    def build(folder):
        with_config(folder, "model.safetensors", save(good_state()))
        processor = effnet_np.EfficientNetImageProcessor.preset("b0").to_dict()
        (folder / "preprocessor_config.json").write_text(json.dumps(processor | fields))
        return folder

    attack(words, f"processor: {name}")(build)


processor_attack("size of 65536 x 65536", "size must be at most 4194304 pixels in all", size={"height": 65536, "width": 65536})
processor_attack("size of 1e9", "size must be whole numbers between 1 and 65536", size=10**9)
processor_attack("crop of 65536 x 65536", "crop_size must be at most", crop_size=65536)
texts = ["x"] * 10_000 + ["x" * 100_000]  # an array of these would pad each to the longest: 4 GB
processor_attack("texts for a mean", "image_mean must be a number or a list of numbers", image_mean=texts)
processor_attack("lists for a size", "must be whole numbers between 1 and 65536", size={"height": [1] * 100_000, "width": 1})
processor_attack("replaces a method", "cannot have a key 'resize'", resize="x")
processor_attack("factor is a text", "rescale_factor must be a number", rescale_factor="1/255")
processor_attack("factor of 1e300", "rescale_factor must lie between", rescale_factor=1e300)
processor_attack("std that vanishes", "image_std must lie between", image_std=[1e-320] * 3)
processor_attack("flag is a text", "do_resize must be true or false, got 'false'", do_resize="false")
processor_attack("resample of 99", "resample must be one of", resample=99)


def index_attack(name, words, weight_map, prepare=lambda folder: None):
    def build(folder):
        with_config(folder, "model.safetensors.index.json", json.dumps({"weight_map": weight_map}).encode())
        (folder / "shard.safetensors").write_bytes(save({"a": np.zeros(3, np.float32)}))
        prepare(folder)
        return folder

    attack(words, f"index: {name}")(build)


other_folder = "which is not a weight file of the same folder"
index_attack("../", f"names '../x.safetensors', {other_folder}", {"a": "../x.safetensors"})
index_attack("absolute path", other_folder, {"a": "/etc/x.safetensors"})
index_attack("backslashes", other_folder, {"a": "..\\x.safetensors"})
index_attack("a zero byte", other_folder, {"a": "x\0.safetensors"})
index_attack("no weight file", other_folder, {"a": "config.json"})
index_attack("nothing", other_folder, {"a": ""})
index_attack("a number", "no weight_map from tensor names to file names", {"a": 5})
index_attack("a list", "no weight_map from tensor names to file names", ["a"])
index_attack("1,000 shards", "names more than 256 shards", {str(n): f"{n}.safetensors" for n in range(1000)})
index_attack("missing shard", "names the shard 'x.safetensors', but there is no such file", {"a": "x.safetensors"})
index_attack("tensor of no shard", "names tensors that their shards do not hold: b", {"b": "shard.safetensors"})


def _elsewhere(folder, name, link):
    target = folder.parent / f"elsewhere-{folder.name}"
    target.write_bytes((folder / name).read_bytes() if (folder / name).exists() else save({"a": np.zeros(3, np.float32)}))
    (folder / link).unlink(missing_ok=True)
    (folder / link).symlink_to(target)


index_attack(
    "symlink out of the folder",
    "is a link to .*, outside its folder",
    {"a": "x.safetensors"},
    lambda folder: _elsewhere(folder, "shard.safetensors", "x.safetensors"),
)
index_attack(
    "config.json is a symlink out",
    "config.json is a link to .*, outside its folder",
    {"a": "shard.safetensors"},
    lambda folder: _elsewhere(folder, "config.json", "config.json"),
)


@attack("model.safetensors is a link to .*, outside its folder", "symlink: weights out of the folder")
def _weights_link(folder):
    with_config(folder, "model.safetensors", save(good_state()))
    _elsewhere(folder, "model.safetensors", "model.safetensors")
    return folder


@attack("model.safetensors is a link to ../../blobs/model.safetensors, outside", "symlink: blobs is a link itself")
def _blobs_link(folder):
    snapshot, elsewhere = folder / "snapshots" / "abc", folder.parent / f"elsewhere-{folder.name}"
    snapshot.mkdir(parents=True)
    elsewhere.mkdir()
    with_config(elsewhere, "model.safetensors", save(good_state()))
    (folder / "blobs").symlink_to(elsewhere)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    return snapshot


def link_attack(name, words, target, prepare=lambda folder: None):
    """model.safetensors is a link; good weights stand in the folder above and in one beside."""

    def build(folder):
        inner = folder / "inner"
        for place in (inner, folder / "beside", folder / "blobs"):
            place.mkdir()
            with_config(place, "model.safetensors", save(good_state()))
        with_config(folder, "model.safetensors", save(good_state()))
        (inner / "model.safetensors").unlink()
        (inner / "model.safetensors").symlink_to(target.format(folder=folder))
        prepare(folder)
        return inner

    attack(words, f"symlink: {name}")(build)


link_attack("to the folder above", "outside its folder", "../model.safetensors")
link_attack("to a folder beside", "outside its folder", "../beside/model.safetensors")
link_attack("to blobs without snapshots", "outside its folder", "../blobs/model.safetensors")
link_attack("by an absolute path", "outside its folder", "{folder}/model.safetensors")
link_attack("through a folder and back", "outside its folder", "x/../../model.safetensors", lambda f: (f / "inner/x").mkdir())
link_attack("through a link to a folder", "outside its folder", "x/model.safetensors", lambda f: (f / "inner/x").symlink_to(f))
link_attack("by two links", "outside its folder", "x", lambda f: (f / "inner/x").symlink_to("../model.safetensors"))
link_attack("to itself", "outside its folder", "model.safetensors")


@attack("there is no file", "pipe: as model.bin")
def _pipe_weights(folder):
    os.mkfifo(folder / "model.bin")
    return folder / "model.bin"


@attack("are not of one save", "weights: of another save")
def _two_saves(folder):
    model = effnet_np.EfficientNetForImageClassification(CONFIG, seed=0)
    model.save_pretrained(folder)
    kept = (folder / "config.json").read_bytes()
    effnet_np.EfficientNetForImageClassification(CONFIG, seed=1).save_pretrained(folder)  # the same fields, other numbers
    (folder / "config.json").write_bytes(kept)
    return folder


@attack("there is no file", "pipe: as config.json")
def _pipe(folder):
    os.mkfifo(folder / "config.json")
    return folder / "config.json"


# -- the cost of refusing ----------------------------------------------------------------------------------------------


def in_child(function):
    """What a function gives, as JSON, run in a child process; None if that died."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, json.dumps(function()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(answer) if answer else None


def cost(source):
    """Kilobytes above an idle process, seconds of processor time, and the error, of one refusal."""
    base, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    error = refused(Path(source))
    spent = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base
    return {"kilobytes": spent, "seconds": round(time.process_time() - begun, 3), "error": str(error)[:200]}


def main():
    """One child builds an attack, another is attacked: so this process stays idle, and a child's memory starts from that."""
    effnet_np.classify(np.zeros((9, 9, 3), np.uint8))  # what is imported and allocated once
    with tempfile.TemporaryDirectory() as scratch:
        for index, (name, (build, _)) in enumerate(ATTACKS.items()):
            folder = Path(scratch) / str(index)
            folder.mkdir()
            source = in_child(lambda build=build, folder=folder: str(build(folder)))
            died = {"kilobytes": -1, "seconds": -1, "error": "the process died"}
            print(json.dumps({"name": name} | (in_child(lambda source=source: cost(source)) or died)), flush=True)
            shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
