"""Weights in and out: HF's files into our model, ours into HF's, shards, heads, damage, and nothing half-written."""

import argparse
import json
import os
import pickle
import subprocess
import sys

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from safetensors.numpy import load_file, save_file

import effnet_np
from effnet_np.checkpoints import checkpoint, h5_writer
from effnet_np.checkpoints.torch_file import Storage, TensorView, check_view
from effnet_np.images.processor import EfficientNetImageProcessor

from helpers import CHELSEA, assert_same, hf_model, pair, pixels, run_hf, state_of, tiny_config

Classifier = effnet_np.EfficientNetForImageClassification


@pytest.fixture(scope="module")
def theirs():
    return hf_model(tiny_config())


@pytest.fixture(scope="module")
def expected(theirs):
    return run_hf(theirs, pixels(tiny_config())).logits


@pytest.fixture
def folder(theirs, tmp_path):
    """What HF's save_pretrained makes, preprocessor_config.json included."""
    theirs.save_pretrained(tmp_path / "hf")
    EfficientNetImageProcessor.preset("b0").save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def as_bin(folder, legacy=False, name="pytorch_model.bin"):
    """Turn the folder's safetensors into the pickle that older checkpoints on the hub have."""
    state = {key: torch.from_numpy(value) for key, value in load_file(folder / "model.safetensors").items()}
    torch.save(dict(state), folder / name, _use_new_zipfile_serialization=not legacy)
    (folder / "model.safetensors").unlink()
    return folder / name


def assert_loads(source, expected, **options):
    model = Classifier.from_pretrained(source, **options)
    assert not model.training
    assert_same(model(pixels(tiny_config())).logits, expected)
    return model


def test_safetensors_folder(folder, expected):
    model = assert_loads(folder, expected)
    assert model.image_processor == EfficientNetImageProcessor.preset("b0")
    assert_loads(str(folder), expected)
    assert_loads(folder / "model.safetensors", expected)  # the file itself: config.json is looked for beside it


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_folder_without_torch_being_asked(folder, expected, legacy, monkeypatch):
    as_bin(folder, legacy)
    monkeypatch.setattr(torch, "load", None)
    monkeypatch.setattr(pickle, "load", None)
    assert_loads(folder, expected)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_sharded_folder(folder, expected, suffix):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = list(state)
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    weight_map = {}
    for part in range(3):
        shard = f"{stem}-{part + 1:05}-of-00003.{suffix}"
        keys = names[part::3]
        weight_map.update(dict.fromkeys(keys, shard))
        if suffix == "bin":
            torch.save({key: torch.from_numpy(state[key]) for key in keys}, folder / shard)
        else:
            save_file({key: state[key] for key in keys}, folder / shard, {"format": "pt"})
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert_loads(folder, expected)

    (folder / shard).rename(folder / "away")
    with pytest.raises(FileNotFoundError, match="names the shard .*00003-of-00003.* but there is no such file"):
        Classifier.from_pretrained(folder)
    index.write_text(json.dumps({"weight_map": weight_map | {"nose": "../away.bin"}}))
    with pytest.raises(ValueError, match="not a weight file of the same folder"):
        Classifier.from_pretrained(folder)


def test_hf_shards_of_its_own_making(theirs, expected, tmp_path):
    theirs.save_pretrained(tmp_path, max_shard_size="300KB")
    assert list(tmp_path.glob("*.index.json"))
    assert_loads(tmp_path, expected)


def test_hf_loads_what_we_save(folder, expected, tmp_path):
    model = assert_loads(folder, expected)
    model.save_pretrained(tmp_path / "ours" / "deep")
    theirs, report = transformers.EfficientNetForImageClassification.from_pretrained(
        tmp_path / "ours" / "deep", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert_same(run_hf(theirs.eval(), pixels(tiny_config())).logits.numpy(), expected, tolerance=1e-6)
    assert_loads(tmp_path / "ours" / "deep", expected)
    assert sorted(os.listdir(tmp_path / "ours" / "deep")) == ["config.json", "model.safetensors", "preprocessor_config.json"]


def test_backbone_from_classifier_and_back(folder, theirs, tmp_path):
    backbone = effnet_np.EfficientNetModel.from_pretrained(folder)
    image = pixels(tiny_config())
    assert_same(backbone(image).pooler_output, run_hf(theirs.efficientnet, image).pooler_output)
    backbone.save_pretrained(tmp_path / "backbone")
    with pytest.raises(ValueError, match=r"missing \(2\):\n    classifier.weight\n    classifier.bias"):
        Classifier.from_pretrained(tmp_path / "backbone")
    with pytest.warns(UserWarning, match=r"classifier.weight \(not in the file, the model: \(3, 160\)\)"):
        model = Classifier.from_pretrained(tmp_path / "backbone", ignore_mismatched_sizes=True, num_labels=3, seed=1)
    assert_same(model.efficientnet(image).pooler_output, run_hf(theirs.efficientnet, image).pooler_output)
    assert model.classifier.weight.shape == (3, 160)
    assert model.classifier.weight.std() > 0


def test_new_head(folder, theirs):
    wrong = r"wrong shape \(2\):\n    classifier.weight: expected \(7, 160\), got \(5, 160\)(.|\n)*ignore_mismatched_sizes=True"
    with pytest.raises(ValueError, match=wrong):
        Classifier.from_pretrained(folder, num_labels=7)
    wanted = r"classifier.weight \(the file: \(5, 160\), the model: \(7, 160\)\), classifier.bias \(the file: \(5,\), "
    with pytest.warns(UserWarning, match=wanted) as warned:
        first, second = (
            Classifier.from_pretrained(folder, num_labels=7, ignore_mismatched_sizes=True, seed=3).state_dict()
            for _ in range(2)
        )
    assert warned[0].filename == __file__, "the warning points at the caller"
    assert first["classifier.weight"].shape == (7, 160)
    assert abs(first["classifier.weight"].std() / 0.02 - 1) < 0.1
    for name, array in state_of(theirs).items():
        np.testing.assert_array_equal(first[name], second[name])
        if "classifier" not in name:
            np.testing.assert_array_equal(first[name], array)


def test_options_of_from_pretrained(folder, expected, tmp_path):
    config = tiny_config(num_labels=7)
    with pytest.warns(UserWarning, match="drawn anew, so to be trained"):
        model = Classifier.from_pretrained(folder, config=config, ignore_mismatched_sizes=True, seed=0)
    assert model.num_labels == 7
    assert_loads(tmp_path, expected, subfolder="hf")
    assert effnet_np.EfficientNetConfig.from_pretrained(tmp_path, subfolder="hf").num_labels == 5
    assert EfficientNetImageProcessor.from_pretrained(tmp_path, subfolder="hf").size == {"height": 224, "width": 224}
    for option in ("num_label", "variant", "device_map", "output_loading_info"):
        with pytest.raises(TypeError, match=f"no option or field {option}"):
            Classifier.from_pretrained(folder, **{option: 1})


@pytest.mark.parametrize("name", ["torch_dtype", "dtype"])
def test_dtype_as_transformers_takes_it(folder, expected, name):
    for wish in (None, "auto", "float32", np.float32, np.dtype("float32"), torch.float32):
        assert assert_loads(folder, expected, **{name: wish}).dtype == np.float32
    for wish in ("float64", np.float64, torch.float64):
        assert Classifier.from_pretrained(folder, **{name: wish}).dtype == np.float64
    for wish in ("float16", torch.float16, torch.bfloat16, np.float16, 5):
        with pytest.raises(TypeError, match="a model computes in float32 .* leave it out"):
            Classifier.from_pretrained(folder, **{name: wish})


def test_float64_numbers_stay_float64(folder):
    state = {key: value.astype(np.float64) if value.dtype == np.float32 else value
             for key, value in load_file(folder / "model.safetensors").items()}  # fmt: skip
    state["classifier.bias"] += 1e-12
    save_file(state, folder / "model.safetensors")
    model = Classifier.from_pretrained(folder, torch_dtype="float64")
    assert model.classifier.bias.tobytes() == state["classifier.bias"].tobytes()
    h5_writer.save_h5(model, folder / "model.h5")  # the digest is of what is in the file, whatever it is read as
    for dtype in ("float32", "float64"):
        Classifier.from_pretrained(folder / "model.h5", torch_dtype=dtype)


def test_a_processor_for_weights_that_came_without(folder):
    (folder / "preprocessor_config.json").unlink()
    assert Classifier.from_pretrained(folder).image_processor is None
    preset = EfficientNetImageProcessor.preset("b3")
    preset.save_pretrained(folder.parent / "processor")
    for source in ("b3", preset, folder.parent / "processor", str(folder.parent / "processor" / "preprocessor_config.json")):
        assert Classifier.from_pretrained(folder, image_processor=source).image_processor == preset
    with pytest.raises(TypeError, match="image_processor must be an EfficientNetImageProcessor or where to find one, got 5"):
        Classifier.from_pretrained(folder, image_processor=5)


class Net(torch.nn.Module):
    """What Lightning makes of a network: its attribute's name stands before all names."""

    def __init__(self, model):
        super().__init__()
        self.model = model


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrapping", ["state_dict", "model", "deep", "DataParallel", "compile", "Lightning"])
def test_what_trainings_save(theirs, folder, expected, wrapping, legacy, tmp_path):
    """The whole of a training's checkpoint, with optimiser, options, scores and random state: unwrapped, and said."""
    optimizer = torch.optim.AdamW(theirs.parameters())
    for parameter in theirs.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # a step of nothing: what is kept for each parameter is there
    theirs.zero_grad(set_to_none=True)
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in load_file(folder / "model.safetensors").items()})
    state = theirs.state_dict()
    rest = {
        "epoch": 3,
        "best": np.float64(0.75),
        "loss": 0.1,
        "args": argparse.Namespace(lr=0.1, name="x", size=[1, 2]),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "shape": torch.Size([1, 2]),
    }
    found = {
        "state_dict": {"state_dict": state} | rest,
        "model": {"model": state} | rest,
        "deep": {"state_dict": {"model": state}} | rest,
        "DataParallel": {"state_dict": torch.nn.DataParallel(theirs).state_dict()},
        "compile": {f"_orig_mod.module.{key}": value for key, value in state.items()},
        "Lightning": {"state_dict": Net(theirs).state_dict()} | rest,
    }[wrapping]
    (folder / "model.safetensors").unlink()
    torch.save(found, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    words = {
        "state_dict": "read the state dict under 'state_dict' .beside it, not read: epoch, best, loss, args, optimizer, rng",
        "model": "the state dict under 'model'",
        "deep": "the state dict under 'state_dict.model'",
        "DataParallel": "the state dict under 'state_dict', its names without 'module.', which all of them start with",
        "compile": "read its names without '_orig_mod.module.'",
        "Lightning": "its names without 'model.'",
    }[wrapping]
    with pytest.warns(UserWarning, match=words) as warned:
        assert_loads(folder, expected)
    assert len(warned) == 1


def test_half_precision_is_read_bit_for_bit(tmp_path):
    """All 65,536 patterns of float16 and of bfloat16, in all files of PyTorch's, become the float32 of the same number."""
    bits = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16)
    halves = {"half": bits.view(torch.float16), "brain": bits.clone().view(torch.bfloat16)}
    halves["view"] = halves["brain"][5:605].reshape(20, 30).t()
    torch.save(halves, tmp_path / "zip.bin")
    torch.save(halves, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file({k: v.contiguous() for k, v in halves.items()}, tmp_path / "half.safetensors")
    for name in ("zip.bin", "legacy.pth", "half.safetensors"):
        reader = checkpoint.open_weights(tmp_path / name)
        for key, tensor in halves.items():
            read = reader.read(key).astype(np.float32)
            expected = tensor.float().numpy()
            assert read.shape == expected.shape
            numbers = ~np.isnan(expected)
            assert (read.view(np.uint32)[numbers] == np.ascontiguousarray(expected).view(np.uint32)[numbers]).all(), (name, key)
            assert np.isnan(read[~numbers]).all()
        reader.close()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_a_folder_in_half_precision(theirs, folder, dtype, suffix):
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in theirs.state_dict().items()}
    (folder / "model.safetensors").unlink()
    if suffix == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        safetensors.torch.save_file(state, folder / "model.safetensors", {"format": "pt"})
    model = Classifier.from_pretrained(folder)
    for name, array in model.state_dict().items():
        wanted = state[name].float().numpy() if state[name].is_floating_point() else state[name].numpy()
        assert array.tobytes() == wanted.tobytes(), name


def test_one_storage_for_all_tensors_is_read_once(theirs, folder, expected, monkeypatch):
    """As some tools save them: flattened into one. It was read again for each tensor, a valid file of 41 MB in 119 s."""
    from effnet_np.checkpoints import torch_file

    state = theirs.state_dict()
    flat = torch.cat([value.double().reshape(-1) for value in state.values()]).float()
    views, at = {}, 0
    for name, value in state.items():
        if value.is_floating_point():
            views[name] = flat[at : at + value.numel()].reshape(value.shape)
        else:
            views[name] = value
        at += value.numel()
    (folder / "model.safetensors").unlink()
    for legacy in (False, True):
        torch.save(views, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
        kind, reads = torch_file.LegacyStorages if legacy else torch_file.ZipStorages, []
        read = kind.read
        monkeypatch.setattr(kind, "read", lambda self, storage, read=read, reads=reads: reads.append(1) or read(self, storage))
        assert_loads(folder, expected)
        assert len(reads) == 1 + sum(not value.is_floating_point() for value in state.values())


def foreign_names():
    """A few names of each library's B0, seen live (timm 1.0.31, torchvision 0.28, efficientnet_pytorch 0.7.1, Keras 3.15)."""
    return {
        "timm or geffnet": ("conv_stem.weight", "bn1.weight", "blocks.0.0.conv_dw.weight", "blocks.0.0.se.conv_reduce.weight"),
        "torchvision": ("features.0.0.weight", "features.1.0.block.0.0.weight", "classifier.1.weight"),
        "efficientnet_pytorch .lukemelas.": ("_conv_stem.weight", "_bn0.weight", "_blocks.0._se_reduce.weight", "_fc.weight"),
        "efficientnet-lite-pytorch": (
            "_conv_stem.weight",
            *(f"_blocks.{index}._depthwise_conv.weight" for index in range(21)),
        ),
        "Keras, by": (
            "stem_conv/stem_conv/kernel:0",
            "block1a_dwconv/block1a_dwconv/depthwise_kernel:0",
            "top_bn/top_bn/beta:0",
        ),
    }


@pytest.mark.parametrize("library", foreign_names())
def test_checkpoints_that_are_no_network_of_their_library(library, folder, tmp_path):
    names = foreign_names()[library]
    if library.startswith("Keras"):
        path = tmp_path / "model.weights.h5"
        with h5py.File(path, "w") as file:
            for name in names:
                file[name] = np.zeros((1, 1, 1, 1) if "kernel" in name else 3, np.float32)
        paths = [path]
    else:
        state = {f"module.{name}": np.zeros(3, np.float32) for name in names}
        save_file(state, folder / "model.safetensors")  # beside the config.json of another network
        with pytest.raises(
            ValueError, match=rf"is a checkpoint of {library}, and the config.json beside it is another library's"
        ):
            Classifier.from_pretrained(folder)
        save_file(state, tmp_path / "model.safetensors")
        torch.save({"state_dict": {key: torch.from_numpy(value) for key, value in state.items()}}, tmp_path / "model.pth")
        paths = [tmp_path / "model.safetensors", tmp_path / "model.pth"]
    for path in paths:
        with pytest.raises(ValueError, match=rf"is a checkpoint of {library}.*of none of its networks") as raised:
            Classifier.from_pretrained(path)
        assert "\n" not in str(raised.value)


def test_keras_files_that_do_not_name_their_layers(tmp_path):
    with h5py.File(tmp_path / "model.weights.h5", "w") as file:
        for name in ("layers/conv2d/vars/0", "layers/depthwise_conv2d_1/vars/0", "layers/normalization/vars/2"):
            file[name] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="does not say which layer it is of: save the whole model as .keras"):
        Classifier.from_pretrained(tmp_path / "model.weights.h5")


def test_a_configuration_of_timm_is_read_as_timms(tmp_path):
    (tmp_path / "config.json").write_text('{"architecture": "tf_efficientnet_b0", "num_classes": 1000}')
    config = effnet_np.EfficientNetConfig.from_pretrained(tmp_path)
    assert (config.padding, config.width_coefficient, config.num_labels) == ("same", 1.0, 1000)
    (tmp_path / "config.json").write_text('{"architecture": "resnet50", "num_classes": 1000}')
    with pytest.raises(
        ValueError, match="timm or geffnet has no architecture 'resnet50' that is known here, but .*efficientnet_b"
    ):
        effnet_np.EfficientNetConfig.from_pretrained(tmp_path)


def test_no_labels_leave_the_classifier_in_the_file(folder, theirs):
    model = Classifier.from_pretrained(folder, num_labels=0)
    image = pixels(tiny_config())
    assert_same(model(image).logits, run_hf(theirs.efficientnet, image).pooler_output)


def test_a_configuration_that_json_cannot_hold_writes_nothing(tmp_path):
    config = tiny_config()
    config.own_key = {1, 2}
    with pytest.raises(TypeError, match="not JSON serializable"):
        Classifier(config, seed=0).save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_batches_are_counted_where_the_file_counts_them(folder):
    state = load_file(folder / "model.safetensors")
    name = "efficientnet.encoder.top_bn.num_batches_tracked"
    state[name] = np.array(12345)
    save_file(state, folder / "model.safetensors")
    assert Classifier.from_pretrained(folder).state_dict()[name] == 12345
    save_file({key: value for key, value in state.items() if not key.endswith("tracked")}, folder / "model.safetensors")
    assert Classifier.from_pretrained(folder).state_dict()[name] == 0  # files older than PyTorch 0.4.1 have no counts


def test_files_can_be_read_by_others(tmp_path):
    Classifier(tiny_config(), seed=0).save_pretrained(tmp_path)
    (tmp_path / "plain").touch()
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_processor_beside_an_h5_file_is_found(tmp_path):
    h5_writer.save_h5(Classifier(tiny_config(), seed=0), tmp_path / "model.h5")
    assert Classifier.from_pretrained(tmp_path / "model.h5").image_processor is None
    EfficientNetImageProcessor.preset("b0").save_pretrained(tmp_path)
    assert Classifier.from_pretrained(tmp_path / "model.h5").image_processor == EfficientNetImageProcessor.preset("b0")


def test_everything_that_differs_is_in_one_error(folder):
    state = load_file(folder / "model.safetensors")
    del state["efficientnet.encoder.top_bn.weight"]
    state["nose"] = np.zeros(1, np.float32)
    state["classifier.bias"] = np.zeros(6, np.float32)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match="does not fit this model") as raised:
        Classifier.from_pretrained(folder, ignore_mismatched_sizes=False)
    for part in ("model.safetensors", "missing (1)", "top_bn.weight", "unexpected (1)", "nose", "expected (5,), got (6,)"):
        assert part in str(raised.value)


def test_half_precision_becomes_float32(folder, expected):
    state = {
        k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in load_file(folder / "model.safetensors").items()
    }
    save_file(state, folder / "model.safetensors")
    model = Classifier.from_pretrained(folder)
    output = model(pixels(tiny_config())).logits
    assert output.dtype == np.float32
    assert_same(output, expected, tolerance=0.05)


def test_h5_round_trip_with_a_thousand_labels_and_more(tmp_path):
    labels = {index: f"a label with a long name, number {index}" for index in range(3000)}  # more than 64 KB
    model = Classifier(tiny_config(id2label=labels, num_labels=None), seed=0)
    model.image_processor = EfficientNetImageProcessor.preset("b0")
    digest = h5_writer.save_h5(model, tmp_path / "model.h5", source="someone/something", revision="abc")
    back = Classifier.from_pretrained(tmp_path / "model.h5")
    assert back.config.id2label == labels
    assert back.image_processor == model.image_processor
    for name, array in model.state_dict().items():
        assert back.state_dict()[name].tobytes() == array.tobytes(), name
    with h5py.File(tmp_path / "model.h5") as file:
        name = "efficientnet/encoder/blocks/1/expansion/expand_conv/weight"
        np.testing.assert_array_equal(file[name], model.efficientnet.encoder.blocks[1].expansion.expand_conv.weight)
        assert file.attrs["format_version"] == 1
        assert (file.attrs["source"], file.attrs["revision"], file.attrs["sha256"]) == ("someone/something", "abc", digest)
    assert effnet_np.EfficientNetConfig.from_pretrained(tmp_path / "model.h5").num_labels == 3000
    assert EfficientNetImageProcessor.from_pretrained(tmp_path / "model.h5") == model.image_processor


def test_the_digest_sees_every_bit():
    state = {"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.int64)}
    digest = h5_writer.tensors_sha256(state)
    assert digest == h5_writer.tensors_sha256(dict(reversed(state.items())))
    changed = state["a"].copy()
    changed[1, 2] = -0.0
    for other in ({"a": changed}, {"a": state["a"].reshape(3, 2)}, {"b": np.ones(4, np.int32)}, {"c": state["a"]}):
        assert h5_writer.tensors_sha256(state | other) != digest


@pytest.mark.parametrize("kind", ["safetensors", "bin", "legacy", "h5"])
@pytest.mark.parametrize("damage", ["empty", "cut", "noise"])
def test_damaged_files(folder, kind, damage, tmp_path):
    path = folder / "model.safetensors"
    if kind == "h5":
        path = tmp_path / "model.h5"
        h5_writer.save_h5(Classifier.from_pretrained(folder), path)
    elif kind != "safetensors":
        path = as_bin(folder, legacy=kind == "legacy")
    data = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": data[: len(data) * 2 // 3], "noise": os.urandom(5000)}[damage])
    with pytest.raises(ValueError, match=f"{path.name} is (not a readable|damaged)"):
        Classifier.from_pretrained(path if kind == "h5" else folder)


def test_numbers_changed_on_disk_are_noticed(folder, tmp_path):
    """A zip checks its entries; our .h5 carries a digest."""
    path = as_bin(folder)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        Classifier.from_pretrained(folder)
    model = Classifier(tiny_config(), seed=0)
    h5_writer.save_h5(model, tmp_path / "model.h5")
    data = (tmp_path / "model.h5").read_bytes()
    weights = model.classifier.weight.tobytes()
    (tmp_path / "model.h5").write_bytes(data.replace(weights, weights[:-1] + b"\0"))
    with pytest.raises(ValueError, match="damaged: its tensors do not have the sha256"):
        Classifier.from_pretrained(tmp_path / "model.h5")


class Attack:
    def __reduce__(self):
        return os.mkdir, ("an-attack-ran",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_is_refused(folder, legacy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"classifier.weight": Attack()}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"names '(posix|nt).mkdir', which a state dict does not need"):
        Classifier.from_pretrained(folder)
    assert not os.path.exists("an-attack-ran")


def test_views_into_a_shared_storage(folder, tmp_path):
    """torch.save keeps views as views: transposed, cut out, one storage for two tensors."""
    base = torch.arange(24, dtype=torch.float32)
    views = {"a": base[3:15].reshape(3, 4), "b": base.reshape(4, 6).t(), "c": base.reshape(2, 3, 4)[:, 1:, ::2]}
    for legacy in (False, True):
        torch.save(views, tmp_path / "views.bin", _use_new_zipfile_serialization=not legacy)
        reader = checkpoint.TorchFile(tmp_path / "views.bin")
        for name, tensor in views.items():
            np.testing.assert_array_equal(reader.read(name), tensor.numpy())
        reader.close()
    storage = Storage("0", np.dtype("<f4"), 24)
    for offset, shape, strides in ((20, (4,), (1,)), (0, (4, 6), (6, 1)), (1, (2, 3), (12, 5)), (24, (0,), (1,))):
        check_view("x", TensorView(storage, offset, shape, strides))
    for offset, shape, strides in ((21, (4,), (1,)), (1, (4, 6), (6, 1)), (2, (2, 3), (12, 5)), (25, (0,), (1,))):
        with pytest.raises(ValueError, match="x reaches beyond its storage of 24 numbers"):
            check_view("x", TensorView(storage, offset, shape, strides))
    for shape, strides in (((2, 3), (2, 1)), ((2, 2, 3), (12, 2, 1)), ((3, 2), (1, 2)), ((2,), (0,))):
        with pytest.raises(ValueError, match="the entries of x overlap"):
            check_view("x", TensorView(storage, 0, shape, strides))
    torch.save({"d": base[:1].expand(5)}, tmp_path / "views.bin")
    with pytest.raises(ValueError, match="the entries of d overlap"):
        checkpoint.TorchFile(tmp_path / "views.bin")


def test_missing_and_unknown_sources(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder '.*nowhere.h5'"):
        Classifier.from_pretrained(tmp_path / "nowhere.h5")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds none of model.safetensors"):
        Classifier.from_pretrained(tmp_path / "empty")
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no config.json beside its weights"):
        Classifier.from_pretrained(folder)
    (tmp_path / "model.xyz").write_bytes(b"1")
    with pytest.raises(ValueError, match="not a known kind of checkpoint"):
        Classifier.from_pretrained(tmp_path / "model.xyz")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.zeros(3)
    with pytest.raises(ValueError, match="was not written by effnet_np"):
        Classifier.from_pretrained(tmp_path / "other.h5")
    with h5py.File(tmp_path / "other.h5", "a") as file:
        file.attrs["format_version"] = 2
    with pytest.raises(ValueError, match="format version 2, newer than the 1 known here: upgrade"):
        Classifier.from_pretrained(tmp_path / "other.h5")


def test_a_failed_write_leaves_the_old_file_whole(folder, tmp_path, monkeypatch):
    model = Classifier.from_pretrained(folder)
    h5_writer.save_h5(model, tmp_path / "model.h5")
    before = (tmp_path / "model.h5").read_bytes()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        h5_writer.save_h5(Classifier(tiny_config(), seed=9), tmp_path / "model.h5")
    assert (tmp_path / "model.h5").read_bytes() == before
    assert not list(tmp_path.glob(".*")), "a temporary file was left behind"


def test_lite0s_file_is_opened_by_the_same_reader():
    model = Classifier.from_pretrained("lite0")
    assert model.config.id2label[282] == "tiger cat"
    assert model.num_parameters() == 4652008
    assert model.image_processor == EfficientNetImageProcessor.preset("lite0")


def export(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "effnet_np.cli", "export", *map(str, arguments)], capture_output=True, text=True
    )


def test_export_verifies_against_hf_on_a_photograph(folder, tmp_path, expected):
    done = export(folder, "-o", tmp_path / "b0.h5", "--verify", CHELSEA)
    assert done.returncode == 0, done.stderr
    assert "read back bit by bit, logits equal to transformers' on" in done.stdout
    assert_loads(tmp_path / "b0.h5", expected)
    with h5py.File(tmp_path / "b0.h5") as file:
        assert file.attrs["sha256"] in done.stdout
        assert file.attrs["source"] == str(folder)


def test_export_lite0_and_by_the_script(tmp_path):
    command = [sys.executable, "-m", "effnet_np", "export", "lite0", "-o", str(tmp_path / "lite0.h5")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert effnet_np.classify(CHELSEA, model=tmp_path / "lite0.h5")[0]["label"] == "tiger cat"


def test_export_refuses(folder, tmp_path):
    done = export(folder, "-o", tmp_path / "model.npz")
    assert (done.returncode, done.stderr) == (1, f"effnet-np: the output must end in .h5, got {tmp_path / 'model.npz'}\n")
    done = export("lite0", "-o", tmp_path / "model.h5", "--verify", CHELSEA)
    assert done.returncode == 1
    assert "nothing to verify against" in done.stderr
    done = export(tmp_path / "nowhere", "-o", tmp_path / "model.h5")
    assert done.returncode == 1
    assert "no file or folder" in done.stderr
    assert not (tmp_path / "model.h5").exists()


def test_verify_notices_different_logits(folder, monkeypatch):
    from effnet_np.cli import export

    model = Classifier.from_pretrained(folder)
    assert export.compare_with_hf(model, folder, CHELSEA) < 1e-5
    model.classifier.bias[2] += 0.01
    with pytest.raises(ValueError, match="the logits differ from transformers' by"):
        export.compare_with_hf(model, folder, CHELSEA)


def test_pair_helper_is_not_fooled():
    """The comparison itself: a wrong number, a NaN and a dead network must all fail it."""
    theirs, ours = pair(tiny_config())
    expected = run_hf(theirs, pixels(tiny_config())).logits
    logits = ours(pixels(tiny_config())).logits
    assert_same(logits, expected)
    for wrong in (logits * 1.001, np.where(logits == logits[0, 0], np.nan, logits), logits.astype(np.float64)):
        with pytest.raises(AssertionError):
            assert_same(wrong, expected)
    with pytest.raises(AssertionError, match="does not live"):
        assert_same(logits * 1e-9, expected * 1e-9)
