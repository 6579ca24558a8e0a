"""Other libraries' models beside ours: layers are paired by themselves, and the first that is wrong is named, and why."""

# ruff: noqa: E402  (what `require` skips for is imported after it)

import dataclasses
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from families import enliven, noise, require

require()

import efficientnet_pytorch
import geffnet
import timm
import torchvision

import effnet_np
from effnet_np.inspection.compare import trace_torch

Classifier = effnet_np.EfficientNetForImageClassification
MODELS = {
    "timm": ("tf_efficientnet_b0", lambda: timm.create_model("tf_efficientnet_b0"), 230),
    "timm lite": ("efficientnet_lite0", lambda: timm.create_model("efficientnet_lite0"), 150),
    "timm v2": ("tf_efficientnetv2_b0", lambda: timm.create_model("tf_efficientnetv2_b0"), 261),
    "torchvision": ("efficientnet_b0", torchvision.models.efficientnet_b0, 246),
    "torchvision v2": ("efficientnet_v2_s", torchvision.models.efficientnet_v2_s, 515),
    "lukemelas": ("efficientnet-b0", lambda: efficientnet_pytorch.EfficientNet.from_name("efficientnet-b0"), 149),
    "geffnet": ("tf_efficientnet_b0", lambda: geffnet.create_model("tf_efficientnet_b0"), 198),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """library -> (its model, ours of the same weights), each made once."""
    models = {}

    def make(library, **overrides):
        name, build, _ = MODELS[library]
        path = tmp_path_factory.getbasetemp() / f"{library}.pth"
        if library not in models:
            models[library] = enliven(build())
            torch.save(models[library].state_dict(), path)
        return models[library], Classifier.from_pretrained(path, architecture=name, **overrides)

    return make


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("library", MODELS)
def test_layers_are_paired(library, forced, made):
    theirs, ours = made(library)
    result = effnet_np.compare_with_torch(ours, theirs, noise(97), forced=forced)
    assert result.ok, str(result)
    assert len(result.rows) == MODELS[library][2]
    assert {"logits", "efficientnet.encoder.blocks.5", "efficientnet.encoder.blocks.9.projection.project_bn"} <= {
        row.name for row in result.rows
    }


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("library", ["timm", "torchvision", "lukemelas", "geffnet"])
def test_gradients_are_paired(library, training, made):
    """The way back, too: every parameter, the pixels, and each activation that has a module there."""
    theirs, ours = made(library, torch_dtype="float64", dropout_rate=0.0, drop_connect_rate=0.0)
    for module in theirs.modules():  # what is drawn at random could not be the same
        for rate in ("p", "drop_rate", "drop_prob"):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)
    if library == "lukemelas":
        theirs._global_params = theirs._global_params._replace(drop_connect_rate=0.0)
    x = np.concatenate([noise(65), noise(65, 1)]).astype(np.float64)
    unlikely = ours(x).logits.argmin(1)  # lest the loss, and with it all gradients, vanish
    asked = {"output_gradient": np.random.default_rng(0).standard_normal((2, 1000))} if training else {"labels": unlikely}
    statistics = {name: tensor.clone() for name, tensor in theirs.named_buffers()}
    try:
        ours.train(training)
        theirs.double().train(training)
        result = effnet_np.compare_with_torch(ours, theirs, x, gradients=True, tolerance=1e-7, **asked)
    finally:
        theirs.float().eval()
        for name, tensor in theirs.named_buffers():
            tensor.copy_(statistics[name])
    assert result.ok, str(result)
    names = {row.name for row in result.rows}
    assert set(dict(ours.named_parameters())) | {"pixel_values"} <= names
    assert len(names) > len(dict(ours.named_parameters())) + 100


def test_a_part_of_the_layers(made):
    theirs, ours = made("timm")
    result = effnet_np.compare_with_torch(ours, theirs, noise(64), layers=["*.blocks.3.*", "logits"])
    assert result.ok
    assert {row.name.split(".")[3] for row in result.rows if "blocks" in row.name} == {"3"}
    assert result.rows[-1].name == "logits"


@pytest.mark.parametrize(
    ("library", "wrong", "layer", "hint"),
    [
        (
            "torchvision",
            {"padding": "hf"},
            "embeddings.convolution",
            "symmetric is how timm's .* and torchvision pad",
        ),
        ("timm", {"padding": "symmetric"}, "embeddings.convolution", "one-sided is TensorFlow's SAME for an even size"),
        (
            "timm",
            {"batch_norm_eps": 1e-5},
            "embeddings.batchnorm",
            "eps too small: .* 1e-05, the reference has 0.001 .1e-05 is that",
        ),
        (
            "torchvision",
            {"batch_norm_eps": 1e-3},
            "embeddings.batchnorm",
            "0.001 is that of TensorFlow, and so of Hugging Face",
        ),
    ],
)
@pytest.mark.parametrize("forced", [False, True])
def test_mistakes_are_named(library, wrong, layer, hint, forced, made):
    theirs, ours = made(library, **wrong)
    result = effnet_np.compare_with_torch(ours, theirs, noise(64), forced=forced)
    assert result.first_divergence.name == f"efficientnet.{layer}"
    assert any(re.search(hint, text) for text in result.hints), result.hints


def test_traces_with_foreign_names(made, tmp_path):
    """`effnet-np compare` on files: ours against timm's, timm's against torchvision's of the same weights."""
    theirs, ours = made("timm")
    x = noise(64)
    with effnet_np.Trace(ours) as trace:
        ours(x)
    trace.save(tmp_path / "ours.h5")
    trace_torch(theirs, x).save(tmp_path / "timm.npz")
    command = [sys.executable, "-m", "effnet_np", "compare", tmp_path / "ours.h5", tmp_path / "timm.npz", "--json"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert "timm or geffnet" in done.stdout
    changed = dict(trace_torch(theirs, x))
    changed["blocks.2.0.conv_dw"] = changed["blocks.2.0.conv_dw"] * 1.01
    result = effnet_np.compare(effnet_np.Trace.of(changed), tmp_path / "ours.h5")
    assert result.first_divergence.name == "efficientnet.encoder.blocks.3.depthwise_conv.depthwise_conv"
    backwards = effnet_np.compare(tmp_path / "timm.npz", tmp_path / "ours.h5")
    assert backwards.ok


def test_a_picture_prepared_for_another_library(made):
    """ImageNet's mean and std for 0.5 and 0.5, as timm's tf_efficientnet_b0.ap_in1k has them, and the reverse."""
    from effnet_np.weights import timm as timms

    photo = np.random.default_rng(0).integers(0, 256, (300, 300, 3)).astype(np.uint8)
    processor = effnet_np.EfficientNetImageProcessor
    pictures = {
        name: processor(**timms.NETWORKS[name].processor)(photo, return_tensors="np")["pixel_values"]
        for name in ("tf_efficientnet_b0", "tf_efficientnet_b0.ap_in1k")
    }
    a, b = (effnet_np.Trace.of({"pixel_values": picture}) for picture in pictures.values())
    for ours, theirs, words in (
        (a, b, "ours is prepared with ImageNet's mean and std, the reference with mean 0.5"),
        (b, a, "0.5"),
    ):
        assert words in effnet_np.compare(ours, theirs).hints[0]


def test_all_dialects_have_the_same_shape():
    """A dialect is data: each file has the same fields, and one instance of them."""
    from effnet_np.weights.foreign import DIALECTS

    assert len({dialect.library for dialect in DIALECTS}) == len(DIALECTS) == 7
    assert all(dataclasses.is_dataclass(dialect) and dialect.networks for dialect in DIALECTS)
