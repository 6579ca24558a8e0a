"""Each kind of step alone against the reference, and what records, cuts and plans promise.

`check_kernel(lab, step, given, expected)` runs one step: memory that nobody has written is NaN, so a kernel that reads what
it should not fails; results have to be the reference's, and the same bits for one thread and for two.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("llvmlite")
pytest.importorskip("numba")

from effnet_np import EfficientNetConfig, ops
from effnet_np.kernels import bench, classifier, depthwise, fused, head, library, project, squeeze_excite, stem, winograd
from effnet_np.kernels.arena import ALIGN, FeatureMap
from effnet_np.kernels.plan import Net, pack, plan
from effnet_np.kernels.pool import Pool
from effnet_np.kernels.product import HEIGHTS
from effnet_np.kernels.record import ROW_WORDS, Activation, At, Cut, Map, layout
from effnet_np.kernels.target import WIDTH
from effnet_np.kernels.tiling import equal_tiles, group_edges

if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
    pytest.skip("needs compiled code", allow_module_level=True)

# Two activations that are applied in registers, and one that follows in a second pass.
ACTIVATIONS = ("swish", "relu6", "gelu")


class Lab(Net):
    """A network of two blocks, of which the second is the one to look at; `state` are its weights."""

    def __init__(self, inputs=24, outputs=40, kernel=3, stride=1, ratio=6, squeeze=0.25, hidden_act="swish", **fields):
        config = EfficientNetConfig(
            width_coefficient=1.0, depth_coefficient=1.0, depth_divisor=1, hidden_dim=1280, in_channels=[32, inputs],
            out_channels=[inputs, outputs], kernel_sizes=[3, kernel], strides=[1, stride], num_block_repeats=[1, 1],
            expand_ratios=[1, ratio], squeeze_expansion_ratio=squeeze, hidden_act=hidden_act, **fields,
        )  # fmt: skip
        self.state = {key.removeprefix("efficientnet."): value for key, value in bench.lively_state(config).items()}
        super().__init__(config, pack(self.state, config))
        self.spec = config.blocks()[1]
        self.inner = np.float32(self.weights.inner)  # what activations inside of the network are multiplied by
        self.random = np.random.default_rng(0)

    def normal(self, *shape):
        return self.random.standard_normal(shape).astype(np.float32)

    def map(self, channels, height=1, width=1) -> FeatureMap:
        return self.arena.map(channels, height, width)

    def activate(self, x):
        return ops.ACTIVATIONS[self.config.hidden_act](x)

    def conv(self, x, conv, norm, stride=1, padding=(0, 0, 0, 0), groups=1):
        """The reference's convolution and batch norm. (C, H, W) -> (O, H', W')"""
        y = ops.conv2d(x[None], self.state[conv + ".weight"], None, stride, padding, groups)
        parts = [self.state[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return ops.batch_norm(y, *parts, self.config.batch_norm_eps)[0]


def planes(array, where: FeatureMap):
    """(C, H, W) -> (blocks, H, W, WIDTH), channels that fill the last block zero."""
    padded = np.zeros((where.blocks * WIDTH, where.height, where.width), np.float32)
    padded[: where.channels] = array
    return padded.reshape(where.blocks, WIDTH, where.height, where.width).transpose(0, 2, 3, 1)


def run_kernel(lab, step, given, threads, image=None):
    """A function that reads maps, (C, H, W), from the arena after the step has run; `given`: pairs of a map and its numbers."""
    arena, scratch = (np.full((size + ALIGN) // 4 + 4096, np.nan, np.float32) for size in (lab.arena.bytes, threads * 2**20))
    skip = -arena.ctypes.data % ALIGN // 4

    def part(where):
        start = skip + where.offset // 4
        return arena[start : start + where.bytes // 4].reshape(where.blocks, where.height, where.width, WIDTH)

    for where, array in given:
        part(where)[...] = planes(array, where)
    assert step.scratch <= 2**20 - 4096
    bases = {"arena": arena[skip:].ctypes.data, "weights": lab.weights.address}
    table = step.words(bases, library.addresses(), threads)[None].copy()
    if image is not None:
        table[0, layout(type(step))["stem_layer.image"][0]] = image.ctypes.data
    address = -(-scratch.ctypes.data // ALIGN) * ALIGN
    Pool(threads, 1)(table.ctypes.data, 0, 1, address, 2**20)
    return lambda where: part(where).transpose(0, 3, 1, 2).reshape(-1, where.height, where.width)[: where.channels].copy()


def check_kernel(lab, step, given, expected, image=None, tolerance=2e-5):
    """expected: pairs of a map and the reference's numbers, (C, H, W). Gives a function that reads other maps."""
    for threads in (1, 2):
        read = run_kernel(lab, step, given, threads, image)
        for where, reference in expected:
            got = read(where)
            assert got.shape == reference.shape
            assert np.isfinite(got).all()
            assert np.abs(got - reference).max() <= tolerance * np.abs(reference).max(), (step.label, where)
            if threads == 1:
                first = got
    assert np.array_equal(got, first)
    return read


# -- every kind -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden_act", ACTIVATIONS)
@pytest.mark.parametrize(("channels", "size"), [(3, (32, 32)), (1, (33, 50)), (5, (9, 7))])
@pytest.mark.parametrize("padding", ["hf", "symmetric", "same"])
def test_stem(hidden_act, channels, size, padding):
    lab = Lab(hidden_act=hidden_act, num_channels=channels, padding=padding)
    image, zeros = lab.normal(channels, *size), lab.config.architecture().stem.zeros(*size)
    assert zeros == {"hf": (0, 1, 0, 1), "symmetric": (1, 1, 1, 1), "same": tuple(z for s in size for z in (s % 2, 1))}[padding]
    target = lab.map(lab.config.stem_channels, *lab.config.stem_size(*size))
    reference = lab.activate(lab.conv(image, "embeddings.convolution", "embeddings.batchnorm", 2, zeros))
    step = stem.plan(lab, stem.stem_layer(lab, *size), target)
    check_kernel(lab, step, [], [(target, lab.inner * reference)], image)


WINDOWS = [(3, 1, []), (3, 2, []), (5, 1, []), (5, 2, [1]), (7, 1, []), (2, 2, []), (1, 1, []), (4, 1, []), (1, 2, [])]


@pytest.mark.parametrize("ratio", [1, 6])
@pytest.mark.parametrize(("kernel", "stride", "padding"), WINDOWS)
def test_depthwise(ratio, kernel, stride, padding):
    name = "encoder.blocks.1."
    act = ACTIVATIONS[kernel % 3]
    lab = Lab(kernel=kernel, stride=stride, ratio=ratio, hidden_act=act, depthwise_padding=padding)
    x, spec = lab.normal(24, 19, 23), lab.spec
    y = x
    if ratio != 1:
        y = lab.activate(lab.conv(x, name + "expansion.expand_conv", name + "expansion.expand_bn"))
    conv, norm = name + "depthwise_conv.depthwise_conv", name + "depthwise_conv.depthwise_norm"
    y = lab.activate(lab.conv(y, conv, norm, stride, spec.padding * 2, spec.expanded_channels))
    source, target = lab.map(24, 19, 23), lab.map(*y.shape)
    step = depthwise.plan(lab, spec, source, target)
    # A block that does not expand gets what a block leaves, which is not scaled.
    read = check_kernel(lab, step, [(source, x)], [(target, lab.inner * y)])
    partial = FeatureMap(step.squeeze.partial.offset, step.cut.tasks * step.squeeze.blocks * WIDTH, 1, 1)
    sums = read(partial).reshape(step.cut.tasks, -1).sum(axis=0)[: spec.squeeze_channels]
    reference = lab.state[name + "squeeze_excite.reduce.weight"][..., 0, 0] @ y.sum(axis=(1, 2))
    assert np.abs(sums / lab.inner - reference).max() <= 2e-5 * np.abs(reference).max()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(18, 23), (19, 24), (6, 1)])
def test_depthwise_whose_rows_and_columns_are_padded_differently(size, stride):
    lab = Lab(kernel=5, stride=stride, padding="same")
    x, spec, conv = lab.normal(24, *size), lab.spec, "encoder.blocks.1.depthwise_conv.depthwise_"
    y = lab.activate(lab.conv(x, "encoder.blocks.1.expansion.expand_conv", "encoder.blocks.1.expansion.expand_bn"))
    y = lab.activate(lab.conv(y, conv + "conv", conv + "norm", stride, spec.zeros(*size), spec.expanded_channels))
    assert y.shape[1:] == tuple(-(-pixels // stride) for pixels in size)
    source, target = lab.map(24, *size), lab.map(*y.shape)
    check_kernel(lab, depthwise.plan(lab, spec, source, target), [(source, x)], [(target, lab.inner * y)])


@pytest.mark.parametrize("padding", ["hf", "symmetric"])
@pytest.mark.parametrize("size", [(64, 64), (35, 47)])
def test_depthwise_with_the_stem(size, padding):
    lab = Lab(padding=padding)
    spec, image = lab.config.blocks()[0], lab.normal(3, *size)
    zeros = lab.config.architecture().stem.zeros(*size)
    y = lab.activate(lab.conv(image, "embeddings.convolution", "embeddings.batchnorm", 2, zeros))
    name = "encoder.blocks.0.depthwise_conv.depthwise_"
    z = lab.activate(lab.conv(y, name + "conv", name + "norm", 1, (1, 1, 1, 1), 32))
    target = lab.map(*z.shape)
    step = depthwise.plan(lab, spec, FeatureMap(0, *y.shape), target, stem.stem_layer(lab, *size))
    check_kernel(lab, step, [], [(target, lab.inner * z)], image)


@pytest.mark.parametrize("scale_source", [True, False])
@pytest.mark.parametrize(("hidden_act", "squeeze"), [("swish", 0.25), ("gelu", 2.5), ("relu6", 0.05)])
def test_gates(hidden_act, squeeze, scale_source):
    lab = Lab(hidden_act=hidden_act, squeeze=squeeze)
    spec, name = lab.spec, "encoder.blocks.1.squeeze_excite."
    middle = lab.map(spec.expanded_channels, 9, 11)
    before = depthwise.plan(lab, spec, lab.map(24, 9, 11), middle)
    step = squeeze_excite.plan(lab, spec, before, middle, scale_source)
    blocks, tasks, x = before.squeeze.blocks, before.cut.tasks, lab.normal(spec.expanded_channels, 9, 11)
    parts = np.zeros((tasks, blocks * WIDTH), np.float32)
    parts[:, : spec.squeeze_channels] = lab.normal(tasks, spec.squeeze_channels)
    squeezed = lab.activate(parts.sum(axis=0)[: spec.squeeze_channels] / 99 + lab.state[name + "reduce.bias"])
    expand, bias = lab.state[name + "expand.weight"][..., 0, 0], lab.state[name + "expand.bias"]
    gates = ops.sigmoid(expand @ squeezed + bias)[:, None, None]
    partial = FeatureMap(before.squeeze.partial.offset, parts.size, 1, 1)
    expected = [(FeatureMap(step.gates.offset, spec.expanded_channels, 1, 1), gates)]
    expected += [(middle, lab.inner * x * gates)] if scale_source else []
    given = [(partial, lab.inner * parts.reshape(-1, 1, 1)), (middle, lab.inner * x)]
    check_kernel(lab, step, given, expected)


@pytest.mark.parametrize("outputs", [1, 8, 16, 24, 28, 32, 40, 45, 56, 113])
def test_project(outputs):
    name = "encoder.blocks.1.projection.project_"
    lab = Lab(outputs=outputs)
    sizes = [(1, n) for n in range(1, max(HEIGHTS.values()) + 2)] + [(9, 11)]  # every height of a tile, and several bands
    for (height, width), gated, residual in itertools.product(sizes, (False, True), (False, True)):
        x, gate, other = lab.normal(144, height, width), ops.sigmoid(lab.normal(144, 1, 1)), lab.normal(outputs, height, width)
        source, target, added, gates = (lab.map(*a.shape) for a in (x, other, other, gate))
        reference = lab.conv(x * gate if gated else x, name + "conv", name + "bn") + (other if residual else 0)
        step = project.plan(lab, lab.spec, source, target, added if residual else None, gates.map.address if gated else None)
        check_kernel(lab, step, [(source, lab.inner * x), (added, other), (gates, gate)], [(target, reference)], tolerance=1e-4)


def check_fused(way, lab, size, residual):
    """A full convolution, or, where it does not expand, a whole block, in that way."""
    spec, x, whole = lab.spec, lab.normal(lab.spec.in_channels, *size), lab.spec.expand_ratio == 1
    layer = "encoder.blocks.1." + ("projection.project_" if whole else "expansion.expand_")
    y = lab.activate(lab.conv(x, layer + "conv", layer + "bn", spec.stride, spec.zeros(*size)))
    source, target = lab.map(*x.shape), lab.map(*y.shape)
    other, added = lab.normal(*y.shape), lab.map(*y.shape)
    step = way.plan(lab, spec, source, target, added if residual else None)
    expected = y + other if residual else y if whole else lab.inner * y
    check_kernel(lab, step, [(source, x), (added, other)], [(target, expected)])


FULL_WINDOWS = [(3, 1, "same"), (3, 2, "same"), (3, 2, "symmetric"), (5, 2, "same"), (1, 1, "hf"), (4, 2, "hf"), (1, 2, "hf")]


@pytest.mark.parametrize(("inputs", "outputs", "ratio"), [(24, 24, 1), (24, 40, 1), (3, 20, 4), (40, 1, 4), (24, 8, 3)])
@pytest.mark.parametrize(("kernel", "stride", "padding"), FULL_WINDOWS)
def test_fused(inputs, outputs, ratio, kernel, stride, padding):
    act = ACTIVATIONS[(kernel + inputs) % 3]
    lab = Lab(inputs, outputs, kernel, stride, ratio, hidden_act=act, fused_stages=2, padding=padding)
    for size in ((19, 23), (40, 2)):
        check_fused(fused, lab, size, residual=False)
        if ratio == 1:
            check_fused(fused, lab, size, residual=True)


@pytest.mark.parametrize("hidden_act", ACTIVATIONS)
@pytest.mark.parametrize(("inputs", "outputs", "ratio"), [(24, 24, 1), (32, 40, 1), (3, 20, 4), (40, 1, 4), (24, 8, 3)])
def test_winograd(inputs, outputs, ratio, hidden_act):
    lab = Lab(inputs, outputs, ratio=ratio, hidden_act=hidden_act, fused_stages=2, padding="same")
    for size in ((16, 20), (19, 23), (1, 1), (2, 5), (4, 4), (3, 40), (37, 6)):
        check_fused(winograd, lab, size, residual=ratio == 1)
    check_fused(winograd, lab, (18, 17), residual=False)


def test_winograd_is_taken_where_it_pays():
    lab = Lab(48, 48, ratio=4, fused_stages=2)
    assert winograd.pays(lab.spec, lab.map(48, 28, 28), lab.map(192, 28, 28))
    assert not winograd.pays(lab.spec, lab.map(48, 1, 1), lab.map(192, 1, 1))
    lab = Lab(48, 48, stride=2, ratio=4, fused_stages=2)
    assert not winograd.pays(lab.spec, lab.map(48, 28, 28), lab.map(192, 14, 14))
    config = EfficientNetConfig.preset("v2-b0")
    steps = plan(config, pack(bench.lively_state(config), config), 224, 224, False, False).steps
    ways = [step.label for step in steps if step.label in ("fused", "winograd")]
    assert ways == ["winograd", "fused", "winograd", "fused", "winograd"]  # those of stride 2 are direct


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("pooling_type", ["mean", "max"])
@pytest.mark.parametrize(("hidden_act", "size"), [("swish", (5, 7)), ("gelu", (3, 1)), ("swish", (1, 1))])
def test_head(pooling_type, hidden_act, size, keep):
    lab = Lab(pooling_type=pooling_type, hidden_act=hidden_act)
    x = lab.normal(40, *size)
    y = lab.activate(lab.conv(x, "encoder.top_conv", "encoder.top_bn"))
    source, pooled, last = lab.map(*x.shape), lab.map(1280), lab.map(*y.shape)
    pool = ops.global_max_pool if pooling_type == "max" else ops.global_average_pool
    step = head.plan(lab, source, pooled.map.address, last if keep else None)
    check_kernel(lab, step, [(source, x)], [(pooled, pool(y[None])[0]), *([(last, y)] if keep else [])])


def test_classifier():
    lab = Lab(num_labels=100)
    x = lab.normal(1280)
    pooled, logits = lab.map(1280), lab.map(100)
    reference = ops.linear(x[None], lab.state["classifier.weight"], lab.state["classifier.bias"])[0]
    step = classifier.plan(lab, pooled.map.address, logits.map.address)
    check_kernel(lab, step, [(pooled, x[:, None, None])], [(logits, reference[:, None, None])])


# -- records, cuts, plans ---------------------------------------------------------------------------------------------


def a_step():
    lab = Lab()
    return classifier.plan(lab, lab.map(1280).map.address, lab.map(2).map.address)


def test_a_missing_field_and_one_of_another_type_are_errors_while_planning():
    fields = {f.name: getattr(a_step(), f.name) for f in dataclasses.fields(classifier.Classify)}
    del fields["labels"]
    with pytest.raises(TypeError, match="labels"):
        classifier.Classify(**fields)
    with pytest.raises(TypeError, match=r"Classify.labels is 2.0, which is no Count"):
        classifier.Classify(**fields, labels=2.0)
    with pytest.raises(TypeError, match="Classify.target is 64, which is no Address"):
        classifier.Classify(**(fields | {"labels": 2, "target": 64}))
    with pytest.raises(TypeError, match=r"Classify.cut.bands is None, which is no Count"):
        classifier.Classify(**(fields | {"labels": 2, "cut": Cut(1, 1, None, 1)}))
    with pytest.raises(TypeError):
        Map(At("arena", 0), 64)


def test_a_row_has_every_number_at_its_place():
    step = dataclasses.replace(a_step(), labels=77, target=At("arena", 64), source=At("weights", 128))
    row = step.words({"arena": 1000, "weights": 5000}, {"classify": 42, "product": 43}, 3)
    where = {path: row[index] for path, (index, _) in layout(type(step)).items()}
    assert len(row) == ROW_WORDS
    assert tuple(row[:3]) == (42, step.cut.tasks, 3)
    assert (where["labels"], where["target"], where["source"], where["product"]) == (77, 1064, 5128, 43)
    assert (where["cut.groups"], where["cut.blocks"]) == step.cut[:2]
    lab = Lab()
    target = lab.map(32, 8, 8)
    step = dataclasses.replace(
        stem.plan(lab, stem.stem_layer(lab, 16, 16), target), activation=Activation(2, -1.5, np.float32(0.25))
    )
    row = step.words({"arena": 0, "weights": 0}, dict.fromkeys(("stem", "stem_row"), 1), 1)
    index = layout(type(step))["activation.low"][0]
    assert row[index : index + 2].view(np.float32)[::2].tolist() == [-1.5, 0.25]


def test_tiles_and_groups_are_as_equal_as_can_be():
    for length, most in itertools.product(range(1, 60), (4, 8, 12)):
        (size, larger, begin), (smaller, rest, then) = equal_tiles(length, most)
        assert size * larger + smaller * rest == length
        assert (begin, then, smaller) == (0, size * larger, size - 1)
        assert larger + rest == -(-length // most)
        assert (size if larger else smaller) <= most
        sizes = np.diff(group_edges(length, most))
        assert sizes.sum() == length
        assert sizes.max() <= most
        assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("model", ["b0", "b4", "lite0", "lite2", "v2-b0"])
def test_a_plans_operations_are_the_networks(model):
    config = EfficientNetConfig.preset(model)
    weights = pack(bench.lively_state(config), config)
    for keep_hidden in (False, True):
        steps = plan(config, weights, config.image_size, config.image_size, keep_hidden, True).steps
        assert sum(step.flops for step in steps) == bench.flops(model)
        assert all(step.floats > 0 for step in steps)
        assert len({step.label for step in steps}) >= 4


def test_a_compiled_model_from_the_cache_plans_and_answers_without_numba():
    library.addresses()
    code = """
import sys
import numpy as np
import effnet_np
config = effnet_np.EfficientNetConfig.preset("b0", image_size=32, num_labels=3)
model = effnet_np.EfficientNetForImageClassification(config, seed=0)
fast = effnet_np.compile(model, threads=1)
fast(np.zeros((1, 3, 32, 32), np.float32))
assert "numba" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), timeout=300)
    assert done.returncode == 0, done.stderr


def test_every_version_of_the_stories_gives_the_same():
    command = [sys.executable, "-m", "effnet_np.kernels.versions", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), timeout=300)
    assert done.returncode == 0, done.stderr
    assert "all results match" in done.stdout


def test_a_version_that_differs_is_named():
    from effnet_np.kernels.versions import __main__ as versions

    class Story:
        CASES, NAMES = {"2 x 2": None}, ("loops", "wrong")

        def results(case):
            return [np.ones(4), np.ones(4) + 1e-3]

    with pytest.raises(SystemExit, match="2 x 2: 'wrong' differs from the loops by 1.0e-03"):
        versions.check([Story])
