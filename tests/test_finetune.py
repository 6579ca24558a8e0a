"""Fine-tuning: real photographs with real weights, then small networks through everything that can go wrong."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
import transformers

import effnet_np
from effnet_np.cli import main
from effnet_np.images.io import load_image
from effnet_np.layers import BatchNorm2d, Dropout
from effnet_np.model import EfficientNetForImageClassification as EfficientNet
from effnet_np.training import augment, run
from effnet_np.training.finetune import finetune
from effnet_np.training.folder import read_folder
from effnet_np.training.optimizers import SGD, RMSProp
from effnet_np.training.run import in_batches
from effnet_np.training.settings import Watcher
from effnet_np.training.trainer import Trainer, trainable

from helpers import CHELSEA, COFFEE, assert_same

COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 70), "red": (210, 50, 40)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three classes of ten small pictures each: a colour, with noise and a bright square somewhere."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for number in range(10):
            pixels = np.clip(np.array(colour) + generator.normal(0, 40, (40, 48, 3)), 0, 255).astype(np.uint8)
            y, x = generator.integers(0, 30, 2)
            pixels[y : y + 10, x : x + 10] = 255
            PIL.Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A small EfficientNet in a folder, with live weights and its preprocessing."""
    config = effnet_np.EfficientNetConfig(
        image_size=32,
        width_coefficient=0.25,
        depth_coefficient=1.0,
        kernel_sizes=[3, 3, 5],
        in_channels=[32, 16, 24],
        out_channels=[16, 24, 40],
        depthwise_padding=[],
        strides=[1, 2, 2],
        num_block_repeats=[1, 1, 2],
        expand_ratios=[1, 4, 4],
        hidden_dim=320,
        dropout_rate=0.2,
        num_labels=5,
    )
    model = EfficientNet(config, seed=0)
    generator = np.random.default_rng(1)
    for _, array in model.named_parameters():
        if array.ndim > 1:
            array[...] = generator.standard_normal(array.shape, np.float32) * (2 / array[0].size) ** 0.5
    norms = [module for _, module in model.named_modules() if isinstance(module, BatchNorm2d)]
    momenta = [module.momentum for module in norms]
    for module in norms:
        module.momentum = 1.0
    model.train()(generator.standard_normal((64, 3, 32, 32), np.float32))  # the statistics become this batch's
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum
    model.image_processor = effnet_np.EfficientNetImageProcessor(size=32, resample=2)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


def digest(folder):
    """Of every file of an output folder, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


QUICK = {"train": "all", "epochs": 2, "head_epochs": 4, "batch_size": 8, "backend": "numpy"}


def test_real_photographs_with_real_weights(tmp_path):
    """Crops of a cat and of a cup: Lite0's head learns to tell them apart, and the command line classifies with the result."""
    generator = np.random.default_rng(0)
    for name, path in (("cat", CHELSEA), ("cup", COFFEE)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        pixels = load_image(path)
        for number in range(8):
            side = int(generator.integers(150, 280))
            top, left = (int(generator.integers(0, length - side)) for length in pixels.shape[:2])
            PIL.Image.fromarray(pixels[top : top + side, left : left + side]).save(tmp_path / "photos" / name / f"{number}.jpg")
    result = finetune(tmp_path / "photos", "lite0", tmp_path / "pets", head_epochs=20, backend="numpy")
    assert result.accuracy == 1.0
    assert sorted(os.listdir(tmp_path / "pets")) == [
        "config.json",
        "curves.png",
        "history.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    answers = effnet_np.classify([CHELSEA, COFFEE], model=tmp_path / "pets")
    assert [answer[0]["label"] for answer in answers] == ["cat", "cup"]
    history = json.loads((tmp_path / "pets" / "history.json").read_text())
    assert history["confusions"] == [[2, 0], [0, 2]]
    assert history["best"]["val_accuracy"] == 1.0
    assert not list(tmp_path.glob("*.unfinished"))
    assert not list(tmp_path.glob(".*"))
    with PIL.Image.open(tmp_path / "pets" / "curves.png") as picture:
        assert picture.size[0] > 800


def test_the_whole_network_learns_and_transformers_loads_it(photos, tiny, tmp_path):
    settings = QUICK | {"epochs": 4, "learning_rate": 3e-3, "body_scale": 1.0, "batch_norm": "learning", "label_smoothing": 0.1}
    result = finetune(photos, tiny, tmp_path / "colours", average=0.5, stochastic_depth=True, **settings)
    assert result.accuracy == 1.0
    assert {entry["stage"] for entry in result.history["epochs"]} == {"head", "body"}
    before, stem = EfficientNet.from_pretrained(tiny).state_dict(), "efficientnet.embeddings.convolution.weight"
    ours = EfficientNet.from_pretrained(tmp_path / "colours")
    assert ours.config.id2label == {0: "blue", 1: "green", 2: "red"}
    if result.history["best"]["stage"] == "body":
        assert (ours.state_dict()[stem] != before[stem]).any()
    theirs = transformers.EfficientNetForImageClassification.from_pretrained(tmp_path / "colours").eval()
    assert theirs.config.id2label == ours.config.id2label
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)
    with torch.no_grad():
        assert_same(ours(x).logits, theirs(torch.from_numpy(x)).logits)


KILLED = """
import os, signal, sys
from effnet_np.training import run
from effnet_np.training.finetune import finetune
from effnet_np.training.settings import Watcher

run.SAVE_EVERY = 0.0

class Killer(Watcher):
    left = int(sys.argv[4])
    def step(self, title, *rest):
        self.left -= title.startswith(sys.argv[5])
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

finetune(sys.argv[1], sys.argv[2], sys.argv[3], watcher=Killer(), average=0.9, **%r)
"""


def test_killed_runs_go_on_to_the_same_bits(photos, tiny, tmp_path):
    """kill -9 while the features are computed, in the head, and in the middle of an epoch of the body; each goes on."""
    whole = finetune(photos, tiny, tmp_path / "whole", average=0.9, **QUICK)
    places = (("features", 2), ("head", 2), ("epoch", 4))
    commands = [
        [sys.executable, "-c", KILLED % QUICK, str(photos), str(tiny), str(tmp_path / name), str(count), name]
        for name, count in places
    ]
    for process in [subprocess.Popen(command) for command in commands]:
        assert process.wait() == -signal.SIGKILL
    for name, _ in places:
        output = tmp_path / name
        assert not output.exists()
        with pytest.raises(FileExistsError, match="holds a run that did not end: go on with it by resume=True"):
            finetune(photos, tiny, output, average=0.9, **QUICK)
        finetune(photos, tiny, output, resume=True, average=0.9, **QUICK)
        assert digest(output) == digest(tmp_path / "whole"), name
    assert whole.history["stopped"] is None
    assert not list(tmp_path.glob("*.unfinished"))


class Interrupter(Watcher):
    def step(self, title, done, *rest):
        if title.startswith("epoch 2") and threading.current_thread() is threading.main_thread() and not hasattr(self, "asked"):
            self.asked = done
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_stops_after_the_step_keeps_the_best_and_can_go_on(photos, tiny, tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    result = finetune(photos, tiny, tmp_path / "out", watcher=Interrupter(), **QUICK)
    assert signal.getsignal(signal.SIGINT) is handler
    assert result.history["stopped"] == "interrupted"
    assert len([entry for entry in result.history["epochs"] if entry["stage"] == "body"]) == 1
    assert effnet_np.classify(photos / "red" / "0.png", model=tmp_path / "out")
    finetune(photos, tiny, tmp_path / "out", resume=True, **QUICK)
    finetune(photos, tiny, tmp_path / "whole", **QUICK)
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")


def test_a_run_of_another_configuration_does_not_go_on(photos, tiny, tmp_path):
    finetune(photos, tiny, tmp_path / "out", watcher=Interrupter(), **QUICK)
    with pytest.raises(ValueError, match="of another configuration and cannot go on: batch_size: 8 then, 9 now"):
        finetune(photos, tiny, tmp_path / "out", resume=True, **QUICK | {"batch_size": 9})
    PIL.Image.new("RGB", (9, 9)).save(photos / "red" / "new.png")
    try:
        with pytest.raises(ValueError, match="pictures came, went or changed"):
            finetune(photos, tiny, tmp_path / "out", resume=True, **QUICK)
    finally:
        (photos / "red" / "new.png").unlink()


def test_a_learning_rate_that_diverges_says_so_and_keeps_the_best(photos, tiny, tmp_path):
    settings = QUICK | {"optimizer": "sgd", "learning_rate": 1e30, "body_scale": 1.0, "max_norm": None, "weight_decay": 0.0}
    said = []
    watcher = Watcher()
    watcher.say = said.append
    result = finetune(photos, tiny, tmp_path / "out", watcher=watcher, **settings)
    assert "is NaN or infinite at step" in result.history["stopped"]
    assert "lower learning rate" in said[-1]
    assert "the best so far is kept" in said[-1]
    state = EfficientNet.from_pretrained(tmp_path / "out").state_dict()
    assert all(np.isfinite(array).all() for array in state.values())


def test_a_full_disk_loses_nothing(photos, tiny, tmp_path, monkeypatch):
    finetune(photos, tiny, tmp_path / "whole", **QUICK)
    monkeypatch.setattr(run, "SAVE_EVERY", 0.0)
    calls, savez = [], np.savez

    def full(file, **arrays):
        calls.append(1)
        if len(calls) > 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        savez(file, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        with pytest.raises(OSError, match="No space left"):
            finetune(photos, tiny, tmp_path / "out", **QUICK)
    with monkeypatch.context() as patch:  # there is room for the state now, not for the result
        patch.setattr(PIL.Image.Image, "save", lambda *rest: full(None))
        with pytest.raises(OSError, match="No space left"):
            finetune(photos, tiny, tmp_path / "out", resume=True, **QUICK)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))
    finetune(photos, tiny, tmp_path / "out", resume=True, **QUICK)
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")


# -- what the folder may hold -----------------------------------------------------------------------------------------


def copy(photos, folder, names=COLOURS, count=3):
    for name in names:
        source = photos / (name if name in COLOURS else "red")
        (folder / name).mkdir(parents=True)
        for number in range(count):
            (folder / name / f"{number}.png").write_bytes((source / f"{number}.png").read_bytes())
    return folder


def test_bad_folders(photos, tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match="is not a folder"):
        read_folder(photos / "red" / "0.png")
    with pytest.raises(ValueError, match="at least 2, each with its pictures; it has red"):
        read_folder(copy(photos, tmp_path / "one", ["red"]))
    (copy(photos, tmp_path / "empty") / "void").mkdir()
    with pytest.raises(ValueError, match="no pictures to learn from for: void; add some, or remove the folder"):
        read_folder(tmp_path / "empty")
    with pytest.raises(ValueError, match="Red and red of .* differ in case only"):
        read_folder(copy(photos, tmp_path / "twins", ["Red", "red", "blue"]))
    copy(photos, tmp_path / "parts" / "train")
    copy(photos, tmp_path / "parts" / "val", ["yellow"])
    with pytest.raises(ValueError, match="val has classes that .*train does not have: yellow"):
        read_folder(tmp_path / "parts")
    with pytest.raises(ValueError, match="leaves no picture to judge by"):
        read_folder(copy(photos, tmp_path / "single", count=1))
    (tmp_path / "exists").mkdir()
    with pytest.raises(FileExistsError, match="exists exists: choose another name"):
        finetune(photos, tiny, tmp_path / "exists")
    for wrong, message in (
        ({"train": "last:99"}, 'train must be "head", "last:1" to "last:4"'),
        ({"optimizer": "lion"}, "optimizer must be one of adamw, sgd, rmsprop, got 'lion'"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"resume": True}, "resume=True needs output"),
    ):
        with pytest.raises(ValueError, match=message):
            finetune(photos, tiny, **wrong)
    with pytest.raises(TypeError, match="unexpected keyword argument 'epoch'"):
        finetune(photos, tiny, epoch=3)
    compiled = SimpleNamespace(classifies=True, image_processor=effnet_np.EfficientNetImageProcessor())
    with pytest.raises(TypeError, match="a model in NumPy can learn, a SimpleNamespace cannot"):
        finetune(photos, compiled)


def test_what_is_refused_is_named_and_the_rest_goes_on(photos, tmp_path):
    folder = copy(photos, tmp_path / "mixed", count=6)
    whole = (folder / "red" / "0.png").read_bytes()
    (folder / "red" / "torn.png").write_bytes(whole[: len(whole) // 2])
    (folder / "blue" / "notes.txt").write_text("not a picture")
    (folder / "blue" / ".hidden.png").write_bytes(whole)
    (folder / "alone").mkdir()
    (folder / "alone" / "only.png").write_bytes(whole)
    (folder / "loose.png").write_bytes(whole)
    dataset = read_folder(folder, split=0.3)
    assert "1 pictures lie beside the folders of the classes" in str(dataset)
    assert dataset.classes == ["alone", "blue", "green", "red"]
    assert (len(dataset.train), len(dataset.val)) == (1 + 3 * 4, 3 * 2)
    assert {os.path.basename(path) for path, _ in dataset.refused} == {"torn.png", "notes.txt"}
    text = str(dataset)
    assert "4 classes, 13 pictures to learn from, 6 to judge by" in text
    assert "torn.png is damaged or cut off" in text
    assert "alone has one picture, which is learnt from" in text
    (folder / "al\x1b[31mone").mkdir()
    (folder / "al\x1b[31mone" / "0.png").write_bytes(whole)
    assert "\x1b" not in str(read_folder(folder))  # a name cannot colour the terminal
    (folder / "al\x1b[31mone" / "0.png").unlink()
    (folder / "al\x1b[31mone").rmdir()
    again, other = read_folder(folder, split=0.3), read_folder(folder, split=0.3, seed=1)
    assert again.val == dataset.val
    assert other.val != dataset.val
    parts = copy(photos, tmp_path / "parts" / "train").parent
    copy(photos, parts / "val", ["red", "blue"], 2)
    dataset = read_folder(parts)
    assert (len(dataset.train), len(dataset.val)) == (9, 4)
    assert dataset.notes == ["no pictures to judge by for: green"]


# -- the pieces -------------------------------------------------------------------------------------------------------


def test_augmentation_is_seeded_and_keeps_what_a_picture_is():
    pixels = load_image(CHELSEA)
    first, again, other = (augment.augment(pixels, (96, 64), 2, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first.shape == (96, 64, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5
    assert abs(first.mean() - pixels.mean()) < 60
    generator = np.random.default_rng(0)
    for _ in range(300):
        left, top, width, height = augment.random_box(200, 100, generator)
        assert 0 <= left <= 200 - width
        assert 0 <= top <= 100 - height
        assert 0.34 * 20000 <= width * height <= 20000 * 1.01
    assert augment.random_box(1, 900, generator)[2] == 1
    for channels in (1, 4):
        assert augment.augment(load_image(CHELSEA, channels), (32, 32), 3, np.random.default_rng(0)).shape == (32, 32, channels)


def test_batches_come_in_order_loaded_by_threads_ahead():
    labels, seen = np.arange(10) * 10, []

    def load(index):
        seen.append((index, threading.current_thread().name))
        return np.full(2, index)

    batches = list(in_batches([3, 1, 4, 0, 5, 9, 2], 3, load, labels, 2))
    assert [batch[0][:, 0].tolist() for batch in batches] == [[3, 1, 4], [0, 5, 9], [2]]
    assert [batch[1].tolist() for batch in batches] == [[30, 10, 40], [0, 50, 90], [20]]
    assert all(name != threading.main_thread().name for _, name in seen)
    assert [batch[1].tolist() for batch in in_batches([3, 1, 4, 0, 5, 9, 2], 3, load, labels, 1, first=2)] == [[20]]
    seen.clear()
    endless = in_batches(range(9), 1, load, labels, 2)
    next(endless)
    endless.close()
    assert len(seen) <= 4


def test_what_a_trainer_moves(tiny):
    """Frozen arrays and stored statistics keep their bits; the ones that learn move, and the average follows."""
    x, labels = np.random.default_rng(0).standard_normal((4, 3, 32, 32), np.float32), np.arange(4)
    for batch_norm in ("stored", "learning"):
        model = EfficientNet.from_pretrained(tiny)
        before = {name: array.copy() for name, array in model.state_dict().items()}
        names = trainable(model, "last:2")
        assert {name.split(".blocks.")[1].split(".")[0] for name in names if ".blocks." in name} == {"2", "3"}
        parameters = {name: array for name, array in model.named_parameters() if name in names}
        optimizer = RMSProp(parameters, 0.01, weight_decay=0.0)
        trainer = Trainer(model, optimizer, batch_norm=batch_norm, average=0.9, max_norm=1.0)
        loss, right = trainer.step(x, labels)
        assert np.isfinite(loss)
        assert 0 <= right <= 4
        moved = {name for name, array in model.state_dict().items() if (array != before[name]).any()}
        statistics = {name for name in before if name.endswith(("running_mean", "running_var", "num_batches_tracked"))}
        assert moved - statistics == set(names)
        assert moved & statistics == (statistics if batch_norm == "learning" else set())
        own = model.classifier.weight.copy()
        with trainer.averaged():
            assert (model.classifier.weight != own).any()
        np.testing.assert_array_equal(model.classifier.weight, own)
    assert {module.momentum for _, module in model.named_modules() if isinstance(module, BatchNorm2d)} == {0.1}
    with pytest.raises(ValueError, match=r"labels must lie between 0 and 4, got \[7\]"):
        trainer.step(x, np.array([0, 1, 2, 7]))
    model.classifier.weight[0, 0] = np.nan
    with pytest.raises(FloatingPointError, match=r"the gradient of efficientnet\.\S+ is NaN or infinite at step 2"):
        trainer.step(x, labels)


def test_a_batch_in_pieces_has_the_same_gradient(tiny):
    """With stored statistics a batch's gradient is the mean of its pieces'; with the batch's own it is not cut."""
    model = EfficientNet.from_pretrained(tiny).to(np.float64)
    for _, module in model.named_modules():
        if isinstance(module, Dropout):
            module.rate = 0.0
    x, labels = np.random.default_rng(0).standard_normal((11, 3, 32, 32)), np.arange(11) % 5
    whole = effnet_np.backward(model, x, labels)
    trainer = Trainer(model, SGD(dict(model.named_parameters()), 0.1))
    loss, right, gradients = trainer._gradients(x, labels)
    assert abs(loss - whole.loss) < 1e-12
    assert right == (whole.logits.argmax(axis=1) == labels).sum()
    for name, gradient in whole.parameters.items():
        np.testing.assert_allclose(gradients[name], gradient, rtol=1e-9, atol=1e-12, err_msg=name)


def test_the_loop_in_ten_lines(photos, tiny):
    """As README has it."""
    model = EfficientNet.from_pretrained(tiny, num_labels=3, ignore_mismatched_sizes=True, seed=0)
    optimizer = SGD(dict(model.named_parameters()), 0.01, momentum=0.9)
    paths = [(path, label) for label, name in enumerate(COLOURS) for path in sorted((photos / name).iterdir())]
    pictures = [load_image(path) for path, _ in paths]
    pixel_values = model.image_processor(pictures, return_tensors="np", input_data_format="channels_last").pixel_values
    labels = np.array([label for _, label in paths])
    losses = []
    for epoch in range(4):
        for rows in np.random.default_rng(epoch).permutation(len(labels)).reshape(-1, 10):
            step = effnet_np.backward(model.train(), pixel_values[rows], labels[rows], seed=epoch)
            optimizer.step(step.parameters)
            losses.append(step.loss)
    assert losses[-1] < 0.5 * losses[0]


def test_the_command(photos, tiny, tmp_path, capsys):
    command = ["finetune", str(photos), "-o", str(tmp_path / "out"), "--model", str(tiny), "--head-epochs", "3"]
    assert main([*command, "--train", "last:1", "--epochs", "1", "--backend", "numpy", "--average", "0.9"]) == 0
    out, err = capsys.readouterr()
    assert "3 classes, 24 pictures to learn from, 6 to judge by" in err
    assert "of 6 pictures right" in out
    assert main(command) == 1
    assert "exists: choose another name" in capsys.readouterr().err
    assert main(["classify", str(photos / "red" / "0.png"), "--model", str(tmp_path / "out"), "--backend", "numpy"]) == 0
