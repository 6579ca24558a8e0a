"""Disk full, kill -9, read-only everything, Ctrl-C, files that change under one's feet."""

import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import effnet_np
from effnet_np.checkpoints import checkpoint, h5_writer

from helpers import CHELSEA, COFFEE

Classifier = effnet_np.EfficientNetForImageClassification
CONFIG = effnet_np.EfficientNetConfig.preset("b0", width_coefficient=0.125, hidden_dim=160, image_size=64, num_labels=5)
GREY = np.full((9, 9, 3), 99, np.uint8)


def small(seed=0):
    model = Classifier(CONFIG, seed=seed)
    model.image_processor = effnet_np.EfficientNetImageProcessor(size=64)
    return model


def python(code, **options):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, **options)


def save(kind, model, folder):
    model.save_pretrained(folder) if kind == "folder" else h5_writer.save_h5(model, folder / "model.h5")


def source(kind, folder):
    return folder if kind == "folder" else folder / "model.h5"


SAVE = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_bad_days import save, small
save({kind!r}, small(seed=9), Path({folder!r}))
print("saved")
"""


def saving_code(kind, folder):
    return SAVE.format(tests=os.path.dirname(__file__), kind=kind, folder=str(folder))


@pytest.mark.parametrize("kind", ["folder", "h5"])
@pytest.mark.parametrize("room", [0, 1000, 300_000])
def test_disk_full(kind, room, tmp_path):
    """No more than `room` bytes fit into a file: an OSError, the old file whole, nothing left behind."""
    save(kind, small(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    done = python(saving_code(kind, tmp_path), preexec_fn=limit)
    assert done.returncode == 1, done.stdout
    assert "OSError: [Errno 27] File too large" in done.stderr.splitlines()[-1], done.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert Classifier.from_pretrained(source(kind, tmp_path)).num_labels == 5


@pytest.mark.parametrize("kind", ["folder", "h5"])
def test_kill_9_while_saving(kind, tmp_path):
    """Killed after the bytes are written and before they take the old file's place, the worst moment."""
    save(kind, small(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    killer = "import os, signal\nos.replace = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)\n"
    done = python(killer + saving_code(kind, tmp_path))
    assert done.returncode == -signal.SIGKILL
    leftovers = [path for path in tmp_path.iterdir() if path.name not in before]
    assert len(leftovers) == 1
    assert leftovers[0].name.startswith(".model.")
    assert leftovers[0].name.endswith(".tmp")
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert Classifier.from_pretrained(source(kind, tmp_path)).num_labels == 5

    save(kind, small(seed=1), tmp_path)
    assert leftovers[0].exists(), "it could be of a process that is writing now"
    os.utime(leftovers[0], (time.time() - 4000,) * 2)
    other = tmp_path / ".model.h5.of-somebody-else.tmp"
    other.write_bytes(b"")
    os.utime(other, (0, 0))
    save(kind, small(seed=1), tmp_path)
    assert not leftovers[0].exists()
    assert other.exists()


@pytest.mark.parametrize("moment", [0.05, 0.15, 0.3, 0.6])
def test_kill_9_at_any_moment(moment, tmp_path):
    """A process that saves two models by turns is killed: what is there is the one or the other."""
    models = [small(0), small(1)]
    digests = {h5_writer.tensors_sha256(model.state_dict()) for model in models}
    h5_writer.save_h5(models[0], tmp_path / "model.h5")
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_bad_days import save, small
models = [small(0), small(1)]
print("ready", flush=True)
for turn in range(100_000):
    save("h5", models[turn % 2], Path({str(tmp_path)!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    time.sleep(moment)
    process.kill()
    process.wait()
    loaded = Classifier.from_pretrained(tmp_path / "model.h5")
    assert h5_writer.tensors_sha256(loaded.state_dict()) in digests


def test_permissions_of_what_is_saved(tmp_path):
    """As for any new file: by the umask, not the owner's alone, and never the world's."""
    for mask in (0o022, 0o077):
        done = python(f"import os; os.umask({mask})\n" + saving_code("h5", tmp_path))
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "model.h5").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.fixture(scope="module")
def read_only_install(tmp_path_factory):
    """The package in a folder that nobody may write to, and a user who may write nowhere."""
    folder = tmp_path_factory.mktemp("read-only")
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder / "site"), root]
    subprocess.run(install, check=True, capture_output=True, timeout=300)
    (folder / "home").mkdir()
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            os.chmod(os.path.join(place, name), 0o444)
        os.chmod(place, 0o555)
    yield folder
    for place, _, _ in os.walk(folder):
        os.chmod(place, 0o755)


def without_privileges():
    """Root may write anywhere by a capability; without it, the permissions of files hold for root as for anybody."""
    if os.getuid() == 0:
        drop_capability, may_override_permissions = 24, 1
        assert ctypes.CDLL(None).prctl(drop_capability, may_override_permissions, 0, 0, 0) == 0


def test_read_only_install_and_home(read_only_install, tmp_path):
    home = read_only_install / "home"
    shutil.copy(CHELSEA, tmp_path / "photo.png")
    os.chmod(tmp_path / "photo.png", 0o444)
    data = CHELSEA.read_bytes()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {
        "HOME": str(home),
        "TMPDIR": str(home),
        "XDG_CACHE_HOME": str(home),
        "PYTHONPATH": str(read_only_install / "site"),
    }
    code = f"""
import os, sys, effnet_np
assert {str(read_only_install)!r} in effnet_np.__file__, effnet_np.__file__
try:
    open(os.path.join(os.environ["HOME"], "x"), "w")
except PermissionError:
    print("read-only", end=" ")
print(effnet_np.classify(bytes.fromhex(sys.stdin.read()))[0]["label"])
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, input=data.hex(), capture_output=True, text=True, env=environment, cwd="/", preexec_fn=without_privileges
    )
    assert done.stdout == "read-only tiger cat\n", done.stderr
    assert "Error" not in done.stderr, done.stderr  # a hint at the kernels is no error
    written = [path for path in read_only_install.rglob("*") if path.suffix == ".tmp"]
    assert not written


@pytest.mark.parametrize("kind", ["folder", "h5"])
def test_saving_where_one_may_not_write(kind, read_only_install):
    code = "import os, sys\n" + saving_code(kind, read_only_install / "home")
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = python(code, env=environment, preexec_fn=without_privileges, cwd="/")
    assert done.returncode == 1
    assert "PermissionError" in done.stderr, done.stderr


def test_ctrl_c_in_a_batch(tmp_path):
    """What is done stands in the output, whole; one line says that it was interrupted; the status is 130."""
    photos = [str(path) for path in (CHELSEA, COFFEE) for _ in range(200)]
    command = [sys.executable, "-m", "effnet_np.cli", "classify", "--json", "--batch-size", "1", *photos]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = [process.stdout.readline() for _ in range(3)]
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=30)
    lines += rest.splitlines()
    assert process.returncode == 130
    assert errors == "effnet-np: interrupted\n"
    assert 3 <= len(lines) < len(photos)
    assert all(len(json.loads(line)["predictions"]) == 5 for line in lines)


def test_ctrl_c_while_exporting(tmp_path):
    """The old file stays, and no temporary is left."""
    save("h5", small(), tmp_path)
    before = (tmp_path / "model.h5").read_bytes()
    stop = "import os, signal\nos.fsync = lambda handle: os.kill(os.getpid(), signal.SIGINT)\n"
    code = f"from effnet_np.cli import main\nsys.exit(main(['export', 'lite0', '-o', {str(tmp_path / 'model.h5')!r}]))"
    done = python(stop + "import sys\n" + code)
    assert done.returncode == 130, done.stderr
    assert done.stderr == "effnet-np: interrupted\n"
    assert os.listdir(tmp_path) == ["model.h5"]
    assert (tmp_path / "model.h5").read_bytes() == before


# -- a model file between two calls ------------------------------------------------------------------------------------


def test_a_file_that_is_replaced(tmp_path):
    """Even by one of the same size and the same time of change: the next call answers by the new weights."""
    path = tmp_path / "model.h5"
    models = [small(seed) for seed in (0, 1)]
    for model in models:
        model.classifier.bias[...] = np.arange(5) * (1 if model is models[0] else -1)
    h5_writer.save_h5(models[0], path)
    os.utime(path, (1000, 1000))
    size = path.stat().st_size
    first = effnet_np.classify(GREY, path)
    assert first == effnet_np.classify(GREY, models[0])
    h5_writer.save_h5(models[1], path)
    os.utime(path, (1000, 1000))
    assert path.stat().st_size == size
    second = effnet_np.classify(GREY, path)
    assert second == effnet_np.classify(GREY, models[1])
    assert second != first


def test_a_file_that_is_damaged_comes_back_or_disappears(tmp_path):
    path = tmp_path / "model.h5"
    h5_writer.save_h5(small(), path)
    good = path.read_bytes()
    expected = effnet_np.classify(GREY, path)
    path.write_bytes(good[:1000])
    with pytest.raises(ValueError, match="model.h5 is not a readable HDF5 checkpoint: it is cut off"):
        effnet_np.classify(GREY, path)
    path.write_bytes(good)
    assert effnet_np.classify(GREY, path) == expected
    path.unlink()
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        effnet_np.classify(GREY, path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "preprocessor_config.json"])
def test_a_folder_that_loses_a_file(name, tmp_path):
    small().save_pretrained(tmp_path)
    effnet_np.classify(GREY, tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises((FileNotFoundError, ValueError), match=f"holds none of model.safetensors|no config.json|{name}"):
        effnet_np.classify(GREY, tmp_path)


@pytest.mark.parametrize("kind", ["safetensors", "h5", "pth"])
def test_a_file_that_shrinks_while_it_is_read(kind, tmp_path):
    """A mapped file would kill the process (SIGBUS); these are read, and end too early."""
    from effnet_np.checkpoints.torch_file import TorchFile

    import attacks

    if kind == "pth":
        path = tmp_path / "model.pth"
        path.write_bytes(attacks.legacy(attacks.GOOD))
        reader, name = TorchFile(path), "t0"
    else:
        save("h5" if kind == "h5" else "folder", small(), tmp_path)
        path = tmp_path / f"model.{kind}"
        reader, name = checkpoint.open_weights(path), "classifier.weight"
    os.truncate(path, 10)
    with pytest.raises(ValueError, match=f"is damaged at {name}: it ends too early"):
        reader.read(name)
    reader.close()
