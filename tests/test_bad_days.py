"""Disk full, kill -9, read-only everything, Ctrl-C, files that change under one's feet."""

import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

import effnet_np
from effnet_np.checkpoints import checkpoint, h5_writer
from effnet_np.inference import classify as classify_module

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
import threading
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
    assert sorted(path.name.split(".")[1] for path in leftovers) == (
        ["config", "model", "preprocessor_config"] if kind == "folder" else ["model"]
    )
    assert all(path.name.endswith(".tmp") for path in leftovers)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert Classifier.from_pretrained(source(kind, tmp_path)).num_labels == 5

    save(kind, small(seed=1), tmp_path)
    assert all(path.exists() for path in leftovers), "they could be of a process that is writing now"
    for path in leftovers:
        os.utime(path, (time.time() - 4000,) * 2)
    other = tmp_path / ".model.h5.of-somebody-else.tmp"
    other.write_bytes(b"")
    os.utime(other, (0, 0))
    save(kind, small(seed=1), tmp_path)
    assert not any(path.exists() for path in leftovers)
    assert other.exists()


@pytest.mark.parametrize("moment", [0.05, 0.15, 0.3, 0.6])
def test_kill_9_at_any_moment(moment, tmp_path):
    """A process that saves two models by turns is killed: what is there is the one or the other."""
    models = [small(0), small(1)]
    digests = {h5_writer.tensors_sha256(model.state_dict()) for model in models}
    h5_writer.save_h5(models[0], tmp_path / "model.h5")
    code = f"""
import sys
import threading
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


def numbered(number):
    """A model whose labels and preprocessing say which weights are its own."""
    config = effnet_np.EfficientNetConfig.preset("b0", width_coefficient=0.125, hidden_dim=160, image_size=64,
                                                 id2label={index: f"{number} {index}" for index in range(5)})  # fmt: skip
    model = Classifier(config, seed=number)
    model.classifier.bias[...] = number
    model.image_processor = effnet_np.EfficientNetImageProcessor(size=64 + number)
    return model


def assert_of_one_save(model):
    number = int(model.classifier.bias[0])
    assert model.config.id2label[0] == f"{number} 0"
    assert model.image_processor.size["height"] == 64 + number


def test_a_folder_is_read_as_one_while_it_is_saved_again_and_again(tmp_path):
    """Two processes save two models by turns: whatever is loaded meanwhile is all of the one or all of the other."""
    numbered(0).save_pretrained(tmp_path)
    code = f"""
import sys
import threading
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_bad_days import numbered
models = [numbered(0), numbered(1)]
print("ready", flush=True)
while True:
    for model in models:
        model.save_pretrained({str(tmp_path)!r})
"""
    writers = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for writer in writers:
            assert writer.stdout.readline() == b"ready\n"
        seen = set()
        for _ in range(60):
            model = Classifier.from_pretrained(tmp_path)
            assert_of_one_save(model)
            seen.add(int(model.classifier.bias[0]))
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
            writer.stdout.close()
    assert seen == {0, 1}


@pytest.mark.parametrize("old", ["ours", "ours without a processor", "theirs"])
@pytest.mark.parametrize("renames", [0, 1, 2, 3])
def test_a_save_that_is_killed_between_its_files(old, renames, tmp_path, monkeypatch):
    """One of the two models, or an error that says what happened; never one's weights with the other's labels."""
    first = numbered(0)
    first.image_processor = None if old == "ours without a processor" else first.image_processor
    first.save_pretrained(tmp_path)
    if old == "theirs":  # without ids
        for name in ("config.json", "preprocessor_config.json"):
            fields = json.loads((tmp_path / name).read_text())
            del fields["effnet_np_save"]
            (tmp_path / name).write_text(json.dumps(fields))
        save_file(load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors", {"format": "pt"})
    done, replace = [], os.replace

    class Killed(BaseException):
        pass

    def kill(*arguments):
        if len(done) == renames:
            raise Killed
        done.append(replace(*arguments))

    monkeypatch.setattr(os, "replace", kill)
    try:
        numbered(1).save_pretrained(tmp_path)
    except Killed:
        assert renames < 3
    monkeypatch.setattr(os, "replace", replace)
    if renames in (0, 3):
        model = Classifier.from_pretrained(tmp_path)
        assert int(model.classifier.bias[0]) == (1 if renames else 0)
        if model.image_processor is not None:
            assert_of_one_save(model)
    else:
        with pytest.raises(ValueError, match="are not of one save: it was interrupted, .* Save the model again"):
            Classifier.from_pretrained(tmp_path)
        numbered(1).save_pretrained(tmp_path)
        assert_of_one_save(Classifier.from_pretrained(tmp_path))


def test_a_model_without_a_processor_takes_the_last_models_away(tmp_path):
    numbered(1).save_pretrained(tmp_path)
    model = numbered(0)
    model.image_processor = None
    model.save_pretrained(tmp_path)
    assert Classifier.from_pretrained(tmp_path).image_processor is None
    effnet_np.EfficientNetImageProcessor(size=99).save_pretrained(tmp_path)  # put there by itself: it stays
    model.save_pretrained(tmp_path)
    assert Classifier.from_pretrained(tmp_path).image_processor.size["height"] == 99


def test_folders_in_which_others_wrote(tmp_path):
    """transformers loads ours, keeps the id, and writes weights without one: loaded as ever. Weights exchanged: refused."""
    numbered(1).save_pretrained(tmp_path / "ours")
    theirs = transformers.EfficientNetForImageClassification.from_pretrained(tmp_path / "ours")
    theirs.config.id2label = {index: f"new {index}" for index in range(5)}
    theirs.save_pretrained(tmp_path / "theirs")
    assert "effnet_np_save" in json.loads((tmp_path / "theirs" / "config.json").read_text())
    shutil.copy(tmp_path / "ours" / "preprocessor_config.json", tmp_path / "theirs")
    model = Classifier.from_pretrained(tmp_path / "theirs")
    assert model.config.id2label[0] == "new 0"
    assert "effnet_np_save" not in model.config.to_dict()
    model.save_pretrained(tmp_path / "theirs")  # over what they wrote
    assert "transformers_version" not in json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert Classifier.from_pretrained(tmp_path / "theirs").config.id2label[0] == "new 0"
    config = effnet_np.EfficientNetConfig.from_pretrained(tmp_path / "ours")
    config.dropout_rate = 0.1
    config.save_pretrained(tmp_path / "ours")  # a configuration by itself has no id
    assert Classifier.from_pretrained(tmp_path / "ours").config.dropout_rate == 0.1
    numbered(0).save_pretrained(tmp_path / "ours")
    save_file(load_file(tmp_path / "ours" / "model.safetensors"), tmp_path / "ours" / "model.safetensors")
    with pytest.raises(ValueError, match="delete the lines 'effnet_np_save'"):
        Classifier.from_pretrained(tmp_path / "ours")


@pytest.mark.parametrize("path", ["nodir/model.h5", "file/model.h5", "folder"])
def test_an_error_of_writing_names_what_was_asked_for(path, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r"folder|directory") as raised:
        h5_writer.save_h5(small(), tmp_path / path)
    assert str(tmp_path / path) in str(raised.value)
    assert ".tmp" not in str(raised.value)


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
    lines += process.stdout.read().splitlines()  # not communicate, which knows nothing of what readline has read ahead
    errors = process.stderr.read()
    assert process.wait(timeout=30) == 130
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


def nested(levels):
    return [] if levels == 0 else [nested(levels - 1)]


@pytest.mark.parametrize("kind", ["folder", "h5"])
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"id2label": {0: "\ud800", 1: "b"}}, "valid JSON"),
        ({"id2label": {index: f"a label of many letters, number {index}" for index in range(60_000)}}, "larger than"),
        ({"extra": nested(30)}, "more than 20 deep"),
        ({"extra": [[]] * 20_001}, "more than 20000 objects and lists"),
    ],
)
def test_what_could_not_be_read_again_is_not_saved(kind, fields, words, tmp_path):
    small().save_pretrained(tmp_path) if kind == "folder" else h5_writer.save_h5(small(), tmp_path / "model.h5")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    model = small()
    model.config = effnet_np.EfficientNetConfig(**{k: v for k, v in vars(CONFIG).items() if "label" not in k} | fields)
    with pytest.raises(ValueError, match=words):
        save(kind, model, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_is_being_saved_into_can_be_looked_at(tmp_path):
    """Temporary files come and go in it between two looks."""
    small().save_pretrained(tmp_path)
    stop = threading.Event()

    def come_and_go():
        while not stop.is_set():
            (tmp_path / ".model.safetensors.tmp").touch()
            (tmp_path / ".model.safetensors.tmp").unlink()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(4000):
            classify_module._fingerprint(tmp_path)
    finally:
        stop.set()
        thread.join()


def test_a_folder_that_is_gone_is_named_and_no_temporary(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir("below")
    os.rmdir("../below")
    with pytest.raises(FileNotFoundError) as error:
        h5_writer.save_h5(small(), "model.h5")
    assert ".tmp" not in str(error.value)
    assert "model.h5" in str(error.value)


def test_names_as_long_as_a_file_system_takes_them(tmp_path):
    """255 bytes, also where the temporary's name would end in half of a character."""
    for name in ("x" * 252 + ".h5", "ä" * 126 + ".h5"):
        h5_writer.save_h5(small(), tmp_path / name)
        assert Classifier.from_pretrained(tmp_path / name).num_labels == 5
    small().save_pretrained(tmp_path / ("m" * 255))
    effnet_np.Trace.of({"a": np.ones(3)}).save(tmp_path / ("t" * 255), format="bin")
    assert len(list(tmp_path.iterdir())) == 4
