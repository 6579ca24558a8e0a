"""The compiled network against the reference: every kind of layer, every way to call it, and what a server does to it."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest

pytest.importorskip("llvmlite")
pytest.importorskip("numba")

from effnet_np import EfficientNetConfig, EfficientNetForImageClassification, EfficientNetModel, ops
from effnet_np.kernels import library, overflow, pool, table
from effnet_np.kernels.compiled import CompiledEfficientNet as compile_model
from effnet_np.kernels.pool import Pool
from effnet_np.layer_specs import layer_specs
from effnet_np.layers import BatchNorm2d, Conv2d, Linear

if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
    pytest.skip("needs compiled code", allow_module_level=True)


pytestmark = pytest.mark.usefixtures("many_cores")


def live(config, bare=False, seed=0):
    """A model whose activations stay at a sane scale through all layers, and whose batch norms all do something."""
    model = (EfficientNetModel if bare else EfficientNetForImageClassification)(config, initialize=False)
    random = np.random.default_rng(seed)

    def normal(shape, scale, mean=0.0):
        return (mean + scale * random.standard_normal(shape)).astype(np.float32)

    for _, module in model.named_modules():
        if isinstance(module, (Conv2d, Linear)):
            module.weight = normal(module.weight.shape, module.weight[0].size ** -0.5)
            if module.bias is not None:
                module.bias = normal(module.bias.shape, 0.1)
        if isinstance(module, BatchNorm2d):
            shape = module.weight.shape
            module.weight, module.bias = normal(shape, 0.2, 1.0), normal(shape, 0.2)
            module.running_mean = normal(shape, 0.1)
            module.running_var = (random.random(shape) + 0.5).astype(np.float32)
    return model


def pictures(config, batch=1, size=None, seed=0):
    height, width = size or (config.image_size, config.image_size)
    return np.random.default_rng(seed).standard_normal((batch, config.num_channels, height, width)).astype(np.float32)


def assert_same(got, expected, tolerance=2e-5):
    """Every output: the same shape and dtype, finite, alive, and equal relative to the largest value."""
    names = list(got.keys())
    assert names == list(expected.keys())
    pairs = [(got[name], expected[name]) for name in names if name != "hidden_states"]
    if expected.hidden_states is not None:
        assert len(got.hidden_states) == len(expected.hidden_states)
        pairs += zip(got.hidden_states, expected.hidden_states, strict=True)
    for ours, reference in pairs:
        assert ours.shape == reference.shape
        assert ours.dtype == np.float32
        assert np.isfinite(ours).all()
        assert np.abs(reference).max() > 1e-3
        assert np.abs(ours - reference).max() <= tolerance * np.abs(reference).max()


SMALL = {"width_coefficient": 0.25, "depth_coefficient": 0.5, "image_size": 64, "hidden_dim": 320, "num_labels": 10}


def small(**fields):
    return EfficientNetConfig(**(SMALL | fields))


VARIANTS = {
    "small": {},
    "odd image": {"image_size": 75},
    "padding on all sides": {"depthwise_padding": [1, 2, 3], "image_size": 75},
    "same padding": {"padding": "same", "image_size": 75},
    "static same padding": {"padding": "static_same", "image_size": 75},
    "symmetric padding": {"padding": "symmetric", "image_size": 70},
    "version 2": {"fused_stages": 3, "padding": "same", "kernel_sizes": [3] * 7, "expand_ratios": [1, 4, 4, 4, 6, 6, 6]},
    "the stem's output is added": {"fused_stages": 2, "in_channels": [16, 16, 24, 40, 80, 112, 192]},
    "and the block expands": {
        "fused_stages": 1, "in_channels": [16, 16, 24, 40, 80, 112, 192], "expand_ratios": [4, 6, 6, 6, 6, 6, 6],
    },
    "all fused": {"fused_stages": 7, "kernel_sizes": [2, 3, 5, 3, 1, 4, 3], "hidden_act": "gelu", "padding": "symmetric"},
    "one channel, three labels": {"num_channels": 1, "num_labels": 3},
    "five channels": {"num_channels": 5},
    "no squeeze-excite": {"squeeze_expansion_ratio": 0.0},
    "max pool": {"pooling_type": "max"},
    "odd widths": {"depth_divisor": 3, "width_coefficient": 0.4, "hidden_dim": 513},
    "half registers": {"width_coefficient": 1.0, "hidden_dim": 1280, "depth_coefficient": 0.4},
    "even and large kernels": {"kernel_sizes": [2, 4, 7, 3, 6, 5, 1]},
    "kernel size 1 with stride 2": {"kernel_sizes": [1, 1, 1, 3, 5, 1, 3]},
    "first block expands": {"expand_ratios": [4, 6, 1, 6, 3, 1, 2]},
    "stride 2 everywhere": {"strides": [2, 2, 1, 2, 1, 1, 1]},
    "one stage": {
        "kernel_sizes": [3], "in_channels": [32], "out_channels": [16], "strides": [1], "num_block_repeats": [3],
        "expand_ratios": [1],
    },
    **{f"activation {name}": {"hidden_act": name} for name in sorted(ops.ACTIVATIONS)},
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_agrees_in_every_hidden_state(name):
    config = small(**VARIANTS[name])
    model = live(config)
    images = pictures(config)
    fast = compile_model(model, threads=2)
    expected = model(images, output_hidden_states=True)
    assert_same(fast(images, output_hidden_states=True), expected)
    np.testing.assert_allclose(fast(images).logits, expected.logits, atol=2e-5 * np.abs(expected.logits).max())


@pytest.mark.parametrize("name", ["b0", "lite0", "b1", "v2-b0"])
def test_preset_agrees_in_every_hidden_state(name):
    config = EfficientNetConfig.preset(name)
    model = live(config)
    images = pictures(config)
    assert_same(compile_model(model)(images, output_hidden_states=True), model(images, output_hidden_states=True))


@pytest.mark.parametrize("fields", [{}, VARIANTS["version 2"], {"padding": "symmetric"}], ids=["hf", "version 2", "symmetric"])
@pytest.mark.parametrize("size", [(33, 64), (64, 33), (97, 50), (32, 32), (201, 32)])
def test_any_size_replans_by_itself(size, fields):
    config = small(**fields)
    model = live(config)
    fast = compile_model(model, threads=2)
    for shape in ((64, 64), size, (64, 64)):
        images = pictures(config, size=shape)
        assert_same(fast(images), model(images))


def test_bare_model_gives_features_and_pool():
    for pooling in ("mean", "max"):
        config = small(pooling_type=pooling)
        model = live(config, bare=True)
        images = pictures(config, batch=3)
        fast = compile_model(model, threads=2)
        assert_same(fast(images, output_hidden_states=True), model(images, output_hidden_states=True))
        assert isinstance(fast(images, return_dict=False), tuple)


@pytest.mark.parametrize("preset", ["b0", "v2-b0"])
def test_batch_is_the_same_as_its_images_and_any_thread_count_gives_the_same_bits(preset):
    config = EfficientNetConfig.preset(preset, num_labels=7)
    model = live(config)
    images = pictures(config, batch=3)
    fast = {threads: compile_model(model, threads=threads) for threads in (1, 2, 3, 7)}
    expected = fast[1](images, output_hidden_states=True)
    for threads, compiled in fast.items():
        got = compiled(images, output_hidden_states=True)
        assert np.array_equal(got.logits, expected.logits), threads
        assert all(np.array_equal(a, b) for a, b in zip(got.hidden_states, expected.hidden_states, strict=True))
    assert np.array_equal(fast[2](images[1:2]).logits, expected.logits[1:2])


def test_loss_and_tuple_as_in_the_model():
    config = small()
    model = live(config)
    images, labels = pictures(config, batch=2), np.array([1, 4])
    fast = compile_model(model)
    expected = model(images, labels=labels)
    got = fast(images, labels=labels)
    np.testing.assert_allclose(got.loss, expected.loss, rtol=1e-4)
    assert len(fast(images, labels=labels, return_dict=False)) == 2


def test_no_labels_gives_the_pooled_features():
    model = live(small(num_labels=0))
    images = pictures(model.config)
    assert_same(compile_model(model)(images), model(images))


@pytest.mark.parametrize("view", ["transposed", "float64", "sliced"])
def test_input_of_any_layout(view):
    config = small()
    model = live(config)
    images = pictures(config, batch=2)
    given = {
        "transposed": np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
        "float64": images.astype(np.float64),
        "sliced": np.repeat(images, 2, axis=3)[..., ::2],
    }[view]
    assert_same(compile_model(model)(given), model(images))


def test_wrong_input_says_what_the_model_says():
    config = small()
    model = live(config)
    fast = compile_model(model)
    wrong = [None, np.zeros((1, 3, 64, 64), np.uint8), np.zeros((3, 64, 64), np.float32), np.zeros((1, 4, 64, 64), np.float32)]
    for images in wrong:
        with pytest.raises((ValueError, TypeError)) as expected:
            model(images)
        with pytest.raises(type(expected.value), match=str(expected.value)[:30].replace("(", r"\(").replace(")", r"\)")):
            fast(images)
    with pytest.raises(ValueError, match="too small for this network.*take an image of at least 32 x 32"):
        compile_model(live(small(kernel_sizes=[3, 3, 5, 3, 5, 5, 3], depthwise_padding=[])))(np.zeros((1, 3, 1, 1), np.float32))
    with pytest.raises(ValueError, match="threads"):
        compile_model(model, threads=0)


def test_a_function_as_activation_falls_back_with_a_warning():
    model = live(small(hidden_act=lambda x: np.maximum(x, 0)))
    images = pictures(model.config)
    with pytest.warns(UserWarning, match="hidden_act"):
        fast = compile_model(model)
    assert np.array_equal(fast(images).logits, model(images).logits)


EXTREME = [
    {"5.projection.project_bn.bias": 3e38},
    {"5.projection.project_bn.bias": 3e38, "4.expansion.expand_bn.bias": 1e38},
    {"1.expansion.expand_bn.bias": 2e30, "1.squeeze_excite.expand.weight": 1e24},
    {"8.squeeze_excite.expand.weight": 6e34, "8.expansion.expand_bn.bias": 9e25},
    {"2.depthwise_conv.depthwise_conv.weight": 1e34, "3.squeeze_excite.expand.weight": 4e37},
    {"7.squeeze_excite.reduce.weight": 1e37, "7.depthwise_conv.depthwise_norm.bias": 1e3},
]


@pytest.mark.parametrize("hidden_act", ["relu6", "relu", "swish", "gelu"])
def test_what_overflows_inside_is_no_ordinary_answer(hidden_act):
    """Sums beyond float32 depend on the order of their terms: an answer that is finite has to be that of float64."""
    wrong = {}
    for index, numbers in enumerate(EXTREME):
        model = live(small(hidden_act=hidden_act), seed=index)
        state = model.state_dict()
        for name, largest in numbers.items():
            array = state[f"efficientnet.encoder.blocks.{name}"]
            array[...] = (
                np.sign(array) * np.float32(largest)
                if name.endswith("bias")
                else array / np.abs(array).max() * np.float32(largest)
            )
        x = pictures(model.config, seed=index)
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that NumPy answers
            got = compile_model(model)(x).logits
            truth = model.to(np.float64)(x.astype(np.float64)).logits
        if np.isfinite(got).all() and np.abs(got - truth).max() > 1e-3 * np.abs(truth).max():
            wrong[index] = got[0], truth[0]
    assert not wrong


@pytest.mark.parametrize("hidden_act", ["relu6", "swish"])
@pytest.mark.parametrize("largest", [1e30, 1e34, 1e37])
def test_what_overflows_in_a_transform_is_no_ordinary_answer(hidden_act, largest):
    """Winograd's numbers are larger than those of the convolution that they make."""
    model = live(small(**VARIANTS["version 2"], hidden_act=hidden_act))
    model.state_dict()["efficientnet.encoder.blocks.2.expansion.expand_conv.weight"][0] *= np.float32(largest)
    x = pictures(model.config)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that NumPy answers
        got = compile_model(model)(x).logits
        truth = model.to(np.float64)(x.astype(np.float64)).logits
    assert not np.isfinite(got).all() or np.abs(got - truth).max() <= 1e-3 * np.abs(truth).max()


@pytest.mark.parametrize("layer", ["expansion.expand_conv", "depthwise_conv.depthwise_conv", "projection.project_conv"])
def test_sums_that_could_overflow_are_known_from_the_weights(layer):
    """Inputs are at most 6: a sum of n weights of w can reach 6 n w, whatever signs they have."""
    model = live(small(hidden_act="relu6"))
    state = model.state_dict()
    weight = state[f"efficientnet.encoder.blocks.3.{layer}.weight"]
    signs = np.where(np.arange(weight.size).reshape(weight.shape) % 2, np.float32(1), np.float32(-1))
    for share, safe in ((1e-6, True), (1.5, False)):
        weight[...] = signs * np.float32(share * overflow.LIMIT / 6 / weight[0].size)
        assert (overflow.largest_pixel(state, model.config) > 0) == safe


def test_a_deep_network_of_ordinary_weights_is_not_held_to_overflow():
    """What blocks hand on is added up, not multiplied: Lite1, Lite2 and deeper ones would be left to NumPy."""
    model = live(small(hidden_act="relu6", depth_coefficient=3.1))
    assert overflow.largest_pixel(model.state_dict(), model.config) > 1e30


def test_a_backbone_has_no_classifier_that_could_overflow():
    """ReLU6 and no head: what `output="features"` and a head that is fine-tuned compute with."""
    model = live(small(hidden_act="relu6"))
    images = pictures(model.config)
    largest = overflow.largest_pixel(model.efficientnet.state_dict(), model.config)
    assert largest == overflow.largest_pixel(model.state_dict(), model.config) > 1e30
    got, expected = compile_model(model.efficientnet)(images).pooler_output, model.efficientnet(images).pooler_output
    assert np.abs(got - expected).max() <= 2e-5 * np.abs(expected).max() > 0


@pytest.mark.parametrize("fields", [{}, VARIANTS["version 2"]], ids=["version 1", "version 2"])
def test_pixels_that_overflow_inside_are_refused(fields):
    model = live(small(hidden_act="relu6", **fields))
    x = pictures(model.config)
    compiled = compile_model(model)
    assert_same(compiled(x), model(x))
    with pytest.raises(ValueError, match=r"pixel_values beyond .*e\+3. overflow float32"):
        compiled(x * np.float32(1e38 / np.abs(x).max()))


def test_an_activation_without_machine_code_is_answered_by_numpy(monkeypatch):
    model = live(small(hidden_act="mish"))
    monkeypatch.delitem(table.CODES, "mish")
    with pytest.warns(UserWarning, match="hidden_act 'mish' has no machine code .* the NumPy model answers"):
        fast = compile_model(model)
    images = pictures(model.config)
    np.testing.assert_array_equal(fast(images).logits, model(images).logits)


def test_non_finite_pixels_are_refused_and_with_non_finite_weights_numpy_answers():
    model = live(small())
    images = pictures(model.config)
    for wrong in (np.nan, np.inf):
        bad = images.copy()
        bad[0, 1, 20, 20] = wrong
        with pytest.raises(ValueError, match="pixel_values hold NaN or infinite numbers"):
            compile_model(model)(bad)
    for name, wrong in (("embeddings.batchnorm.bias", np.nan), ("encoder.blocks.2.squeeze_excite.expand.weight", np.inf)):
        model = live(small())
        model.state_dict()[f"efficientnet.{name}"].flat[0] = wrong
        with pytest.warns(UserWarning, match="weights are NaN or infinite: the NumPy model answers"):
            fast = compile_model(model)
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(fast(images).logits, model(images).logits)


def test_the_reference_may_go_and_the_image_processor_stays():
    model = live(small())
    model.image_processor = object()
    fast = compile_model(model)
    assert fast.config is model.config
    assert fast.image_processor is model.image_processor
    import weakref

    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_several_python_threads_at_once():
    config = small()
    model = live(config)
    fast = compile_model(model, threads=2)
    images = [pictures(config, seed=seed, size=(64, 64 + 32 * (seed % 2))) for seed in range(4)]
    expected = [fast(x).logits for x in images]
    wrong = []

    def work(x, right):
        for _ in range(40):
            if not np.array_equal(fast(x).logits, right):
                wrong.append(x)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(images, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_no_more_threads_run_than_there_are_cores(monkeypatch):
    monkeypatch.setattr(pool, "usable", lambda: 2)
    assert [Pool(threads, 1).threads for threads in (1, 2, 7)] == [1, 2, 2]
    before = threading.active_count()
    model = live(small())
    compiled = compile_model(model, threads=7)
    assert compiled.threads == 7
    assert_same(compiled(pictures(model.config)), model(pictures(model.config)))
    assert threading.active_count() - before <= 1


def test_threads_end_with_their_model():
    fast = compile_model(live(small()), threads=3)
    fast(pictures(fast.config))
    before = threading.active_count()
    del fast
    gc.collect()
    for _ in range(200):
        if threading.active_count() <= before - 2:
            break
        threading.Event().wait(0.01)
    assert threading.active_count() <= before - 2


def test_plans_are_kept_but_not_without_bound():
    config = small()
    fast = compile_model(live(config), threads=1)
    for width in range(64, 64 + 20):
        fast(pictures(config, size=(64, width)))
    assert len(fast._plans) <= 8


# -- in a process of its own ------------------------------------------------------------------------------------------

CHECK = """
import sys, warnings
sys.path.insert(0, {tests!r})
import numpy as np
from test_kernels import live, pictures, small, assert_same
from effnet_np.kernels import library
from effnet_np.kernels.compiled import CompiledEfficientNet as compile
from effnet_np.kernels.target import WIDTH
wide = {{"width_coefficient": 1.0, "hidden_dim": 1280, "depth_coefficient": 0.4}}
version2 = {{"fused_stages": 3, "padding": "same", "expand_ratios": [1, 4, 4, 4, 6, 6, 6], "image_size": 75}}
# Rows of three tiles, and fewer steps in the stem than positions.
relu6 = {{"hidden_act": "relu6", "image_size": 48, "num_channels": 1}}
grey = relu6 | {{"hidden_act": "swish"}}
for fields in ({{}}, {{"hidden_act": "gelu", "image_size": 75}}, wide, version2, relu6, grey):
    model = live(small(**fields)); images = pictures(model.config)
    assert_same(compile(model, threads=2)(images, output_hidden_states=True), model(images, output_hidden_states=True))
print("width", WIDTH)
"""


def run_python(code, **environment):
    code = code.format(tests=os.path.dirname(__file__))
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=300)


OTHER_CPUS = {
    "generic": {"NUMBA_CPU_NAME": "generic"},
    "avx2": {"NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+sse4.2,+ssse3,+popcnt,+bmi,+bmi2"},
}


def run_on(cpu, code, tmp_path_factory):
    """Runs Python with kernels for another CPU, whose machine code all tests share. Gives the last word that it prints."""
    if cpu == "avx2" and "avx2" not in _host_features():
        pytest.skip("this CPU has no AVX2")
    cache = tmp_path_factory.getbasetemp() / f"kernels for {cpu}"
    done = run_python(code, EFFNET_NP_KERNEL_CACHE=str(cache), **OTHER_CPUS[cpu])
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


@pytest.mark.parametrize(("cpu", "width"), [("generic", "4"), ("avx2", "8")])
def test_other_cpus(cpu, width, tmp_path_factory):
    assert run_on(cpu, CHECK, tmp_path_factory) == width


def _host_features():
    import llvmlite.binding

    return {name for name, present in llvmlite.binding.get_host_cpu_features().items() if present}


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
def test_memory_does_not_grow():
    code = """
import sys
sys.path.insert(0, {tests!r})
from test_kernels import live, pictures, small
from effnet_np.kernels.compiled import CompiledEfficientNet as compile
fast = compile(live(small(image_size=32)), threads=2)
images = pictures(fast.config)
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
for _ in range(200): fast(images)
before = resident()
for _ in range(2000): fast(images)
print(resident() - before)
"""
    done = run_python(code)
    assert int(done.stdout) < 1 << 20, done.stderr


def test_without_jit_and_without_cached_code_the_reference_answers(tmp_path):
    code = """
import sys, warnings
sys.path.insert(0, {tests!r})
import numpy as np, effnet_np
from effnet_np.kernels.compiled import CompiledEfficientNet as compile
config = effnet_np.EfficientNetConfig.preset("b0", num_labels=3, image_size=32)
model = effnet_np.EfficientNetForImageClassification(config, seed=0)
x = np.ones((1, 3, 32, 32), np.float32)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    fast = compile(model)
assert "NUMBA_DISABLE_JIT" in str(caught[0].message)
assert np.array_equal(fast(x).logits, model(x).logits)
"""
    done = run_python(code, EFFNET_NP_KERNEL_CACHE=str(tmp_path), NUMBA_DISABLE_JIT="1")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_no_threading_layer_is_used_and_no_setting_changed():
    """The kernels have threads of their own; Numba's, which abort when two enter or die after a fork, are not entered."""
    code = """
import os, sys, threading
before = dict(os.environ)
sys.path.insert(0, {tests!r})
import numpy as np, numba
settings = {{name: getattr(numba.config, name) for name in dir(numba.config) if name.isupper()}}
from test_kernels import live, pictures, small
from effnet_np.kernels.compiled import CompiledEfficientNet as compile
fast = compile(live(small()), threads=2)
images = pictures(fast.config)
expected = fast(images).logits
wrong = []
def work():
    for _ in range(50):
        if not np.array_equal(fast(images).logits, expected):
            wrong.append(1)
callers = [threading.Thread(target=work) for _ in range(3)]
for caller in callers: caller.start()
for caller in callers: caller.join()
assert not wrong
assert settings == {{name: getattr(numba.config, name) for name in settings}} and dict(os.environ) == before
try:
    numba.threading_layer()
except ValueError:  # Numba's word for: none has been started
    print("none", flush=True)
child = os.fork()
if child == 0:
    os._exit(0 if all(np.array_equal(fast(images).logits, expected) for _ in range(20)) else 1)
assert os.waitpid(child, 0)[1] == 0
assert np.array_equal(fast(images).logits, expected)
"""
    done = run_python(code, NUMBA_THREADING_LAYER="omp", PYTHONWARNINGS="ignore")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["none"]


def test_loading_cached_code_needs_no_numba():
    library.addresses()
    code = """
import sys
from effnet_np.kernels import library
assert library.kernels_cached()
library.addresses()
assert "numba" not in sys.modules
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_torn_cache_file_is_noticed_and_unwritable_cache_is_warned_of(tmp_path, monkeypatch):
    monkeypatch.setenv("EFFNET_NP_KERNEL_CACHE", str(tmp_path / "folder"))
    assert not library._intact(b"")
    assert not library._intact(library._seal(b"code", ["a"])[:-1])
    assert library._intact(library._seal(b"code", ["a"]))
    (tmp_path / "folder").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="EFFNET_NP_KERNEL_CACHE"):
        library._keep(b"x")


# -- the commands -----------------------------------------------------------------------------------------------------


def test_warmup_says_where_the_code_is_kept(capsys):
    from effnet_np.kernels.warmup import warmup

    library.addresses()
    assert warmup() == 0
    assert str(library.cache_file()) in capsys.readouterr().err


def test_profile_names_every_step():
    fast = compile_model(live(small()), threads=2)
    steps = fast.profile(pictures(fast.config), rounds=3)
    assert steps[-1][0] == "classifier"
    layers = layer_specs(fast.config.architecture(), fast.config.image_size, fast.config.image_size)
    assert sum(work for _, _, work, _ in steps) == 2 * sum(layer.mult_adds for layer in layers)
    assert all(milliseconds > 0 and size > 0 for _, milliseconds, _, size in steps)


def test_a_compiled_model_says_what_it_is_and_where_the_rest_is():
    model = live(small())
    fast = compile_model(model, threads=2)
    fast(pictures(fast.config))
    words = r"EfficientNetForImageClassification, 0\.\d million parameters, \d+ x \d+, 2 threads, \d+ MB, for [\w.-]+"
    words += r" in registers of \d+"
    assert re.fullmatch(rf"CompiledEfficientNet\({words}\)", repr(fast))
    assert fast.num_parameters() == model.num_parameters()
    assert fast.eval() is fast
    assert fast.to("cpu") is fast
    assert (fast.dtype, str(fast.device), fast.training) == (np.float32, "cpu", False)
    there = "ask the model"
    for name, words in (("state_dict", there), ("save_pretrained", there), ("cuda", "CPU"), ("train", "eval mode")):
        with pytest.raises(AttributeError, match=words):
            getattr(fast, name)()
    with pytest.raises(ValueError, match="CPU"):
        fast.to("cuda")
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        fast.nonsense  # noqa: B018


@pytest.mark.parametrize(
    "changes",
    [{"width_coefficient": 3.0}, {"num_labels": 50_000}, {"num_channels": 4}, {"num_block_repeats": [9] * 7}],
    ids=str,
)
def test_a_configuration_changed_afterwards_leads_no_kernel_astray(changes):
    """Shapes are those of the weights that were packed: beyond them lies other memory."""
    model = live(small())
    fast, images = compile_model(model, threads=2), pictures(model.config)
    expected = compile_model(model, threads=2)(images).logits
    for name, value in changes.items():
        setattr(model.config, name, value)
    assert np.array_equal(fast(images).logits, expected)


def test_numbers_that_become_infinite_in_float32_are_refused_by_both():
    model = live(small())
    images = pictures(model.config).astype(np.float64)
    images[0, 0, 0, 0] = 1e300
    for runner in (model, compile_model(model)):
        with pytest.raises(ValueError, match="NaN or infinite"):
            runner(images)
