"""A million names on stdin: how long `classify -` takes and what memory it holds; then --resume, which passes over them all.

    python tests/million_names.py [--names 1000000] [--every 1000]

One name in `--every` is a small picture, the others are of files that are not there: what is tried is the list, not the
network. The list is written into the pipe as it is read. The memory is the process's own (VmRSS), four times a second.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import PIL.Image


def feed(pipe, count: int, every: int, picture: Path) -> None:
    with pipe:
        for index in range(count):
            name = picture if index % every == 0 else f"missing/{index:09d}.jpg"
            pipe.write(f"{name}\n".encode())


def watch(process: subprocess.Popen, seen: list[float]) -> None:
    """Megabytes."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        while process.poll() is None:
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                if line.startswith("VmRSS"):
                    seen.append(int(line.split()[1]) / 1024)
            time.sleep(0.25)


def run(out: Path, options: argparse.Namespace, picture: Path) -> None:
    command = [sys.executable, "-m", "effnet_np", "classify", "-", "-o", str(out), "--resume"]
    began, seen, failures, last = time.monotonic(), [], 0, b""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    for target, arguments in ((feed, (process.stdin, options.names, options.every, picture)), (watch, (process, seen))):
        threading.Thread(target=target, args=arguments, daemon=True).start()
    for line in process.stderr:
        last, failures = line, failures + (b"there is no picture" in line)
    process.wait()
    tenths = [seen[len(seen) * tenth // 10] for tenth in range(1, 10)]
    with open(out, "rb") as file:
        print(f"{time.monotonic() - began:.0f} s; {failures} failures named on stderr, {sum(1 for _ in file)} records")
    print(f"  MB held: {', '.join(f'{each:.0f}' for each in tenths)}; at most {max(seen):.0f}")
    print(f"  exit status {process.returncode}, {last.decode().strip()}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", type=int, default=1_000_000)
    parser.add_argument("--every", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        picture, out = Path(temporary) / "picture.png", Path(temporary) / "out.jsonl"
        PIL.Image.fromarray(np.arange(3072, dtype=np.uint32).astype(np.uint8).reshape(32, 32, 3)).save(picture)
        run(out, options, picture)
        run(out, options, picture)


if __name__ == "__main__":
    main()
