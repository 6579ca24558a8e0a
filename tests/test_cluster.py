"""map() on a cluster of this machine's processes: the answers of one process, whatever happens to the workers."""

import io
import itertools
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import effnet_np
from effnet_np.cli import main
from effnet_np.inference import cluster
from effnet_np.inference.classify import get_model, get_runner
from effnet_np.inference.stream import stream
from effnet_np.version import __version__

from helpers import CHELSEA, COFFEE, pair, tiny_config

distributed = pytest.importorskip("distributed", reason="Dask is not installed (extra dask)")
DEATHS = 2
KILLER = "killer"  # a picture of this name kills the process that opens it


class Deadly(distributed.WorkerPlugin):
    """On every worker, also on those that come back: the pictures that kill, and a count of models unpacked."""

    name = "deadly"

    def setup(self, worker):
        from effnet_np.inference import cluster, stream

        load, unpack = stream.load_image, cluster.get_runner
        worker.unpacked = 0

        def load_image(source, *arguments):
            if KILLER in str(source):
                os.kill(os.getpid(), signal.SIGKILL)
            return load(source, *arguments)

        def count(*arguments, **options):
            worker.unpacked += 1
            return unpack(*arguments, **options)

        stream.load_image, cluster.get_runner = load_image, count


@pytest.fixture(scope="module", autouse=True)
def environment_as_it_was():
    """Dask's nannies leave OPENBLAS_NUM_THREADS=1 and the like in this process: NumPy's last bits would differ in children."""
    before = os.environ.copy()
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def client():
    cluster.DEATHS = DEATHS  # each costs seconds
    with cluster.local(2) as client:
        client.register_plugin(Deadly())
        yield client


@pytest.fixture(scope="module")
def model():
    _, model = pair(tiny_config())  # a fresh network would give all pictures the same answer
    model.image_processor = effnet_np.EfficientNetImageProcessor(size={"height": 64, "width": 64})
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """200 small pictures, and among them two that are none."""
    folder, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(200):
        Image.fromarray(generator.integers(0, 256, (40, 50, 3), np.uint8)).save(folder / f"{number:03}.png")
    (folder / "050.png").write_bytes(b"no picture")
    (folder / "151.png").unlink()
    return [str(folder / f"{number:03}.png") for number in range(200)]


@pytest.fixture(scope="module")
def quiet(model, files):
    """What one process answers."""
    return comparable(stream(effnet_np.compile(model, threads=1), files, errors="return"))


def comparable(results):
    return [(type(result), str(result)) if isinstance(result, Exception) else result for result in results]


# -- the same answers -------------------------------------------------------------------------------------------------


def test_the_same_answers_in_order(client, model, files, quiet):
    assert len({str(answer) for answer in quiet}) > 150, "the answers must differ for the order to be seen"
    assert comparable(cluster.map(client, files, model, backend="numba", piece=7)) == quiet


def test_the_same_answers_as_they_are_done(client, model, files, quiet):
    pairs = list(effnet_np.inference.map(client, iter(files), model, backend="numba", ordered=False, piece=7))
    assert sorted(index for index, _ in pairs) == list(range(200))
    assert comparable(result for _, result in sorted(pairs, key=lambda pair: pair[0])) == quiet


def test_real_weights_compiled_on_the_workers(client):
    """Bit for bit what this process answers: same CPU, same kernels."""
    expected = list(stream(get_runner("lite0", "numba"), [str(CHELSEA), str(COFFEE)]))
    assert list(cluster.map(client, [CHELSEA, COFFEE], backend="numba")) == expected
    fast = effnet_np.compile(get_model("lite0"), threads=2)
    assert list(cluster.map(client, [CHELSEA, COFFEE], fast)) == expected
    features = list(cluster.map(client, [CHELSEA], output="features", backend="numba"))
    want = list(stream(get_runner("lite0", "numba", features=True), [str(CHELSEA)], "features"))
    np.testing.assert_array_equal(features, want)


def test_pictures_of_every_kind_travel(client, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.open(CHELSEA).save("here.png")
    odd = os.fsdecode(b"caf\xe9.png")  # no UTF-8
    Path(odd).write_bytes(COFFEE.read_bytes())
    data = COFFEE.read_bytes()
    image = Image.open(io.BytesIO(data))
    kinds = [
        "here.png",
        Path("here.png"),
        odd,
        data,
        bytearray(data),
        io.BytesIO(data),
        image,
        np.asarray(image),
        7,
        "nowhere.png",
    ]
    got = comparable(cluster.map(client, kinds, model, backend="numba", piece=3))
    kinds[5] = data  # read by now
    kinds[9] = os.path.abspath("nowhere.png")
    assert got == comparable(stream(effnet_np.compile(model, threads=1), kinds, errors="return"))
    assert got[8][0] is TypeError
    assert got[9][0] is FileNotFoundError


def test_logits_for_evaluate(client, model, tmp_path):
    for name, source in (("LABEL_0", CHELSEA), ("LABEL_3", COFFEE)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(source.read_bytes())
    ours, here = (effnet_np.evaluate(tmp_path, model, backend="numba", client=where) for where in (client, None))
    np.testing.assert_array_equal(ours.loss, here.loss)
    np.testing.assert_array_equal(ours.top, here.top)


def test_errors_may_end_it(client, model, files):
    results = cluster.map(client, files, model, backend="numba", errors="raise")
    assert len(list(itertools.islice(results, 50))) == 50
    with pytest.raises(ValueError, match=r"050\.png is no picture"):
        next(results)


# -- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [True, False])
def test_an_endless_generator_is_read_a_little_ahead(client, model, ordered):
    read = itertools.count()

    def endless():
        for number in read:
            yield np.full((8, 8, 3), number % 256, np.uint8)

    most = (cluster.AHEAD * 2 + 1) * 4  # pictures of the pieces that two threads are given
    results = cluster.map(client, endless(), model, backend="numba", piece=4, ordered=ordered)
    next(results)
    assert next(read) <= most
    for _ in range(100):
        next(results)
    assert next(read) <= 101 + most + 4
    results.close()
    assert held(client) == 0


def held(client, patience=10.0):
    """How many of our tasks and models the scheduler still holds; it forgets a moment after it was told."""

    def ask(dask_scheduler):
        tasks = [key for key in dask_scheduler.tasks if str(key).startswith(cluster.NAMING)]
        return len(tasks) + len([name for name in dask_scheduler.worker_plugins if name.startswith("effnet_np-")])

    deadline = time.monotonic() + patience
    while (left := client.run_on_scheduler(ask)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def test_the_model_reaches_each_worker_once_and_leaves_it(client, model, files):
    unpacked = client.run(lambda dask_worker: dask_worker.unpacked)
    list(cluster.map(client, files, model, backend="numba", piece=4))
    after = client.run(lambda dask_worker: dask_worker.unpacked)
    assert [after[worker] - unpacked[worker] for worker in after] == [1, 1]
    kept = client.run(lambda dask_worker: [name for name in dask_worker.plugins if name.startswith("effnet_np-")])
    assert list(kept.values()) == [[], []]
    assert held(client) == 0


def test_large_pictures_go_in_smaller_pieces():
    sources = [b"x" * (3 << 20)] * 4 + ["name"] * 40
    sizes = [len(piece.sources) for piece in cluster._pieces(iter(sources), 32)]
    assert sizes == [3, 32, 9]
    assert pickle.loads(next(cluster._pieces(iter(sources), 32)).sources[0]) == sources[0]
    firsts = [piece.first for piece in cluster._pieces(iter(sources), 32)]
    assert firsts == [0, 3, 35]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_worker_has_one_network_of_one_thread_for_each_of_its_threads(model, threads):
    """More would fight for its cores, fewer leave some idle. They share the weights."""
    carrier = SimpleNamespace(blob=pickle.dumps((model, "numba", False)))
    worker = SimpleNamespace(plugins={"token": carrier}, state=SimpleNamespace(nthreads=threads))
    queue = cluster._lanes(worker, "token")
    lanes = [queue.get_nowait() for _ in range(threads)]
    assert queue.empty()
    assert [lane.threads for lane in lanes] == [1] * threads
    assert len({id(lane) for lane in lanes}) == threads
    assert len({id(lane._weights) for lane in lanes}) == 1
    assert cluster._lanes(worker, "token") is queue
    assert carrier.blob == b""


# -- bad days ---------------------------------------------------------------------------------------------------------


def test_killed_workers_lose_nothing_and_double_nothing(client, model, files, quiet):
    """Twice a worker is killed (-9) while it works."""
    many = files * 2
    results, killed = [], 0
    for result in cluster.map(client, many, model, backend="numba", piece=5):
        results.append(result)
        if len(results) in (40, 250):
            workers = client.scheduler_info()["workers"]
            processes = client.run(os.getpid, on_error="ignore")
            os.kill(processes[next(iter(workers))], signal.SIGKILL)
            killed += 1
    assert killed == 2
    assert comparable(results) == quiet * 2


def test_a_picture_that_kills_its_workers_is_named_and_left_out(client, model, files, quiet, tmp_path):
    """In the middle of a piece: all others, also its neighbours in the piece, are answered."""
    killer = str(tmp_path / f"{KILLER}.png")
    results = list(cluster.map(client, [*files[:10], killer, *files[10:20]], model, backend="numba", piece=7))
    assert isinstance(results[10], ChildProcessError)
    assert str(results[10]).startswith(f"{killer}: {DEATHS} workers died of it")
    assert comparable(results[:10] + results[11:]) == quiet[:20]
    assert held(client) == 0
    assert comparable(cluster.map(client, files[:20], model, backend="numba")) == quiet[:20]


def test_what_fails_on_a_worker_as_a_whole_is_raised(client, files):
    """A model that cannot be unpacked: no picture's fault."""

    class Model:
        image_processor = classifies = config = True

        def __reduce__(self):
            return divmod, (1, 0)

    with pytest.raises(ZeroDivisionError):
        list(cluster.map(client, files[:3], Model()))


@pytest.mark.parametrize("answer", ["9.9.9", None, ImportError("no NumPy")])
def test_workers_of_another_version_are_refused_with_both_named(answer):
    fake = SimpleNamespace(run=lambda *_, **__: {"tcp://10.0.0.1:1": __version__, "tcp://10.0.0.2:2": answer})
    with pytest.raises(RuntimeError, match=f"tcp://10.0.0.2:2 has .*here is effnet_np {__version__}") as refusal:
        cluster.check_versions(fake)
    assert str(answer or "no effnet_np") in str(refusal.value)


@pytest.fixture
def processes(tmp_path):
    """Start a scheduler or a worker in a process of its own; all are ended with the test."""
    started = []

    def start(module, *arguments, **environment):
        command = [sys.executable, "-m", f"distributed.cli.{module}", *map(str, arguments)]
        log = open(tmp_path / f"{len(started)}.log", "wb")  # noqa: SIM115
        started.append(subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log, cwd=tmp_path))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def scheduler(processes, tmp_path):
    file = tmp_path / "scheduler.json"
    process = processes("dask_scheduler", "--scheduler-file", file, "--port", 0, "--no-dashboard", "--host", "127.0.0.1")
    return SimpleNamespace(file=file, process=process)


def test_another_version_real_and_late(scheduler, processes, model, files, tmp_path):
    """A worker with an old effnet_np, without this module, comes while the work goes on; then it is there from the start."""
    old = tmp_path / "old" / "effnet_np"
    old.mkdir(parents=True)
    hidden = 'import sys; sys.modules["effnet_np.inference"] = None  # which an editable installation would find elsewhere'
    (old / "__init__.py").write_text(f'__version__ = "0.0.9"\n{hidden}\n')
    worker = ["dask_worker", "--scheduler-file", scheduler.file, "--no-nanny", "--nthreads", 1, "--no-dashboard"]
    processes(*worker)
    with distributed.Client(scheduler_file=str(scheduler.file), timeout=20) as client:
        client.wait_for_workers(1, timeout=30)
        results = cluster.map(client, itertools.cycle(files), model, backend="numba", piece=2)
        next(results)
        processes(*worker, PYTHONPATH=str(old.parent))
        refusal = f"has effnet_np 0.0.9, and here is effnet_np {__version__}"
        with pytest.raises(RuntimeError, match=refusal):
            for _ in results:
                pass
        with pytest.raises(RuntimeError, match=refusal):
            cluster.map(client, files, model)


def test_a_scheduler_that_goes_away_is_named_and_what_was_answered_stands(scheduler, processes, model, files, quiet):
    processes("dask_worker", "--scheduler-file", scheduler.file, "--no-nanny", "--nthreads", 1, "--no-dashboard")
    with distributed.Client(scheduler_file=str(scheduler.file), timeout="3s") as client:
        answers = cluster.map(client, files, model, backend="numba", piece=5)
        results = list(itertools.islice(answers, 40))
        scheduler.process.kill()
        scheduler.process.wait()
        with pytest.raises(ConnectionError, match=r"the Dask scheduler tcp://127.0.0.1:\d+ went away") as lost:
            results.extend(answers)
        assert f"after {len(results)} pictures" in str(lost.value)
        assert 40 <= len(results) < 100
        assert comparable(results) == quiet[: len(results)]


def test_nobody_answers(monkeypatch):
    import dask

    monkeypatch.setitem(dask.config.config["distributed"]["comm"]["timeouts"], "connect", "1s")
    with pytest.raises(ConnectionError, match="no Dask scheduler answers at tcp://127.0.0.1:9"):
        with cluster.connect("tcp://127.0.0.1:9"):
            pass


def test_without_dask(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r"pip install 'effnet_np\[dask\]'"):
        with cluster.connect("local"):
            pass


def test_the_command_line(client, files, tmp_path, capsys):
    """classify and evaluate, on the module's cluster: the file of answers is that of one process, byte for byte."""
    address, pictures = client.scheduler.address, [str(CHELSEA), files[50], str(COFFEE)]
    chosen = ["--backend", "numba", "--top-k", "2"]
    assert main(["classify", *pictures, *chosen, "-o", str(tmp_path / "here.jsonl")]) == 1
    assert main(["classify", *pictures, *chosen, "-o", str(tmp_path / "there.jsonl"), "--dask", address]) == 1
    assert (tmp_path / "there.jsonl").read_bytes() == (tmp_path / "here.jsonl").read_bytes()
    assert (tmp_path / "here.jsonl").read_text().count("\n") == 3
    assert main(["classify", str(CHELSEA), "--embed", "--backend", "numba", "--dask", address]) == 0
    for folder, source in (("n02123159", CHELSEA), ("n07920052", COFFEE)):
        (tmp_path / "val" / folder).mkdir(parents=True)
        (tmp_path / "val" / folder / "a.png").write_bytes(source.read_bytes())
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "val"), "--backend", "numba", "--dask", address]) == 0
    assert "top-1    100.0%" in capsys.readouterr().out
