"""Whatever is raised, wherever: the next answer of a compiled model is right, and comes."""

import dis
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import effnet_np

from interrupts import Interrupt, network

pytest.importorskip("numba")
from effnet_np.kernels import table  # noqa: E402

KERNELS = str(Path(effnet_np.__file__).resolve().parent.parent / "kernels")
LOOKS_FOR_SIGNALS = {"RESUME", "CALL", "CALL_FUNCTION_EX", "CALL_KW", "JUMP_BACKWARD"}


def raise_at(step, function, *arguments):
    """Call function, raising at place number `step` of the kernels' Python files where a signal can. Gives whether it came.

    That is after a call, a jump backwards and at a function's start; elsewhere Python looks for no signal (no lock were safe).
    """
    left, before = step, {}

    def trace(frame, event, _):
        nonlocal left
        if not frame.f_code.co_filename.startswith(KERNELS):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            open_to_signals = before.get(frame, "RESUME") in LOOKS_FOR_SIGNALS
            before[frame] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            left -= open_to_signals
            if left == 0 and open_to_signals:
                raise Interrupt
        return trace

    outer = sys.gettrace()
    sys.settrace(trace)
    try:
        function(*arguments)
    except Interrupt:
        return True
    finally:
        sys.settrace(outer)
    return False


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_an_exception_at_any_place_leaves_the_model_right(threads):
    """Of a first call, which plans and starts the threads, and of later ones."""
    model = network("tiny")
    images = [np.random.default_rng(seed).standard_normal((1, 3, 32, 32)).astype(np.float32) for seed in range(2)]
    expected = [effnet_np.compile(model, 1)(image).logits for image in images]
    for fresh in (True, False):
        fast = effnet_np.compile(model, threads)
        step, came = 1, True
        while came:
            if fresh and step % 7 == 1:
                fast = effnet_np.compile(model, threads)
            came = raise_at(step, fast, images[0])
            assert fast._pool.words[table.GATE // 8] // table.MEMBERS % 2 == 0, f"a run is left open after place {step}"
            for image, logits in zip(images, expected, strict=True):
                np.testing.assert_array_equal(fast(image).logits, logits, err_msg=f"after place {step}")
            step += 7 if fresh and step > 400 else 1
        assert step > 20, step


def test_signals_by_the_hundred_two_and_four_threads():
    command = [sys.executable, str(Path(__file__).with_name("interrupts.py")), "300", "--threads", "2", "4", "--model", "tiny"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.endswith(" 0 wrong") for line in lines), done.stdout


@pytest.mark.usefixtures("many_cores")
def test_where_no_thread_can_be_started_fewer_do_the_work(monkeypatch):
    """Some of the threads that it wants, then none, then all: never more than there is memory for."""
    model, start, allowed = network("tiny"), threading.Thread.start, 1
    image = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    expected = effnet_np.compile(model, 1)(image).logits

    def limited(thread):
        nonlocal allowed
        if thread.name == "effnet_np" and allowed == 0:
            raise RuntimeError("can't start new thread")
        allowed -= thread.name == "effnet_np"
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    fast = effnet_np.compile(model, 8)
    before = threading.active_count()
    for more in (0, 0, 2, 0, 100, 0):
        allowed += more
        for _ in range(50):
            np.testing.assert_array_equal(fast(image).logits, expected)
    assert threading.active_count() - before == 7


def test_too_many_threads_find_no_place():
    """A thread that was started and not counted, as an interrupt can leave it, takes no scratch memory of others."""
    model = network("tiny")
    image = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    expected = effnet_np.compile(model, 1)(image).logits
    fast = effnet_np.compile(model, 2)
    for _ in range(6):
        fast._pool._others = 0  # forgotten
        for _ in range(100):
            np.testing.assert_array_equal(fast(image).logits, expected)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS binds on Linux")
def test_a_limit_on_address_space_ends_in_an_answer_or_a_memory_error():
    code = """
import resource, numpy as np, effnet_np
from interrupts import network
model = network("tiny")
image = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
expected = effnet_np.compile(model, 1)(image).logits
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
answers = 0
for megabytes in (1, 4, 12, 20, 40, 100):
    resource.setrlimit(resource.RLIMIT_AS, (used + (megabytes << 20), resource.RLIM_INFINITY))
    try:
        fast = effnet_np.compile(model, 32)
        for _ in range(3):
            assert np.array_equal(fast(image).logits, expected)
        answers += 1
    except MemoryError:
        pass
print("answers", answers)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) >= 1, done.stdout
