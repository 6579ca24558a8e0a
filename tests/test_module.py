"""Module: names, state, hooks."""

import numpy as np
import pytest
import torch

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


# -- as PyTorch's users call it ----------------------------------------------------------------------------------------


def test_calls_that_change_nothing_here(model):
    """What stands in every script for PyTorch, with torch's own objects."""
    for same in (model.to("cpu"), model.to(torch.device("cpu")), model.to(device="cpu"), model.to("cpu:0"), model.cpu()):
        assert same is model
    assert model.to(model.device).to(model.dtype).to("cpu", torch.float32).eval() is model
    assert model.to(torch.device("cpu"), non_blocking=True) is model
    assert (model.dtype, model.device) == (np.float32, "cpu")
    assert model.to(torch.float64).dtype == np.float64
    assert model.float().dtype == np.float32
    assert model.double().efficientnet.embeddings.batchnorm.running_var.dtype == np.float64


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda model: model.cuda(), ValueError),
        (lambda model: model.to("cuda"), ValueError),
        (lambda model: model.to("cuda:0"), ValueError),
        (lambda model: model.to(torch.device("mps")), ValueError),
        (lambda model: model.to(0), ValueError),
        (lambda model: model.half(), TypeError),
        (lambda model: model.bfloat16(), TypeError),
        (lambda model: model.to(np.zeros(3)), TypeError),
        (lambda model: model.to(torch.bfloat16), TypeError),
        (lambda model: model.to(dtype=np.int64), TypeError),
        (lambda model: model.to("gpu"), TypeError),
    ],
)
def test_another_device_or_dtype_is_one_sentence(call, error, model):
    with pytest.raises(error, match="effnet_np is NumPy on the CPU") as caught:
        call(model)
    assert "\n" not in str(caught.value)
    assert model.dtype == np.float32
    with pytest.raises(TypeError, match=r"to\(\) has no option devise"):
        model.to(devise="cpu")


def test_parameters_are_counted_as_in_hf():
    theirs, ours = pair(tiny_config())
    assert ours.num_parameters() == theirs.num_parameters()
    for options in ({"only_trainable": True}, {"exclude_embeddings": True}):
        assert ours.num_parameters(**options) == theirs.num_parameters(**options)
    assert sum(p.size for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert [type(m).__name__ for m in ours.modules()][:2] == [type(m).__name__ for m in theirs.modules()][:2]
    assert len(list(ours.modules())) == len(list(theirs.modules()))
    assert [type(m).__name__ for m in ours.children()] == ["EfficientNetModel", "Dropout", "Linear"]


def test_a_batch_of_pixels_can_be_moved_to_the_cpu():
    processor = effnet_np.EfficientNetImageProcessor(size=64)
    image = np.random.default_rng(0).integers(0, 256, (70, 80, 3), np.uint8)
    batch = processor(image, return_tensors="np")
    assert batch.to("cpu") is batch
    assert batch.to(torch.device("cpu"), torch.float64).pixel_values.dtype == np.float64
    with pytest.raises(ValueError, match=r"without a GPU: leave out to\('cuda'\)"):
        batch.to("cuda")
    tensors = processor(image, return_tensors="pt").to("cpu", torch.float64)
    assert tensors["pixel_values"].dtype == torch.float64


@pytest.mark.parametrize("preset", ["b0", "b7"])
def test_the_tree_fits_a_screen(preset):
    config = effnet_np.EfficientNetConfig.preset(preset, width_coefficient=0.125, hidden_dim=160)
    model = effnet_np.EfficientNetForImageClassification(config, initialize=False)
    lines = repr(model).splitlines()
    assert 20 < len(lines) <= 40
    assert max(map(len, lines)) < 110
    blocks = len(config.blocks())
    first = config.num_block_repeats[0] if preset == "b0" else 4
    assert f"({first}-{blocks - 1}): {blocks - first} x EfficientNetBlock(" in repr(model)
    block = repr(model.efficientnet.encoder.blocks[first])
    assert "(expand_act): Activation(swish)" in block
    assert "(depthwise_conv): Conv2d(weight=(48, 1, 3, 3), stride=2, groups=48, padding=(0, 0, 0, 0))" in block
    assert "..." not in block
    assert repr(model.classifier) == "Linear(weight=(1000, 160), bias=(1000,))"


def test_the_processors_dictionary_is_unpacked():
    model = effnet_np.EfficientNetForImageClassification(tiny_config(), seed=0)
    inputs = effnet_np.EfficientNetImageProcessor(size=64)(np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(TypeError, match=r"call model\(\*\*inputs\)"):
        model(inputs)
