"""classify's backends: the same answers from NumPy and from the kernels, and a hint, once, where the kernels are cold."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import effnet_np
from effnet_np.classify import get_runner
from effnet_np.kernels.compiled import CompiledEfficientNet

from helpers import CHELSEA, COFFEE

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


def test_unknown_backend():
    with pytest.raises(ValueError, match="backend must be one of auto, numpy, numba, got 'cuda'"):
        effnet_np.classify(COFFEE, backend="cuda")


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
    assert json.loads((tmp_path / "out.json").read_text())
