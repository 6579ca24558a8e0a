"""classify's backends: the same answers from NumPy and from the kernels, and a hint, once, where the kernels are cold."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import effnet_np
from effnet_np.inference.classify import get_runner
from effnet_np.kernels.compiled import CompiledEfficientNet

from helpers import CHELSEA, COFFEE
from interrupts import network

HINT = "NumPy answers; `effnet-np warmup` compiles the kernels once"


def run(*arguments, **environment):
    command = [sys.executable, "-m", "effnet_np.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def test_the_same_answers_on_photographs():
    for photo in (CHELSEA, COFFEE):
        slow, fast = (effnet_np.classify(photo, backend=backend) for backend in ("numpy", "numba"))
        assert [p["label"] for p in fast] == [p["label"] for p in slow]
        np.testing.assert_allclose([p["score"] for p in fast], [p["score"] for p in slow], rtol=1e-3)


def test_the_compiled_form_is_kept_with_its_model():
    runner = get_runner("lite0", "numba")
    assert isinstance(runner, CompiledEfficientNet)
    assert get_runner("lite0", "numba") is runner
    assert get_runner("lite0", "auto") is get_runner("lite0", "auto")  # warm now
    assert not isinstance(get_runner("lite0", "numpy"), CompiledEfficientNet)


def test_objects_answer_themselves():
    model = effnet_np.EfficientNetForImageClassification.from_pretrained("lite0")
    assert get_runner(model, "auto") is model
    compiled = effnet_np.compile(model, threads=1)
    assert get_runner(compiled, "auto") is compiled
    assert effnet_np.classify(COFFEE, model=compiled)[0]["label"] == "espresso"
    assert isinstance(get_runner(model, "numba"), CompiledEfficientNet)


def test_backend_is_chosen_by_what_is_there(tmp_path, monkeypatch):
    from effnet_np.kernels import backend, library

    model = network("tiny")
    library.addresses()
    assert backend.choose(model, "numpy") == (model, None)
    assert isinstance(backend.choose(model, "auto")[0], CompiledEfficientNet)
    with pytest.raises(ValueError, match="backend must be"):
        backend.choose(model, "cuda")
    monkeypatch.setattr(library, "_loaded", {})
    monkeypatch.setenv("EFFNET_NP_KERNEL_CACHE", str(tmp_path))  # nothing is compiled there
    chosen, hint = backend.choose(model, "auto")
    assert chosen is model
    assert "warmup" in hint


def test_cold_kernels_hint_once_on_stderr_and_warm_ones_do_not(tmp_path):
    cold = {"EFFNET_NP_KERNEL_CACHE": str(tmp_path)}
    done = run("classify", CHELSEA, COFFEE, "--json", **cold)
    assert done.returncode == 0
    assert done.stderr.count(HINT) == 1
    assert [json.loads(line)["predictions"][0]["label"] for line in done.stdout.splitlines()] == ["tiger cat", "espresso"]
    assert run("classify", CHELSEA, "--backend", "numpy", **cold).stderr == ""
    done = run("warmup", **cold)
    assert done.returncode == 0
    assert "compiled in" in done.stderr
    assert f"kept in {tmp_path}" in done.stderr
    assert len(list(tmp_path.iterdir())) == 1
    done = run("classify", CHELSEA, **cold)
    assert done.stderr == ""
    assert "tiger cat" in done.stdout
    assert "compiled already" in run("warmup", **cold).stderr


def test_without_numba_nothing_is_said_and_numba_is_asked_for_by_name():
    block = (
        "import sys; sys.modules['numba'] = sys.modules['llvmlite'] = None; from effnet_np.cli import main; sys.exit(main())"
    )

    def without(*arguments):
        return subprocess.run([sys.executable, "-c", block, *map(str, arguments)], capture_output=True, text=True)

    done = without("classify", CHELSEA)
    assert (done.returncode, done.stderr) == (0, "")
    for arguments in (("classify", CHELSEA, "--backend", "numba"), ("warmup",)):
        done = without(*arguments)
        assert done.returncode == 1
        assert "pip install 'effnet_np[numba]'" in done.stderr
        assert "Traceback" not in done.stderr


def test_bench_compares_and_reports(tmp_path):
    options = ["--model", "lite0", "--threads", "1", "--seconds", "1", "--peers", "--json", tmp_path / "out.json"]
    done = run("bench", *options)
    assert done.returncode == 0, done.stderr
    assert "lite0" in done.stdout
    (result,) = json.loads((tmp_path / "out.json").read_text())
    assert (result["model"], result["threads"], result["batch"]) == ("lite0", 1, 1)
    assert result["milliseconds"]["numba"] < result["milliseconds"]["numpy"], result  # by a factor of ten, in quiet
    assert result["of_gemm"] > 0, result  # how much is not a test's business: others may use the machine


def test_default_threads_count_the_quota_and_the_variable(tmp_path, monkeypatch):
    from effnet_np.kernels.cores import default_threads

    monkeypatch.delenv("EFFNET_NP_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert default_threads(str(tmp_path)) == 16  # no control group
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert default_threads(str(tmp_path)) == 16
    for text, threads in (("250000 100000", 3), ("50000 100000", 1), ("200000 100000", 2)):
        (tmp_path / "cpu.max").write_text(text)
        assert default_threads(str(tmp_path)) == threads
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    for text, threads in (("-1", 16), ("400000", 4)):
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(text)
        assert default_threads(str(tmp_path)) == threads
    monkeypatch.setenv("EFFNET_NP_THREADS", "5")
    assert default_threads(str(tmp_path)) == 5
    monkeypatch.setenv("EFFNET_NP_THREADS", "many")
    with pytest.raises(ValueError, match="EFFNET_NP_THREADS must be a whole number of at least 1, got 'many'"):
        default_threads(str(tmp_path))


def test_without_a_home_folder_numpy_answers_and_warmup_says_what_to_do():
    code = """
import os, pwd, sys, warnings
def nobody(uid):
    raise KeyError("getpwuid(): uid not found")
pwd.getpwuid = nobody
from effnet_np.cli import main
sys.exit(main(["classify", sys.argv[1], "--top-k", "1"]))
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME", "EFFNET_NP_KERNEL_CACHE")}
    done = subprocess.run([sys.executable, "-c", code, str(CHELSEA)], capture_output=True, text=True, env=environment)
    assert (done.returncode, "tiger cat" in done.stdout) == (0, True), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_as_cache_file_is_no_machine_code_and_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    from effnet_np.kernels import library

    monkeypatch.setenv("EFFNET_NP_KERNEL_CACHE", str(tmp_path))
    monkeypatch.setattr(library, "_loaded", {})
    os.mkfifo(library.cache_file())
    assert not library.kernels_cached()
    library.cache_file().unlink()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match="cannot be kept .*No space left"):
        library._keep(b"code")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_while_its_parent_compiles_lets_numpy_answer(tmp_path):
    code = """
import os, sys, threading, warnings
warnings.simplefilter("ignore")
import effnet_np
from effnet_np.kernels import library
compiling, go_on = threading.Event(), threading.Event()
def progress(done, total, name):
    compiling.set()
    if not go_on.wait(60): os._exit(9)
thread = threading.Thread(target=lambda: library.addresses(progress), daemon=True)
thread.start()
assert compiling.wait(60)
child = os.fork()
if child == 0:
    answer = effnet_np.classify(sys.argv[1])[0]["label"]
    try:
        effnet_np.classify(sys.argv[1], backend="numba")
    except RuntimeError as error:
        assert "forked while its parent compiled" in str(error), error
        os._exit(0 if answer == "tiger cat" else 1)
    os._exit(2)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status))
sys.stdout.flush()
os._exit(0)
"""
    environment = os.environ | {"EFFNET_NP_KERNEL_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", code, str(CHELSEA)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)
    assert done.stdout == "0\n", done.stderr


def test_bench_says_what_is_missing_before_it_measures(monkeypatch, capsys):
    from effnet_np.cli import main
    from effnet_np.kernels import bench

    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    monkeypatch.setattr(bench, "measure", lambda *_: pytest.fail("it measured"))
    for arguments, name in ((["--peers"], "numba"), (["--peers", "torch"], "numba")):
        assert main(["bench", *arguments]) == 1
        assert f"bench needs {name}: pip install 'effnet_np[bench]'" in capsys.readouterr().err
    monkeypatch.setattr(bench, "find_spec", lambda name: None if name in ("torch", "matplotlib") else name)
    for arguments, name in (
        (["--peers", "torch"], "torch"),
        (["--peers", "--plot", "x.png"], "matplotlib"),
    ):
        assert main(["bench", *arguments]) == 1
        assert name in capsys.readouterr().err
