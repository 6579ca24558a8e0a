"""Streams: lazy, in order, in bounded memory; the same bits as a list; no thread is left, whatever ends them."""

import gc
import io
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import PIL.Image
import pytest

import effnet_np
from effnet_np.images.processor import EfficientNetImageProcessor
from effnet_np.inference import pipeline
from effnet_np.inference.classify import get_runner
from effnet_np.inference.stream import LARGEST_WINDOW, WINDOW, best_of, preprocess, stream

from helpers import CHELSEA, COFFEE, pair, tiny_config

PHOTOS = [np.asarray(PIL.Image.open(path).convert("RGB")) for path in (CHELSEA, COFFEE)]


def pictures(count, seed=0):
    """Cuts of the photographs, no two the same."""
    generator = np.random.default_rng(seed)
    for index in range(count):
        photo = PHOTOS[index % 2]
        top, left = generator.integers(0, 100, 2)
        yield photo[top : top + 150 + index, left : left + 180 + index]


@pytest.fixture(scope="module")
def model():
    model = pair(tiny_config())[1]
    model.image_processor = EfficientNetImageProcessor(size=64, resample=2)
    return model


@pytest.fixture(params=["numpy", "numba"])
def runner(request, model):
    return get_runner(model, request.param, 2 if request.param == "numba" else None)


def threads_of_streams():
    """Those that run. A `Thread.start` that an interrupt ended inside of threading leaves one that is never alive."""
    return [thread for thread in threading.enumerate() if thread.name == pipeline.NAME and thread.is_alive()]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    gc.collect()
    assert not threads_of_streams()


# -- results -----------------------------------------------------------------------------------------------------------


def test_a_stream_is_what_a_list_gives_bit_for_bit(model, runner):
    expected = effnet_np.classify(list(pictures(37)), model=runner)
    assert len({str(answer) for answer in expected}) == 37
    for threads in (1, 2, 7):
        assert list(stream(runner, pictures(37), threads=threads)) == expected
    assert list(effnet_np.classify(pictures(37), model=runner)) == expected
    if runner is not model:  # the kernels: each picture by itself
        assert [effnet_np.classify(picture, model=runner) for picture in pictures(37)] == expected


def test_lists_of_the_embedded_model_are_what_each_picture_gives():
    one = [effnet_np.classify(path, backend="numba") for path in (CHELSEA, COFFEE)]
    assert effnet_np.classify([CHELSEA, COFFEE] * 9, backend="numba") == one * 9
    assert list(effnet_np.classify(itertools.islice(itertools.cycle([CHELSEA, COFFEE]), 18), backend="numba")) == one * 9


def test_outputs(model, runner):
    values = [model.image_processor(picture, return_tensors="np")["pixel_values"] for picture in pictures(9)]
    for ours, value in zip(stream(runner, pictures(9), "pixel_values"), values, strict=True):
        np.testing.assert_array_equal(ours, value[0])
    for ours, value in zip(stream(runner, pictures(9), "logits"), values, strict=True):
        np.testing.assert_allclose(ours, model(value).logits[0], rtol=1e-3, atol=1e-4)
        assert ours.dtype == np.float32
    backend = "numpy" if runner is model else "numba"
    for ours, value in zip(stream(get_runner(model, backend, features=True), pictures(9), "features"), values, strict=True):
        np.testing.assert_allclose(ours, model.efficientnet(value).pooler_output[0], rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="output must be one of labels, logits, features, pixel_values, got 'scores'"):
        stream(runner, [], "scores")
    if runner is not model:
        with pytest.raises(TypeError, match="compile its backbone"):
            list(stream(runner, pictures(3), "features"))


def test_images_that_go_through_together_give_what_each_gives_alone():
    """The embedded network, whose last blocks take several at once; more than go at once, fewer, and fewer again."""
    inputs = [preprocess(get_runner("lite0", "numba", 1), picture) for picture in pictures(21)]
    for threads in (1, 2, 3):
        runner = get_runner("lite0", "numba", threads)
        alone = [runner(value[None]).logits[0] for value in inputs]
        for count in (1, 2, 8, 21, 9, 3):
            np.testing.assert_array_equal(runner.of_each(inputs[:count]), alone[:count])
            np.testing.assert_array_equal(runner(np.stack(inputs[:count])).logits, alone[:count])
    late = runner._plans[(224, 224, False)].plan
    assert 0 < late.late < late.starts[-1]
    with pytest.raises(ValueError, match="NaN or infinite"):
        runner.of_each([inputs[0], np.full_like(inputs[0], np.nan)])
    with pytest.raises(TypeError):
        runner.of_each([np.zeros((3, 224, 224), np.int64)])
    np.testing.assert_array_equal(runner.of_each([inputs[0][:, ::-1]])[0], runner(inputs[0][None, :, ::-1]).logits[0])


def test_the_best_labels_are_those_of_a_stable_sort():
    generator = np.random.default_rng(0)
    for index in range(300):
        row = generator.integers(0, (3, 1000)[index % 2], generator.integers(1, 50)).astype(np.float32)
        order = np.argsort(-row, kind="stable")
        for top_k in (1, 2, 5, 49, 100, None):
            assert best_of(row, top_k) == [(int(i), float(row[i])) for i in order[:top_k]]


def test_a_thread_takes_its_share_of_what_waits_and_no_more():
    """Sources that are there are answered some at a time; those that come one by one, one by one."""
    sizes = []

    def lane(inputs):
        time.sleep(0.01)
        sizes.append(len(inputs))
        return inputs

    assert list(pipeline.run(range(60), lambda source: source, [lane] * 2, 1, 2, 16, 4)) == list(range(60))
    assert (max(sizes), sum(sizes)) == (4, 60)
    sizes.clear()

    def slow():
        for index in range(5):
            time.sleep(0.03)
            yield index

    assert list(pipeline.run(slow(), lambda source: source, [lane] * 2, 1, 2, 16, 4)) == list(range(5))
    assert sizes == [1] * 5


@pytest.mark.skipif(
    not os.path.exists("/proc/thread-self/schedstat"), reason="only Linux says how long a thread waits for a core"
)
def test_waiting_for_a_core_is_no_reason_for_more_threads():
    """A thread shares its core with a loop that never ends: it waits half of the time, and stays alone."""
    code = """
import os, subprocess, sys, threading, time
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from effnet_np.inference import pipeline
busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
most = 0
def prepare(source):
    global most
    until = time.thread_time() + 0.01
    while time.thread_time() < until:
        pass
    most = max(most, sum(thread.name == pipeline.NAME for thread in threading.enumerate()))
try:
    list(pipeline.run(range(100), prepare, [lambda inputs: inputs], 1, 1, 16))
finally:
    busy.kill()
print(most)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "1\n", done


def test_nothing_in_nothing_out(runner):
    assert list(stream(runner, [])) == list(stream(runner, iter(()))) == []
    assert list(effnet_np.classify(iter([]), model=runner)) == []


@pytest.mark.parametrize("threads", [1, 2, 16, 100])
def test_the_first_result_of_an_endless_generator(runner, threads):
    read = 0

    def endless():
        nonlocal read
        for picture in itertools.cycle(pictures(8)):
            read += 1
            yield picture

    answers = stream(runner, endless(), threads=threads)
    assert read == 0
    next(answers)
    assert read < 64
    for taken in range(2, 200):
        next(answers)
        assert read <= taken + LARGEST_WINDOW
    answers.close()


def test_no_more_pictures_are_held_than_the_window(runner):
    """Whatever was read and answered is let go of."""
    alive = weakref.WeakSet()

    class Picture(io.BytesIO):
        pass

    def sources():
        for picture in pictures(150):
            data = io.BytesIO()
            PIL.Image.fromarray(picture).save(data, "BMP")
            source = Picture(data.getvalue())
            alive.add(source)
            yield source

    most = 0
    for _ in stream(runner, sources(), threads=2):
        most = max(most, len(alive))
    assert 0 < most <= 2 * WINDOW + 3


# -- what fails --------------------------------------------------------------------------------------------------------


def with_bad_ones(count):
    for index, picture in enumerate(pictures(count)):
        yield {3: "no/such.jpg", 7: b"", 11: 42}.get(index, picture)


def test_errors_in_their_place(runner):
    results = effnet_np.classify(with_bad_ones(20), model=runner, errors="return")
    kinds = {index: type(result) for index, result in enumerate(results) if isinstance(result, Exception)}
    assert kinds == {3: FileNotFoundError, 7: ValueError, 11: TypeError}
    for many in (list(with_bad_ones(20)), with_bad_ones(20)):
        found = list(effnet_np.classify(many, model=runner, errors="return"))
        assert [isinstance(result, Exception) for result in found] == [index in kinds for index in range(20)]
    assert isinstance(effnet_np.classify(b"", model=runner, errors="return"), ValueError)


def test_an_error_that_is_kept_holds_nothing(runner):
    """No frame, so no bytes and no pixels, and no circle that only the garbage collector would find."""
    alive = weakref.WeakSet()

    class Damaged(io.BytesIO):
        pass

    def sources():
        for _ in range(30):
            alive.add(source := Damaged(b"no picture"))
            yield source

    gc.collect()
    gc.disable()
    try:
        kept = list(stream(runner, sources(), errors="return"))
        assert all(isinstance(error, ValueError) for error in kept)
        assert not alive
    finally:
        gc.enable()
    with pytest.raises(ValueError) as raised:  # what is raised shows where, down to the reader
        effnet_np.classify(b"no picture", model=runner)
    assert "images/io.py" in str(raised.traceback[-1].path)


def test_an_error_ends_a_stream_and_names_the_picture(runner):
    results = effnet_np.classify(with_bad_ones(20), model=runner)
    assert len(list(itertools.islice(results, 3))) == 3
    with pytest.raises(FileNotFoundError, match=r"images\[3\]: there is no picture no/such.jpg"):
        next(results)
    assert next(results, "over") == "over"
    with pytest.raises(ValueError, match='errors must be "raise" or "return", got'):
        effnet_np.classify([], model=runner, errors="ignore")


def test_what_the_sources_raise_comes_after_the_results_before_it(runner):
    def broken():
        yield from pictures(5)
        raise OSError("the camera is gone")

    results = stream(runner, broken())
    assert len(list(itertools.islice(results, 5))) == 5
    with pytest.raises(OSError, match="the camera is gone"):
        next(results)


def test_a_fault_in_a_thread_reaches_the_caller(runner, monkeypatch):
    def leave(*_):
        raise SystemExit(3)

    monkeypatch.setattr(sys.modules["effnet_np.inference.stream"], "load_image", leave)
    with pytest.raises(SystemExit):
        list(stream(runner, pictures(5), errors="return"))


def test_an_exception_that_is_kept_keeps_no_thread(runner):
    with pytest.raises(FileNotFoundError) as kept:
        list(effnet_np.classify(with_bad_ones(20), model=runner))
    assert not threads_of_streams()
    assert kept.value.__traceback__ is not None


# -- threads -----------------------------------------------------------------------------------------------------------


def test_a_consumer_that_stops(runner):
    results = stream(runner, itertools.cycle(pictures(4)))
    next(results)
    assert threads_of_streams()
    results.close()
    assert not threads_of_streams()
    for _ in stream(runner, itertools.cycle(pictures(4))):
        break
    assert not threads_of_streams()

    def fail(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(map(fail, stream(runner, itertools.cycle(pictures(4)))))
    gc.collect()
    assert not threads_of_streams()


class Interrupt(BaseException):
    pass


def test_interrupts_at_random_moments_leave_no_thread_and_no_wrong_answer(model):
    runner = get_runner(model, "numba", 2)
    expected = list(stream(runner, pictures(40)))
    chance, raised = random.Random(0), 0

    def ring(*_):
        raise Interrupt

    before = signal.signal(signal.SIGALRM, ring)
    try:
        while raised < 60:
            done = []
            try:
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-4, 0.05))
                for answer in stream(runner, pictures(40)):
                    done.append(answer)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupt:
                raised += 1
            assert done == expected[: len(done)]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    gc.collect()
    time.sleep(0.1)  # until a thread that was just started is alive
    until = time.monotonic() + 5  # an interrupt in the very end of a stream is noticed by its threads a moment later
    while threads_of_streams() and time.monotonic() < until:
        time.sleep(0.05)
    assert not threads_of_streams()


def test_where_no_thread_can_be_started_the_caller_does_the_work(runner, monkeypatch):
    expected = list(stream(runner, pictures(20)))
    start, allowed = threading.Thread.start, 0

    def limited(thread):
        nonlocal allowed
        if thread.name == pipeline.NAME and allowed == 0:
            raise RuntimeError("can't start new thread")
        allowed -= thread.name == pipeline.NAME
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    for count in (0, 1):
        allowed = count
        assert list(stream(runner, pictures(20), threads=4)) == expected


def test_threads_that_wait_for_a_disk_are_joined_by_more(model):
    """Sources that take their time, without the CPU: more are read at once than there are cores."""
    lock, now, most = threading.Lock(), 0, 0

    class Slow(io.BytesIO):
        def read(self, size=-1):
            nonlocal now, most
            with lock:
                now, most = now + 1, max(most, now + 1)
            time.sleep(0.05)
            with lock:
                now -= 1
            return super().read(size)

    data = io.BytesIO()
    PIL.Image.fromarray(PHOTOS[0]).save(data, "BMP")
    runner = get_runner(model, "numba", 1)
    assert len(list(stream(runner, (Slow(data.getvalue()) for _ in range(60))))) == 60
    assert most > 2
    assert not threads_of_streams()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_stream_does_not_survive_a_fork(model):
    get_runner("lite0", "numba")  # compiled before, if need be: that may take longer than the process is given
    code = """
import os, sys, itertools, time
import numpy as np, effnet_np
results = effnet_np.classify(itertools.repeat(np.zeros((99, 99, 3), np.uint8)), backend="numba")
next(results)
time.sleep(0.5)
child = os.fork()
if not child:
    try:
        for _ in range(99):
            next(results)
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
results.close()
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert "threads do not survive a fork: start the stream in the process that reads" in done.stdout, done


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_ends_the_process():
    get_runner("lite0", "numba")  # compiled before, as above
    code = """
import itertools, os, signal, threading
import numpy as np, effnet_np
results = effnet_np.classify(itertools.repeat(np.zeros((99, 99, 3), np.uint8)), backend="numba")
try:
    for index, _ in enumerate(results):
        if index == 20:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
except KeyboardInterrupt:
    del results
    print("interrupted", threading.active_count())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "interrupted 1\n"), done


# -- preprocessing by a table ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_rescale": False, "image_mean": [127.0] * 3, "image_std": [128.0] * 3, "include_top": False},
        {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.47853944, 0.4732864, 0.47434163)},
        {"rescale_offset": True},
        {"do_normalize": False},
        {"do_normalize": False, "include_top": False},
        {"do_rescale": False, "do_normalize": False, "include_top": False},
        {"rescale_factor": 2},  # whole numbers, which wrap around in uint8: as HF
        {"rescale_factor": 2.0},
        {"rescale_factor": 1 / 127.5, "rescale_offset": True, "include_top": False},
        {"image_mean": 0.1, "image_std": 3},
    ],
)
def test_the_table_is_the_arithmetic_bit_for_bit(options):
    """All 256 values of each channel, and a photograph, against the steps on whole arrays, in both layouts."""
    processor = EfficientNetImageProcessor(do_resize=False, **options)
    every = np.stack([np.roll(np.arange(256, dtype=np.uint8), shift) for shift in (0, 85, 170)], axis=1).reshape(16, 16, 3)
    for image in (every, PHOTOS[0], np.asfortranarray(PHOTOS[1]), PHOTOS[0][::2, ::-1], every[:1, :1]):
        expected = processor._arithmetic(image)
        for layout, theirs in (("channels_last", expected), ("channels_first", expected.transpose(2, 0, 1))):
            (ours,) = processor([image], data_format=layout, input_data_format="channels_last")["pixel_values"]
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
            assert ours.flags.c_contiguous
            assert ours.flags.writeable


def test_a_table_is_not_used_for_changed_settings():
    processor = EfficientNetImageProcessor(do_resize=False)
    first = processor([PHOTOS[0]])["pixel_values"][0]
    processor.image_mean = [0.4, 0.5, 0.6]
    second = processor([PHOTOS[0]])["pixel_values"][0]
    np.testing.assert_array_equal(second, processor._arithmetic(PHOTOS[0]).transpose(2, 0, 1))
    assert (first != second).any()
