"""Module: names, state, hooks."""

import numpy as np
import pytest

import effnet_np

from helpers import pair, tiny_config


@pytest.fixture
def model():
    return effnet_np.EfficientNetForImageClassification(tiny_config(), seed=0)


def test_names_and_order_are_pytorchs():
    theirs, ours = pair(tiny_config())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [name for name, _ in ours.named_modules()] == [name for name, _ in theirs.named_modules()]
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    for name, tensor in theirs.state_dict().items():
        assert ours.state_dict()[name].shape == tuple(tensor.shape), name
        assert ours.state_dict()[name].dtype == tensor.numpy().dtype, name


def test_get_submodule(model):
    conv = model.get_submodule("efficientnet.encoder.blocks.1.expansion.expand_conv")
    assert conv is model.efficientnet.encoder.blocks[1].expansion.expand_conv
    assert model.get_submodule("") is model
    with pytest.raises(KeyError, match="no 'nose' among expansion, depthwise_conv"):
        model.get_submodule("efficientnet.encoder.blocks.1.nose")


def test_load_state_dict_lists_everything_that_differs_before_it_copies(model):
    before = {name: array.copy() for name, array in model.state_dict().items()}
    state = {name: array + 1 for name, array in before.items()}
    del state["classifier.bias"]
    state["nose.weight"] = np.zeros(3)
    state["classifier.weight"] = np.zeros((7, 160), np.float32)
    with pytest.raises(
        ValueError, match=r"missing \(1\):\n    classifier.bias\n  unexpected \(1\):\n    nose.weight\n  wrong shape"
    ):
        model.load_state_dict(state)
    with pytest.raises(ValueError, match=r"classifier.weight: expected \(5, 160\), got \(7, 160\)"):
        model.load_state_dict(state, strict=False)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    del state["classifier.weight"]
    result = model.load_state_dict(state, strict=False)
    assert result.missing_keys == ["classifier.weight", "classifier.bias"]
    assert result.unexpected_keys == ["nose.weight"]
    np.testing.assert_array_equal(model.classifier.weight, before["classifier.weight"])
    name = "efficientnet.embeddings.convolution.weight"
    np.testing.assert_array_equal(model.state_dict()[name], before[name] + 1)


def test_loaded_arrays_are_copies_in_the_models_dtype(model):
    for dtype in (np.float64, np.float32):
        state = {name: array.astype(dtype) for name, array in model.state_dict().items()}
        model.load_state_dict(state)
        state["classifier.bias"][:] = 9
        assert model.classifier.bias.dtype == np.float32
        assert not model.classifier.bias.any()


def test_hooks_see_read_only_views_and_can_be_removed(model):
    image = np.random.default_rng(0).standard_normal((1, 3, 64, 64), np.float32)
    seen = []
    hook = model.efficientnet.pooler.register_forward_hook(lambda module, inputs, output: seen.append((inputs, output)))
    logits = model(image).logits
    ((inputs, output),) = seen
    assert inputs[0].shape == (1, 160, 2, 2)
    for array in (inputs[0], output):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    hook.remove()
    hook.remove()  # a second time does no harm
    np.testing.assert_array_equal(model(image).logits, logits)
    assert len(seen) == 1


def test_hooks_cannot_write_into_a_model_output(model):
    image = np.random.default_rng(0).standard_normal((1, 3, 64, 64), np.float32)
    expected = model(image).logits

    def write(module, inputs, output):
        output.pooler_output[...] = 7

    hook = model.efficientnet.register_forward_hook(write)
    with pytest.raises(ValueError, match="read-only"):
        model(image)
    hook.remove()
    np.testing.assert_array_equal(model(image).logits, expected)


def test_what_hooks_kept_is_not_overwritten_later(model):
    """An activation function that worked in place would change what a hook has seen one layer before."""
    kept = {}

    def keep(name):
        return lambda module, inputs, output: (
            kept.update({name: (output, output.copy())}) if isinstance(output, np.ndarray) else None
        )

    for name, module in model.named_modules():
        module.register_forward_hook(keep(name))
    model(np.ones((1, 3, 64, 64), np.float32))
    assert len(kept) > 200
    for name, (array, copy) in kept.items():
        np.testing.assert_array_equal(array, copy, err_msg=name)


def test_train_and_eval_reach_every_module(model):
    assert not model.training
    assert model.train() is model
    assert all(module.training for _, module in model.named_modules())
    assert not any(module.training for _, module in model.eval().named_modules())
