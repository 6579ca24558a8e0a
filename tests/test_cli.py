"""The command, run as a user runs it."""

import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

import effnet_np
from effnet_np.cli import main
from effnet_np.images.processor import EfficientNetImageProcessor

from helpers import CHELSEA, COFFEE, tiny_config


def run(*arguments, **options):
    command = [sys.executable, "-m", "effnet_np.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


@pytest.fixture
def here(capsys, monkeypatch):
    """The command in this process: its exit status, stdout, stderr."""

    def call(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        status = main(list(map(str, arguments)))
        return (status, *capsys.readouterr())

    return call


def test_no_command_lists_the_commands(here):
    status, out, error = here()
    assert (status, out) == (2, "")
    assert "finetune" in error


def test_explain_refuses_the_name_before_it_works(here, tmp_path):
    status, _, error = here("explain", tmp_path / "no-such-picture.png", "-o", tmp_path / "why.txt")
    assert status == 1
    assert "the picture's name must end in .png" in error


def test_classify_for_people():
    done = run("classify", CHELSEA, "--top-k", 2, "--backend", "numpy")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{CHELSEA}\n   38.5%  tiger cat\n   36.3%  Egyptian cat\n"
    assert done.stderr == ""


def test_classify_for_programs():
    done = run("classify", CHELSEA, COFFEE, "--json", "--batch-size", 1)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["file"] for line in lines] == [str(CHELSEA), str(COFFEE)]
    assert lines[1]["predictions"][0]["label"] == "espresso"
    expected = effnet_np.classify(COFFEE)
    assert [p["label"] for p in lines[1]["predictions"]] == [p["label"] for p in expected]
    assert lines[0]["predictions"][0]["index"] == 282


def test_folders_and_patterns(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(COFFEE, folder)
    shutil.copy(CHELSEA, folder)
    (folder / "notes.txt").write_text("no picture")
    for source in ("classify", folder), ("classify", folder / "c*.png"), ("classify", "c*.png"):
        done = run(*source, "--json", cwd=folder)
        assert done.returncode == 0, done.stderr
        names = [json.loads(line)["file"].rpartition("/")[2] for line in done.stdout.splitlines()]
        assert names == ["chelsea.png", "coffee.png"]  # sorted
    done = run("classify", tmp_path, CHELSEA)
    assert done.returncode == 1
    assert "the folder holds no pictures (.jpg" in done.stderr
    assert "tiger cat" in done.stdout
    done = run("classify", "*.nothing")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "effnet-np: *.nothing: no file fits this pattern (folders do not count)\n"


def test_a_bad_picture_is_named_and_the_others_are_done(tmp_path):
    shutil.copy(CHELSEA, tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"nothing")
    shutil.copy(COFFEE, tmp_path / "c.png")
    done = run("classify", tmp_path, tmp_path / "missing.png")
    assert done.returncode == 1
    assert done.stdout.index("tiger cat") < done.stdout.index("espresso")
    assert f"effnet-np: {tmp_path / 'b.png'} is no picture of a known format" in done.stderr
    assert "missing.png" in done.stderr
    assert "2 could not be classified" in done.stderr
    assert "Traceback" not in done.stderr
    done = run("classify", tmp_path, "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert ["error" in line for line in lines] == [False, True, False]  # in the order of the names


def test_a_bad_model_is_one_line(tmp_path):
    done = run("classify", CHELSEA, "--model", tmp_path / "nowhere")
    assert done.returncode == 1
    assert done.stderr.startswith(f"effnet-np: there is no file or folder '{tmp_path / 'nowhere'}'; known short names are")
    assert done.stderr.count("\n") == 1


def test_wrong_calls_exit_with_2():
    assert "must be a whole number of at least 1, got 'abc'" in run("classify", CHELSEA, "--top-k", "abc").stderr
    for arguments in ([], ["classify"], ["classify", CHELSEA, "--top-k", "0"], ["dance"]):
        done = run(*arguments)
        assert done.returncode == 2
        assert "usage: effnet-np" in done.stderr
        assert "Traceback" not in done.stderr


def test_help_and_version():
    done = run("--help")
    for word in ("classify", "summary", "export", "without PyTorch"):
        assert word in done.stdout
    assert run("--version").stdout == f"effnet-np {effnet_np.__version__}\n"
    for command in ("classify", "summary", "export"):
        assert "--" in run(command, "--help").stdout


def test_summary():
    done = run("summary", "--model", "b0")
    assert "total" in done.stdout
    assert "paper's Table 2: 5.3M parameters (-0.2% here), 0.39B mult-adds (-1.1% here)" in done.stdout
    assert run("summary").stdout.count("BatchNorm2d") == 49
    assert "16 x 16" in run("summary", "--image-size", "32").stdout
    assert "too small" in run("summary", "--image-size", "16").stderr


def test_output_into_a_closed_pipe_is_quiet():
    command = f"{sys.executable} -m effnet_np.cli summary --model b7 | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stdout.startswith("layer")
    assert done.stderr == ""


@pytest.mark.parametrize("tqdm", [True, False])
@pytest.mark.parametrize("output", ["file", "terminal"])
def test_progress_counts_answers_where_a_person_looks(tqdm, output, tmp_path):
    """On a terminal, whether the answers go to a file, as with `> results`, or to the same terminal."""
    for index in range(3):
        shutil.copy(CHELSEA, tmp_path / f"{index}.png")
    code = "import sys; sys.stderr.isatty = lambda: True\n"
    if output == "terminal":
        code += "sys.stdout = sys.stderr\n"
    if not tqdm:
        code += "sys.modules['tqdm'] = None\n"
    code += "from effnet_np.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "classify", str(tmp_path), "--top-k", "1"], capture_output=True, text=True
    )
    assert ("3/3" if tqdm else "3 of 3 pictures") in done.stderr
    answers = done.stderr if output == "terminal" else done.stdout
    assert [line for line in answers.replace("\r", "\n").splitlines() if "tiger cat" in line] == ["   38.5%  tiger cat"] * 3
    assert answers.rindex("3/3" if tqdm else "3 of 3") > answers.rindex("tiger cat") if output == "terminal" else True


def test_no_progress_for_one_picture_and_none_without_a_terminal(here, monkeypatch, tmp_path):
    assert here("classify", CHELSEA, COFFEE, "--backend", "numpy")[2] == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert here("classify", CHELSEA, "--backend", "numpy")[2] == ""


def test_a_picture_from_stdin(here, tmp_path):
    status, out, _ = here("classify", "-", "--json", "--top-k", 1, stdin=CHELSEA.read_bytes())
    assert (status, json.loads(out)["file"], json.loads(out)["predictions"][0]["label"]) == (0, "-", "tiger cat")
    status, _, err = here("classify", "-", "--backend", "numpy", stdin=b"")
    assert (status, err.count("\n"), "is empty" in err) == (1, 1, True)
    status, out, _ = here("explain", "-", "-o", tmp_path / "why.png", stdin=CHELSEA.read_bytes())
    assert (status, (tmp_path / "why.png").is_file()) == (0, True)
    command = f"cat {CHELSEA} | {sys.executable} -m effnet_np classify - --top-k 1 --backend numpy"
    assert subprocess.run(command, shell=True, capture_output=True, text=True).stdout == "-\n   38.5%  tiger cat\n"


def test_folders_below_and_what_was_skipped(here, tmp_path):
    (tmp_path / "2024" / "may").mkdir(parents=True)
    (tmp_path / ".thumbnails").mkdir()
    for name in ("a.png", "2024/b.png", "2024/may/c.PNG", ".thumbnails/d.png", "._a.png"):
        shutil.copy(CHELSEA, tmp_path / name)
    for name in ("notes.txt", "film.mov", "more.txt", "2024/README"):
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path)  # a circle

    def names(*options):
        status, out, err = here("classify", tmp_path, "--json", "--backend", "numpy", *options)
        assert status == 0
        return [os.path.relpath(json.loads(line)["file"], tmp_path) for line in out.splitlines()], err

    found, err = names()
    assert found == ["a.png"]
    assert f"effnet-np: {tmp_path}: skipped 3 files of unknown kind (2 .txt, 1 .mov)\n" in err
    assert f"effnet-np: {tmp_path}: -r looks into the 2 folders below\n" in err
    found, err = names("-r")
    assert found == ["a.png", "2024/b.png", "2024/may/c.PNG"]
    assert "skipped 4 files of unknown kind (2 .txt, 1 .mov, 1 without a suffix)" in err
    assert "1 linked folder below not followed" in err
    status, out, err = here("classify", tmp_path / "2024" / "may" / "..", "--backend", "numpy")
    assert (status, "tiger cat" in out) == (0, True)


def test_a_folder_that_cannot_be_read_does_not_end_the_batch(here, tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    shutil.copy(CHELSEA, tmp_path)
    real = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr("os.scandir", scandir)  # root reads everything
    status, out, err = here("classify", tmp_path, "-r")
    assert (status, "tiger cat" in out) == (1, True)
    assert f"effnet-np: {tmp_path / 'locked'}: Permission denied\n" in err


def test_an_address_is_not_fetched_in_python():
    with pytest.raises(
        ValueError, match="fetches no pictures here: on the shell, effnet-np classify HTTP://example.org/cat.jpg"
    ):
        effnet_np.classify("HTTP://example.org/cat.jpg")


def test_names_and_labels_move_no_cursor(here, tmp_path):
    """A file name is a stranger's text; a label may come from a stranger's config.json."""
    model = effnet_np.EfficientNetForImageClassification(tiny_config(num_labels=2), seed=0)
    model.config.id2label = {0: "red\x1b[31m\nnext", 1: 7}
    model.image_processor = EfficientNetImageProcessor(size=64)
    model.save_pretrained(tmp_path / "model")
    strange = os.fsencode(tmp_path) + b"/\x1b[2Jcaf\xe9\n.png"
    shutil.copy(CHELSEA, strange)
    shutil.copy(COFFEE, tmp_path / "grün.png")
    (tmp_path / "bad\x1b]0;title\x07.png").write_bytes(b"no picture")
    for options in ((), ("--json",)):
        status, out, err = here("classify", tmp_path, "--model", tmp_path / "model", *options)
        assert status == 1
        assert not {c for c in out + err if not c.isprintable()} - {"\n"}
        (out + err).encode()  # no half characters
    lines = [json.loads(line) for line in out.splitlines()]
    assert [bytes.fromhex(line["file_bytes"]) for line in lines if "file_bytes" in line] == [strange]
    assert lines[-1]["file"] == str(tmp_path / "grün.png")
    assert {p["label"] for p in lines[-1]["predictions"]} == {7, "red\x1b[31m\nnext"}
    plain = here("classify", strange.decode("utf-8", "surrogateescape"), "--model", tmp_path / "model")[1]
    assert "/\\x1b[2Jcaf\\udce9\\n.png\n" in plain
    assert "red\\x1b[31m\\nnext" in plain


def test_what_the_terminal_cannot_show_is_escaped(tmp_path):
    shutil.copy(CHELSEA, tmp_path / "кот.png")
    done = run("classify", tmp_path, "--top-k", 1, "--backend", "numpy", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u043a\\u043e\\u0442.png\n   38.5%  tiger cat" in done.stdout


def test_one_picture_does_not_end_a_batch(here, tmp_path, monkeypatch):
    """Whatever it fails with: memory, a damaged file, a network that cannot take it, a fault of ours."""
    import effnet_np.inference.stream  # noqa: F401

    module = sys.modules["effnet_np.inference.stream"]
    real = module.load_image
    faults = {"memory": MemoryError(), "fault": RuntimeError("a fault"), "disk": OSError(5, "Input/output error")}

    def load(source, *rest):
        for name, error in faults.items():
            if name in str(source):
                raise error
        return real(source, *rest)

    monkeypatch.setattr(module, "load_image", load)
    names = ["a.png", "b-memory.png", "c-fault.png", "d-disk.png", "e-cut.png", "f.png"]
    for name in names:
        shutil.copy(CHELSEA, tmp_path / name)
    (tmp_path / "e-cut.png").write_bytes(CHELSEA.read_bytes()[:50_000])
    for size in (1, 8):
        status, out, err = here("classify", tmp_path, "--json", "--batch-size", size, "--backend", "numpy")
        assert status == 1
        lines = [json.loads(line) for line in out.splitlines()]
        assert [os.path.basename(line["file"]) for line in lines] == names
        assert ["error" in line for line in lines] == [False, True, True, True, True, False]
        assert "b-memory.png: there is not enough memory" in err
        assert "c-fault.png: a fault" in err
        assert "4 could not be classified" in err


def test_memory_and_faults_of_ours_are_a_sentence(here, monkeypatch):
    module = sys.modules["effnet_np.inspection.explain"]
    for error, text in ((MemoryError(), "there is not enough memory"), (KeyError("x"), "a fault of effnet_np's own, please")):

        def fail(*_args, error=error, **_options):
            raise error

        monkeypatch.setattr(module, "explain", fail)
        status, _, err = here("explain", CHELSEA, "-o", "out.png")
        assert status == 1
        assert text in err
        assert err.count("\n") == 1


def test_a_folder_without_its_preprocessing(here, tmp_path):
    model = effnet_np.EfficientNetForImageClassification(tiny_config(), seed=0)
    model.save_pretrained(tmp_path)
    status, _, err = here("classify", CHELSEA, "--model", tmp_path)
    assert status == 1
    assert "--processor b0" in err
    assert 'EfficientNetImageProcessor.preset("b0").save_pretrained(folder)' in err
    EfficientNetImageProcessor(size=64).save_pretrained(tmp_path / "processor")
    for processor in ("b0", tmp_path / "processor", tmp_path / "processor" / "preprocessor_config.json"):
        assert here("classify", CHELSEA, "--model", tmp_path, "--processor", processor)[0] == 0
        assert here("explain", CHELSEA, "--model", tmp_path, "--processor", processor, "-o", tmp_path / "a.png")[0] == 0
    status, _, err = here("classify", CHELSEA, "--processor", "b9")
    assert (status, err.count("Traceback")) == (1, 0)


def test_threads(here):
    status, out, err = here("classify", CHELSEA, "--backend", "numba", "--threads", 1, "--top-k", 1)
    assert (status, out) == (0, f"{CHELSEA}\n   38.5%  tiger cat\n")
    status, _, err = here("classify", CHELSEA, "--backend", "numpy", "--threads", 1)
    assert status == 1
    assert "threads is for the compiled kernels" in err


def test_threads_without_numba_say_that_numpy_answers():
    code = "import sys; sys.modules['numba'] = sys.modules['llvmlite'] = None; from effnet_np.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "classify", str(CHELSEA), "--threads", "2", "--top-k", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{CHELSEA}\n   38.5%  tiger cat\n")
    assert done.stderr == "effnet-np: threads is for the compiled kernels, and NumPy answers here\n"


def test_a_message_before_numba_compiles(here, monkeypatch):
    from effnet_np.kernels import library, warmup

    said = []
    monkeypatch.setattr(library, "kernels_cached", lambda: False)
    monkeypatch.setattr(warmup, "warmup", lambda: said.append("warmup"))
    status, _, err = here("classify", CHELSEA, "--backend", "numba")
    assert (status, said) == (0, ["warmup"])
    assert err == "effnet-np: compiling the kernels for this CPU, once, which takes up to a minute\n"


def test_explain_finds_a_class_by_its_name(here, tmp_path):
    pictures = []
    for name in ("281", "tabby", "Tabby Cat"):
        assert here("explain", CHELSEA, "-o", tmp_path / "a.png", "--class", name)[0] == 0
        pictures.append(np.asarray(PIL.Image.open(tmp_path / "a.png")))
    assert (pictures[0] == pictures[1]).all()
    assert (pictures[0] == pictures[2]).all()
    for name, text in (
        ("crane", "2 classes are called 'crane'; give the index: 134 crane; 517 crane"),
        ("taby", "no class is called 'taby'; close to it: 281 tabby, tabby cat"),
        ("1000", "class_index must lie between 0 and 999, got '1000'"),
        ("cat", "close to it: 281 tabby, tabby cat; 282 tiger cat; 283 Persian cat"),
        ("qqqqqq", "no class is called 'qqqqqq'\n"),
    ):
        status, _, err = here("explain", CHELSEA, "-o", tmp_path / "b.png", "--class", name)
        assert (status, (tmp_path / "b.png").exists()) == (1, False)
        assert text in err


def test_help_reads_as_sentences(here, capsys):
    for command in ("classify", "explain", "warmup", "bench", "export", "trace", "compare", "summary"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = capsys.readouterr().out
        for wrong in ("for this cpu", "numpy, pytorch"):
            assert wrong not in text
        assert text.split("\n\n")[1][0].isupper()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed, tmp_path):
    """What the shell closed is no fault, and no file that is written gets its number."""
    shutil.copy(CHELSEA, tmp_path / "a.png")
    shutil.copy(CHELSEA, tmp_path / "b.png")
    command = f"'{sys.executable}' -m effnet_np classify a.png b.png - {closed}"
    result = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, stdin=subprocess.DEVNULL, timeout=100)
    assert result.returncode == 1, result  # stdin holds no picture
    assert b"fault" not in result.stdout + result.stderr
    assert (b"tiger cat" in result.stdout) == (">&-" not in closed.replace("2>&-", ""))
    assert (b"is empty" in result.stderr) == ("2>&-" not in closed)


def test_names_forge_no_lines_and_no_colours(here, capsys):
    status, _, stderr = here("explain", "a\neffnet-np: all is well\x1b[2J.png", "-o", "x.png")
    assert status == 1
    assert "\x1b" not in stderr
    assert [line.startswith("effnet-np: ") for line in stderr.splitlines()] == [True, False]
    with pytest.raises(SystemExit):
        main(["classify", "a.png", "--\x1b[31mpwned\n.jpg"])
    assert r"unrecognized arguments: --\x1b[31mpwned\n.jpg" in capsys.readouterr().err
