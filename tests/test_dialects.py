"""Dialects without their libraries: names there and back, which network a file is, and the table in weights/README.md."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

import effnet_np
from effnet_np.checkpoints.foreign_writer import foreign_state, save_torch
from effnet_np.cli import main
from effnet_np.cli.export import export_to, keras_statistics
from effnet_np.identify import fitting, shapes
from effnet_np.tracing.trace import enliven
from effnet_np.weights import hf, keras, lite, lukemelas, timm, torchvision
from effnet_np.weights.dialect import Dialect, blocks_of
from effnet_np.weights.foreign import DIALECTS, dialect_of

from helpers import IMAGES, assert_same, pair, pixels, run_hf, state_of

Config, Classifier = effnet_np.EfficientNetConfig, effnet_np.EfficientNetForImageClassification
NETWORKS = [(dialect, name) for dialect in DIALECTS for name in dialect.networks if "." not in name and "l2" not in name]


def config_of(dialect, name):
    network = dialect.network(name)
    return Config.preset(network.preset, **network.fields)


def their_shapes(dialect, config):
    """The tensors of a network of that library: their names and their shapes as they are in its files."""
    names = dialect.tensor_names(dialect.modules(blocks_of(config.architecture())))
    found = {}
    for ours, shape in shapes(config).items():
        axes = dialect.transposition(ours)
        found[names[ours]] = tuple(shape[axis] for axis in np.argsort(axes)) if axes else shape
    return found


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.library)
def test_names_there_and_back(dialect):
    """Each network's names are known as that dialect's, and are ours again; shapes are those of this network and its twins."""
    for name in [name for other, name in NETWORKS if other is dialect]:
        config = config_of(dialect, name)
        theirs = their_shapes(dialect, config)
        assert dialect_of(theirs) is dialect, name
        ours = {our: theirs[their] for our, their in dialect.renamed(theirs).items()}
        assert {our: tuple(np.prod(shape, keepdims=True, dtype=int)) for our, shape in ours.items()} == {
            our: tuple(np.prod(shape, keepdims=True, dtype=int)) for our, shape in shapes(config).items()
        }


def test_only_timm_leaves_it_open():
    """Of the networks of one dialect, only timm's have twins: "tf_" or not."""
    for dialect, name in NETWORKS[::6]:

        class Found:
            shapes = shapes(config_of(dialect, name))

        Found.dialect = dialect
        twins = fitting(Found, Config.preset)
        assert name in twins
        assert len(twins) == 1 or {twin.removeprefix("tf_") for twin in twins} == {name.removeprefix("tf_")}, twins


def named(tmp_path, dialect, name, seed=0):
    """A file of that library with the weights of a network of ours, and that network."""
    model = Classifier(config_of(dialect, name), seed=seed)
    enliven(model)
    state = foreign_state(model.state_dict(), dialect, blocks_of(model.config.architecture()))
    save_torch(state, tmp_path / "model.safetensors")
    return model


@pytest.mark.parametrize(
    ("dialect", "name"),
    [(timm.DIALECT, "tf_efficientnet_b0"), (torchvision.DIALECT, "efficientnet_b0"), (lukemelas.DIALECT, "efficientnet-b0")],
)
def test_the_same_numbers(dialect, name, tmp_path):
    model = named(tmp_path, dialect, name)
    found = Classifier.from_pretrained(tmp_path / "model.safetensors", architecture=name)
    assert found.config == model.config
    for key, array in model.state_dict().items():
        np.testing.assert_array_equal(array, found.state_dict()[key])
    backbone = effnet_np.EfficientNetModel.from_pretrained(tmp_path / "model.safetensors", architecture=name)
    np.testing.assert_array_equal(backbone.encoder.top_conv.weight, model.efficientnet.encoder.top_conv.weight)


def test_classify_is_told_the_architecture(tmp_path, capsys):
    named(tmp_path, timm.DIALECT, "tf_efficientnet_b0")
    path, photo = str(tmp_path / "model.safetensors"), str(IMAGES / "coffee.png")
    with pytest.raises(ValueError, match="or on the shell --architecture efficientnet_b0"):
        effnet_np.classify(photo, path)
    scores = {}
    for name in ("tf_efficientnet_b0", "efficientnet_b0"):
        model = Classifier.from_pretrained(path, architecture=name)
        scores[name] = effnet_np.classify(photo, path, 1, architecture=name)
        assert scores[name] == effnet_np.classify(photo, model, 1)
    assert scores["tf_efficientnet_b0"] != scores["efficientnet_b0"]  # their paddings and eps differ
    assert main(["classify", photo, "--model", path, "--architecture", "tf_efficientnet_b0", "--json", "--top-k", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["predictions"] == scores["tf_efficientnet_b0"]


def test_the_other_commands_are_told_the_architecture(tmp_path, capsys):
    """The file fits two networks, so each command that loads a model needs to be told, and says so."""
    named(tmp_path, timm.DIALECT, "tf_efficientnet_b0")
    photo = str(IMAGES / "coffee.png")
    for number in range(2):
        for kind in ("red", "blue"):
            (tmp_path / "photos" / kind).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 64), kind).save(tmp_path / "photos" / kind / f"{number}.png")
    (tmp_path / "list.csv").write_text(f"file,label\n{photo},504\n")
    commands = [
        ["explain", photo, "-o", str(tmp_path / "map.png")],
        ["evaluate", str(tmp_path / "list.csv"), "--backend", "numpy"],
        ["explore", photo, "-o", str(tmp_path / "page.html")],
        ["trace", photo, "-o", str(tmp_path / "trace.npz"), "--layers", "classifier"],
        ["trace", "--random", "0", "-o", str(tmp_path / "random.npz"), "--layers", "classifier"],
        ["finetune", str(tmp_path / "photos"), "-o", str(tmp_path / "new"), "--backend", "numpy", "--head-epochs", "1"],
    ]
    for command in commands:
        asked = [*command, "--model", str(tmp_path / "model.safetensors")]
        assert main(asked) != 0
        assert "or on the shell --architecture efficientnet_b0" in " ".join(capsys.readouterr().err.split()), command
        assert main([*asked, "--architecture", "tf_efficientnet_b0"]) == 0, capsys.readouterr().err
    twice = ["--model", "lite0", "--model", "lite0", "--architecture", "b0"]
    assert main(["evaluate", str(tmp_path / "list.csv"), *twice]) != 0
    assert "--architecture must be given once for each --model: 2 times, not 1" in capsys.readouterr().err


def test_a_file_under_two_names(tmp_path):
    model = named(tmp_path, timm.DIALECT, "tf_efficientnet_b0")
    state = foreign_state(model.state_dict(), timm.DIALECT, blocks_of(model.config.architecture()))
    twice = {name: np.array(array, order="C") for name, array in state.items()}
    twice |= {"efficientnet.encoder.top_conv.weight": model.efficientnet.encoder.top_conv.weight}
    save_file(twice, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="holds a tensor twice, under the name of timm or geffnet and under HF's"):
        Classifier.from_pretrained(tmp_path / "model.safetensors", architecture="tf_efficientnet_b0")


def test_hfs_own_files_take_a_name_where_they_have_no_configuration(tmp_path):
    theirs, ours = pair(Config.preset("b0"))
    torch.save(theirs.state_dict(), tmp_path / "b0.pth")
    with pytest.raises(FileNotFoundError, match="no config.json .* or say which it is: architecture='b0'"):
        Classifier.from_pretrained(tmp_path / "b0.pth")
    found = Classifier.from_pretrained(tmp_path / "b0.pth", architecture="b0")
    assert found.config == Config.preset("b0")
    assert found.image_processor == effnet_np.EfficientNetImageProcessor.preset("b0")
    with pytest.raises(ValueError, match="does not fit this model"):
        Classifier.from_pretrained(tmp_path / "b0.pth", architecture="b1")
    ours.save_pretrained(tmp_path / "folder")
    with pytest.raises(ValueError, match="is described by its own configuration: architecture= is for files that do not"):
        Classifier.from_pretrained(tmp_path / "folder", architecture="b1")


def test_export_to_transformers(tmp_path):
    """timm's SAME is HF's padding at the native size; transformers loads the folder, and gives the same logits."""
    import transformers

    theirs, _ = pair(Config.preset("b0", num_labels=7))
    ours = Classifier(Config.preset("b0", num_labels=7, padding="same", batch_norm_eps=1e-3), initialize=False)
    ours.load_state_dict(state_of(theirs))
    with pytest.warns(UserWarning, match="padding='same', which Hugging Face's EfficientNet does not know"):
        ours.save_pretrained(tmp_path / "ours")
    said = export_to("hf", tmp_path / "ours", tmp_path / "theirs")
    assert "transformers.EfficientNetForImageClassification.from_pretrained" in said
    loaded = transformers.EfficientNetForImageClassification.from_pretrained(tmp_path / "theirs").eval()
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in theirs.state_dict().items())
    assert_same(ours(pixels(ours.config)).logits, run_hf(loaded, pixels(ours.config)).logits)
    with pytest.raises(ValueError, match="is there already"):
        export_to("hf", tmp_path / "ours", tmp_path / "theirs")
    with pytest.raises(ValueError, match=r"cannot express fix_head_stem=True, squeeze_expansion_ratio=0.0"):
        export_to("hf", "lite0", tmp_path / "lite")


def test_what_keras_normalises_with():
    statistics = keras_statistics(effnet_np.EfficientNetImageProcessor.preset("b0"), "EfficientNetB0")
    np.testing.assert_allclose(statistics["mean"], [0.485, 0.456, 0.406], rtol=1e-5)
    np.testing.assert_allclose(np.sqrt(statistics["variance"]), [0.229, 0.224, 0.225], rtol=1e-5)
    assert keras_statistics(effnet_np.EfficientNetImageProcessor.preset("v2-s"), "EfficientNetV2S") == {}
    with pytest.raises(ValueError, match="EfficientNetV2S normalises with mean"):
        keras_statistics(effnet_np.EfficientNetImageProcessor.preset("b0"), "EfficientNetV2S")
    with pytest.raises(ValueError, match="does not say how its pictures are prepared"):
        keras_statistics(None, "EfficientNetB0")


# -- the table --------------------------------------------------------------------------------------------------------

# The row's name in weights/README.md: (dialect, the network that stands for it)
ROWS: dict[str, tuple[Dialect, str]] = {
    "Hugging Face": (hf.DIALECT, "b0"),
    "timm, geffnet `tf_`": (timm.DIALECT, "tf_efficientnet_b0"),
    "timm, geffnet": (timm.DIALECT, "efficientnet_b0"),
    "torchvision": (torchvision.DIALECT, "efficientnet_b0"),
    "lukemelas": (lukemelas.DIALECT, "efficientnet-b0"),
    "Keras": (keras.DIALECT, "EfficientNetB0"),
    "Lite0 (PyPI)": (lite.DIALECT, "efficientnet-lite0"),
}
FILTERS = ("nearest", "lanczos", "bilinear", "bicubic")


def row_of(dialect, name):
    """What the table says of a library's B0: each cell from the code that reads its files."""
    config = config_of(dialect, name)
    names = dialect.tensor_names(dialect.modules(blocks_of(config.architecture())))
    model = Classifier(config, initialize=False)
    depthwise = "efficientnet.encoder.blocks.3.depthwise_conv.depthwise_conv.weight"
    processor = effnet_np.EfficientNetImageProcessor(**dialect.network(name).processor)
    size = processor.size.get("shortest_edge") or processor.size["height"]
    crop = f", then the middle {processor.crop_size['height']}" if processor.do_center_crop else ""
    cut = f"a square of {processor.crop_fraction:g} of the shorter side, then " if processor.crop_fraction else ""
    edge = "shorter side to " if "shortest_edge" in processor.size else "to "
    picture = np.array([[[0, 0, 0]], [[255, 255, 255]]], np.uint8)
    options = {"do_resize": False, "do_center_crop": False, "crop_fraction": 1.0, "input_data_format": "channels_last"}
    low, high = (processor(pixel[None], **options)["pixel_values"][0].reshape(3) for pixel in picture)
    statistics = ", ".join(f"{value:.2f}" for value in (low[0], high[0]))
    axes = dialect.transposition(depthwise)
    layout = tuple("OIKK"[axis] for axis in np.argsort(axes)) if axes else tuple("OIKK")
    return [
        config.padding,
        f"{config.batch_norm_eps:g}",
        f"{config.batch_norm_momentum:g}",
        f"`{names[depthwise]}`",
        "".join(layout),
        str(len([name for name in model.state_dict() if name in names])),
        f"{cut}{FILTERS[processor.resample]}, {edge}{size}{crop}",
        statistics,
    ]


def test_the_table_same_network_six_ways():
    text = (Path(__file__).parent.parent / "weights" / "README.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ") and line.count("|") == 10]
    table = {cells[0]: cells[1:] for cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:])}
    assert {name: row_of(*of) for name, of in ROWS.items()} == table
    assert re.search(r"## The same network, six ways", text)
