"""Threads and processes with the compiled model: every answer bit for bit the single-threaded one."""

import asyncio
import multiprocessing
import os
import subprocess
import sys

import pytest

import effnet_np

from helpers import CHELSEA, COFFEE
from test_concurrency import CALLS, THREADS, in_threads, small  # noqa: F401 - a fixture

pytest.importorskip("numba")


@pytest.fixture(scope="module")
def compiled(small):  # noqa: F811
    model, pictures = small
    fast = effnet_np.compile(model)
    return fast, pictures, [effnet_np.classify(picture, fast) for picture in pictures]


def test_eight_threads_share_a_compiled_model(compiled):
    fast, pictures, expected = compiled
    assert len({str(answer) for answer in expected}) == len(pictures)

    def work(number):
        wrong = 0
        for call in range(CALLS):
            which = (number + call) % len(pictures)
            wrong += effnet_np.classify(pictures[which], fast) != expected[which]
        return wrong

    assert in_threads(work) == [0] * THREADS


def test_asyncio_to_thread(compiled):
    fast, pictures, expected = compiled

    async def serve():
        return await asyncio.gather(*(asyncio.to_thread(effnet_np.classify, picture, fast) for picture in pictures * 20))

    assert asyncio.run(serve()) == expected * 20


def child_answer(picture):
    return effnet_np.classify(picture, backend="numba")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing_after_the_parent_has_used_the_compiled_model(method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"there is no {method} here")
    expected = effnet_np.classify(CHELSEA, backend="numba")
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(child_answer, [CHELSEA] * 4) == [expected] * 4


@pytest.mark.parametrize("layer", ["workqueue", "omp", "tbb"])
def test_whatever_threading_layer_numba_is_told_to_use(layer):
    """The kernels have threads of their own; Numba's, which abort or die in such uses, are never entered."""
    code = f"""
import os, threading
os.environ["NUMBA_THREADING_LAYER"] = {layer!r}
import effnet_np
expected = effnet_np.classify({str(COFFEE)!r}, backend="numba")
answers = []
work = lambda: answers.append(effnet_np.classify({str(COFFEE)!r}, backend="numba"))
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert answers == [expected] * 8
child = os.fork()
if child == 0:
    os._exit(effnet_np.classify({str(COFFEE)!r}, backend="numba") != expected)
assert os.waitpid(child, 0)[1] == 0
print(expected[0]["label"])
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=200)
    assert done.stdout == "espresso\n", done.stderr


def test_two_processes_warm_the_same_cold_cache_and_then_it_is_garbage(tmp_path):
    environment = os.environ | {"EFFNET_NP_KERNEL_CACHE": str(tmp_path)}
    command = [sys.executable, "-m", "effnet_np.cli", "warmup"]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(2)]
    for process in both:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len([path for path in files if path.suffix == ".o"]) == 1, files
    assert not [path for path in files if path.suffix == ".tmp"], files
    classify = [sys.executable, "-m", "effnet_np.cli", "classify", str(CHELSEA), "--top-k", "1"]
    good = subprocess.run(classify, env=environment, capture_output=True, text=True)
    assert "tiger cat" in good.stdout, good.stderr
    code = next(path for path in files if path.suffix == ".o")
    code.write_bytes(b"garbage" * 1000)
    for more in ({}, {"NUMBA_DISABLE_JIT": "1"}):
        done = subprocess.run(classify, env=environment | more, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, good.stdout), done.stderr  # NumPy answers
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 0
    assert code.stat().st_size > 10_000, "the garbage was not replaced by code"
    assert subprocess.run(classify, env=environment, capture_output=True, text=True).stderr == ""
