"""Training compiled, against effnet_np.backward in float64: every kind of layer, every mode, and what a program does to it."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import threading
from importlib.util import find_spec

import numpy as np
import pytest

pytest.importorskip("llvmlite")
pytest.importorskip("numba")

from test_kernels import VARIANTS, live, pictures, run_on, small

import effnet_np
from effnet_np import EfficientNetConfig
from effnet_np.cli import main
from effnet_np.kernels import bench as forward_bench
from effnet_np.kernels import library
from effnet_np.layers import BatchNorm2d
from effnet_np.training import bench
from effnet_np.training.backward import backward
from effnet_np.training.optimizers import SGD, AdamW, RMSProp, clip_by_global_norm
from effnet_np.training.trainer import Trainer

if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
    pytest.skip("needs compiled code", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("many_cores")
MODES = ("eval", "stored", "train")  # of batch norms and dropout: off, dropout alone, both


def learning(config, mode="train", bare=False):
    """A model in that mode, its residual branches damped: at full strength one rounding error decides all (see FACTS)."""
    model = live(config, bare=bare)
    for name, module in model.named_modules():
        if name.endswith("project_bn"):
            module.weight *= np.float32(0.4)
    model.train(mode != "eval")
    if mode == "stored":
        hold_statistics(model)
    return model


def hold_statistics(model):
    for _, module in model.named_modules():
        if isinstance(module, BatchNorm2d):
            module.eval()


def exactly(model, images, **options):
    """effnet_np.backward in float64."""
    exact = copy.deepcopy(model).to(np.float64)
    return backward(exact, images.astype(np.float64), **options), exact


def assert_gradients(got, exact, single=None, tolerance=2e-5):
    """Each to that share of its largest number; a bias before another layer's batch norm, which changes next to nothing, to
    that share of its norm's weight's. single: the reference's float32; up to six times as much as that is off is allowed.
    """
    assert list(got.parameters) == list(exact.parameters)
    pairs = {name: (got.parameters[name], exact.parameters[name]) for name in exact.parameters}
    pairs |= {"logits": (got.logits, exact.logits)}
    if exact.loss is not None:
        pairs["loss"] = (got.loss, exact.loss)
    assert (got.pixel_values is None) == (exact.pixel_values is None)
    if exact.pixel_values is not None:
        pairs["pixel_values"] = (got.pixel_values, exact.pixel_values)
    for name, (ours, expected) in pairs.items():
        assert ours.shape == expected.shape, name
        assert ours.dtype == np.float32, name
        largest = np.abs(expected).max()
        if name.endswith("project_bn.bias"):
            largest = max(largest, np.abs(exact.parameters[name.replace("bias", "weight")]).max())
        allowed = tolerance * largest
        if single is not None and name in single.parameters:
            allowed = max(allowed, 6 * np.abs(single.parameters[name] - expected).max())
        error = np.abs(ours - expected).max()
        assert error <= allowed, f"{name}: {error / largest:.1e} of {largest:.1e}"


KINKED = (
    "relu",
    "relu6",
    "selu",
)  # a number that a rounding error puts on the other side of a kink changes a gradient by all of it


def assert_mostly(got, exact):
    """For activations with kinks, which such a number moves: each gradient to 5% of its length."""
    for name, expected in exact.parameters.items():
        if not name.endswith("project_bn.bias"):
            difference = got.parameters[name] - expected
            assert np.linalg.norm(difference) <= 0.05 * np.linalg.norm(expected), name


def check(config, mode="train", batch=3, size=None, threads=2, **options):
    model, images = learning(config, mode), pictures(config, batch, size)
    fast = effnet_np.compile(model, threads, training=True)
    options = {"labels": np.arange(batch) % config.num_labels, "seed": 5} | options
    got = fast.backward(images, **options)
    expected, exact = exactly(model, images, **options)
    if config.hidden_act in KINKED and mode == "train":
        assert_mostly(got, expected)
    else:
        assert_gradients(got, expected, backward(model, images, **options), 4e-5 if mode == "train" else 2e-5)
    state = fast.state_dict()
    for name, array in exact.state_dict().items():  # running statistics, and all else as it was
        np.testing.assert_allclose(state[name], array, rtol=0, atol=2e-5 * max(1e-30, np.abs(array).max()), err_msg=name)


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_with_batch_statistics_and_dropout(name):
    size = VARIANTS[name].get("image_size", 64) + 32  # statistics over a few numbers magnify every rounding error
    check(small(**VARIANTS[name]), batch=4, size=(size, size))


STORED = ["small", "odd image", "max pool", "even and large kernels", "activation relu6", "version 2", "all fused"]


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize("mode", MODES[:2])
def test_variant_with_stored_statistics(name, mode):
    check(small(**VARIANTS[name]), mode, batch=2)


@pytest.mark.parametrize(("name", "batch"), [("b0", 2), ("lite0", 2), ("v2-b0", 6)])  # statistics over few numbers magnify
def test_preset(name, batch):
    check(EfficientNetConfig.preset(name), batch=batch, size=(96, 128))


@pytest.mark.parametrize("batch", [1, 2, 17])
def test_any_batch_and_size(batch):
    check(small(), "stored", batch, (33, 70))


def test_batches_of_several_shapes_share_memory_and_do_not_disturb_each_other():
    config = small()
    model = learning(config, "stored")
    fast = effnet_np.compile(model, 2, training=True)
    for batch, size in ((2, (64, 64)), (5, (40, 64)), (1, (97, 50)), (2, (64, 64))):
        images, labels = pictures(config, batch, size), np.arange(batch)
        assert_gradients(fast.backward(images, labels, seed=1), exactly(model, images, labels=labels, seed=1)[0])


def test_bare_model_and_a_loss_of_ones_own():
    config = small(pooling_type="max")
    model, images = learning(config, bare=True), pictures(config, 3)
    gradient = np.random.default_rng(1).standard_normal((3, config.hidden_dim)).astype(np.float32)
    got = effnet_np.compile(model, training=True).backward(images, output_gradient=gradient)
    expected = exactly(model, images, output_gradient=gradient)[0]
    assert_gradients(got, expected, backward(model, images, output_gradient=gradient), 4e-5)
    config = small(num_labels=1)
    check(config, labels=np.array([0.5, 2, -1], np.float32))  # regression, by what the labels are
    check(small(), labels=np.eye(3, 10, dtype=np.float32))  # several labels a picture
    check(small(), label_smoothing=0.2)
    check(small(), labels=None, output_gradient=lambda logits: 2 * logits)


FROZEN = ["classifier.*", "*.blocks.[89].*", "*.top_conv.*", "*.blocks.3.*", "*.blocks.0.*", "*.embeddings.*"]


@pytest.mark.parametrize("mode", ["train", "stored"])
@pytest.mark.parametrize("patterns", FROZEN)
def test_frozen_prefix_is_neither_stored_nor_differentiated(patterns, mode):
    config = small()
    model, images = learning(config, mode), pictures(config, 3)
    fast = effnet_np.compile(model, 2, training=True)
    options = {"labels": np.arange(3), "seed": 5, "parameters": patterns, "pixel_gradient": False}
    got = fast.backward(images, **options)
    expected, _ = exactly(model, images, **options)
    assert_gradients(got, expected)
    before = fast._network.bytes
    whole = effnet_np.compile(model, 2, training=True)
    whole.backward(images, labels=np.arange(3), pixel_gradient=False)
    if "embeddings" not in patterns and "blocks.0" not in patterns:
        assert before < 0.95 * whole._network.bytes


@pytest.mark.parametrize(
    "name", ["odd image", "first block expands", "max pool", "no squeeze-excite", "activation gelu", "version 2"]
)
def test_frozen_prefix_runs_the_kernels_of_the_forward_pass(name):
    """And folds again where its weights have changed."""
    config = small(**VARIANTS[name])
    model, images = learning(config, "stored"), pictures(config, 3)
    fast = effnet_np.compile(model, 2, training=True)
    for patterns in ("*.blocks.[3-9].*", "classifier.*"):
        options = {"labels": np.arange(3), "seed": 5, "parameters": patterns, "pixel_gradient": False}
        for change in (1.0, 9.0):
            for each in (model, fast.model):
                each.state_dict()["efficientnet.embeddings.batchnorm.running_var"][...] *= np.float32(change)
            assert_gradients(fast.backward(images, **options), exactly(model, images, **options)[0])
        assert {"stem_forward", "expand_forward"}.isdisjoint(step.kernel for step in fast._network._bound.plan.forward[:9])


def test_only_a_frozen_prefix_that_folds_is_packed():
    config = small()
    fast = effnet_np.compile(learning(config, "stored"), 2, training=True)
    fast.backward(pictures(config, 2), np.arange(2), parameters="*.blocks.9.*", pixel_gradient=False)
    packs = [step for step in fast._network._bound.plan.forward if step.label == "pack"]
    assert 0 < len(packs) < 0.5 * len(fast._network.layers.panels.steps)


def test_the_same_bits_for_any_number_of_threads():
    config = EfficientNetConfig.preset("b0", num_labels=7)
    model, images = learning(config), pictures(config, 3, (96, 96))
    results = []
    for threads in (1, 2, 3, 7):
        fast = effnet_np.compile(model, threads, training=True)
        step = fast.backward(images, np.arange(3), seed=1)
        results.append([step.logits, step.pixel_values, *step.parameters.values(), *fast.state_dict().values()])
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_weights_are_live_and_a_step_changes_what_the_kernels_read():
    config = small()
    model, images, labels = learning(config, "stored"), pictures(config, 4), np.arange(4)
    fast = effnet_np.compile(model, training=True)
    slow, losses = copy.deepcopy(model), []
    mine, theirs = (AdamW(dict(m.named_parameters()), 1e-3) for m in (fast, slow))
    for _ in range(3):
        step = fast.backward(images, labels, seed=3)
        mine.step(step.parameters)
        expected = backward(slow, images, labels, seed=3)
        theirs.step(expected.parameters)
        losses.append((float(step.loss), float(expected.loss)))
    assert losses[2][0] < losses[0][0]
    np.testing.assert_allclose(*np.array(losses).T, rtol=1e-4)
    fast.load_state_dict(model.state_dict())
    assert all(np.array_equal(a, b) for a, b in zip(fast.state_dict().values(), model.state_dict().values(), strict=True))
    assert float(fast.backward(images, labels, seed=3).loss) == losses[0][0]
    assert np.abs(fast.model.eval()(images).logits - model.eval()(images).logits).max() < 1e-5


def test_activations_are_answered_by_the_reference_with_the_same_weights():
    config = small()
    model, images = learning(config, "eval"), pictures(config, 2)
    got = effnet_np.compile(model, training=True).backward(images, np.arange(2), activations="*.blocks.2", seed=1)
    expected = backward(model, images, np.arange(2), activations="*.blocks.2", seed=1)
    assert list(got.activations) == list(expected.activations)
    assert all(np.array_equal(got.activations[name], expected.activations[name]) for name in expected.activations)


def test_what_does_not_fit_is_refused():
    config = small()
    model, images = learning(config), pictures(config, 2)
    fast = effnet_np.compile(model, training=True)
    with pytest.raises(ValueError, match="either labels"):
        fast.backward(images)
    with pytest.raises(ValueError, match="no parameter of this model matches"):
        fast.backward(images, np.arange(2), parameters="nothing.*")
    with pytest.raises(ValueError, match="channels"):
        fast.backward(images[:, :1], np.arange(2))
    with pytest.raises(ValueError, match="more than one value a channel"):
        fast.backward(pictures(config, 1, (32, 32)), np.arange(1))
    fast.model.efficientnet.encoder.top_bn.eval()
    with pytest.raises(ValueError, match="some batch norms use the batch's statistics and others stored ones"):
        fast.backward(images, np.arange(2))
    with pytest.raises(TypeError, match="only a model of effnet_np in NumPy"):
        effnet_np.compile(fast, training=True)
    with pytest.raises(ValueError, match="float32"):
        effnet_np.compile(copy.deepcopy(model).to(np.float64), training=True)
    with pytest.raises(ValueError, match="Python function"):
        effnet_np.compile(learning(small(hidden_act=np.tanh), "eval"), training=True)
    with pytest.raises(ValueError, match="threads"):
        effnet_np.compile(model, 0, training=True)


def test_several_models_and_python_threads_take_turns():
    config = small()
    model, images = learning(config, "stored"), pictures(config, 2)
    fast = [effnet_np.compile(model, 2, training=True) for _ in range(2)]
    expected = fast[0].backward(images, np.arange(2), seed=1)
    wrong = []

    def work(compiled):
        for _ in range(5):
            step = compiled.backward(images, np.arange(2), seed=1)
            wrong.extend(
                name for name, array in step.parameters.items() if not np.array_equal(array, expected.parameters[name])
            )

    threads = [threading.Thread(target=work, args=(fast[i % 2],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_it_works_in_a_forked_child():
    config = small()
    fast = effnet_np.compile(learning(config), 2, training=True)
    images = pictures(config, 2)
    state = {name: array.copy() for name, array in fast.state_dict().items()}
    expected = fast.backward(images, np.arange(2), seed=1).pixel_values
    fast.load_state_dict(state)
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(0 if np.array_equal(fast.backward(images, np.arange(2), seed=1).pixel_values, expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_ctrl_c_leaves_a_model_that_goes_on():
    config = small()
    fast = effnet_np.compile(learning(config, "stored"), 2, training=True)
    images = pictures(config, 8)
    expected = fast.backward(images, np.arange(8), seed=1).pixel_values
    for delay in (0.001, 0.004, 0.01, 0.02):
        timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            while True:
                fast.backward(images, np.arange(8), seed=1)
        except KeyboardInterrupt:
            timer.join()
    assert np.array_equal(fast.backward(images, np.arange(8), seed=1).pixel_values, expected)


def test_machine_code_of_training_is_a_file_of_its_own():
    assert library.cache_file() != library.cache_file(library.TRAINING)
    names = {part: {kernel.name for kernel in library._registered(part)} for part in (library.FORWARD, library.TRAINING)}
    assert "product" in names[library.FORWARD]
    assert "outer" in names[library.TRAINING]
    assert not names[library.FORWARD] & names[library.TRAINING]
    code = (
        "import sys, effnet_np; m = effnet_np.EfficientNetForImageClassification(effnet_np.EfficientNetConfig.preset('b0'));"
        "effnet_np.compile(m); print('effnet_np.kernels.training' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


OTHER_CPU = """
import sys
sys.path.insert(0, {tests!r})
from test_kernels_training import OPTIMIZERS, VARIANTS, check, small, test_optimizers_move_as_those_in_numpy
from effnet_np.kernels.target import WIDTH
check(small(), batch=4, size=(96, 96))
check(small(**VARIANTS["activation gelu"]), "stored", batch=2)
for name in ("odd image", "max pool", "even and large kernels", "activation relu6", "version 2"):
    check(small(**VARIANTS[name]), "eval", batch=2)
test_optimizers_move_as_those_in_numpy("adamw")
print(WIDTH)
"""


@pytest.mark.parametrize(("cpu", "width"), [("generic", "4"), ("avx2", "8")])
def test_other_cpus(cpu, width, tmp_path_factory):
    assert run_on(cpu, OTHER_CPU, tmp_path_factory) == width


OPTIMIZERS = {
    "sgd": lambda p: SGD(p, 0.1, weight_decay=0.01, scales={"classifier.*": 10.0}),
    "nesterov": lambda p: SGD(p, 0.1, momentum=0.9, nesterov=True),
    "adamw": lambda p: AdamW(p, 1e-2, weight_decay=0.05, scales={"classifier.*": 10.0}),
    "rmsprop": lambda p: RMSProp(p, 1e-2, weight_decay=1e-3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_move_as_those_in_numpy(name):
    config = small()
    model, images, labels = learning(config, "stored"), pictures(config, 4), np.arange(4)
    fast = effnet_np.compile(model, 2, training=True)
    names = [name for name, _ in fast.named_parameters() if ".8." in name or name.startswith("classifier")]
    mine = OPTIMIZERS[name]({name: array for name, array in fast.named_parameters() if name in names})
    theirs = OPTIMIZERS[name]({name: array.copy() for name, array in mine.parameters.items()})
    for step in range(4):
        found = fast.gradients(images, labels, names, 0.0, (0, step)).parameters
        gradients = {name: array.copy() for name, array in found.items()}
        fast.move(mine, found, 0.05, 0.5)
        theirs.step(clip_by_global_norm(gradients, 0.5), 0.05)
        if step == 1:  # a run that goes on has memories of its own
            mine.load_state_dict({key: array.copy() for key, array in mine.state_dict().items()})
        for ours, expected in ((mine.parameters, theirs.parameters), (mine.state_dict(), theirs.state_dict())):
            assert ours.keys() == expected.keys()
            for key, array in expected.items():
                np.testing.assert_allclose(ours[key], array, rtol=0, atol=2e-6 * max(1e-30, np.abs(array).max()), err_msg=key)
    before = {name: array.copy() for name, array in fast.named_parameters()}
    found[names[2]][...] = np.nan
    with pytest.raises(FloatingPointError, match=names[2].replace(".", r"\.")):
        fast.move(mine, found, 0.05, 0.5)
    assert all(np.array_equal(array, before[name]) for name, array in fast.named_parameters())


def test_trainer_learns_the_same_with_kernels():
    config = small(num_labels=4, drop_connect_rate=0.0, dropout_rate=0.0)
    model, images, labels = learning(config), pictures(config, 8), np.arange(8) % 4
    fast = effnet_np.compile(model, 2, training=True)
    losses = []
    for learner in (fast, copy.deepcopy(model)):
        optimizer = AdamW(dict(learner.named_parameters()), 1e-3)
        trainer = Trainer(learner, optimizer, max_norm=1.0, average=0.9, label_smoothing=0.1)
        losses.append([trainer.step(images, labels)[0] for _ in range(4)])
        losses[-1].append(trainer.evaluate([(images, labels)]).loss)
    np.testing.assert_allclose(*losses, rtol=1e-3)


@pytest.mark.parametrize("model", ["b0", "lite0"])
def test_bench_measures_the_same_step_of_the_same_network(model):
    pytest.importorskip("torch")
    pytest.importorskip("efficientnet_lite_pytorch" if model == "lite0" else "transformers")
    images, labels, found = forward_bench.images(model, 2), np.arange(2), []
    for engine, name in ((bench.ours, "ours"), (bench.peer, "torch-channels-last")):
        step, gradients, drop = engine(name, model, 1, "stored", images, labels)
        drop(False)
        if name != "ours":
            step()
        found.append({name: np.array(gradient) for name, gradient in gradients().items()})
    bench.check(found[1], found[0], "they disagree")
    found[1]["stem"] = found[1]["stem"] * np.float32(1.2)
    with pytest.raises(ValueError, match=r"they disagree by 2\.0e-01 in the gradient of the stem: nothing was timed"):
        bench.check(found[1], found[0], "they disagree")


def test_bench_says_what_it_cannot_measure(monkeypatch):
    with pytest.raises(ValueError, match="transformers has no v2-b0"):
        bench.check_peers(["b0", "v2-b0"])
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="lite1's peer needs its package: pip install efficientnet-lite-pytorch"):
        bench.check_peers(["b7", "lite1"])


def test_bench_prints_a_table(monkeypatch, tmp_path, capsys):
    pytest.importorskip("torch")
    milliseconds = {"ours": 100.0, "torch": 400.0, "torch-channels-last": 300.0, "gemm": 1.0}
    result = {"milliseconds": milliseconds, "megabytes": {"ours": 50.0, "torch": 200.0, "torch-channels-last": 220.0}}
    result |= {"model": "b0", "threads": 1, "batch": 2, "statistics": "batch", "of_best_peer": 1 / 3, "of_gemm": 0.6}
    monkeypatch.setattr(bench, "measure", lambda *_: result)
    options = ["--training", "--model", "b0", "--batch", "2", "--threads", "1", "--json", str(tmp_path / "all.json")]
    options += ["--plot", str(tmp_path / "all.png")] if find_spec("matplotlib") else []
    assert main(["bench", *options]) == 0
    header, _, first, second = capsys.readouterr().out.strip().splitlines()
    assert header.startswith("| model | threads | batch | statistics | ours ms | torch ms | torch-channels-last ms |")
    assert first == second == "| b0 | 1 | 2 | batch | 100 | 400 | 300 | 0.33 | 0.60 | 50 | 200 | 0.25 |"
    assert json.loads((tmp_path / "all.json").read_text()) == [result, result]
    assert all(file.stat().st_size > 0 for file in tmp_path.iterdir())
