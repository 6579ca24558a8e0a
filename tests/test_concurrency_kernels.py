"""Threads and processes with the compiled model: every answer bit for bit the single-threaded one."""

import asyncio
import multiprocessing
import os
import subprocess
import sys

import pytest

import effnet_np

from helpers import CHELSEA
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
    assert "warmup" in subprocess.run(classify, env=environment, capture_output=True, text=True).stderr  # as where nothing is
