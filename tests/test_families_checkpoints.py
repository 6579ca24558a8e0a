"""Other libraries' checkpoints, read without them, against the live libraries: blocks, logits, file forms, pictures."""

# ruff: noqa: E402  (what `require` skips for is imported after it)

import json
import sys

import numpy as np
import pytest
import torch
from families import PHOTOGRAPHS, assert_same, enliven, enliven_keras, noise, require, run

require()

import efficientnet_pytorch
import geffnet
import keras
import PIL.Image
import timm
import torchvision
from safetensors.torch import save_file

import effnet_np
from effnet_np.images.io import load_image
from effnet_np.weights import timm as timms
from effnet_np.weights import torchvision as torchvisions

Classifier = effnet_np.EfficientNetForImageClassification

# (library, architecture, size of the input in pixels: native ones, even and odd ones). Some are for the long run alone.
SHORT = [
    ("timm", "tf_efficientnet_b0", 224),
    ("timm", "efficientnet_b0", 97),
    ("timm", "tf_efficientnet_b1", (75, 98)),
    ("timm", "efficientnet_lite0", 97),
    ("timm", "tf_efficientnetv2_b3", 97),
    ("timm", "efficientnetv2_s", 65),
    ("torchvision", "efficientnet_b0", 97),
    ("torchvision", "efficientnet_b5", 65),
    ("torchvision", "efficientnet_v2_s", 97),
    ("lukemelas", "efficientnet-b0", 224),
    ("lukemelas", "efficientnet-b1", 97),
    ("geffnet", "tf_efficientnet_b0", 97),
    ("geffnet", "efficientnet_lite1", 97),
]
LONG = [
    ("timm", "tf_efficientnet_b4", 97),
    ("timm", "efficientnet_b2", 256),
    ("timm", "tf_efficientnet_b8", 65),
    ("timm", "tf_efficientnet_lite2", 260),
    ("timm", "tf_efficientnet_lite4", 97),
    ("timm", "tf_efficientnetv2_b0", 192),
    ("timm", "tf_efficientnetv2_b1", 97),
    ("timm", "tf_efficientnetv2_s", 97),
    ("timm", "efficientnetv2_m", 97),
    ("timm", "tf_efficientnetv2_xl", 65),
    ("timm", "tf_efficientnet_l2", 65),
    ("torchvision", "efficientnet_b1", 240),
    ("torchvision", "efficientnet_b4", 97),
    ("torchvision", "efficientnet_b7", 65),
    ("torchvision", "efficientnet_v2_m", 65),
    ("torchvision", "efficientnet_v2_l", 65),
    ("lukemelas", "efficientnet-b3", 97),
    ("lukemelas", "efficientnet-b5", 65),
    ("geffnet", "efficientnet_b3", 97),
    ("geffnet", "tf_efficientnet_lite3", 97),
]
MAKERS = {
    "timm": lambda name: timm.create_model(name),
    "torchvision": lambda name: getattr(torchvision.models, name)(),
    "lukemelas": lambda name: efficientnet_pytorch.EfficientNet.from_name(name),
    "geffnet": lambda name: geffnet.create_model(name),
}


def make(library, name):
    """A model of a library with living activations. Its residual branches are damped, lest a deep network be chaotic."""
    model = enliven(MAKERS[library](name))
    with torch.no_grad():
        for block in blocks_of(model):
            norms = [module for module in block.modules() if isinstance(module, torch.nn.BatchNorm2d)]
            norms[-1].weight.mul_(0.5)
    return model


def blocks_of(model):
    if hasattr(model, "_blocks"):
        return list(model._blocks)
    stages = model.blocks if hasattr(model, "blocks") else model.features[1:-1]
    return [block for stage in stages for block in stage]


def check(library, name, size, tmp_path, compiled=False):
    """Its file is read; every block and the logits are the library's. Gives the largest error, of the largest number."""
    model = make(library, name)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    ours = Classifier.from_pretrained(tmp_path / "model.pth", architecture=name)
    x = noise(size)
    logits, blocks = run(model, x, blocks_of(model))
    output = (effnet_np.compile(ours) if compiled else ours)(x, output_hidden_states=True)
    pairs = [(f"block {index}", *pair) for index, pair in enumerate(zip(output.hidden_states[1:], blocks, strict=True))]
    return max(assert_same(a, b, f"{library} {name} {what}") for what, a, b in [*pairs, ("logits", output.logits, logits)])


@pytest.mark.parametrize(("library", "name", "size"), SHORT)
def test_every_block_and_the_logits(library, name, size, tmp_path):
    check(library, name, size, tmp_path)


@pytest.mark.parametrize(("library", "name", "size"), [SHORT[2], SHORT[5], SHORT[7], SHORT[10]])
def test_compiled(library, name, size, tmp_path):
    check(library, name, size, tmp_path, compiled=True)


# -- which network it is ----------------------------------------------------------------------------------------------


def test_what_the_file_does_not_say_the_caller_does(tmp_path):
    path = tmp_path / "b0.pth"
    model = make("timm", "tf_efficientnet_b0")
    torch.save(model.state_dict(), path)
    with pytest.raises(ValueError, match="may be any of 2 networks of timm") as raised:
        Classifier.from_pretrained(path)
    said = str(raised.value)
    for words in (
        "tf_efficientnet_b0: padding same, batch_norm_eps 0.001",
        "efficientnet_b0: padding symmetric",
        "architecture=",
    ):
        assert words in said
    with pytest.raises(ValueError, match="may be any of 2 networks"):
        effnet_np.EfficientNetConfig.from_pretrained(path)
    logits = {
        name: Classifier.from_pretrained(path, architecture=name)(noise(64)).logits
        for name in ("tf_efficientnet_b0", "efficientnet_b0")
    }
    assert np.abs(logits["efficientnet_b0"] - logits["tf_efficientnet_b0"]).max() > 1e-3
    with pytest.raises(ValueError, match=r"does not fit this model(.|\n)*it is tf_efficientnet_b0 or efficientnet_b0 of timm"):
        Classifier.from_pretrained(path, architecture="tf_efficientnet_b1")
    with pytest.raises(ValueError, match="timm or geffnet has no architecture 'EfficientNetB0' that is known here"):
        Classifier.from_pretrained(path, architecture="EfficientNetB0")
    assert effnet_np.EfficientNetConfig.from_pretrained(path, architecture="efficientnet_b0").padding == "symmetric"


def test_files_that_say_enough(tmp_path):
    """Where one network alone has these names and shapes, nobody need say which it is."""
    for library, name in (
        ("torchvision", "efficientnet_b1"),
        ("lukemelas", "efficientnet-b0"),
        ("timm", "tf_efficientnetv2_b0"),
    ):
        torch.save(make(library, name).state_dict(), tmp_path / "model.pth")
        found = Classifier.from_pretrained(tmp_path / "model.pth")
        assert found.config == Classifier.from_pretrained(tmp_path / "model.pth", architecture=name).config


@pytest.mark.parametrize("suffix", ["safetensors", "bin", "pth"])
def test_folders_of_timm(suffix, tmp_path):
    """As timm's `save_for_hf` writes them: config.json with the architecture and how pictures are prepared."""
    model = timm.create_model("efficientnet_b0", num_classes=7)
    enliven(model)
    config = {
        "architecture": "efficientnet_b0",
        "num_classes": 7,
        "label_names": list("abcdefg"),
        "pretrained_cfg": {key: value for key, value in model.pretrained_cfg.items() if key not in ("url", "file", "source")},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    if suffix == "safetensors":
        save_file(model.state_dict(), tmp_path / "model.safetensors")
    else:
        torch.save({"state_dict": model.state_dict()} if suffix == "pth" else model.state_dict(), tmp_path / f"w.{suffix}")
        if suffix == "bin":
            (tmp_path / "w.bin").rename(tmp_path / "pytorch_model.bin")
    source = tmp_path / "w.pth" if suffix == "pth" else tmp_path
    with pytest.warns(UserWarning, match="state dict under") if suffix == "pth" else nothing():
        ours = Classifier.from_pretrained(source)
    x = noise(97)
    assert_same(ours(x).logits, run(model, x)[0])
    assert ours.config.id2label == dict(enumerate("abcdefg"))
    assert ours.config.padding == "symmetric"
    assert ours.image_processor == effnet_np.EfficientNetImageProcessor(**timms.NETWORKS["efficientnet_b0"].processor)
    assert effnet_np.EfficientNetImageProcessor.from_pretrained(source) == ours.image_processor
    assert effnet_np.EfficientNetConfig.from_pretrained(tmp_path).num_labels == 7
    with pytest.raises(ValueError, match="config.json says architecture 'efficientnet_b0', and not 'tf_efficientnet_b0'"):
        Classifier.from_pretrained(source, architecture="tf_efficientnet_b0")


def nothing():
    import contextlib

    return contextlib.nullcontext()


def test_a_fresh_head_and_a_backbone(tmp_path):
    model = make("torchvision", "efficientnet_b0")
    torch.save(model.state_dict(), tmp_path / "model.pth")
    with pytest.warns(UserWarning, match="drawn anew, so to be trained: classifier.weight"):
        ours = Classifier.from_pretrained(tmp_path / "model.pth", num_labels=3, ignore_mismatched_sizes=True, seed=0)
    assert ours(noise(64)).logits.shape == (1, 3)
    backbone = effnet_np.EfficientNetModel.from_pretrained(tmp_path / "model.pth")
    assert_same(backbone(noise(64)).last_hidden_state, run(model.features, noise(64))[0])


# -- Keras ------------------------------------------------------------------------------------------------------------

KERAS = [
    ("EfficientNetB0", {}),
    ("EfficientNetB1", {"include_top": False, "pooling": "avg"}),
    ("EfficientNetB0", {"input_shape": (97, 97, 3), "classes": 7}),
    ("EfficientNetV2B0", {"input_shape": (101, 101, 3), "include_top": False, "pooling": "avg"}),
    ("EfficientNetV2S", {"input_shape": (65, 65, 3)}),
]
KERAS_LONG = [("EfficientNetB2", {}), ("EfficientNetB4", {"include_top": False, "pooling": "avg"}), ("EfficientNetV2B3", {})]


def check_keras(name, options, tmp_path, forms=("model.weights.h5", "model.h5", "model.keras"), compiled=False):
    """Of each form of file, the logits on pixels from 0 to 255; softmax, which is Keras' last step, is none of ours."""
    model = enliven_keras(getattr(keras.applications, name)(weights=None, **options))
    size = model.input_shape[1] or 131
    pixels = np.random.default_rng(1).integers(0, 256, (1, size, size, 3)).astype(np.uint8)
    top = options.get("include_top", True)
    last = model.layers[-1]
    inner = keras.Model(model.input, last.input if top else last.output)
    theirs = inner(pixels.astype(np.float32)).detach().numpy()
    if top:
        kernel, bias = last.get_weights()
        theirs = theirs @ kernel + bias
    errors = []
    for form in forms:
        if form == "model.weights.h5" and options.get("input_shape", (None,))[0] and "V2" not in name:
            continue  # weights alone do not say what input they were padded for
        path = tmp_path / form
        (model.save_weights if "weights" in form else model.save)(path)
        ours = (Classifier if top else effnet_np.EfficientNetModel).from_pretrained(path)
        prepared = ours.image_processor(pixels[0], do_resize=False, input_data_format="channels_last", return_tensors="np")
        output = (effnet_np.compile(ours) if compiled else ours)(prepared["pixel_values"])
        errors.append(assert_same(output.logits if top else output.pooler_output, theirs, f"{name} {form}"))
    return max(errors)


@pytest.mark.parametrize(("name", "options"), KERAS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_keras(name, options, tmp_path):
    check_keras(name, options, tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_keras_compiled(tmp_path):
    for name, options in (KERAS[2], KERAS[4]):
        check_keras(name, options, tmp_path, forms=["model.keras"], compiled=True)


def test_keras_published_weights_divide_by_std_twice(tmp_path):
    """weights="imagenet" adds a second Rescaling, which a file of weights alone shows only by the statistics in it."""
    model = enliven_keras(keras.applications.EfficientNetB0(weights=None))
    norm = next(layer for layer in model.layers if type(layer).__name__ == "Normalization")
    mean, variance, count = norm.get_weights()
    norm.set_weights([mean, np.reshape([0.229, 0.224, 0.225], variance.shape), count])
    model.save_weights(tmp_path / "b0.weights.h5")
    processor = effnet_np.EfficientNetImageProcessor.from_pretrained(tmp_path / "b0.weights.h5")
    photo = load_image(PHOTOGRAPHS[0])
    published = effnet_np.EfficientNetImageProcessor.preset("b0")
    a, b = (p(photo, return_tensors="np")["pixel_values"] for p in (processor, published))
    np.testing.assert_allclose(a, b, atol=1e-5)


# -- pictures ---------------------------------------------------------------------------------------------------------

TIMM_PICTURES = ["tf_efficientnet_b0.ap_in1k", "efficientnet_b1.ft_in1k", "tf_efficientnet_b2", "tf_efficientnet_lite3"]
TIMM_PICTURES += ["tf_efficientnetv2_b3", "tf_efficientnetv2_s", "efficientnet_b5", "efficientnetv2_m"]


@pytest.mark.parametrize("name", TIMM_PICTURES)
def test_preprocessing_is_timms(name):
    config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    transform = timm.data.create_transform(**config)
    ours = effnet_np.EfficientNetImageProcessor(**timms.NETWORKS[name].processor)
    for path in PHOTOGRAPHS:
        theirs = transform(PIL.Image.open(path).convert("RGB")).numpy()
        np.testing.assert_allclose(ours(load_image(path), return_tensors="np")["pixel_values"][0], theirs, atol=1e-6)


def test_the_table_of_timms_preprocessing():
    """Every architecture that is known here, against timm's own registry."""
    for name, network in timms.NETWORKS.items():
        config = timm.get_pretrained_cfg(name).to_dict()
        _, fields, processor = timms.described({"architecture": name.partition(".")[0], "pretrained_cfg": jsoned(config)})
        assert processor == network.processor, name
        assert fields["image_size"] == network.fields["image_size"], name


def jsoned(config):
    return json.loads(json.dumps(config))


def test_preprocessing_is_torchvisions():
    for name, network in torchvisions.DIALECT.networks.items():
        architecture, _, weights = name.partition(".")
        kinds = torchvision.models.get_model_weights(architecture)
        transform = (kinds[weights] if weights else kinds.DEFAULT).transforms()
        ours = effnet_np.EfficientNetImageProcessor(**network.processor)
        for path in PHOTOGRAPHS[: 1 if network.processor["crop_size"] > 300 else 3]:
            theirs = transform(PIL.Image.open(path).convert("RGB")).numpy()
            np.testing.assert_allclose(ours(load_image(path), return_tensors="np")["pixel_values"][0], theirs, atol=1e-6)


if __name__ == "__main__":  # the long list, NumPy and compiled: python tests/test_families_checkpoints.py
    import pathlib
    import tempfile
    import time

    for case in [*SHORT, *LONG, *KERAS, *KERAS_LONG]:
        if len(sys.argv) > 1 and sys.argv[1] not in (case[0], case[1]):
            continue
        start = time.time()
        with tempfile.TemporaryDirectory() as folder:
            place = pathlib.Path(folder)
            run_case = check if len(case) == 3 else check_keras
            errors = [run_case(*case, place), run_case(*case, place, compiled=True)]
        print(*case, *(f"{error:.1e}" for error in errors), f"{time.time() - start:.1f} s", flush=True)
