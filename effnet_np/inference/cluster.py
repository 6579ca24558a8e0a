"""map(): the iterator of stream.py, whose work the workers of a Dask cluster do.

The model travels once to each worker, also to those that come later or come back: it is registered as a worker plugin, which
Dask hands to every worker that starts. (Scattered data would be lost with the last worker that holds it.) Sources go out in
pieces of bounded size, and no more pieces than a few for each thread are on their way, so that neither the client nor the
scheduler holds much, however many there are. A piece runs in one thread of its worker, from the file to the answer, with one
of as many one-threaded networks as the worker has threads; they share their weights.

When a worker dies, Dask gives its pieces to others. A piece that outlives no worker comes back as KilledWorker: something in
it may be what kills. Then no new pieces go out, its pictures are tried one by one, each alone on the cluster, and the one
that again outlives no worker is known: its result is a ChildProcessError.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import pydoc
import threading
import time
import uuid
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from itertools import count
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from effnet_np.images.io import MAX_PIXELS
from effnet_np.inference.classify import DEFAULT_MODEL, check_count, get_model, get_runner
from effnet_np.inference.stream import OUTPUTS, check_errors, stream
from effnet_np.kernels.cores import default_threads
from effnet_np.module import Module
from effnet_np.version import __version__

if TYPE_CHECKING:
    from distributed import Client, Future

PIECE = 128  # pictures that go to a worker at once: 32 cost a fifth of two local workers' throughput, 128 a tenth,
PIECE_BYTES = 8 << 20  # or fewer, where they are not names of files but the pictures themselves
AHEAD = 2  # pieces on their way for each thread of the cluster
DEATHS = 3  # of workers on one picture, after which `local` calls it the cause
LOOK = 5.0  # seconds after which the cluster's threads are counted anew
NAMING = "effnet_np-pictures"  # what tasks are called on Dask's dashboard
_lock = threading.Lock()  # of a worker: one thread unpacks the model


def map(
    client: Client,
    sources: Iterable[Any],
    model: Any = DEFAULT_MODEL,
    output: str = "labels",
    *,
    ordered: bool = True,
    errors: str = "return",
    piece: int = PIECE,
    top_k: int | None = 5,
    function_to_apply: str | None = None,
    backend: str = "auto",
    image_processor: Any = None,
    max_pixels: int = MAX_PIXELS,
    **hub_options: Any,
) -> Iterator[Any]:
    """For each picture its result, computed by the workers of `client`, a dask.distributed.Client: a lazy iterator.

    sources: any iterable of what `classify` takes. Names of files are opened by the workers, which must see them under the same
    absolute path; everything else travels. ordered: results in the order of the sources; otherwise pairs (index of the source,
    result), as they are done. output, top_k, function_to_apply, max_pixels: as in `stream`; model, backend, image_processor:
    as in `classify`, but that "auto" is decided here for all workers. errors: "return" gives an exception in the place of the
    picture that ended in it, a ChildProcessError where the worker died each time; "raise" ends there. piece: pictures that go
    to a worker at once.

    Raises ImportError without Dask; RuntimeError for a worker of another version of effnet_np; ConnectionError when the
    scheduler goes away: what the iterator gave until then stands.
    """
    if output not in OUTPUTS:
        raise ValueError(f"output must be one of {', '.join(OUTPUTS)}, got {output!r}")
    check_errors(errors)
    check_count("piece", piece)
    options = {"output": output, "top_k": top_k, "function_to_apply": function_to_apply, "max_pixels": max_pixels}
    check_versions(client)
    sent = get_model(model, image_processor, **hub_options)
    blob = pickle.dumps((sent, _backend(sent, backend), output == "features"), protocol=5)
    return _run(client, sources, blob, options, ordered, errors, piece)


def _backend(model: Any, backend: str) -> str:
    """What every worker computes with: answers must not depend on which worker has compiled the kernels before."""
    if backend != "auto" or not isinstance(model, Module):
        return backend
    try:
        from effnet_np.kernels.library import kernels_cached
    except ImportError:
        return "numpy"
    return "numba" if kernels_cached() else "numpy"


@contextlib.contextmanager
def connect(address: str, workers: int | None = None) -> Iterator[Client]:
    """A client of the scheduler at that address or, for "local", of a cluster here of `workers` processes, or one a core."""
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError(f"a cluster needs Dask ({error}): pip install 'effnet_np[dask]'") from error
    if address == "local":
        with local(workers or default_threads()) as client:
            yield client
        return
    try:
        client = Client(address)
    except (OSError, ValueError) as error:
        raise ConnectionError(f"no Dask scheduler answers at {address} ({error}); `dask scheduler` starts one") from error
    with client:
        yield client


@contextlib.contextmanager
def local(workers: int) -> Iterator[Client]:
    """A client of a cluster of this machine: so many processes of one thread each, which come back when they die."""
    import dask
    from distributed import Client, LocalCluster

    settings = {
        "distributed.scheduler.allowed-failures": DEATHS - 1,
        # A worker that happens to be down, for a second time, so long after it died once would never be started again.
        "distributed.deploy.lost-worker-timeout": "1 day",
    }
    options = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
    with dask.config.set(settings), LocalCluster(**options) as cluster, Client(cluster) as client:
        yield client


def check_versions(client: Client) -> None:
    """Raise RuntimeError where a worker has another version of effnet_np, or none: its answers would be others.

    The worker is asked with a function of the standard library, which it has whatever it lacks.
    """
    for worker, version in client.run(pydoc.locate, "effnet_np.__version__", on_error="return").items():
        if version != __version__:
            raise RuntimeError(_refusal(worker, version))


def _refusal(worker: str, version: Any) -> str:
    has = f"effnet_np {version}" if isinstance(version, str) else "no effnet_np" if version is None else f"none ({version!r})"
    return f"the worker {worker} has {has}, and here is effnet_np {__version__}: install the same version on all machines"


# -- on the client ----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Piece:
    """Some of the sources, from number `first` on, and what has become of them."""

    first: int
    sources: list[str | bytes]
    results: list[Any] = field(default_factory=list)
    left: int = 0

    def __post_init__(self) -> None:
        self.left = len(self.sources)
        self.results = [None] * self.left


def _run(
    client: Client, sources: Iterable[Any], blob: bytes, options: dict, ordered: bool, errors: str, size: int
) -> Iterator[Any]:
    crew = _Crew(client, options)
    given = 0
    try:
        crew.bring(blob)
        for piece in crew.answer(_pieces(sources, size), ordered):
            for index, result in enumerate(piece.results, piece.first):
                if errors == "raise" and isinstance(result, Exception):
                    raise result
                given += 1
                yield result if ordered else (index, result)
    except (CancelledError, OSError, RuntimeError) as error:
        if isinstance(error, CancelledError) or client.status != "running":
            where = client.scheduler.address if client.scheduler else "of this client"
            text = f"the Dask scheduler {where} went away, or gave up the work, after {given} pictures; their answers stand"
            raise ConnectionError(text) from error
        raise
    finally:
        crew.dismiss()


def _pieces(sources: Iterable[Any], size: int) -> Iterator[_Piece]:
    first, batch, held = 0, [], 0
    for source in sources:
        batch.append(_packed(source))
        held += len(batch[-1])
        if len(batch) == size or held >= PIECE_BYTES:
            yield _Piece(first, batch)
            first, batch, held = first + len(batch), [], 0
    if batch:
        yield _Piece(first, batch)


def _packed(source: Any) -> str | bytes:
    """What another process can open: a file's name from the root on, or anything else, pickled; open files are read here."""
    if isinstance(source, (str, os.PathLike)):
        name = os.fsdecode(source)
        return name if "://" in name else os.path.abspath(name)
    if isinstance(source, memoryview):
        source = bytes(source)
    try:
        return pickle.dumps(source, protocol=5)
    except Exception as fault:
        if not hasattr(source, "read"):
            return pickle.dumps(Unread(f"a {type(source).__name__} cannot be sent to a worker: {fault}"))
    try:
        return pickle.dumps(Read(source.read(), str(getattr(source, "name", "the file object"))))
    except Exception as error:
        return pickle.dumps(Unread(str(error) or type(error).__name__))


class Read(io.BytesIO):
    """The bytes of an open file, which errors call by its name."""

    def __init__(self, data: bytes, name: str):
        super().__init__(data)
        self.name = name


class Unread:
    """What could not be read where it was: reading it on the worker raises the reason."""

    def __init__(self, reason: str):
        self.reason = reason

    def read(self, _size: int = -1) -> bytes:
        raise ValueError(self.reason)


class _Crew:
    """The pieces that are on their way, and the pictures that are suspected of killing workers."""

    def __init__(self, client: Client, options: dict):
        self.client, self.options = client, options
        self.token, self.task = f"effnet_np-{uuid.uuid4().hex}", _task()
        self.numbers = count()
        self.pending: dict[Future, tuple[_Piece, int | None]] = {}  # a piece, or the one picture of it
        self.suspects: deque[tuple[_Piece, int]] = deque()
        self._threads, self._looked, self._warned = 1, -LOOK, False

    def bring(self, blob: bytes) -> None:
        """Give the model to all workers, and leave it with the scheduler for those to come.

        What carries it is Dask's own class: a worker without effnet_np, of somebody else's, can read it, too.
        """
        from distributed import WorkerPlugin

        carrier = WorkerPlugin()
        carrier.blob = blob
        self.client.register_plugin(carrier, name=self.token)

    def answer(self, pieces: Iterator[_Piece], ordered: bool) -> Iterator[_Piece]:
        """The pieces with their results, in order or as they are done; reads no further ahead than the cluster needs."""
        waiting: deque[_Piece] = deque()  # on their way or done, in order
        ended = False
        while waiting or not ended:
            while not ended and not self.suspects and len(waiting) < self._most():
                piece = next(pieces, None)
                if piece is None:
                    ended = True
                else:
                    waiting.append(piece)
                    self._send(piece, None)
            if self.suspects and not self.pending:
                self._send(*self.suspects.popleft())
            if self.pending:
                self._collect()
            done = [piece for piece in waiting if piece.left == 0]
            if ordered:
                done = []
                while waiting and waiting[0].left == 0:
                    done.append(waiting.popleft())
            else:
                waiting = deque(piece for piece in waiting if piece.left)
            yield from done

    def _most(self) -> int:
        """Pieces that keep the cluster busy, as large as it is now."""
        if time.monotonic() - self._looked > LOOK:
            self._threads, self._looked = max(1, sum(self.client.nthreads().values())), time.monotonic()
        return AHEAD * self._threads + 1

    def _send(self, piece: _Piece, only: int | None) -> None:
        sources = piece.sources if only is None else [piece.sources[only]]
        key = f"{NAMING}-{self.token}-{next(self.numbers)}"
        arguments = (__version__, self.token, sources, self.options)
        self.pending[self.client.submit(self.task, *arguments, key=key, pure=False)] = (piece, only)

    def _collect(self) -> None:
        """Wait until something is done, and take all that is."""
        from distributed import KilledWorker, wait
        from distributed import TimeoutError as NothingYet  # Python 3.10 has two of this name

        try:
            done = wait(list(self.pending), timeout=LOOK, return_when="FIRST_COMPLETED").done
        except NothingYet:
            if not self.client.nthreads() and not self._warned:
                warnings.warn("the cluster has no workers: waiting for them", stacklevel=2)
                self._warned = True
            return
        for future in done:
            piece, only = self.pending.pop(future)
            try:
                self._take(future.result(), piece, only)
            except KilledWorker as error:
                if only is None:
                    self.suspects += [(piece, index) for index in range(len(piece.sources))]
                else:
                    self._take([_killer(piece.sources[only], error.allowed_failures + 1)], piece, only)
            except (ImportError, AttributeError, TypeError):  # as of a worker whose effnet_np is another one
                check_versions(self.client)
                raise
            finally:
                future.release()  # now, not when Python finds the exception's circles

    def _take(self, results: list[Any], piece: _Piece, only: int | None) -> None:
        for index, result in enumerate(results, only or 0):
            piece.results[index] = _seen_from_here(result, piece.sources[index])
        piece.left -= len(results)
        if piece.left == 0:
            piece.sources = []

    def dismiss(self) -> None:
        """Take back what is on its way, and the model from the workers, if there still is somebody to ask."""
        with contextlib.suppress(Exception):
            if self.pending:
                self.client.cancel(list(self.pending), force=True)
            self.pending.clear()
            if self.client.status == "running":
                self.client.unregister_worker_plugin(self.token)


def _killer(source: str | bytes, deaths: int) -> ChildProcessError:
    name = source if isinstance(source, str) else "this picture"
    return ChildProcessError(f"{name}: {deaths} workers died of it, one after the other, each alone with it; it is left out")


def _seen_from_here(result: Any, source: Any) -> Any:
    """A file that is here, but not where the worker is, says so."""
    if isinstance(result, FileNotFoundError) and isinstance(source, str) and os.path.exists(source):
        return FileNotFoundError(f"{result} on the worker's machine: workers open the pictures themselves, by these names")
    return result


# -- on a worker ------------------------------------------------------------------------------------------------------


def _task() -> Any:
    """What a worker is told to do, sent by value: a function that is no module's own.

    By name it would not even be received where effnet_np is missing, or another one without this module: that worker would
    end, and somebody else may need it.
    """

    def answer(version: str, *arguments: Any) -> list[Any]:
        import importlib

        here = importlib.import_module("effnet_np").__version__
        if here != version:
            from distributed import get_worker

            both = f"has effnet_np {here}, and here is effnet_np {version}"
            raise RuntimeError(f"the worker {get_worker().address} {both}: install the same version on all machines")
        from effnet_np.inference.cluster import answer_piece

        return answer_piece(*arguments)

    return answer


def answer_piece(token: str, sources: list[str | bytes], options: dict) -> list[Any]:
    """The results of a piece, in its order, exceptions in their places. Runs in one thread of a worker, and uses no other."""
    from distributed import get_worker

    lanes = _lanes(get_worker(), token)
    lane = lanes.get()
    try:
        # One picture at a time: an answer must not depend, in NumPy's last bits, on the pictures that it shares a piece with.
        pictures = [source if isinstance(source, str) else pickle.loads(source) for source in sources]
        results = stream(lane, pictures, batch_size=1, errors="return", threads=1, **options)
        return [_plain(result) for result in results]
    finally:
        lanes.put(lane)


def _lanes(worker: Any, token: str) -> SimpleQueue:
    """What answers on this worker, as many as it has threads, each of one thread; they go when the plugin goes."""
    carrier = worker.plugins[token]
    with _lock:
        if not hasattr(carrier, "lanes"):
            model, backend, features = pickle.loads(carrier.blob)
            threads = worker.state.nthreads
            if isinstance(model, Module):
                runner = get_runner(model, backend, threads if backend == "numba" else None, features=features)
            else:
                runner = model  # compiled
            lanes: SimpleQueue = SimpleQueue()
            for lane in runner.lanes(threads) if hasattr(runner, "lanes") else [runner] * threads:
                lanes.put(lane)
            carrier.lanes, carrier.blob = lanes, b""
    return carrier.lanes


def _plain(result: Any) -> Any:
    """Errors as built-in ones, without what they hold: any of them can be sent."""
    if not isinstance(result, Exception):
        return result
    kinds = (FileNotFoundError, IsADirectoryError, PermissionError, OSError, TypeError, MemoryError, ValueError)
    kind = next((kind for kind in kinds if isinstance(result, kind)), None)
    return kind(str(result)) if kind else RuntimeError(f"{type(result).__name__}: {result}")
