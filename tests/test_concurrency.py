"""Many threads, many processes, one model in NumPy: every answer bit for bit the same."""

import asyncio
import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import effnet_np
from effnet_np import hub

from helpers import CHELSEA, COFFEE

CONFIG = effnet_np.EfficientNetConfig.preset("b0", width_coefficient=0.125, hidden_dim=160, image_size=64, num_labels=5)
THREADS, CALLS = 8, 50


@pytest.fixture(scope="module")
def small():
    """B0 at an eighth of its width, and eight pictures of different sizes."""
    model = effnet_np.EfficientNetForImageClassification(CONFIG, seed=0)
    generator = np.random.default_rng(1)
    for name, array in model.state_dict().items():  # weights with which the logits differ from picture to picture
        if array.ndim == 4:
            array[...] = generator.standard_normal(array.shape) * array[0].size ** -0.5
        elif name == "classifier.weight":
            array[...] = generator.standard_normal(array.shape) * 0.3
    model.image_processor = effnet_np.EfficientNetImageProcessor(size=64)
    pictures = [generator.integers(0, 256, (30 + 7 * n, 90 - 5 * n, 3), np.uint8) for n in range(8)]
    return model, pictures


def in_threads(work, count=THREADS):
    """Run work(0) to work(count - 1) at once, all starting together; give their results."""
    barrier = threading.Barrier(count)

    def run(number):
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def test_eight_threads_share_a_model(small):
    model, pictures = small
    expected = [effnet_np.classify(picture, model) for picture in pictures]
    assert len({str(answer) for answer in expected}) == len(pictures), "the answers do not differ: nothing would be noticed"

    def work(number):
        wrong = 0
        for call in range(CALLS):
            which = (number + call) % len(pictures)
            wrong += effnet_np.classify(pictures[which], model) != expected[which]  # scores compared as floats, bit for bit
        return wrong

    assert in_threads(work) == [0] * THREADS


def test_lite0_in_eight_threads():
    """The real network, found by its name in every thread: it is loaded once, and no thread sees half of it."""
    expected = [effnet_np.classify(photo) for photo in (CHELSEA, COFFEE)]
    path = hub.resolve("lite0")  # by this name it is not loaded yet
    results = in_threads(lambda number: [effnet_np.classify((CHELSEA, COFFEE)[number % 2], path) for _ in range(2)])
    for number, answers in enumerate(results):
        assert answers == [expected[number % 2]] * 2


def test_threads_that_load_write_and_read(small, tmp_path):
    """Saving and loading the same folder at once: each load is of a whole file, old or new."""
    model, _ = small
    model.save_pretrained(tmp_path)
    before = {name: array.copy() for name, array in model.state_dict().items()}

    def work(number):
        for _ in range(10):
            if number % 2:
                model.save_pretrained(tmp_path)
            else:
                loaded = effnet_np.EfficientNetForImageClassification.from_pretrained(tmp_path)
                assert all(array.tobytes() == before[name].tobytes() for name, array in loaded.state_dict().items())

    in_threads(work)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors", "preprocessor_config.json"]


def test_asyncio_to_thread(small):
    model, pictures = small
    expected = [effnet_np.classify(picture, model) for picture in pictures]

    async def serve():
        return await asyncio.gather(*(asyncio.to_thread(effnet_np.classify, picture, model) for picture in pictures * 10))

    assert asyncio.run(serve()) == expected * 10


def child_answer(picture):
    return effnet_np.classify(picture)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing_after_the_parent_has_used_the_model(method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"there is no {method} here")
    expected = effnet_np.classify(CHELSEA)
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(child_answer, [CHELSEA] * 4) == [expected] * 4


def test_fork_while_another_thread_holds_the_lock():
    """A child must not wait for a lock whose owner stayed in its parent."""
    code = f"""
import os, sys, threading, time
import effnet_np
module = sys.modules["effnet_np.classify"]
effnet_np.classify({str(CHELSEA)!r})
held = threading.Event()
def hold():
    with module._lock:
        held.set()
        time.sleep(60)
threading.Thread(target=hold, daemon=True).start()
held.wait()
child = os.fork()
if child == 0:
    print(effnet_np.classify({str(CHELSEA)!r})[0]["label"], flush=True)
    os._exit(0)
os.waitpid(child, 0)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=50)
    assert done.stdout == "tiger cat\n", done.stderr
