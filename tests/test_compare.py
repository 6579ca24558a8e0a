"""compare: everything agrees with live PyTorch; planted mistakes are found in the right layer and named; NaN never passes."""

import copy
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
import torch

import effnet_np
from effnet_np import Trace, compare, compare_with_torch, ops
from effnet_np.images.io import load_image
from effnet_np.inspection import hints
from effnet_np.inspection.compare import Comparison, Row, trace_torch
from effnet_np.inspection.hints import Case, diagnose, distance, mistakes

from helpers import CHELSEA, COFFEE, pair, pixels, tiny_config

B0 = effnet_np.EfficientNetConfig.preset("b0")
BLOCKS = "efficientnet.encoder.blocks"
FORCED = pytest.mark.parametrize("forced", [False, True], ids=["run", "forced"])


@pytest.fixture(scope="module")
def b0():
    theirs, ours = pair(B0)
    return theirs, ours, pixels(B0)


@pytest.fixture(scope="module")
def tiny():
    theirs, ours = pair(tiny_config())
    return theirs, ours, pixels(tiny_config())


@pytest.fixture(scope="module")
def golden(tiny):
    _, ours, image = tiny
    with Trace(ours, inputs=True, weights=True) as trace:
        ours(image)
    return trace


@pytest.fixture
def plant():
    """Set attributes of modules for one test: plant(module, name=value)."""
    undo = []

    def set_attributes(module, **values):
        for name, value in values.items():
            undo.append((module, name, getattr(module, name)))
            setattr(module, name, value)

    yield set_attributes
    for module, name, value in reversed(undo):
        setattr(module, name, value)


def altered(trace, **changes):
    """A trace with some entries replaced, or left out where the replacement is None: {name with "__" for ".": array}."""
    changes = {name.replace("__", "."): array for name, array in changes.items()}
    assert set(changes) <= set(trace)
    return Trace.of({name: array for name, array in {**trace, **changes}.items() if array is not None})


def first(result, name, status="DIFF"):
    assert not result.ok
    assert result.first_divergence is not None, str(result)
    assert (result.first_divergence.name, result.first_divergence.status) == (name, status), str(result)
    assert f"first divergence: {name}: {status}" in str(result)


# -- agreement --------------------------------------------------------------------------------------------------------


@FORCED
def test_every_module_of_b0_is_ok(b0, forced):
    theirs, ours, image = b0
    called, ours_called = [], []
    assert [name for name, _ in ours.named_modules()] == [name for name, _ in theirs.named_modules()]
    hooks = [m.register_forward_hook(lambda *_, name=name: called.append(name)) for name, m in theirs.named_modules()]
    hooks += [m.register_forward_hook(lambda *_, name=name: ours_called.append(name)) for name, m in ours.named_modules()]
    with torch.no_grad():
        theirs(torch.from_numpy(image))
    ours(image)
    for hook in hooks:
        hook.remove()
    assert ours_called == called, "the same modules, in the same order"
    result = compare_with_torch(ours, theirs, image, forced=forced)
    assert result.ok, str(result)
    assert result.first_divergence is None
    assert not result.hints
    assert not result.notes
    named = {row.name for row in result.rows}
    fields = {"": "logits", "efficientnet": "efficientnet.pooler_output"}
    fields["efficientnet.encoder"] = "efficientnet.encoder.last_hidden_state"
    assert len(called) > 300
    assert {fields.get(name, name) for name in called} <= named
    assert all(row.status == "OK" and row.relative < 1e-5 and row.cosine > 0.999999 for row in result.rows)
    live = trace_torch(theirs, image)
    assert all(1e-2 < np.abs(array).max() < 1e3 for array in live.values()), "the reference does not live"
    with Trace(ours) as trace:
        ours(image)
    assert {array.dtype.name for array in trace.values()} == {"float32"}
    assert max(row.relative for row in result.rows) > 0, "two different programs never agree to the last bit everywhere"
    assert str(result).startswith(f"OK: {len(result.rows)} layers agree")


def test_comparing_leaves_both_models_as_they_were(tiny):
    theirs, ours, image = tiny
    before = ours(image).logits
    compare_with_torch(ours, theirs, image, forced=True)
    np.testing.assert_array_equal(ours(image).logits, before)
    assert not any("forward" in vars(m) or m._forward_hooks for _, m in ours.named_modules())
    assert not any(m._forward_hooks for m in theirs.modules())


def test_files_folders_traces_and_models_on_either_side(tiny, golden, tmp_path):
    theirs, ours, image = tiny
    golden.save(tmp_path / "golden.h5")
    golden.save(tmp_path / "golden", "bin", "NHWC")
    for a, b in (
        (ours, tmp_path / "golden.h5"),
        (str(tmp_path / "golden"), theirs),
        (golden, tmp_path / "golden"),
        (theirs, golden),
    ):
        result = compare(a, b)
        assert result.ok, str(result)
        assert len(result.rows) == len(golden)
    assert compare(ours, tmp_path / "golden.h5", forced=True).ok
    assert compare(ours, theirs, pixel_values=image).ok


def test_globs_restrict_what_is_compared(tiny, golden):
    theirs, ours, image = tiny
    rows = compare_with_torch(ours, theirs, image, layers="*.blocks.3.*").rows
    assert [row.name for row in rows] == [name for name in golden if ".blocks.3." in name]
    assert [row.name for row in compare(golden, golden, layers=["classifier", "logits"]).rows] == ["classifier", "logits"]
    assert len(compare(ours, golden, layers="*_bn", forced=True).rows) == len([name for name in golden if name.endswith("_bn")])
    with pytest.raises(ValueError, match="nothing to compare"):
        compare(golden, golden, layers="nose")


# -- the five mistakes, on B0 against live transformers ---------------------------------------------------------------


@FORCED
@pytest.mark.parametrize("block", [None, 0, 3, 10])
def test_missing_batch_norm_eps(b0, plant, forced, block):
    theirs, ours, image = b0
    name = "efficientnet.embeddings.batchnorm" if block is None else f"{BLOCKS}.{block}.depthwise_conv.depthwise_norm"
    modules = [m for n, m in ours.named_modules() if hasattr(m, "eps")] if block is None else [ours.get_submodule(name)]
    for module in modules:
        plant(module, eps=0.0)
    result = compare_with_torch(ours, theirs, image, forced=forced)
    first(result, name)
    assert result.hints == ["batch-norm eps missing: ours is this layer computed with eps 0, the reference has 0.001"]
    if forced:
        assert [row.name for row in result.rows if row.status != "OK"] == [n for n, m in ours.named_modules() if m in modules]


@FORCED
@pytest.mark.parametrize("padding", [(1, 0, 1, 0), (1, 1, 1, 1)])
def test_padding_shifted_by_one_before_stride_2(b0, plant, forced, padding):
    theirs, ours, image = b0
    for name in ("efficientnet.embeddings.padding", f"{BLOCKS}.1.depthwise_conv.depthwise_conv_pad"):
        plant(ours.get_submodule(name), padding=padding)
        result = compare_with_torch(ours, theirs, image, forced=forced)
        first(result, name, "DIFF" if padding[0] != padding[1] else "SHAPE")
        assert result.hints[0].startswith(
            "padding shifted by one: compared with the reference, ours is padded by +1 rows at the top"
        )
        plant(ours.get_submodule(name), padding=(0, 1, 0, 1))


@FORCED
@pytest.mark.parametrize(("block", "kernel"), [(0, 3), (4, 5)])
def test_padding_shifted_by_one_inside_a_convolution(b0, plant, forced, block, kernel):
    theirs, ours, image = b0
    name = f"{BLOCKS}.{block}.depthwise_conv.depthwise_conv"
    half = kernel // 2
    plant(ours.get_submodule(name), padding=(half - 1, half + 1, half - 1, half + 1))
    result = compare_with_torch(ours, theirs, image, forced=forced)
    first(result, name)
    expected = (
        f"ours pads the input by ({half - 1}, {half + 1}) (top and left, bottom and right), the reference by ({half}, {half})"
    )
    assert result.hints[0].startswith(f"padding shifted by one: {expected}")
    if forced:
        assert [row.name for row in result.rows if row.status != "OK"] == [name]


def transposed(function, order):
    return lambda x: np.ascontiguousarray(function(x).transpose(order))


@pytest.mark.parametrize("dump", ["shape", "memory"])
def test_transposed_layout_in_a_port(b0, tmp_path, dump):
    """A port that computes in NHWC writes its activations as they lie, with or without telling in the shape."""
    theirs, ours, image = b0
    with Trace(ours) as trace:
        ours(image)
    port = dict(trace)
    for name, array in trace.items():
        if array.ndim == 4 and name != "pixel_values":
            moved = np.ascontiguousarray(array.transpose(0, 2, 3, 1))
            port[name] = moved if dump == "shape" else moved.reshape(array.shape)
    Trace.of(port).save(tmp_path / "port", "npy")
    result = compare(tmp_path / "port", theirs, pixel_values=image)
    first(result, "efficientnet.embeddings.padding", "SHAPE" if dump == "shape" else "DIFF")
    if dump == "shape":
        expected = "transposed layout: ours is channels last (NHWC); ours.transpose(0, 3, 1, 2) is the reference"
    else:
        expected = "transposed layout: the numbers of ours lie channels last (NHWC), but its shape says channels first (NCHW)"
    assert result.hints == [expected]


@FORCED
def test_height_and_width_exchanged_in_a_layer(b0, plant, forced):
    theirs, ours, image = b0
    act = ours.get_submodule(f"{BLOCKS}.3.expansion.expand_act")
    plant(act, function=transposed(act.function, (0, 1, 3, 2)))
    result = compare_with_torch(ours, theirs, image, forced=forced)
    first(result, f"{BLOCKS}.3.expansion.expand_act")
    assert "transposed layout: ours has height and width exchanged" in result.hints[0]


def preprocessed(picture, preset, **options):
    processor = effnet_np.EfficientNetImageProcessor.preset(preset)
    pixel = load_image(picture)
    return processor([pixel], return_tensors="np", input_data_format="channels_last", **options)["pixel_values"]


@pytest.mark.parametrize("picture", [CHELSEA, COFFEE], ids=["chelsea", "coffee"])
def test_wrong_resize_filter(b0, picture):
    """Every pair of Pillow's six filters, for both ways to preprocess; and live, where the picture is the first layer."""
    theirs, ours, _ = b0
    for preset in ("b0", "lite0"):
        versions = [preprocessed(picture, preset, resample=resample) for resample in range(6)]
        for right in range(6):
            for wrong in set(range(6)) - {right}:
                result = compare(*(Trace.of({"pixel_values": versions[index]}) for index in (wrong, right)))
                first(result, "pixel_values")
                assert result.hints[0].startswith("wrong resize filter"), (right, wrong, result.hints)
    right, wrong = (preprocessed(picture, "b0", resample=resample) for resample in (0, 3))
    with Trace(ours) as trace:
        ours(wrong)
    result = compare(trace, theirs, pixel_values=right)
    first(result, "pixel_values")
    assert len(result.hints) == 1
    assert "wrong resize filter" in result.hints[0]


def normalised_again(image, preset):
    processor = effnet_np.EfficientNetImageProcessor.preset(preset)
    image = processor.normalize(image[0], processor.image_mean, processor.image_std, "channels_first")
    return (processor.normalize(image, 0, processor.image_std, "channels_first") if processor.include_top else image)[None]


def test_normalisation_done_twice(b0):
    theirs, ours, _ = b0
    right = preprocessed(CHELSEA, "b0")
    with Trace(ours) as trace:
        ours(normalised_again(right, "b0"))
    result = compare(trace, theirs, pixel_values=right)
    first(result, "pixel_values")
    assert result.hints == ["normalisation done twice: ours is the reference normalised once more with ImageNet's mean and std"]


# -- other mistakes, on a small network -------------------------------------------------------------------------------


def of_pixels(ours, theirs):
    return compare(Trace.of({"pixel_values": ours}), Trace.of({"pixel_values": theirs})).hints


def test_hints_for_pictures():
    right, lite = preprocessed(CHELSEA, "b0"), preprocessed(CHELSEA, "lite0")
    raw = preprocessed(CHELSEA, "b0", do_rescale=False, do_normalize=False, include_top=False)
    zero_to_one = preprocessed(CHELSEA, "b0", do_normalize=False, include_top=False)
    imagenet = "normalised with ImageNet's mean and std"
    turned = load_image(CHELSEA)[:, :, ::-1]
    for ours, theirs, hint in (
        (
            normalised_again(lite, "lite0"),
            lite,
            "normalisation done twice: ours is the reference normalised once more with Lite's",
        ),
        (zero_to_one, right, f"normalisation left out: the reference is ours {imagenet}"),
        (raw, right, f"normalisation left out: the reference is ours {imagenet}, with the division by 255 before it"),
        (preprocessed(CHELSEA, "b0", include_top=False), right, "normalisation: ours lacks one division by the std"),
        (right, preprocessed(CHELSEA, "b0", include_top=False), "normalisation: ours is divided by the std once more"),
        (preprocessed(CHELSEA, "b0", image_std=[0.3, 0.4, 0.5]), right, "normalisation: another mean, std or rescaling"),
        (raw, zero_to_one, "rescaling: ours is the reference times 255 "),
        (right[:, ::-1], right, "channel order: ours has blue, green, red (BGR"),
        (preprocessed(np.ascontiguousarray(turned), "b0"), right, "channel order: ours has blue, green, red (BGR"),
        (np.roll(right, (1, 1), (2, 3)), right, "the picture is shifted by (1, 1) pixels"),
    ):
        hints = of_pixels(ours, theirs)
        assert len(hints) == 1, hints
        assert hints[0].startswith(hint), (hint, hints)


def test_no_hint_where_there_is_nothing_to_say():
    """A hint that is always given says nothing."""
    right = preprocessed(CHELSEA, "b0")
    noise = np.random.default_rng(0).standard_normal(right.shape, np.float32)
    darker_at_the_left = right * np.linspace(0.8, 1.2, right.shape[3], dtype=np.float32)
    for wrong in (noise, right + noise, preprocessed(COFFEE, "b0"), right[..., ::-1], darker_at_the_left):
        assert of_pixels(wrong, right) == []
        assert compare(Trace.of({"features_norm": wrong}), Trace.of({"features_norm": right})).hints == []


SQUEEZE, EXPAND = f"{BLOCKS}.3.squeeze_excite", f"{BLOCKS}.3.expansion"
GATE = f"{SQUEEZE}.act_expand"


@FORCED
@pytest.mark.parametrize(
    ("layer", "function", "hint"),
    [
        (f"{EXPAND}.expand_act", ops.relu6, "activation: ours applies relu or relu6, the reference swish"),
        (
            f"{EXPAND}.expand_act",
            lambda x: x,
            "activation: it is left out, ours gives its input back where the reference applies",
        ),
        (f"{EXPAND}.expand_act", lambda x: ops.swish(ops.swish(x)), "activation: swish is applied twice"),
        (f"{SQUEEZE}.act_expand", ops.swish, "activation: ours applies swish, the reference sigmoid"),
        (f"{SQUEEZE}.act_reduce", lambda x: 2 * ops.swish(x), "ours is the reference times 2"),
        (
            f"{SQUEEZE}.act_expand",
            lambda x: np.clip(x + 3, 0, 6) / np.float32(6),
            "activation: ours applies hard-sigmoid (relu6(x + 3) / 6), the",
        ),
        (
            f"{SQUEEZE}.act_expand",
            lambda x: np.clip(x * np.float32(0.2) + np.float32(0.5), 0, 1),
            "activation: ours applies hard-sigmoid (0.2 x",
        ),
        (f"{EXPAND}.expand_act", lambda x: x * np.clip(x + 3, 0, 6) / np.float32(6), "activation: ours applies hard-swish"),
    ],
)
def test_hints_for_activations(tiny, plant, forced, layer, function, hint):
    theirs, ours, image = tiny
    plant(ours.get_submodule(layer), function=function)
    result = compare_with_torch(ours, theirs, image, forced=forced)
    first(result, layer)
    assert [h.startswith(hint) for h in result.hints] == [True], result.hints


@FORCED
@pytest.mark.parametrize(
    ("layer", "change", "hint"),
    [
        (f"{BLOCKS}.4.depthwise_conv.depthwise_conv", lambda w: w[:, :, ::-1, ::-1], "convolution: the kernel is flipped"),
        (f"{BLOCKS}.3.depthwise_conv.depthwise_conv", lambda w: w[:, :, ::-1, ::-1], "convolution: the kernel is flipped"),
        (
            "efficientnet.embeddings.convolution",
            lambda w: w.transpose(0, 1, 3, 2),
            "convolution: the kernel's height and width",
        ),
        (
            "efficientnet.embeddings.convolution",
            lambda w: w.ravel().reshape(w.shape[2:] + w.shape[1::-1]).transpose(3, 2, 0, 1),
            "",
        ),
    ],
)
def test_hints_for_kernels(tiny, plant, forced, layer, change, hint):
    theirs, ours, image = tiny
    module = ours.get_submodule(layer)
    plant(module, weight=np.ascontiguousarray(change(module.weight)))
    result = compare_with_torch(ours, theirs, image, forced=forced)
    first(result, layer)
    assert result.hints == [] if not hint else result.hints[0].startswith(hint), result.hints


@FORCED
def test_hints_for_bias_and_residual(tiny, plant, forced):
    theirs, ours, image = tiny
    reduce, projection = ours.get_submodule(f"{SQUEEZE}.reduce"), ours.get_submodule(f"{BLOCKS}.2.projection")
    plant(reduce, bias=None)
    result = compare_with_torch(ours, theirs, image, forced=forced)
    first(result, f"{SQUEEZE}.reduce")
    assert result.hints == ["convolution: the bias is left out"]
    plant(reduce, bias=theirs.get_submodule(f"{SQUEEZE}.reduce").bias.detach().numpy())
    plant(projection, residual=False)
    result = compare_with_torch(ours, theirs, image, forced=forced)
    first(result, f"{BLOCKS}.2.projection")
    assert result.hints == ["residual: the block's input is not added"]
    if forced:
        assert [row.name for row in result.rows if row.status != "OK"] == [f"{BLOCKS}.2.projection"]


def test_hints_for_batch_norm(tiny, plant):
    theirs, ours, image = tiny
    name = f"{EXPAND}.expand_bn"
    bn = ours.get_submodule(name)
    for change, hint in (
        ({"eps": 1e-5}, "batch-norm eps too small: ours is this layer computed with eps 1e-05, the reference has 0.001"),
        ({"eps": 1e-2}, "batch-norm eps too large: ours is this layer computed with eps 0.01"),
        (
            {"running_var": np.square(bn.running_var + np.float32(1e-3)) - np.float32(1e-3)},
            "batch norm: the variance is used where its square root",
        ),
        ({"bias": np.zeros_like(bn.bias)}, "batch norm: the bias is left out"),
        ({"running_mean": np.zeros_like(bn.bias)}, "batch norm: the running mean is not subtracted"),
        ({"training": True}, "batch norm: the batch's own statistics are used (training mode)"),
    ):
        before = {key: copy.copy(getattr(bn, key)) for key in (*change, "running_mean", "running_var", "num_batches_tracked")}
        plant(bn, **change)
        result = compare_with_torch(ours, theirs, image, forced=True)
        plant(bn, **before)
        first(result, name)
        assert result.hints[0].startswith(hint), (hint, result.hints)


def test_hints_from_outputs_alone(tiny, golden, plant):
    """Two dumps without inputs or weights, as two other programs leave them."""
    _, ours, image = tiny
    bare = altered(golden)
    plant(ours.get_submodule(f"{EXPAND}.expand_bn"), eps=0.0)
    with Trace(ours) as trace:
        ours(image)
    result = compare(trace, bare)
    first(result, f"{EXPAND}.expand_bn")
    assert result.hints[0].startswith("batch-norm eps missing or too small: every channel of ours is the reference stretched")
    plant(ours.get_submodule(f"{EXPAND}.expand_bn"), eps=1e-3)
    plant(ours.get_submodule(f"{BLOCKS}.0.depthwise_conv.depthwise_conv"), padding=(2, 0, 2, 0))
    with Trace(ours) as trace:
        ours(image)
    result = compare(trace, bare)
    first(result, f"{BLOCKS}.0.depthwise_conv.depthwise_conv")
    assert result.hints[0].startswith(
        "padding shifted by one: compared with the reference, ours is padded by +1 rows at the top"
    )


# -- mistakes with matrices, gates and activations, made in the network -----------------------------------------------

REDUCE = f"{SQUEEZE}.reduce"


def taken_for(weight, shape):
    """The same numbers in the same order, taken for a matrix of the other shape, and turned."""
    return np.ascontiguousarray(weight.reshape(shape).T).reshape(weight.shape)


@FORCED
@pytest.mark.parametrize("layer", [f"{EXPAND}.expand_conv", REDUCE, f"{SQUEEZE}.expand", "classifier"])
@pytest.mark.parametrize("way", ["(C, O) for (O, C)", "the other way"])
def test_hints_for_matrices_with_swapped_axes(tiny, plant, forced, layer, way):
    theirs, ours, image = tiny
    module = ours.get_submodule(layer)
    o, c = module.weight.shape[:2]
    if way == "(C, O) for (O, C)":
        plant(module, weight=taken_for(module.weight, (c, o)))
    else:
        plant(module, weight=np.ascontiguousarray(module.weight.reshape(o, c).T).reshape(module.weight.shape))
    result = compare_with_torch(ours, theirs, image, forced=forced)
    first(result, layer)
    assert len(result.hints) == 1, result.hints
    words = {True: "linear: the axes of the weight matrix are swapped", False: "convolution: the "}[layer == "classifier"]
    assert result.hints[0].startswith(words)
    swapped, hwio = "axes of the weight matrix are swapped", "the weight was read in another order of axes"
    assert (swapped if way == "(C, O) for (O, C)" or layer == "classifier" else hwio) in result.hints[0]


@FORCED
@pytest.mark.parametrize(
    ("layer", "function", "hint"),
    [
        (f"{BLOCKS}.3.projection.project_bn", ops.relu, "activation: ours applies relu or relu6 after this layer, where the"),
        (f"{BLOCKS}.3.projection.project_bn", ops.swish, "activation: ours applies swish after this layer, where the"),
        (f"{BLOCKS}.2.projection.dropout", ops.relu, "activation: ours applies relu or relu6"),
        (f"{BLOCKS}.2.projection", ops.relu, "activation: ours applies relu or relu6 after this layer, where the"),
        (SQUEEZE, None, "squeeze-excite: the gate is left out, ours gives its input back"),
    ],
)
def test_hints_for_what_is_applied_after_a_layer(tiny, plant, forced, layer, function, hint):
    theirs, ours, image = tiny
    module = ours.get_submodule(layer)
    before = module.forward
    plant(module, forward=(lambda *x: function(before(*x))) if function else (lambda x: x))
    result = compare_with_torch(ours, theirs, image, forced=forced)
    first(result, layer)
    assert result.hints, str(result)
    assert result.hints[0].startswith(hint), result.hints


def test_hints_for_gates(tiny, golden, plant):
    """Left out of the block, added where there is none, and added to where it should multiply."""
    theirs, ours, image = tiny
    projection = f"{BLOCKS}.3.projection.project_conv"
    plant(ours.get_submodule(f"{BLOCKS}.3"), has_squeeze_excite=False)
    result = compare(ours, golden)
    first(result, projection)
    assert result.hints == ["squeeze-excite: the gate is left out, the projection takes what the depthwise convolution gave"]
    with Trace(ours, inputs=True, weights=True) as bare:
        ours(image)
    result = compare(golden, bare)
    first(result, projection)
    assert result.hints == ["squeeze-excite: ours has a gate where the reference has none"]
    plant(ours.get_submodule(f"{BLOCKS}.3"), has_squeeze_excite=True)
    plant(ours.get_submodule(SQUEEZE), forward=lambda x: x + golden[GATE])
    result = compare(ours, golden)
    first(result, SQUEEZE)
    assert result.hints == ["squeeze-excite: the gate is added to the input, where the reference multiplies by it"]


def test_a_port_that_writes_big_endian_numbers(golden, tmp_path):
    golden.save(tmp_path / "mine", "bin")
    name = f"{EXPAND}.expand_bn"
    file = tmp_path / f"mine/output/{name}.bin"
    numbers = np.fromfile(file, "<f4") * np.float32(1 + 1e-6)  # and is not equal to the last bit
    numbers.astype(">f4").tofile(file)
    result = compare(tmp_path / "mine", golden)
    assert result.first_divergence.name == name
    assert result.first_divergence.status in ("DIFF", "NAN")
    assert result.hints == ["byte order: the numbers of ours are big-endian, they must be little-endian"]


def test_every_mistake_of_the_table_is_found_where_it_is_made(golden):
    """Walk through the table for each layer of a network: what a mistake gives is explained by its own sentence."""
    said = set()
    for name in golden:
        inputs = golden.inputs.get(name, ())
        keys = [key for key in golden.weights if key.rpartition(".")[0] == name]
        weights = {key.rpartition(".")[2]: golden.weights[key] for key in keys}
        case = Case(name, golden[name], golden[name], inputs, weights, 1e-5, np.inf, {}, golden)
        with np.errstate(all="ignore"):
            for mistake in mistakes(case):
                ours = mistake.make()
                error = distance(ours, case.theirs, case.theirs)
                if error < 1e-3:
                    continue  # no mistake, here: an eps of 1e-12 for one of 1e-8
                hints, notes = diagnose(replace(case, ours=ours, error=error))
                assert not notes, notes
                alike = [other for other in mistakes(case) if distance(ours, other.make(), case.theirs) <= 1e-5]
                assert set(hints) & {other.sentence for other in alike}, (name, mistake.sentence, hints)
                assert mistake.sentence in hints or mistake.family, (name, mistake.sentence, hints)
                said.add(mistake.sentence.partition(":")[0] + ":" + mistake.sentence.partition(":")[2][:24])
    assert len(said) >= 30, said


def test_a_rule_that_fails_costs_nothing_but_its_hint(golden, monkeypatch):
    def broken(case):
        raise ZeroDivisionError("by hand")

    name = f"{EXPAND}.expand_bn"
    monkeypatch.setattr(hints, "KINDS", (broken, *hints.KINDS))
    wrong = altered(golden, **{name: np.maximum(golden[name], 0)})
    result = compare(wrong, golden)
    first(result, name)
    assert "activation: ours applies relu" in result.hints[0]
    assert result.notes == ["looking for the reason, a rule failed: ZeroDivisionError: by hand"]
    monkeypatch.setattr(hints, "SECONDS", 0.0)
    result = compare(wrong, golden)
    first(result, name)
    assert not result.hints, "the time was up before the first"


# -- statuses, tolerance, order ---------------------------------------------------------------------------------------


def test_the_first_in_call_order_is_named(golden):
    late, early = f"{BLOCKS}.9", f"{BLOCKS}.2.projection.project_bn"
    result = compare(
        altered(golden, classifier=golden["classifier"] * 2, **{late: golden[late] + 1, early: golden[early] + 1}), golden
    )
    first(result, early)
    assert [row.name for row in result.rows] == list(golden)
    assert [row.name for row in result.rows if row.status == "DIFF"] == [early, late, "classifier"]


def test_a_dump_without_order_is_read_in_the_others(golden, tmp_path):
    early, late = f"{BLOCKS}.2.projection.project_bn", f"{BLOCKS}.10"
    np.savez(tmp_path / "dump.npz", **{name: golden[name] for name in (late, early)})
    ours = altered(golden, **{early: golden[early] + 1, late: golden[late] + 1})
    first(compare(ours, tmp_path / "dump.npz"), early)


def test_errors_are_relative_to_the_reference(golden):
    name = f"{BLOCKS}.5"
    for scale in (1e-5, 1.0, 1e20):
        one = golden[name].astype(np.float64) * scale
        other = one + 3e-4 * np.abs(one).max() * (np.arange(one.size).reshape(one.shape) == 7)
        result = compare(altered(golden, **{name: other}), altered(golden, **{name: one}))
        first(result, name)
        assert result.first_divergence.relative == pytest.approx(3e-4, rel=1e-3)
        assert result.first_divergence.absolute == pytest.approx(3e-4 * np.abs(one).max(), rel=1e-3)
        assert compare(altered(golden, **{name: other}), altered(golden, **{name: one}), tolerance=1e-3).ok
    for tolerance in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="tolerance must be above 0 and finite"):
            compare(golden, golden, tolerance=tolerance)
    assert compare(golden, golden, tolerance=1e300).ok


def test_layers_that_vanish_are_neither_right_nor_explained(golden):
    """A reference that is nearly zero agrees with everything that is: a status of its own, and no hint where ours differs."""
    name = f"{BLOCKS}.5"
    zero = np.zeros_like(golden[name])
    for ours in (zero, zero + np.float32(1e-30), golden[name] * np.float32(1e-8)):
        for theirs in (zero, golden[name] * np.float32(1e-8)):
            result = compare(altered(golden, **{name: ours}), altered(golden, **{name: theirs}))
            assert not result.ok
            assert result.first_divergence is None
            assert not result.hints
            assert {row.name for row in result.rows if row.status == "ZERO"} == {name}
            assert f"1 of {len(golden)} layers are nearly zero (below 1e-06), which shows nothing, first {name}" in str(result)
    result = compare(golden, altered(golden, **{name: golden[name] * np.float32(1e-8)}))
    first(result, name)
    assert not result.hints, "the reference times 1e8 would be a hint, and says nothing"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["ours", "theirs", "both"])
def test_nan_and_infinity_never_pass(golden, bad, side):
    name = f"{BLOCKS}.5.expansion.expand_act"
    array = golden[name].copy()
    array[0, 1, 2, 0] = bad
    broken = altered(golden, **{name: array})
    result = compare(golden if side == "theirs" else broken, golden if side == "ours" else broken, tolerance=1e9)
    first(result, name, "NAN")
    assert "1 of" in result.first_divergence.note
    assert "at (0, 1, 2, 0)" in result.first_divergence.note
    assert result.hints


def test_where_in_a_layer(golden):
    """What somebody who ports looks for: which channel, which row, and both numbers at the worst place."""
    name = f"{BLOCKS}.5.expansion.expand_act"
    channel, row, pixel = golden[name].copy(), golden[name].copy(), golden[name].copy()
    channel[:, 3] *= -1
    row[..., -1, :] = 0
    pixel[0, 1, 2, 0] += 1000
    notes = [compare(altered(golden, **{name: array}), golden).first_divergence.note for array in (channel, row, pixel)]
    assert f"only 1 of {channel.shape[1]} channels differ: 3" in notes[0]
    assert "rows" not in notes[0]
    assert f"only 1 of {row.shape[2]} rows differ: {row.shape[2] - 1}" in notes[1]
    assert notes[2].startswith(f"the largest error at (0, 1, 2, 0): ours {pixel[0, 1, 2, 0]:.6g}, the reference -0.198621")
    assert "channels differ: 1; only 1 of" in notes[2]
    everything = compare(golden, altered(golden, **{name: golden[name] * np.float32(1.1)})).first_divergence.note
    assert "only" not in everything


def test_one_nan_is_no_missing_eps(golden):
    """Another channel's running variance is 0, which says nothing of this one."""
    name = f"{BLOCKS}.5.expansion.expand_bn"
    array = golden[name].copy()
    array[0, 1, 2, 0] = np.nan
    weights = dict(golden.weights)
    weights[f"{name}.running_var"] = np.where(np.arange(array.shape[1]) == 2, np.float32(0), weights[f"{name}.running_var"])
    reference = Trace.of(dict(golden.items()), golden.inputs, weights)
    hints = compare(altered(golden, **{name: array}), reference).hints
    assert not any("eps" in hint for hint in hints), hints
    array[:, 2] = np.nan
    array[0, 1, 2, 0] = 0
    assert any("a running variance is zero" in hint for hint in compare(altered(golden, **{name: array}), reference).hints)


def test_nan_made_by_a_missing_eps_is_explained(tiny, plant):
    """Real checkpoints have channels that never fire: their running variance is 0."""
    theirs, ours, image = tiny
    bn = ours.get_submodule("efficientnet.embeddings.batchnorm")
    never_fires = np.where(np.arange(len(bn.running_var)) == 2, np.float32(0), bn.running_var)
    plant(bn, eps=0.0, running_var=never_fires)
    their_variance = theirs.efficientnet.embeddings.batchnorm.running_var
    plant(their_variance, data=torch.from_numpy(never_fires))
    with np.errstate(all="ignore"), Trace(ours) as trace:
        ours(image)
    bare = trace_torch(theirs, image)
    for result, hint in (
        (compare_with_torch(ours, theirs, image), "batch-norm eps missing: a running variance is zero or negative"),
        (compare(trace, bare), "batch-norm eps missing, it seems: a channel that never fires has variance 0"),
    ):
        first(result, "efficientnet.embeddings.batchnorm", "NAN")
        assert result.hints[0].startswith(hint)


@FORCED
def test_eps_in_real_weights_with_channels_that_never_fire(plant, forced):
    """Lite0's stem has running variances of 0: with eps 0 there is NaN, with any other a finite error."""
    ours = effnet_np.EfficientNetForImageClassification.from_pretrained("lite0")
    with Trace(ours, inputs=True, weights=True) as golden:
        ours(preprocessed(CHELSEA, "lite0"))
    name = "efficientnet.embeddings.batchnorm"
    assert (golden.weights[f"{name}.running_var"] == 0).any()
    for module in (module for _, module in ours.named_modules() if hasattr(module, "eps")):
        module.eps = 1e-5
    result = compare(ours, golden, forced=forced)
    first(result, name)
    sentence = "batch-norm eps too small: ours is this layer computed with eps 1e-05, the reference has 0.001 (1e-05 is that of"
    assert [hint[: len(sentence)] for hint in result.hints] == [sentence]


def test_what_a_network_is_given_is_compared_where_both_have_it(golden):
    """A port has no need to write its own input down; where it does, it counts."""
    for ours, theirs in ((altered(golden, pixel_values=None), golden), (golden, altered(golden, pixel_values=None))):
        result = compare(ours, theirs)
        assert result.ok
        assert len(result.rows) == len(golden) - 1
    first(compare(altered(golden, pixel_values=golden["pixel_values"] * 2), golden), "pixel_values")


def test_missing_layers_are_listed_and_are_not_ok(golden):
    name = f"{BLOCKS}.5.expansion.expand_act"
    for ours, theirs, side in (
        (altered(golden, **{name: None}), golden, "ours has no such layer"),
        (golden, altered(golden, **{name: None}), "the reference has no such layer"),
    ):
        result = compare(ours, theirs)
        assert not result.ok
        assert result.first_divergence is None
        (row,) = (row for row in result.rows if row.status != "OK")
        assert (row.name, row.status, row.note) == (name, "MISSING", side)
        assert f"1 of {len(golden)} layers are missing, first {name}" in str(result)


def test_other_networks_than_the_reference(golden):
    """A network without squeeze-excite: what is missing is missing, what runs is compared, forced or not."""
    config = tiny_config(squeeze_expansion_ratio=0.0)
    ours = effnet_np.EfficientNetForImageClassification(config, seed=0)
    for forced in (False, True):
        result = compare(ours, golden, forced=forced)
        missing = {row.name for row in result.rows if row.status == "MISSING"}
        assert missing == {name for name in golden if "squeeze_excite" in name}
        first(result, "efficientnet.embeddings.convolution")


def test_a_model_of_ours_that_stops_is_compared_until_there(tiny, plant):
    theirs, ours, image = tiny
    plant(ours.get_submodule(f"{BLOCKS}.4.depthwise_conv.depthwise_conv"), padding=(0, 0, 0, 0))
    result = compare_with_torch(ours, theirs, image)
    first(result, f"{BLOCKS}.4.depthwise_conv.depthwise_conv", "SHAPE")
    assert "ours stopped before its end" in result.notes[0]
    assert "padding: ours pads the input by (0, 0) (top and left, bottom and right), the reference by (2, 2)" in result.hints[0]
    assert result.rows[-1].status == "MISSING"
    result = compare_with_torch(ours, theirs, image, forced=True)
    assert [row.name for row in result.rows if row.status != "OK"] == [f"{BLOCKS}.4.depthwise_conv.depthwise_conv"]


def test_forced_finds_wrong_wiring(tiny, plant):
    """Each layer is right on the reference's input; what is wrong is which input the block hands to it."""
    theirs, ours, image = tiny
    plant(ours.get_submodule(f"{BLOCKS}.3"), has_squeeze_excite=False)
    result = compare_with_torch(ours, theirs, image, forced=True)
    first(result, f"{BLOCKS}.3")
    assert result.first_divergence.note == f"it hands {BLOCKS}.3.projection another input than the reference does"
    assert [row.name for row in result.rows if row.status != "OK"] == [f"{BLOCKS}.3"]


def test_wrong_use(tiny, golden):
    theirs, ours, image = tiny
    with pytest.raises(ValueError, match="there is no input for it: pass pixel_values="):
        compare(ours, theirs)
    with pytest.raises(TypeError, match="forced=True runs each layer of ours"):
        compare(golden, golden, forced=True)
    with pytest.raises(ValueError, match="forced=True needs the reference's inputs"):
        compare(ours, altered(golden), forced=True)
    with pytest.raises(TypeError, match="got int"):
        compare(golden, 3)
    with pytest.raises(TypeError, match="hf_model must be a torch.nn.Module, got Trace"):
        compare_with_torch(ours, golden, image)
    with pytest.raises(ValueError, match="is in training mode"):
        compare_with_torch(ours, theirs.train(), image)
    theirs.eval()
    with pytest.raises(ValueError, match="no layer of this model matches 'nose'"):
        trace_torch(theirs, image, "nose")


def test_compare_works_without_torch(golden, tmp_path):
    golden.save(tmp_path / "golden.npz")
    code = f"""
import sys
for name in ("torch", "transformers", "matplotlib", "numba"):
    sys.modules[name] = None
import effnet_np
print(effnet_np.compare({str(tmp_path / "golden.npz")!r}, {str(tmp_path / "golden.npz")!r}).ok)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


def test_torch_models_in_half_precision_and_with_layers_that_work_in_place():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.relu = torch.nn.Linear(3, 4), torch.nn.ReLU(inplace=True)

        def forward(self, x):
            return self.relu(self.linear(x))

    image = np.array([[1.0, -2.0, 3.0]], np.float32)
    torch.manual_seed(1)
    net = Net().eval()
    trace = trace_torch(net, image, inputs=True, weights=True)
    assert list(trace) == ["pixel_values", "linear", "relu", "output"]
    assert (trace["linear"] < 0).any(), "the layer after it changed what was recorded"
    np.testing.assert_array_equal(trace.inputs["relu"][0].shape, (1, 4))
    assert list(trace.weights) == ["linear.weight", "linear.bias"]
    assert trace_torch(net.bfloat16(), image)["relu"].dtype == np.float32


# -- reports ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def report(golden):
    early = f"{BLOCKS}.2.projection.project_bn"
    nan = golden[f"{BLOCKS}.9"] * np.float32(np.nan)
    ours = altered(golden, **{early: golden[early] * 2, f"{BLOCKS}.9": nan, f"{BLOCKS}.8": golden[f"{BLOCKS}.8"][:, :, 1:]})
    return compare(altered(ours, classifier=None), golden), early


def test_text(report, golden):
    result, early = report
    lines = result.to_text().splitlines()
    assert lines[0].startswith(
        f"first divergence: {early}: DIFF, 1.0e+00 of the reference's largest number; the largest error at ("
    )
    assert lines[1].startswith("hint: ")
    table = lines[lines.index("") + 1 :]
    assert table[0].split() == ["layer", "shape", "absolute", "relative", "cosine", "status"]
    assert len(table) == len(golden) + 2
    assert len(str(result).splitlines()) < 22
    assert early in str(result)


def test_json(report):
    result, early = report
    parsed = json.loads(result.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (parsed["ok"], parsed["first_divergence"], parsed["hints"]) == (False, early, result.hints)
    assert [row["name"] for row in parsed["layers"]] == [row.name for row in result.rows]
    by_name = {row["name"]: row for row in parsed["layers"]}
    assert by_name[early]["relative"] == 1.0
    assert (by_name[f"{BLOCKS}.9"]["status"], by_name[f"{BLOCKS}.9"]["relative"]) == ("NAN", None)
    assert (by_name[f"{BLOCKS}.8"]["status"], by_name["classifier"]["status"]) == ("SHAPE", "MISSING")


def test_html(report):
    result, early = report
    page = result.to_html()
    tree = ElementTree.fromstring(
        page.split("\n", 1)[1]
        .replace('<meta charset="utf-8">', "")
        .replace('<meta name="viewport" content="width=device-width">', "")
    )
    circles = list(tree.iter("circle"))
    rows = list(tree.iter("tr"))
    assert len(rows) == len(result.rows) + 1
    assert len([circle for circle in circles if circle.find("title") is not None]) == len(result.rows)
    width, height = map(float, next(tree.iter("svg")).get("viewBox").split()[2:])
    for circle in circles:
        assert 0 < float(circle.get("cx")) < width
        assert 0 < float(circle.get("cy")) < height
    assert sum(circle.get("r") == "6" for circle in circles) == 1
    assert f"first: {early}" in [text.text for text in tree.iter("text")]
    assert "http" not in page
    assert "<script" not in page


def test_html_escapes_and_draws_the_extremes():
    rows = [Row("<b>&", "DIFF", (1,), 1.0, float("inf"), 0.0, note="<i>"), Row("zero", "OK", (), 0.0, 0.0, 1.0)]
    page = Comparison(rows, 1e-4, hints=["<script>"]).to_html()
    assert "<b>" not in page
    assert "<script" not in page
    assert "<i>" not in page
    assert "nan" not in page
    assert "&lt;b&gt;&amp;" in page
    assert "OK: 1 layers" in Comparison(rows[1:], 1e-4).to_html()
    assert "missing" in Comparison([Row("gone", "MISSING", None)], 1e-4).to_html()


def test_names_from_strangers_change_nothing_on_a_terminal(tmp_path):
    name = "a\x1b[2J\x1b]0;mine\x07\nOK: all\u202e\udcff"
    ours, theirs = Trace.of({name: np.ones((1, 3))}), Trace.of({name: np.full((1, 3), 2.0)})
    result = compare(ours, theirs)
    result.rows[0].note = "\x9b31m"
    shown = r"a\x1b[2J\x1b]0;mine\x07\nOK: all\u202e\udcff"
    for text in (str(result), result.to_text(), result.to_html()):
        assert shown in text
        assert all(line.isprintable() for line in text.split("\n"))
    assert json.loads(result.to_json())["layers"][0]["name"] == name
    for ending in ("txt", "html", "json"):
        result.save(tmp_path / f"r.{ending}")
    (tmp_path / "t").mkdir()
    np.save(tmp_path / "t" / "b\x1b[2Jc.npy", np.ones(3))
    np.save(tmp_path / "t" / "d\x1b[2Jc.npy", np.array(["text"]))
    done = run("compare", tmp_path / "t", tmp_path / "t")
    assert done.returncode == 1
    assert done.stderr.startswith("effnet-np: ")
    assert r"d\x1b[2Jc.npy holds something else" in done.stderr
    assert (done.stdout + done.stderr).replace("\n", "").isprintable()
    (tmp_path / "t" / "d\x1b[2Jc.npy").unlink()
    done = run("compare", tmp_path / "t", tmp_path / "t", "--all")
    assert done.returncode == 0
    assert r"b\x1b[2Jc  3 " in done.stdout
    assert done.stdout.replace("\n", "").isprintable()


def run(*arguments):
    command = [sys.executable, "-m", "effnet_np.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command(report, golden, tmp_path):
    golden.save(tmp_path / "golden.h5")
    done = run("compare", tmp_path / "golden.h5", tmp_path / "golden.h5")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"OK: {len(golden)} layers agree")
    name = f"{BLOCKS}.2"
    altered(golden, **{name: golden[name] + 1}).save(tmp_path / "mine", "bin")
    pages = [argument for ending in ("html", "json", "txt") for argument in ("-o", tmp_path / f"report.{ending}")]
    done = run("compare", tmp_path / "mine", tmp_path / "golden.h5", *pages, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["first_divergence"] == name
    assert json.loads((tmp_path / "report.json").read_text())["first_divergence"] == name
    assert f"first divergence: {name}" in (tmp_path / "report.html").read_text()
    assert len((tmp_path / "report.txt").read_text().splitlines()) > len(golden)
    assert run("compare", tmp_path / "mine", tmp_path / "golden.h5", "--tolerance", "1e9", *pages[:2]).returncode == 0
    for tolerance in ("inf", "nan", "0"):
        done = run("compare", tmp_path / "mine", tmp_path / "golden.h5", "--tolerance", tolerance)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"effnet-np: tolerance must be above 0 and finite, got {float(tolerance)}\n"
    done = run("compare", tmp_path / "mine", tmp_path / "golden.h5", "-o", tmp_path / "report.pdf")
    assert (done.returncode, done.stdout) == (1, "")
    assert "must end in .txt, .json, .html" in done.stderr
