"""The network against live transformers on PyTorch: presets at their own size, every module by name, random networks."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import effnet_np
from effnet_np.config_checks import ACTIVATION_NAMES

from helpers import TOLERANCE, assert_same, pair, pixels, relative_error, run_hf, state_of, tiny_config

PRESETS = [f"b{n}" for n in range(8)]


@pytest.mark.parametrize("name", PRESETS)
def test_preset_at_native_resolution(name):
    config = effnet_np.EfficientNetConfig.preset(name)
    theirs, ours = pair(config)
    image = pixels(config)
    expected = run_hf(theirs.efficientnet, image, output_hidden_states=True)
    output = ours.efficientnet(image, output_hidden_states=True)
    logits = ours.classifier(output.pooler_output)
    assert len(output.hidden_states) == len(config.blocks()) + 1
    for index, (a, b) in enumerate(zip(output.hidden_states, expected.hidden_states, strict=True)):
        assert 1e-2 < b.std() < 1e2, f"hidden state {index} does not live: {b.std()}"
        assert_same(a, b, f"hidden state {index}")
    assert_same(output.last_hidden_state, expected.last_hidden_state, "last_hidden_state")
    assert_same(output.pooler_output, expected.pooler_output, "pooler_output")
    with torch.no_grad():
        assert_same(logits, theirs.classifier(expected.pooler_output), "logits")


def outputs_by_name(model, run, is_array):
    """Every module's output under its name, through forward hooks."""
    seen = {}

    def keep(name):
        def hook(module, inputs, output):
            if is_array(output):
                seen[name] = output

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in model.named_modules()]
    run()
    for handle in handles:
        handle.remove()
    return seen


@st.composite
def networks(draw):
    """A small network of any shape that HF can build, and an image size."""
    stages = draw(st.integers(1, 4))
    width = draw(st.sampled_from([0.1, 0.25, 0.4]))
    divisor = draw(st.sampled_from([4, 8]))
    channels = [32] + draw(st.lists(st.sampled_from([16, 24, 40, 64]), min_size=stages, max_size=stages))

    def one_each(values):
        return draw(st.lists(st.sampled_from(values), min_size=stages, max_size=stages))

    strides = one_each([1, 2])
    config = effnet_np.EfficientNetConfig(
        num_channels=draw(st.sampled_from([1, 3, 4])),
        image_size=64,
        width_coefficient=width,
        depth_coefficient=draw(st.sampled_from([0.5, 1.0, 1.4])),
        depth_divisor=divisor,
        kernel_sizes=one_each([1, 2, 3, 4, 5, 7]),
        in_channels=channels[:-1],
        out_channels=channels[1:],
        depthwise_padding=draw(st.lists(st.integers(0, 5), max_size=3, unique=True)),
        strides=strides,
        num_block_repeats=one_each([1, 2]),
        expand_ratios=one_each([1, 2, 6]),
        squeeze_expansion_ratio=draw(st.sampled_from([0.05, 0.1, 0.25, 0.35, 0.5])),
        hidden_act=draw(st.sampled_from(ACTIVATION_NAMES)),
        hidden_dim=effnet_np.architecture.round_filters(1280, width, divisor),
        pooling_type=draw(st.sampled_from(["mean", "max"])),
        batch_norm_eps=draw(st.sampled_from([1e-5, 1e-3])),
        num_labels=draw(st.sampled_from([3, 7])),
    )
    return config, draw(st.integers(8, 50)), draw(st.integers(8, 50)), draw(st.integers(1, 3))


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(networks())
def test_random_networks(network):
    config, height, width, batch = network
    try:
        config.check_image_size(height, width)
    except ValueError:
        assume(False)
    theirs, ours = pair(config)
    image = pixels(config, batch, height, width)
    expected = run_hf(theirs, image, output_hidden_states=True)
    output = ours(image, output_hidden_states=True)
    for index, (a, b) in enumerate(zip(output.hidden_states, expected.hidden_states, strict=True)):
        assert_same(a, b, f"hidden state {index}")
    assert_same(output.logits, expected.logits, "logits")


@settings(max_examples=30, deadline=None, derandomize=True)
@given(networks(), st.integers(1, 40), st.integers(1, 40))
def test_image_sizes_that_hf_refuses_are_refused_here(network, height, width):
    config = network[0]
    theirs, ours = pair(config)
    image = pixels(config, 1, height, width)
    try:
        expected = run_hf(theirs, image).logits
    except RuntimeError:
        expected = None
    if expected is None:
        with pytest.raises(ValueError, match="is too small for this network"):
            ours(image)
    else:
        assert ours(image).logits.shape == expected.shape


@pytest.mark.parametrize("size", [(32, 32), (97, 64), (224, 181), (65, 131)])
def test_sizes_that_are_not_native(size):
    """HF pads stride-2 convolutions by the block's number, not by the size at hand as TensorFlow would."""
    for padding in ([], [1, 3, 5]):
        config = tiny_config(depthwise_padding=padding)
        theirs, ours = pair(config)
        image = pixels(config, 2, *size)
        expected = run_hf(theirs, image, output_hidden_states=True)
        output = ours(image, output_hidden_states=True)
        for a, b in zip(output.to_tuple()[1], expected.hidden_states, strict=True):
            assert_same(a, b)


def test_float64_where_asked_for():
    config = tiny_config()
    theirs, ours = pair(config)
    image = pixels(config).astype(np.float64)
    expected = run_hf(theirs.double(), image).logits
    output = ours.to(np.float64)(image, output_hidden_states=True)
    assert {state.dtype for state in output.hidden_states} == {np.dtype(np.float64)}
    assert_same(output.logits, expected, tolerance=1e-12)
    assert_same(ours.to(np.float32)(image).logits, expected.float())
    with pytest.raises(TypeError, match="float32 or float64, not float16"):
        ours.to(np.float16)


def test_every_activation_stays_float32():
    config = tiny_config()
    _, ours = pair(config)
    seen = outputs_by_name(ours, lambda: ours(pixels(config)), lambda value: isinstance(value, np.ndarray))
    assert {value.dtype for value in seen.values()} == {np.dtype(np.float32)}


def test_training_mode_matches_batch_statistics_and_running_averages():
    """Drop nothing, so that both are deterministic; HF's two momenta show in the running averages."""
    config = tiny_config(dropout_rate=0.0, drop_connect_rate=0.0)
    theirs, ours = pair(config)
    image = pixels(config, batch=4)
    expected = run_hf(theirs.train(), image).logits
    assert_same(ours.train()(image).logits, expected)
    state, expected_state = ours.state_dict(), state_of(theirs)
    moved = [name for name in state if "running" in name or "tracked" in name]
    assert len(moved) > 100
    for name in moved:
        assert state[name].dtype == expected_state[name].dtype
        assert relative_error(state[name], expected_state[name]) < TOLERANCE, name


def test_training_drops_and_evaluation_does_not():
    config = tiny_config(dropout_rate=0.5)
    model = effnet_np.EfficientNetForImageClassification(config, seed=1)
    image = pixels(config, batch=2)
    np.testing.assert_array_equal(model(image).logits, model(image).logits)
    model.train()
    model.dropout.generator = np.random.default_rng(0)
    assert all(module.training for _, module in model.named_modules())
    pooled = np.ones((2, config.hidden_dim), np.float32)
    dropped = model.dropout(pooled)
    assert 0.3 < (dropped == 0).mean() < 0.7
    np.testing.assert_array_equal(model.eval().dropout(pooled), pooled)


def run_loss(theirs, ours, image, labels, tensor_labels=None):
    expected = run_hf(theirs, image, labels=torch.from_numpy(labels) if tensor_labels is None else tensor_labels)
    output = ours(image, labels=labels)
    assert ours.config.problem_type == theirs.config.problem_type
    assert output.loss.shape == ()
    assert_same(output.loss, expected.loss, "loss", tolerance=1e-5)
    assert_same(output.logits, expected.logits, "logits")


@pytest.mark.parametrize(
    ("num_labels", "problem_type", "labels"),
    [
        (5, None, np.array([1, 4, 0])),
        (5, None, np.array([1, 4, 0], np.int32)),
        (5, "single_label_classification", np.array([1, -100, 0])),
        (5, None, np.eye(3, 5, dtype=np.float32)),
        (5, "multi_label_classification", np.ones((3, 5), np.float32)),
        (1, None, np.array([0.5, 1.5, -1.0], np.float32)),
        (5, "regression", np.linspace(-1, 1, 15, dtype=np.float32).reshape(3, 5)),
    ],
)
def test_losses(num_labels, problem_type, labels):
    config = tiny_config(num_labels=num_labels, problem_type=problem_type)
    theirs, ours = pair(config)
    tensor = torch.from_numpy(labels)
    run_loss(theirs, ours, pixels(config, batch=3), labels, tensor.long() if labels.dtype == np.int32 else tensor)


def test_labels_that_do_not_fit():
    config = tiny_config(problem_type="single_label_classification")
    model = effnet_np.EfficientNetForImageClassification(config, seed=0)
    image = pixels(config, batch=2)
    with pytest.raises(ValueError, match=r"between 0 and 4, got \[5\]"):
        model(image, labels=np.array([0, 5]))
    with pytest.raises(ValueError, match="2 whole numbers, one an image"):
        model(image, labels=np.array([0, 1, 2]))
    with pytest.raises(ValueError, match="2 whole numbers"):
        model(image, labels=np.array([0.0, 1.0]))
    config.problem_type = "multi_label_classification"
    with pytest.raises(ValueError, match=r"labels of shape \(2, 5\)"):
        model(image, labels=np.zeros((2, 4)))


def test_outputs_read_as_in_hf():
    config = tiny_config()
    theirs, ours = pair(config)
    image, labels = pixels(config, batch=2), np.array([0, 3])
    for options in ({}, {"output_hidden_states": True}, {"labels": labels}, {"labels": labels, "output_hidden_states": True}):
        tensors = {k: torch.from_numpy(v) if k == "labels" else v for k, v in options.items()}
        expected = run_hf(theirs, image, **tensors)
        output = ours(image, **options)
        assert list(output.keys()) == list(expected.keys())
        assert output.get("nothing") is None
        assert isinstance(output, dict)
        assert len(output) == len(expected)
        assert list(output) == list(expected)
        np.testing.assert_array_equal(output[0], output.to_tuple()[0])
        np.testing.assert_array_equal(output["logits"], output.logits)
        assert ("loss" in output) == ("loss" in expected)
        as_tuple = ours(image, **options, return_dict=False)
        assert isinstance(as_tuple, tuple)
        assert len(as_tuple) == len(run_hf(theirs, image, **tensors, return_dict=False))
        for a, b in zip(as_tuple, output.to_tuple(), strict=True):
            for x, y in zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]:
                np.testing.assert_array_equal(x, y)
    with pytest.raises(KeyError):
        output["pooler_output"]
    with pytest.raises(AttributeError, match="ImageClassifierOutput has no 'pooler_output', only loss, logits"):
        output.pooler_output  # noqa: B018
    assert ours(image).loss is None


def test_backbone_alone():
    config = tiny_config(output_hidden_states=True, return_dict=False)
    theirs, ours = pair(config, backbone=True)
    image = pixels(config, batch=2)
    expected = run_hf(theirs, image)
    output = ours(image)
    assert isinstance(output, tuple)
    assert len(output) == len(expected) == 3
    assert_same(output[0], expected[0], "last_hidden_state")
    assert_same(output[1], expected[1], "pooler_output")
    assert ours(image, output_hidden_states=False, return_dict=True).hidden_states is None


def test_zero_labels_give_pooled_features():
    config = tiny_config(num_labels=0)
    theirs, ours = pair(config)
    image = pixels(config)
    assert_same(ours(image).logits, run_hf(theirs, image).logits)


def test_activation_may_be_a_function():
    image = pixels(tiny_config())
    named = effnet_np.EfficientNetForImageClassification(tiny_config(hidden_act="relu"), seed=3)
    function = effnet_np.EfficientNetForImageClassification(tiny_config(hidden_act=lambda x: np.maximum(x, 0)), seed=3)
    np.testing.assert_array_equal(named(image).logits, function(image).logits)


def test_seeded_initialisation():
    config = tiny_config()
    first, second = (effnet_np.EfficientNetForImageClassification(config, seed=7).state_dict() for _ in range(2))
    other = effnet_np.EfficientNetForImageClassification(config, seed=8).state_dict()
    name = "efficientnet.encoder.blocks.3.expansion.expand_conv.weight"
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])
    assert not np.array_equal(first[name], other[name])
    assert abs(np.std(first[name]) / config.initializer_range - 1) < 0.1
    assert first[name].dtype == np.float32
    assert abs(np.std(first["classifier.weight"]) / config.initializer_range - 1) < 0.1
    assert not first["classifier.bias"].any()


def test_num_parameters():
    config = tiny_config()
    theirs, ours = pair(config)
    assert ours.num_parameters() == theirs.num_parameters()
    assert ours.num_labels == theirs.num_labels


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (None, ValueError, "You have to specify pixel_values"),
        (
            np.zeros((3, 64, 64), np.float32),
            ValueError,
            r"4 dimensions \(batch, channels, height, width\), got shape \(3, 64, 64\)",
        ),
        (np.zeros((1, 3, 64, 64), np.uint8), TypeError, "must be floating-point, got uint8: run the image processor"),
        (np.zeros((1, 1, 64, 64), np.float32), ValueError, "takes 3 channels, got 1"),
        (np.zeros((1, 64, 64, 3), np.float32), ValueError, "looks like channels last"),
        (np.zeros((0, 3, 64, 64), np.float32), ValueError, "hold no pixels"),
        (np.zeros((1, 3, 31, 64), np.float32), ValueError, "31 x 64 is too small.*at least 32 x 32"),
        (np.full((1, 3, 64, 64), np.nan, np.float32), ValueError, "NaN or infinite"),
        (np.full((1, 3, 64, 64), np.inf, np.float32), ValueError, "NaN or infinite"),
    ],
)
def test_bad_input(image, error, message):
    model = effnet_np.EfficientNetForImageClassification(tiny_config(), seed=0)
    with pytest.raises(error, match=message):
        model(image)


def test_input_is_not_written_to_and_may_be_read_only():
    config = tiny_config()
    _, ours = pair(config)
    image = pixels(config)
    before = image.copy()
    image.flags.writeable = False
    ours(image)
    np.testing.assert_array_equal(image, before)
