"""The command, run as a user runs it."""

import json
import shutil
import subprocess
import sys

import pytest

import effnet_np

from helpers import CHELSEA, COFFEE


def run(*arguments, **options):
    command = [sys.executable, "-m", "effnet_np.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


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
def test_progress_bar_for_many(tqdm, tmp_path):
    """On a terminal whose output goes to a file, as `effnet-np classify photos/ > results` on a shell."""
    for index in range(9):
        shutil.copy(CHELSEA, tmp_path / f"{index}.png")
    block = "" if tqdm else "sys.modules['tqdm'] = None; "
    code = f"import sys; sys.stderr.isatty = lambda: True; {block}from effnet_np.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "classify", str(tmp_path), "--json"], capture_output=True, text=True)
    assert len(done.stdout.splitlines()) == 9
    assert "9/9" in done.stderr if tqdm else "9 of 9 pictures" in done.stderr
