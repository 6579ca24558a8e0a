"""Traces from a stranger who means harm: each is refused, or read, at little cost, measured in a process of its own.

`python tests/test_hostile_traces.py` runs all of them and prints, for each, what came of it, kilobytes and seconds.
"""

import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

import effnet_np
from effnet_np import Trace
from effnet_np.inspection.measure import measure

MEGABYTES_ALLOWED = 64
SECONDS_ALLOWED = 2
HEADER = "# effnet_np trace 1"
ATTACKS = {}  # name: (function from an empty folder to a path, or to a pair to compare; words of the error, or of the report)


def attack(words):
    def register(build):
        name = build.__name__.replace("_", " ")
        assert name not in ATTACKS, name
        ATTACKS[name] = (build, words)
        return build

    return register


def npy(array, header=None):
    buffer = io.BytesIO()
    np.save(buffer, array)
    data = buffer.getvalue()
    if header is None:
        return data
    start = data.index(b"\n", 10) + 1
    return data[:8] + len(header).to_bytes(2, "little") + header + data[start:]


def npz(path, *parts, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in parts:
            file.writestr(f"{name}.npy", data)
    return path


def folder(path, lines, **files):
    path.mkdir(exist_ok=True)
    (path / "index.txt").write_text("\n".join([HEADER, *lines]) + "\n")
    for name, data in files.items():
        (path / f"{name}.bin").write_bytes(data)
    return path


# -- too much ---------------------------------------------------------------------------------------------------------


@attack("more than 20 times as much")
def an_npz_of_1_mb_that_unpacks_to_1_gb(path):
    with zipfile.ZipFile(path / "a.npz", "w", zipfile.ZIP_DEFLATED) as file:
        for index in range(8):
            with file.open(f"a{index}.npy", "w", force_zip64=True) as entry:
                entry.write(npy(np.empty((0, 1 << 15), np.float32)).replace(b"(0, 32768), }", b"(1024, 32768)}"))
                for _ in range(128):
                    entry.write(bytes(1 << 20))
    return path / "a.npz"


@attack("more than 20 times as much")
def an_h5_of_4_mb_that_unpacks_to_4_gb(path):
    lines = [f"output a{i} float32 - 2 4096 65536 output/a{i}" for i in range(4)]
    with h5py.File(path / "a.h5", "w", libver="earliest") as file:
        for i in range(4):
            array = file.create_dataset(f"output/a{i}", (4096, 65536), "f4", chunks=(1024, 65536), compression="gzip")
            packed = None
            for start in range(0, 4096, 1024):
                if packed is None:
                    array[start : start + 1024] = 0
                    packed = array.id.read_direct_chunk((0, 0))[1]
                else:
                    array.id.write_direct_chunk((start, 0), packed)
        file.attrs["format_version"] = 1
        file.attrs["index"] = "\n".join([HEADER, *lines])
    return path / "a.h5"


@attack("names a.bin twice")
def one_file_named_40_times(path):
    lines = [f"output a{i} float32 - 1 1000 a.bin" for i in range(40)]
    return folder(path / "a", lines, a=bytes(4000))


@attack("larger than 2097152 bytes")
def a_hundred_thousand_inputs_of_one_layer(path):
    return folder(path / "a", [f"input a.{i} float32 - 0 a.bin" for i in range(100_000)], a=bytes(4))


@attack("numbered NAME.0, NAME.1 without a gap")
def inputs_with_a_gap(path):
    return folder(path / "a", ["input a.1 float32 - 0 a.bin"], a=bytes(4))


@attack("larger than 2097152 bytes")
def an_index_of_64_mb(path):
    folder(path / "a", [])
    with open(path / "a/index.txt", "a") as file:
        for _ in range(64):
            file.write("#" * (1 << 20))
    return path / "a"


@attack("takes more than 2147483648 bytes")
def a_file_of_a_terabyte_full_of_holes(path):
    folder(path / "a", [f"output a float32 - 1 {1 << 38} a.bin"], a=b"")
    os.truncate(path / "a/a.bin", 1 << 40)
    return path / "a"


@attack("the index of .* names more than 10000 arrays")
def an_index_of_10_001_arrays(path):
    return folder(path / "a", [f"output a{i} float32 - 0 a{i}.bin" for i in range(10_001)])


@attack("holds more than 10000 .npy files")
def a_folder_of_10_001_arrays_without_index(path):
    (path / "a").mkdir()
    for i in range(10_001):
        (path / f"a/{i}.npy").touch()
    return path / "a"


@attack("not a readable .npz file")
def an_npz_with_a_hundred_thousand_entries(path):
    return npz(path / "a.npz", *((f"{i:05}", b"") for i in range(100_000)))


@attack("not a readable .npz file.*lie on each other")
def an_npz_whose_entries_share_their_bytes(path):
    data = npy(np.zeros(100_000, np.float32))
    whole = bytearray(npz(path / "a.npz", ("a0", data), ("a1", data)).read_bytes())
    second = whole.rindex(b"PK\1\2")
    whole[second + 42 : second + 46] = bytes(4)  # where the entry begins: with the first
    cut = whole.index(b"PK\3\4", 4)
    end = whole.rindex(b"PK\5\6")
    start = int.from_bytes(whole[end + 16 : end + 20], "little")
    del whole[cut:start]
    end = whole.rindex(b"PK\5\6")
    whole[end + 16 : end + 20] = cut.to_bytes(4, "little")
    (path / "a.npz").write_bytes(whole)
    return path / "a.npz"


@attack("is not a readable .npy file")
def a_npy_header_of_a_gigabyte(path):
    (path / "a").mkdir()
    data = b"\x93NUMPY\2\0" + (1 << 30).to_bytes(4, "little")
    (path / "a/a.npy").write_bytes(data)
    os.truncate(path / "a/a.npy", 1 << 31)
    return path / "a"


# -- not what it seems ------------------------------------------------------------------------------------------------


@attack("index.txt is not a file")
def a_pipe_as_index(path):
    (path / "a").mkdir()
    os.mkfifo(path / "a/index.txt")
    return path / "a"


@attack("a.npy is not a file")
def a_pipe_among_the_arrays_without_index(path):
    (path / "a").mkdir()
    os.mkfifo(path / "a/a.npy")
    return path / "a"


@attack("a.bin is not a file")
def a_pipe_as_array(path):
    folder(path / "a", ["output a float32 - 1 1 a.bin"])
    os.mkfifo(path / "a/a.bin")
    return path / "a"


@attack("lies outside the folder")
def a_link_out_of_a_folder_without_index(path):
    (path / "a").mkdir()
    (path / "secret.npy").write_bytes(npy(np.arange(9.0)))
    (path / "a/a.npy").symlink_to("../secret.npy")
    return path / "a"


@attack("lies outside the folder")
def a_link_as_index(path):
    (path / "a").mkdir()
    (path / "secret.txt").write_text("secret")
    (path / "a/index.txt").symlink_to("../secret.txt")
    return path / "a"


@attack("is no trace")
def a_pipe_named_as_npz(path):
    os.mkfifo(path / "a.npz")
    return path / "a.npz"


@attack("something else than an array")
def a_header_that_is_a_program(path):
    data = npy(np.zeros(3), b"{'descr': __import__('os').system('id'), 'fortran_order': False, 'shape': (3,)}\n")
    return npz(path / "a.npz", ("a", data))


@attack("something else than an array")
def a_header_of_brackets(path):
    (path / "a").mkdir()
    (path / "a/a.npy").write_bytes(npy(np.zeros(3), b"(" * 9000 + b"\n"))
    return path / "a"


@attack("/etc/hostname.bin is named in it, which lies outside the folder")
def an_absolute_path(path):
    return folder(path / "a", ["output a float32 - 1 1 /etc/hostname.bin"])


@attack(r"a.x00.bin is not there, or cannot be opened")
def a_name_with_a_zero_byte(path):
    return folder(path / "a", ["output a float32 - 1 1 a\0.bin"], a=bytes(4))


@attack("a.npy is not a readable .npy file")
def a_header_of_one_byte(path):
    (path / "a").mkdir()
    (path / "a/a.npy").write_bytes(b"\x93NUMPY\1\0\1\0" + bytes(99))
    return path / "a"


@attack("packed in a way that np.load does not read")
def an_npz_packed_with_lzma(path):
    return npz(path / "a.npz", ("a", npy(np.zeros(999))), method=zipfile.ZIP_LZMA)


@attack("packed in a way that np.load does not read, or encrypted")
def an_npz_that_is_encrypted(path):
    data = bytearray(npz(path / "a.npz", ("a", npy(np.zeros(999)))).read_bytes())
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(mark) + at] |= 1
    (path / "a.npz").write_bytes(data)
    return path / "a.npz"


@attack("a.npz is damaged at a")
def an_npz_whose_deflated_bytes_are_damaged(path):
    data = bytearray(npz(path / "a.npz", ("a", npy(np.arange(99_999.0))), method=zipfile.ZIP_DEFLATED).read_bytes())
    data[50_000:50_100] = b"\xff" * 100
    (path / "a.npz").write_bytes(data)
    return path / "a.npz"


@attack("a.npz is damaged at a.*CRC")
def an_npz_with_a_wrong_number(path):
    data = bytearray(npz(path / "a.npz", ("a", npy(np.arange(999.0)))).read_bytes())
    data[3000] ^= 1
    (path / "a.npz").write_bytes(data)
    return path / "a.npz"


@attack("line 2 of the index")
def twelve_dimensions(path):
    return folder(path / "a", ["output a float32 - 12 " + "2 " * 12 + "a.bin"], a=bytes(4 << 12))


@attack(r"line 2 of the index.*'output \\x1b\[2J")
def escape_sequences_in_an_index(path):
    return folder(path / "a", ["output \x1b[2J\x1b]0;mine\x07 float32 - x"])


# -- compare ----------------------------------------------------------------------------------------------------------


@attack("first divergence: a: DIFF")
def comparing_arrays_of_twelve_dimensions(path):
    array = np.random.default_rng(0).standard_normal((2,) * 12).astype(np.float32)
    return Trace.of({"a": array + 1}), Trace.of({"a": array})


@attack("first divergence: a: DIFF")
def a_weight_with_a_kernel_of_20_000(path):
    x = np.ones((1, 3, 4, 4), np.float32)
    weights = {"a.weight": np.zeros((3, 1, 20000, 0), np.float32)}
    return Trace.of({"a": x * 2}), Trace.of({"a": x}, {"a": (x,)}, weights)


@attack("first divergence: a: DIFF")
def inputs_and_weights_of_every_absurd_shape(path):
    y = np.random.default_rng(0).standard_normal((1, 3, 4, 4)).astype(np.float32)
    shapes = [(), (0,), (3,), (1, 3), (3, 0), (3, 3), (0, 3, 4, 4), (1, 0, 4, 4), (1, 3, 4, 4), (1, 3, 0, 4), (3, 0, 3, 3)]
    shapes += [(3, 3, 3, 3), (3, 1, 15, 15), (1, 1, 1, 1, 1)]
    for x in shapes:
        for w in shapes:
            weights = {f"a.{name}": np.ones(w, np.float32) for name in ("weight", "bias", "running_mean", "running_var")}
            for inputs in ((np.ones(x, np.float32),), (np.ones(x, np.float32), y), (y,)):
                effnet_np.compare(Trace.of({"a": y + 1}), Trace.of({"a": y}, {"a": inputs}, weights))
    return Trace.of({"a": y + 1}), Trace.of({"a": y})


@attack("first divergence: pixel_values: DIFF")
def pictures_of_every_absurd_shape(path):
    for shape in ((), (3,), (2, 3), (1, 3, 4), (1, 0, 4, 4), (0, 3, 4, 4), (1, 1, 1, 1), (1, 3, 40, 40, 1)):
        x = np.ones(shape, np.float32)
        effnet_np.compare(Trace.of({"pixel_values": x + 1}), Trace.of({"pixel_values": x}))
    return Trace.of({"pixel_values": np.ones(3)}), Trace.of({"pixel_values": np.zeros(3)})


@attack(r"first divergence: \\x1b\[31mred\\n\\u202eb: DIFF")
def escape_sequences_in_a_name(path):
    return Trace.of({"\x1b[31mred\n\u202eb": np.ones(3)}), Trace.of({"\x1b[31mred\n\u202eb": np.zeros(3)})


@attack("first divergence: a: DIFF")
def a_layer_of_100_mb(path):
    """Compared piece by piece; the arrays themselves are on both sides, and are not counted."""
    ours, theirs = np.ones(25_000_000, np.float32), np.zeros(25_000_000, np.float32)
    theirs[0] = 1
    ready.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return str(f"first divergence: a: {measure('a', ours, theirs, 1e-4).status}")


ready = []  # memory from which on it is counted


def outcome(source):
    """The error, or the report, or the numbers that were read."""
    try:
        if isinstance(source, str):
            return source
        if isinstance(source, tuple):
            result = effnet_np.compare(*source)
            assert result.to_html()
            assert result.to_json()
            return str(result)
        trace = Trace.load(source)
        return f"read {len(trace)}, {sum(array.nbytes for array in trace.values())}"
    except (ValueError, FileNotFoundError) as error:
        return f"{type(error).__name__}: {error}"


def measured(name):
    """In a child process: {"name", "outcome", "kilobytes", "seconds"}."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        with tempfile.TemporaryDirectory() as path:
            build, _ = ATTACKS[name]
            source = build(Path(path))
            before = ready[-1] if ready else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            begun = time.process_time()
            result = outcome(source)
            seconds, memory = time.process_time() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            line = {"name": name, "outcome": result, "kilobytes": memory, "seconds": round(seconds, 2)}
            os.write(into, json.dumps(line).encode()[:60_000])
            shutil.rmtree(path)
        os._exit(0)
    os.close(into)
    with os.fdopen(out, "rb") as file:
        text = file.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text) if text else {"name": name, "outcome": f"no end: {status}", "kilobytes": -1, "seconds": -1}


@pytest.fixture(scope="module")
def costs():
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", ATTACKS)
def test_at_little_cost(name, costs):
    cost = costs[name]
    assert re.search(ATTACKS[name][1], cost["outcome"], re.DOTALL), cost["outcome"][:1000]
    assert 0 <= cost["kilobytes"] < MEGABYTES_ALLOWED << 10, cost
    assert 0 <= cost["seconds"] < SECONDS_ALLOWED, cost
    if not cost["outcome"].startswith(("read", "first divergence")):
        assert cost["outcome"].startswith("ValueError: "), cost["outcome"]
        assert tempfile.gettempdir() in cost["outcome"], "the error does not name the file"
        assert len(cost["outcome"]) < 1000
        assert cost["outcome"].isprintable()


if __name__ == "__main__":
    for attack_name in ATTACKS:
        print(json.dumps(measured(attack_name)), flush=True)
