"""effnet-np classify for much work: lists, shards, addresses, files of answers, and going on after a crash."""

import contextlib
import csv
import errno
import functools
import http.server
import importlib.util
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time

import numpy as np
import PIL.Image
import pytest

import effnet_np
from effnet_np.cli import main
from effnet_np.cli.begun import beside
from effnet_np.cli.outputs import not_yet
from effnet_np.cli.sources import Entry, _names

from helpers import CHELSEA, COFFEE, tiny_config

ENDINGS = ("jsonl", "csv", "parquet")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small network, so that these tests are about the rest."""
    folder = tmp_path_factory.mktemp("model")
    model = effnet_np.EfficientNetForImageClassification(tiny_config(), seed=0)
    model.image_processor = effnet_np.EfficientNetImageProcessor(size=64)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """40 pictures, one of them damaged."""
    folder = tmp_path_factory.mktemp("photos")
    image = PIL.Image.open(CHELSEA).convert("RGB")
    for index in range(40):
        image.crop((index, index, 150 + index, 120 + index)).save(folder / f"{index:03}.jpg")
    (folder / "013.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture
def here(capsys, monkeypatch, model):
    """The command in this process: its exit status, stdout, stderr."""

    def call(*arguments, stdin=b"", model=model):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        status = main(["classify", "--backend", "numpy", *map(str, arguments), "--model", str(model)])
        return (status, *capsys.readouterr())

    return call


def command(model, *arguments):
    return [sys.executable, "-m", "effnet_np", "classify", *map(str, arguments), "--model", str(model), "--backend", "numpy"]


def files_of(out):
    return [json.loads(line)["file"] for line in out.splitlines()]


# -- where pictures come from ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [b"\n", b"\0", b"\r\n"])
def test_names_on_stdin(here, photos, separator):
    names = [str(photos / f"{index:03}.jpg") for index in (5, 3, 20)]
    folder = photos.parent / "folder"
    folder.mkdir(exist_ok=True)
    shutil.copy(COFFEE, folder / "a.png")
    lines = separator.join(os.fsencode(name) for name in [*names, "no/such.jpg", folder])
    for stdin in (lines, lines + separator):
        status, out, err = here("-", "--json", stdin=stdin)
        assert (status, files_of(out)) == (1, [*names, "no/such.jpg", str(folder / "a.png")])
        assert "there is no picture no/such.jpg" in err
    status, _, err = here("-", "--json", stdin=b"x" * 100_000)
    assert (status, "stdin holds neither a picture that is known here nor names" in err) == (1, True)


def test_names_come_one_by_one():
    """A list that is longer than memory, in pieces of any size, cut anywhere."""
    names = [f"photos/grün {index}.jpg" for index in range(3000)]
    for separator in ("\n", "\0"):
        data = separator.join(names).encode()
        for size in (17, 1000, 1 << 20):
            stream = io.BytesIO(data)
            stream.read, read = lambda _, size=size, stream=stream: io.BytesIO.read(stream, size), stream.read
            assert list(_names(read(16), stream)) == names


def shard(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_shards(here, photos, tmp_path):
    pictures = [(photos / f"{index:03}.jpg").read_bytes() for index in range(6)]
    members = [
        (f"{index}{ending}", data) for index, data in enumerate(pictures) for ending, data in ((".cls", b"3"), (".JPG", data))
    ]
    path = shard(tmp_path / "train-0000.tar", [("readme.json", b"{}"), *members])
    status, out, err = here(tmp_path, "--json")
    assert (status, err, files_of(out)) == (0, "", [f"{path}/{index}.JPG" for index in range(6)])
    answers = [json.loads(line)["predictions"] for line in out.splitlines()]
    _, out, _ = here(*sorted(photos.iterdir())[:6], "--json")
    assert answers == [json.loads(line)["predictions"] for line in out.splitlines()]
    status, out, err = here(path, "--json", "--max-bytes", "1000")
    assert (status, len(files_of(out)), err.count("--max-bytes allows more")) == (1, 6, 6)


def test_shards_that_are_cut_off(here, photos, tmp_path):
    """In a picture, in a header, between two members, at the end: never silently."""
    pictures = [(f"{index}.jpg", (photos / f"{index:03}.jpg").read_bytes()) for index in range(6)]
    whole = shard(tmp_path / "whole.tar", pictures).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        offsets = [(member.offset, member.offset_data) for member in tar]
    cut = tmp_path / "cut.tar"
    for length, answered in (
        (offsets[3][1] + 700, 3),
        (offsets[3][0] + 100, 3),
        (offsets[3][0], 3),
        (offsets[5][0], 5),
        (700, 0),
        (0, 0),
    ):
        cut.write_bytes(whole[:length])
        status, out, err = here(cut, "--json")
        assert (status, len(files_of(out))) == (1, answered + 1)
        assert f"cut off after {answered} picture" in err or (length == 0 and "empty" in err), (length, err)
    cut.write_bytes(b"nonsense" * 1000)
    assert here(cut)[0] == 1
    assert "holds no pictures" in here(shard(tmp_path / "none.tar", [("a.txt", b"")]))[2]


class Server(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(100):  # a byte now and then: each comes in time, all of them do not
                    self.wfile.write(b"x")
                    time.sleep(0.1)
        elif self.path in ("/away", "/file", "/ftp"):
            self.send_response(302)
            self.send_header("Location", "/001.jpg" if self.path == "/away" else self.path[1:] + "://127.0.0.1/etc/passwd")
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def web(photos):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, directory=photos)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_addresses(here, photos, web, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    names = [f"{web}/001.jpg", f"{web}/none.jpg", f"{web}/away", f"{web}/file", f"{web}/ftp", "http://127.0.0.1:1/x.jpg"]
    status, out, err = here(*names, photos / "001.jpg", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert (status, [line["file"] for line in lines[:6]]) == (1, names)
    assert lines[0]["predictions"] == lines[2]["predictions"] == lines[6]["predictions"]
    assert "none.jpg cannot be fetched: " in err
    assert "it sends on to ftp://127.0.0.1/etc/passwd, which is not http or https" in err
    assert "/file cannot be fetched: " in err
    assert "x.jpg cannot be fetched: " in err
    assert "has more than 1000 bytes: --max-bytes allows more" in here(names[0], "--max-bytes", 1000)[2]
    assert here("-", stdin="\n".join([names[0], names[2]]).encode())[0] == 0


def test_python_fetches_nothing_and_says_what_does():
    reason = "is an address, and effnet_np fetches no pictures here: on the shell, effnet-np classify http"
    for address in ("http://127.0.0.1:1/a.jpg", "HTTPS://127.0.0.1:1/a.jpg"):
        with pytest.raises(ValueError, match=f"{address} {reason}".replace("http", "(?i:http)")):
            effnet_np.classify(address)
    (answer,) = effnet_np.classify(["https://127.0.0.1:1/a.jpg"], errors="return")
    assert "in Python, pass what urllib.request.urlopen gives" in str(answer)


def test_addresses_that_take_too_long(here, web, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    began, before = time.monotonic(), threading.active_count()
    status, _, err = here(f"{web}/slow", "--timeout", 1)
    assert (status, "has not come within 1 seconds: --timeout allows more" in err) == (1, True)
    assert time.monotonic() - began < 8
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)], before


# -- where answers go --------------------------------------------------------------------------------------------------


def rows_of(path):
    """[(file, error or None, [(label, index, score), ...])] of a file of answers of any kind."""
    if path.suffix == ".csv":
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        ranks = range(1, (len(rows[0]) - 3) // 3 + 1)
        return [
            (
                row["file"],
                row["error"] or None,
                [(row[f"label_{r}"], int(row[f"index_{r}"]), float(row[f"score_{r}"])) for r in ranks if row[f"label_{r}"]],
            )
            for row in rows
        ]
    if path.suffix == ".parquet":
        records = pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    else:
        records = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        (
            record["file"],
            record.get("error"),
            [(entry["label"], entry["index"], entry["score"]) for entry in record.get("predictions") or ()],
        )
        for record in records
    ]


def what_is_left(path):
    """The file of answers, and what it was begun with; a Parquet file says that itself."""
    return [path.name] if path.suffix == ".parquet" else [path.name, f"{path.name}.run.json"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_files_of_answers(here, photos, model, tmp_path, ending):
    path = tmp_path / f"out.{ending}"
    status, out, err = here(photos, "-o", path, "--top-k", 3)
    assert (status, out) == (1, "")
    assert "40 pictures in " in err
    assert f"; 1 could not be classified, in {path}\n" in err
    answers = effnet_np.classify(sorted(photos.iterdir()), model=model, top_k=3, backend="numpy", errors="return")
    expected = [
        (str(name), str(answer) if isinstance(answer, Exception) else None, [])
        if isinstance(answer, Exception)
        else (str(name), None, [(entry["label"], entry["index"], entry["score"]) for entry in answer])
        for name, answer in zip(sorted(photos.iterdir()), answers, strict=True)
    ]
    assert rows_of(path) == expected
    assert sorted(os.listdir(tmp_path)) == what_is_left(path)
    before = path.read_bytes()
    status, _, err = here(photos, "-o", path)
    assert (status, "is there already: --resume goes on with it" in err, path.read_bytes() == before) == (1, True, True)
    status, _, err = here(photos, "-o", path, "--top-k", 3, "--resume")
    assert (status, path.read_bytes() == before) == (1, True)
    assert "0 pictures in " in err
    assert " and 40 before; 1 could not be classified" in err


@pytest.mark.parametrize("ending", ENDINGS)
def test_features(here, photos, model, tmp_path, ending):
    path = tmp_path / f"out.{ending}"
    status, _, err = here(photos / "001.jpg", photos / "002.jpg", "--embed", "-o", path)
    assert status == 0, err
    if ending == "csv":
        rows = list(csv.reader(path.read_text().splitlines()))[1:]
        found = np.array([row[3:] for row in rows], np.float64).astype(np.float32)
    elif ending == "parquet":
        found = np.array(
            [record["embedding"] for record in pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()]
        )
    else:
        found = np.array([json.loads(line)["embedding"] for line in path.read_text().splitlines()], np.float32)
    network = effnet_np.EfficientNetForImageClassification.from_pretrained(model)
    photographs = [PIL.Image.open(photos / f"00{index}.jpg") for index in (1, 2)]
    values = network.image_processor(photographs, return_tensors="np").pixel_values
    np.testing.assert_array_equal(found.astype(np.float32), network.efficientnet(values).pooler_output)
    _, out, _ = here(photos / "001.jpg", "--embed")
    np.testing.assert_allclose(json.loads(out)["embedding"], found[0], rtol=1e-4, atol=1e-6)
    assert "was begun with --embed, and this run gives labels: " in here(photos, "-o", path, "--resume")[2]
    if ending != "parquet":
        beside(path).unlink()
        assert "cannot be resumed" in here(photos, "-o", path, "--resume")[2]


def changed_weights(model, folder):
    network = effnet_np.EfficientNetForImageClassification.from_pretrained(model)
    network.classifier.bias[0] += 1
    network.save_pretrained(folder)
    network.image_processor.save_pretrained(folder)


@pytest.mark.parametrize("ending", ENDINGS)
def test_resume_goes_on_with_what_the_file_was_begun_with_alone(here, photos, model, tmp_path, ending):
    """Another model, other weights of that name, preprocessing, backend, number of labels: said, and nothing is written."""
    path, mine = tmp_path / f"out.{ending}", tmp_path / "model"
    shutil.copytree(model, mine)
    pictures = [photos / "001.jpg", photos / "002.jpg"]
    begin = (*pictures, "-o", path, "--top-k", 3)
    more = (photos / "003.jpg", *begin, "--resume")
    assert here(*begin, model=mine)[0] == 0
    before = path.read_bytes()
    asked = [
        ((*more, "--top-k", 2), mine, "--top-k 3, and this run has 2"),
        ((*more, "--processor", "b0"), mine, "--processor the model's own, and this run asks for b0"),
        ((*more, "--embed"), mine, "labels, and this run gives --embed"),
        (more, "lite0", f"--model {mine}, and this run asks for lite0"),
    ]
    if importlib.util.find_spec("numba"):
        asked.append(((*more, "--backend", "numba"), mine, "--backend numpy, and in this run numba answers"))
    for arguments, name, reason in asked:
        status, out, err = here(*arguments, model=name)
        assert (status, out, f"{path} was begun with {reason}" in err) == (1, "", True), err
        assert "answers of both would be mixed. To go on, ask for the same, or write to another file" in err
        assert path.read_bytes() == before
    changed_weights(model, mine)
    err = here(*more, model=mine)[2]
    assert f"--model {mine} as it was then, and its weights or its configuration have changed since" in err
    assert path.read_bytes() == before
    shutil.rmtree(mine)
    shutil.copytree(model, mine)
    shutil.copytree(model, tmp_path / "copy")  # of another name, and the same
    assert here(*more, model=tmp_path / "copy")[0] == 0
    assert len(rows_of(path)) == 3


def test_a_file_without_a_note_is_resumed_as_it_is(here, photos, tmp_path):
    """JSON lines of an earlier version, or that somebody moved here; and a note that is none."""
    path = tmp_path / "out.jsonl"
    here(photos / "001.jpg", "-o", path, "--top-k", 3)
    beside(path).write_text("[]")
    err = here(photos / "002.jpg", "-o", path, "--resume")[2]
    assert f"without {beside(path)}, {path} is resumed as it is" in err
    beside(path).unlink()
    assert here(photos / "002.jpg", "-o", path, "--resume", "--top-k", 2)[0] == 0
    assert [len(labels) for _, _, labels in rows_of(path)] == [3, 2]
    assert not beside(path).exists()  # nobody can say that again
    path.unlink()
    beside(path).write_text("{}")  # of a file that is gone
    assert here(photos / "002.jpg", "-o", path, "--resume", "--top-k", 2)[0] == 0
    assert json.loads(beside(path).read_text())["top_k"] == 2


def test_wrong_outputs(here, photos, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["classify", str(photos), "-o", "out.txt"])
    assert (stopped.value.code, "must end in .jsonl, .csv, .parquet, got 'out.txt'" in capsys.readouterr().err) == (2, True)
    assert "there is no folder" in here(photos, "-o", tmp_path / "none" / "out.csv")[2]
    assert "--resume goes on with the file of -o: name it" in here(photos, "--resume")[2]
    (tmp_path / "a.jsonl").mkdir()
    assert "is a folder" in here(photos, "-o", tmp_path / "a.jsonl")[2]
    (tmp_path / "b.jsonl").write_text('{"other": 1}\n')
    assert (
        "b.jsonl, line 1, holds no predictions of a picture: it cannot be resumed"
        in here(photos, "-o", tmp_path / "b.jsonl", "--resume")[2]
    )
    (tmp_path / "c.csv").write_text("a,b\n1,2\n")
    assert "has other columns" in here(photos, "-o", tmp_path / "c.csv", "--resume")[2]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "pip install 'effnet_np[parquet]'" in here(photos, "-o", tmp_path / "d.parquet")[2]


# -- bad days ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_that_was_cut_off_anywhere_is_mended(here, photos, tmp_path, ending):
    """Names with quotation marks, ends of lines and bytes that are no UTF-8 included."""
    strange = [os.fsencode(tmp_path) + b'/"a\n,b".jpg', os.fsencode(tmp_path) + b"/caf\xe9.jpg"]
    for name in strange:
        shutil.copy(photos / "001.jpg", name)
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / f"out.{ending}"
    sources = [*map(os.fsdecode, strange), photos]
    assert here(*sources, "-o", path)[0] == 1
    expected = path.read_bytes()
    journal = path
    if ending == "parquet":
        journal = path.with_suffix(".parquet.jsonl")
        other = path.with_suffix(".jsonl")
        here(*sources, "-o", other)
        noted = beside(other).read_bytes()
        journal.write_bytes(other.read_bytes())
        other.unlink()
        beside(other).unlink()
    whole = journal.read_bytes()
    for length in [*np.random.default_rng(0).integers(0, len(whole), 12), 3, whole.index(b"\n", 200) + 1, len(whole) - 1]:
        if ending == "parquet":
            path.unlink()
            beside(journal).write_bytes(noted)
        journal.write_bytes(whole[:length])
        assert here(*sources, "-o", path, "--resume")[0] == 1
        assert path.read_bytes() == expected, length
        assert sorted(os.listdir(path.parent)) == what_is_left(path)


def test_resume_after_the_folder_has_changed():
    """What has gone stays recorded, what has come is done, and a name that is given twice is done twice."""
    skipped = []
    recorded = [("a", False), ("b", True), ("c", False), ("c", False)]
    entries = [Entry(name, name) for name in ("a", "aa", "c", "d", "c", "c")]
    assert [entry.name for entry in not_yet(entries, iter(recorded), skipped.append)] == ["aa", "d", "c"]
    assert skipped == [False, False, False]


def test_a_folder_that_changes_meanwhile(here, photos, tmp_path, monkeypatch):
    for name in "abcd":
        shutil.copy(photos / "001.jpg", tmp_path / f"{name}.jpg")
    module = sys.modules["effnet_np.cli.classify"]
    real = module.expand

    def expand(*arguments):
        found = real(*arguments)
        (tmp_path / "b.jpg").unlink()
        (tmp_path / "c.jpg").write_bytes(b"")
        return found

    monkeypatch.setattr(module, "expand", expand)
    status, out, err = here(tmp_path, "--json")
    assert (status, ["error" in json.loads(line) for line in out.splitlines()]) == (1, [False, True, True, False])
    assert "there is no picture" in err


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no such limit")
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_full_disk_loses_nothing(here, photos, model, tmp_path, ending):
    quiet, path = tmp_path / f"quiet.{ending}", tmp_path / f"out.{ending}"
    assert here(photos, "-o", quiet)[0] == 1
    written = tmp_path / f"{path.name}{'.jsonl' if ending == 'parquet' else ''}"
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
    done = subprocess.run(command(model, photos, "-o", path), capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 1
    assert f"effnet-np: {written} cannot be written: " in done.stderr
    assert "what is in it stays, and --resume goes on from there" in done.stderr
    assert "Traceback" not in done.stderr
    assert written.stat().st_size == 5000
    assert here(photos, "-o", path, "--resume")[0] == 1
    assert path.read_bytes() == quiet.read_bytes()


def test_a_disk_that_is_full_at_the_end(here, photos, tmp_path, monkeypatch):
    """Parquet is written when all is done: if it cannot be, the records stay in their file of lines."""
    parquet = pytest.importorskip("pyarrow.parquet")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "out.parquet"
    with monkeypatch.context() as patch:
        patch.setattr(parquet.ParquetWriter, "write_table", full)
        status, _, err = here(photos, "-o", path)
    assert (status, "No space left on device" in err, "Traceback" in err) == (1, True, False), err
    assert sorted(os.listdir(tmp_path)) == ["out.parquet.jsonl", "out.parquet.jsonl.run.json"]
    status, _, err = here(photos, "-o", path, "--resume")
    assert (status, "0 pictures in" in err, "and 40 before" in err) == (1, True, True)
    assert (os.listdir(tmp_path), len(rows_of(path))) == (["out.parquet"], 40)


def test_a_pipe_that_closes(photos, model):
    text = " ".join(f"'{part}'" for part in command(model, photos, photos, photos, "--json"))
    done = subprocess.run(f"{text} | head -1", shell=True, capture_output=True, text=True, timeout=60)
    assert (len(done.stdout.splitlines()), "Traceback" in done.stderr, "fault" in done.stderr) == (1, False, False)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_killed_goes_on_to_the_same_file(photos, model, tmp_path, end):
    """`tests/kill_classify.py` does it twenty times."""
    quiet, path = tmp_path / "quiet.jsonl", tmp_path / "out.jsonl"
    subprocess.run(command(model, *[photos] * 10, "-o", quiet), capture_output=True)
    process = subprocess.Popen(command(model, *[photos] * 10, "-o", path), stderr=subprocess.PIPE)
    while not path.exists() or path.stat().st_size < 5000:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(end)
    _, err = process.communicate(timeout=30)
    assert process.returncode == (130 if end == signal.SIGINT else -9), err
    assert path.stat().st_size < quiet.stat().st_size
    done = subprocess.run(command(model, *[photos] * 10, "-o", path, "--resume"), capture_output=True)
    assert done.returncode == 1
    assert path.read_bytes() == quiet.read_bytes()


def test_a_summary_and_the_time_left(photos, model):
    for tqdm in (True, False):
        code = "import sys; sys.stderr.isatty = lambda: True\n" + ("" if tqdm else "sys.modules['tqdm'] = None\n")
        code += "from effnet_np.cli import main; sys.exit(main())"
        arguments = command(model, photos, "--json")[3:]
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        assert ("40/40" if tqdm else "0 of 40 pictures") in done.stderr
        assert ("picture/s" if tqdm else " a second, 0:00:00 left") in done.stderr
        assert "effnet-np: 40 pictures in " in done.stderr
