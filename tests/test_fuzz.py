"""The fuzzer itself: it passes on the corpus, and it notices each kind of defect."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from effnet_np.checkpoints.checkpoint import Checkpoint
from effnet_np.checkpoints.torch_file import TorchFile
from effnet_np.images.io import load_image

ROOT = Path(__file__).parent.parent
REGRESSIONS = ROOT / "tests" / "corpus" / "regressions"


def fuzz(*arguments, before="", folder="fuzz-defects"):
    code = f"import sys\nsys.argv = ['fuzz', '--defects', {str(folder)!r}, *{arguments!r}]\n{before}\n"
    code += "from tests.fuzz import __main__ as fuzzer\nsys.exit(fuzzer.main())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)


def test_a_few_inputs_of_each_reader(tmp_path):
    done = fuzz("--inputs", "100", "--start", "0", folder=tmp_path / "defects")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [row[0] for row in rows] == [
        "torch",
        "safetensors",
        "h5",
        "keras",
        "json",
        "pictures",
        "classify",
        "trace",
        "compare",
    ]
    for _, _, inputs, accepted, refused, defects, _ in rows:
        assert (int(inputs), int(accepted) + int(refused), int(defects)) == (100, 100, 0)
        assert int(refused) > 20
        assert int(accepted) > 0, "nothing but refusals: the inputs do not get far"
    assert not (tmp_path / "defects").exists()


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("raise KeyError('x')", "KeyError: 'x'"),
        ("raise ValueError('nameless')", "the error does not name the file"),
        ("raise ValueError(str(path) + 'x' * 2000)", "an error of 2[0-9]{3} characters"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "the process died .wait status (11|139)"),
        ("import time; time.sleep(60)", "no end within 6.0 s"),
        ("import time; end = time.process_time() + 2.1\n    while time.process_time() < end: pass", "2.[1-9] s, 0 MB"),
        ("kept = [bytearray(b'x' * 100_000_000)]", "9[0-9] MB more memory"),
    ],
)
def test_each_kind_of_defect_is_noticed(broken, words, tmp_path):
    before = f"""
import tests.fuzz.readers as readers
good = readers.json
seen = []
def reader(path):
    seen.append(path)
    if len(seen) < 5:  # the corpus comes first
        return good(path)
    {broken}
readers.READERS["json"] = (reader, True, "json")
from tests.fuzz import __main__ as fuzzer
fuzzer.HANG = 6.0
"""
    done = fuzz("--inputs", "2", "--reader", "json", "--start", "7", before=before, folder=tmp_path / "defects")
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(words, done.stdout), done.stdout
    assert list((tmp_path / "defects").iterdir())


def test_an_input_is_always_the_same():
    code = "from tests.fuzz.__main__ import *; import hashlib; "
    code += (
        "print(hashlib.sha256(b''.join(input_number(r, n, corpus_of(r))[1] for r in READERS for n in range(50))).hexdigest())"
    )
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout for _ in range(2)}
    assert len(runs) == 1
    assert len(runs.pop()) == 65


READ = {"h5": Checkpoint, "torch": TorchFile, "pictures": lambda path: load_image(path)}


@pytest.mark.parametrize("path", sorted(REGRESSIONS.glob("*/*")), ids=lambda path: path.name)
def test_regressions(path, tmp_path):
    """Inputs that once broke a rule: in a library that we no longer use for it, in Pillow, or here."""
    if path.name == "libhdf5-hang.h5":  # damaged where nothing that is read lies; its superblock is of the newer generation
        with Checkpoint(path) as checkpoint:
            assert checkpoint.shapes == {"classifier.bias": (5,), "classifier.weight": (5, 4), "bn.num_batches_tracked": ()}
            np.testing.assert_array_equal(checkpoint.read("classifier.weight"), np.arange(20).reshape(5, 4))
        return
    copy = Path(shutil.copy(path, tmp_path))  # a bundle is unpacked beside itself
    if path.parent.name == "traces":
        command = [sys.executable, "-m", "tests.fuzz", "--reader", "trace", "--replay", copy]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.stdout.startswith("refused"), done.stdout + done.stderr
        return
    with pytest.raises(ValueError, match=re.escape(str(copy))) as caught:
        READ[path.parent.name](copy)
    assert len(str(caught.value)) < 1000
