"""Out again: what `effnet-np export --to` writes, loaded by the live libraries with strict=True, bit for bit, and run there."""

# ruff: noqa: E402  (what `require` skips for is imported after it)

import numpy as np
import pytest
import torch
from families import assert_same, enliven, noise, require, run

require()

import keras
import timm
import torchvision
from safetensors.torch import load_file

import effnet_np
from effnet_np.cli.export import export_to
from effnet_np.weights import timm as timms

Classifier = effnet_np.EfficientNetForImageClassification


def saved(model, path):
    torch.save(enliven(model).state_dict(), path)
    return model


def assert_bits(a, b):
    assert list(a) == list(b)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("name", ["tf_efficientnet_b0", "efficientnet_lite0", "tf_efficientnetv2_b0"])
def test_timm(name, suffix, tmp_path):
    model = saved(timm.create_model(name, num_classes=7), tmp_path / "in.pth")
    said = export_to("timm", tmp_path / "in.pth", tmp_path / f"out.{suffix}", architecture=name)
    assert f"timm.create_model('{name}', num_classes=7)" in said
    state = (load_file if suffix == "safetensors" else torch.load)(tmp_path / f"out.{suffix}")
    other = timm.create_model(name, num_classes=7).eval()
    other.load_state_dict(state, strict=True)
    assert_bits(model.state_dict(), other.state_dict())
    np.testing.assert_array_equal(run(model, noise(64))[0], run(other, noise(64))[0])


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_v2_s"])
def test_torchvision(name, tmp_path):
    model = saved(torchvision.models.get_model(name, num_classes=7), tmp_path / "in.pth")
    export_to("torchvision", tmp_path / "in.pth", tmp_path / "out.safetensors")
    other = torchvision.models.get_model(name, num_classes=7)
    other.load_state_dict(load_file(tmp_path / "out.safetensors"), strict=True)
    assert_bits(model.state_dict(), other.state_dict())


@pytest.mark.parametrize("preset", ["b1", "v2-b0"])
def test_what_was_trained_here_goes_to_timm_and_keras(preset, tmp_path):
    """A model of ours, in HF's padding or V2's, gives the same logits there, at its own size."""
    config = effnet_np.EfficientNetConfig.preset(preset, num_labels=7)
    name = {"b1": "tf_efficientnet_b1", "v2-b0": "tf_efficientnetv2_b0"}[preset]
    saved(timm.create_model(name, num_classes=7), tmp_path / "living.pth")
    ours = Classifier(config, initialize=False)
    ours.load_state_dict(Classifier.from_pretrained(tmp_path / "living.pth", architecture=name).state_dict())
    ours.image_processor = effnet_np.EfficientNetImageProcessor.preset(preset)
    ours.save_pretrained(tmp_path / "ours")
    size = config.image_size
    said = export_to("timm", tmp_path / "ours", tmp_path / "out.safetensors")
    theirs = timm.create_model(said.partition(" of ")[0].split()[-1], num_classes=7).eval()
    theirs.load_state_dict(load_file(tmp_path / "out.safetensors"), strict=True)
    assert_same(ours(noise(size)).logits, run(theirs, noise(size))[0])

    said = export_to("keras-weights", tmp_path / "ours", tmp_path / "out.weights.h5")
    name = said.partition(" of ")[0].split()[-1]
    model = getattr(keras.applications, name)(weights=None, classes=7, input_shape=(size, size, 3))
    model.load_weights(tmp_path / "out.weights.h5")
    pixels = np.random.default_rng(0).integers(0, 256, (1, size, size, 3)).astype(np.uint8)
    prepared = ours.image_processor(pixels[0], do_resize=False, return_tensors="np")["pixel_values"]
    softmax = model(pixels.astype(np.float32)).detach().numpy()
    logits = ours(prepared).logits
    assert_same(np.exp(logits) / np.exp(logits).sum(), softmax)
    back = Classifier.from_pretrained(tmp_path / "out.weights.h5")
    for key, array in ours.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(array, back.state_dict()[key])


def test_what_cannot_be_expressed(tmp_path):
    saved(torchvision.models.efficientnet_v2_s(num_classes=7), tmp_path / "v2.pth")
    with pytest.raises(
        ValueError, match=r"timm or geffnet cannot express this network exactly(.|\n)*batch_norm_eps 0.001, there 1e"
    ):
        export_to("timm", tmp_path / "v2.pth", tmp_path / "out.pth")
    with pytest.raises(ValueError, match="cannot express fused_stages=3"):
        export_to("hf", tmp_path / "v2.pth", tmp_path / "hf")
    with pytest.raises(ValueError, match="Keras has no network of these layers and channels"):
        export_to("keras-weights", "lite0", tmp_path / "out.weights.h5")
    with pytest.raises(ValueError, match=r"the output must end in .safetensors or .pth"):
        export_to("torchvision", tmp_path / "v2.pth", tmp_path / "out.bin")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v2.pth"]


def test_every_network_of_timm_is_one_of_ours():
    """Names, shapes and order of all of timm's tensors, against those that are written."""
    from effnet_np.identify import shapes

    for name, network in timms.NETWORKS.items():
        if "." in name or "_l2" in name or name.startswith("efficientnetv2_xl"):
            continue
        with torch.device("meta"):
            theirs = timm.create_model(name).state_dict()
        config = effnet_np.EfficientNetConfig.preset(network.preset, **network.fields)
        ours = shapes(config)
        wanted = {key: tuple(tensor.shape) for key, tensor in theirs.items() if not key.endswith("num_batches_tracked")}
        dialect = timms.DIALECT
        renamed = {ours: wanted[their] for ours, their in dialect.renamed(wanted).items()}
        assert renamed == ours, name
