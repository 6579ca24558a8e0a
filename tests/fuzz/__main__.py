"""The runner: inputs in child processes, a watch on time and memory, a count of outcomes."""

import argparse
import json
import mmap
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

from tests.fuzz.corpus import CORPUS
from tests.fuzz.mutate import mutate
from tests.fuzz.readers import AVIF, FILE_ERRORS, READERS

MAX_SECONDS = 2.0  # of processor time, an input
MAX_MEMORY = 64 << 10  # kilobytes above the reader's peak on valid files
HANG = 20.0  # seconds without progress after which a child is killed
CHUNK = 1000  # inputs a child


def corpus_of(reader: str) -> list[tuple[str, bytes]]:
    folders = (CORPUS / READERS[reader][2], CORPUS / "regressions" / READERS[reader][2])
    paths = [path for folder in folders for path in sorted(folder.glob("*"))]
    return [(path.name, path.read_bytes()) for path in paths if path.suffix != ".avif" or AVIF]


def input_number(reader: str, number: int, files: list[tuple[str, bytes]]) -> tuple[str, bytes]:
    choose = random.Random(f"{reader} {number}")
    name, data = choose.choice(files)
    return name, mutate(data, reader, choose, [data for _, data in files])


def run_one(reader: str, name: str, data: bytes, folder: Path, memory_counts: bool = True) -> tuple[str, str]:
    """("accepted" or "refused" or "defect", why)."""
    function, takes_path, _ = READERS[reader]
    path = folder / name
    if takes_path:
        path.write_bytes(data)
    before, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome, why = "accepted", ""
    try:
        function(path if takes_path else data)
    except FILE_ERRORS as error:
        outcome, why = "refused", str(error)
        if takes_path and str(path) not in why:
            outcome = "defect"
            why = f"the error does not name the file: {type(error).__name__}: {error}"
        if len(why) > 1000:
            outcome, why = "defect", f"an error of {len(why)} characters"
    except BaseException:
        outcome, why = "defect", traceback.format_exc()
    seconds = time.process_time() - before
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    if seconds > MAX_SECONDS or (memory_counts and grown > MAX_MEMORY):
        outcome, why = "defect", f"{seconds:.1f} s, {grown // 1024} MB more memory; {outcome}: {why}"
    return outcome, why


def child(reader: str, numbers: range, files: list, board: mmap.mmap, report: int) -> None:
    """Run inputs; write on the board which one it is, to the report what is a defect, at the end the counts."""
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", RuntimeWarning)
    warnings.filterwarnings("ignore", "Image size")
    counts = {"accepted": 0, "refused": 0, "defect": 0}
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        for name, data in files:  # as they are: none may break a rule; and the reader imports and allocates what it needs once
            outcome, why = run_one(reader, name, data, Path(folder), memory_counts=False)
            if outcome == "defect" or (outcome == "refused" and (CORPUS / READERS[reader][2] / name).exists()):
                counts["defect"] += 1
                os.write(report, json.dumps([-1, f"{name}, of the corpus: {outcome} {why[:3000]}"]).encode() + b"\n")
        for number in numbers:
            board[:8] = struct.pack("<q", number)
            outcome, why = run_one(reader, *input_number(reader, number, files), Path(folder))
            counts[outcome] += 1
            if outcome == "defect":
                os.write(report, json.dumps([number, why[:3000]]).encode() + b"\n")
    os.write(report, json.dumps(counts).encode() + b"\n")


def run_chunk(reader: str, numbers: range, files: list) -> tuple[dict[str, int], list[tuple[int, str]], int]:
    """(counts, defects, the number to go on with)."""
    board = mmap.mmap(-1, 8)
    board[:8] = struct.pack("<q", numbers.start)
    with tempfile.TemporaryFile() as report:
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff complains there
            status = 1
            try:
                child(reader, numbers, files, board, report.fileno())
                status = 0
            finally:
                os._exit(status)
        last, since = -1, time.monotonic()
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                break
            (now,) = struct.unpack("<q", board[:8])
            if now != last:
                last, since = now, time.monotonic()
            elif time.monotonic() - since > HANG:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        report.seek(0)
        lines = [json.loads(line) for line in report.read().splitlines()]
    defects = [(number, why) for number, why in (line for line in lines if isinstance(line, list))]
    if status == 0:
        return lines[-1], defects, numbers.stop
    (last,) = struct.unpack("<q", board[:8])
    killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    reason = f"no end within {HANG} s" if killed == signal.SIGKILL else f"the process died (wait status {status})"
    counts = {"accepted": 0, "refused": last - numbers.start - len(defects), "defect": len(defects) + 1}
    return counts, [*defects, (last, reason)], last + 1


def fuzz(reader: str, start: int, inputs: int | None, seconds: float | None) -> tuple[int, dict[str, int], list]:
    files = corpus_of(reader)
    counts, defects, number, begun = {"accepted": 0, "refused": 0, "defect": 0}, [], start, time.monotonic()
    while True:
        left = CHUNK if inputs is None else min(CHUNK, start + inputs - number)
        if left <= 0 or (seconds is not None and time.monotonic() - begun > seconds):
            return number - start, counts, defects
        size = left if seconds is None else min(left, 200)
        more, found, number = run_chunk(reader, range(number, number + size), files)
        counts = {key: counts[key] + more[key] for key in counts}
        defects += found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the readers of effnet_np.")
    parser.add_argument("--minutes", type=float, help="in all, shared among the readers")
    parser.add_argument("--inputs", type=int, help="a reader")
    parser.add_argument("--start", type=int, help="number of the first input (default: by the clock)")
    parser.add_argument("--reader", choices=READERS, action="append", help="may be given again (default: all)")
    parser.add_argument("--replay", type=Path, help="run this one file")
    parser.add_argument("--defects", type=Path, default=Path("fuzz-defects"), help="where inputs that break a rule go")
    options = parser.parse_args()
    readers = options.reader or list(READERS)
    if options.replay:
        with tempfile.TemporaryDirectory() as folder:
            print(*run_one(readers[0], options.replay.name, options.replay.read_bytes(), Path(folder)))
        return 0
    if options.minutes is None and options.inputs is None:
        parser.error("say --minutes or --inputs")
    seconds = None if options.minutes is None else options.minutes * 60 / len(readers)
    start = int(time.time()) * 1000 if options.start is None else options.start
    print(f"{'reader':12} {'first':>14} {'inputs':>8} {'accepted':>9} {'refused':>8} {'defects':>8} {'seconds':>8}", flush=True)
    found = False
    for reader in readers:
        begun = time.monotonic()
        inputs, counts, defects = fuzz(reader, start, options.inputs, seconds)
        row = f"{inputs:8} {counts['accepted']:9} {counts['refused']:8} {len(defects):8} {time.monotonic() - begun:8.1f}"
        print(f"{reader:12} {start:14} {row}", flush=True)
        files = corpus_of(reader)
        for number, why in defects:
            found = True
            if defects.index((number, why)) < 10:
                print(f"\n-- {reader} input {number}\n{why}")
            if number < 0:
                continue
            name, data = input_number(reader, number, files)
            options.defects.mkdir(exist_ok=True)
            (options.defects / f"{reader}-{number}-{name}").write_bytes(data)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
