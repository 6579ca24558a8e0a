"""Each attack of attacks.py is refused: with an error that names the file, the place and the rule, at little cost."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter

import h5py
import numpy as np
import pytest
from safetensors.numpy import save

import effnet_np
from effnet_np.checkpoints import checkpoint, files
from effnet_np.checkpoints.torch_file import TorchFile

import attacks

MEGABYTES_ALLOWED = 64
SECONDS_ALLOWED = 2
Classifier = effnet_np.EfficientNetForImageClassification


@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_refused(name, tmp_path, monkeypatch):
    build, words = attacks.ATTACKS[name]
    source = build(tmp_path)
    monkeypatch.setattr(os, "system", lambda command: pytest.fail(f"{command} was run"))
    error = attacks.refused(source)
    assert error is not None, "the attack was loaded"
    assert type(error) in (ValueError, TypeError, FileNotFoundError)
    assert re.search(words, str(error), re.DOTALL), error
    assert str(tmp_path) in str(error), "the error does not name the file"
    assert len(str(error)) < 2000


def test_refusing_costs_little_memory_and_time():
    """Measured in processes of their own, above what an idle one has."""
    done = subprocess.run([sys.executable, attacks.__file__], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    costs = [json.loads(line) for line in done.stdout.splitlines()]
    assert [cost["name"] for cost in costs] == list(attacks.ATTACKS)
    assert all(cost["error"] != "None" for cost in costs)
    assert not [cost for cost in costs if not 0 <= cost["kilobytes"] < MEGABYTES_ALLOWED << 10]
    assert not [cost for cost in costs if not 0 <= cost["seconds"] < SECONDS_ALLOWED]


def test_what_the_attacks_are_made_of_is_harmless(tmp_path):
    """Without the attack in them, the handmade files are read: so it is the attack that is refused."""
    for name, data in (("zip.bin", attacks.archive(attacks.GOOD)), ("legacy.pth", attacks.legacy(attacks.GOOD))):
        (tmp_path / name).write_bytes(data)
        reader = TorchFile(tmp_path / name)
        assert reader.shapes == {"t0": (4,)}
        np.testing.assert_array_equal(reader.read("t0"), np.zeros(4, np.float32))
        reader.close()
    folder = attacks.with_config(tmp_path, "model.safetensors", save(attacks.good_state()))
    assert Classifier.from_pretrained(folder).num_labels == 5
    header = json.dumps({"a": attacks.entry()}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    assert checkpoint.SafetensorsFile(tmp_path / "a.safetensors").shapes == {"a": (4,)}


def test_nonfinite_weights_on_demand(tmp_path):
    state = attacks.good_state()
    state["classifier.bias"] = np.array([0, np.nan, np.inf, 0, 0], np.float32)
    folder = attacks.with_config(tmp_path, "model.safetensors", save(state))
    model = Classifier.from_pretrained(folder, allow_nonfinite=True)
    np.testing.assert_array_equal(model.classifier.bias, state["classifier.bias"])
    with pytest.raises(ValueError, match="pass allow_nonfinite=True"):
        Classifier.from_pretrained(folder, allow_nonfinite=False)
    model.image_processor = effnet_np.EfficientNetImageProcessor(size=64)
    with pytest.raises(ValueError, match="the network's output is not finite"):
        effnet_np.classify(np.zeros((9, 9, 3), np.uint8), model)


def test_weights_that_overflow_are_no_answer(tmp_path):
    state = {name: np.full_like(array, 1e30) if array.ndim == 4 else array for name, array in attacks.good_state().items()}
    model = Classifier.from_pretrained(attacks.with_config(tmp_path, "model.safetensors", save(state)))
    model.image_processor = effnet_np.EfficientNetImageProcessor(size=64)
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="the network's output is not finite"):
        effnet_np.classify(np.full((9, 9, 3), 200, np.uint8), model)


def test_a_configuration_cannot_change_what_classify_reads(tmp_path):
    """`return_dict: false` makes the model give tuples, and once made classify fail with an AttributeError."""
    folder = attacks.with_config(tmp_path, "model.safetensors", save(attacks.good_state()), return_dict=False)
    effnet_np.EfficientNetImageProcessor(size=64).save_pretrained(folder)
    assert len(effnet_np.classify(np.zeros((9, 9, 3), np.uint8), folder)) == 5


def test_links_that_stay_inside(tmp_path):
    """A link within the folder, and the hub's cache, whose links lead from snapshots/<revision> to blobs."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    attacks.with_config(blobs, "model.safetensors", save(attacks.good_state()))
    for folder, up in ((snapshot, "../../blobs"), (snapshot / "subfolder", "../../../blobs"), (snapshot / "absolute", blobs)):
        folder.mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            (folder / name).symlink_to(f"{up}/{name}")
        assert Classifier.from_pretrained(folder).num_labels == 5
    (tmp_path / "way").symlink_to(snapshot)  # the folder itself may be named by a link
    assert Classifier.from_pretrained(tmp_path / "way").num_labels == 5
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    attacks.with_config(folder / "below", "weights", save(attacks.good_state()))
    (folder / "config.json").symlink_to(folder / "below" / "config.json")
    (folder / "model.safetensors").symlink_to("below/weights")
    assert Classifier.from_pretrained(folder).num_labels == 5


LINKS = [name for name in attacks.ATTACKS if "link" in name and not name.startswith("h5")]


@pytest.mark.parametrize("name", LINKS)
def test_links_are_refused_by_systems_that_cannot_open_by_steps(name, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "supports_dir_fd", set())
    error = attacks.refused(attacks.ATTACKS[name][0](tmp_path))
    assert error is not None
    assert re.search("outside its folder|no file or folder|holds none of|no such file", str(error)), error


def test_links_that_stay_inside_where_one_cannot_open_by_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "supports_dir_fd", set())
    test_links_that_stay_inside(tmp_path)


@pytest.mark.parametrize("by_steps", [True, False])
def test_a_file_that_is_exchanged_for_a_link_while_it_is_opened(by_steps, tmp_path, monkeypatch):
    """Another thread exchanges it without end: what is read is the folder's own, or it is refused."""
    if not by_steps:
        monkeypatch.setattr(os, "supports_dir_fd", set())
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    folder.mkdir()
    outside.write_bytes(b"secret")
    stop, place = threading.Event(), folder / "config.json"
    place.write_bytes(b"own")

    def exchange():
        while not stop.is_set():
            (folder / "file").write_bytes(b"own")
            os.replace(folder / "file", place)
            (folder / "link").symlink_to(outside)
            os.replace(folder / "link", place)

    thread = threading.Thread(target=exchange)
    thread.start()
    seen = Counter()
    try:
        for _ in range(2000):
            try:
                with files.open_in_folder(folder, "config.json") as file:
                    seen[file.read()] += 1
            except ValueError as error:
                seen["refused" if "outside its folder" in str(error) else str(error)] += 1
    finally:
        stop.set()
        thread.join()
    assert set(seen) == {b"own", "refused"}, seen


def written_by_h5py():
    """The oldest and the newest form of everything, and those between, as far as this HDF5 library writes them."""
    return ["earliest", *((name, name) for name in ("v108", "v110", "v112", "v114")), "latest"]


@pytest.mark.parametrize("libver", written_by_h5py(), ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"chunks": True, "compression": "gzip", "shuffle": True}, {"chunks": (5,), "shuffle": True}]
)
def test_h5_files_that_h5py_packs(options, libver, tmp_path):
    """Whole, in chunks, shuffled, packed: the numbers are those that h5py wrote."""
    model = Classifier(attacks.CONFIG, seed=0)
    with h5py.File(tmp_path / "model.h5", "w", libver=libver) as file:
        for name, array in model.state_dict().items():
            fitting = {key: tuple(min(3, side) for side in array.shape) if key == "chunks" and value is not True else value
                       for key, value in options.items()} if array.ndim else {}  # fmt: skip
            file.create_dataset(name.replace(".", "/"), data=array, **fitting)
        file.attrs["format_version"] = 1
        file.attrs["config"] = json.dumps(attacks.CONFIG.to_dict())
        file.attrs["something_else"] = np.arange(5)
    back = Classifier.from_pretrained(tmp_path / "model.h5")
    for name, array in model.state_dict().items():
        assert back.state_dict()[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("libver", written_by_h5py(), ids=str)
@pytest.mark.parametrize("members", [1, 8, 9, 60, 3000])
def test_groups_of_any_size_and_many_attributes(libver, members, tmp_path):
    """Links in a header, in one block of a heap, in many; trees of one level and of two; chunks in one list, in pages."""
    generator, arrays = np.random.default_rng(0), {}
    with h5py.File(tmp_path / "a.h5", "w", libver=libver, track_order=members == 9) as file:
        for index in range(members):
            name = f"{'n' * (index % 30)}{index}"
            arrays[f"group.{name}"] = file[f"group/{name}"] = generator.standard_normal((2, index % 4)).astype("f4")
        for name, chunks in (("one", (99, 17)), ("some", (5, 4)), ("pages", (1, 1))):
            for compression in (None, "gzip"):
                array = np.round(generator.standard_normal((99, 17)), 1)
                file.create_dataset(f"{name}{compression}", data=array, chunks=chunks, compression=compression)
                arrays[f"{name}{compression}"] = array
        for index in range(min(members, 60)):
            file.attrs[f"text{index}"], file.attrs[f"number{index}"] = "\u00e9" * index * 50, index
        file.attrs["list"] = np.arange(5)
    with h5py.File(tmp_path / "a.h5") as file:  # as the library itself reads it
        arrays = {name: file[name.replace(".", "/")][()] for name in arrays}
    reader = checkpoint.H5File(tmp_path / "a.h5")
    assert set(reader.shapes) == set(arrays)
    assert all(reader.read(name).tobytes() == array.tobytes() for name, array in arrays.items())
    assert reader.attributes.pop("list") is None
    assert reader.attributes == {f"text{n}": "\u00e9" * n * 50 for n in range(min(members, 60))} | {
        f"number{n}": n for n in range(min(members, 60))
    }
    reader.close()


def test_the_checksum_is_bob_jenkins():
    """The values that his lookup3.c gives as examples, and lengths around 12."""
    from effnet_np.checkpoints.h5_file import lookup3

    assert lookup3(b"") == 0xDEADBEEF
    assert lookup3(b"Four score and seven years ago") == 0x17770551
    assert len({lookup3(b"x" * length) for length in range(50)}) == 50


def test_keys_that_collide_are_refused_in_time(tmp_path):
    """Numbers as keys, all of which fall into one place of Python's table, took 45 s and 54 s."""
    for name in ("config: labels that collide", "config: labels' numbers that collide", "zip: keys that collide"):
        (tmp_path / name).mkdir()
        source = attacks.ATTACKS[name][0](tmp_path / name)
        begun = time.process_time()
        assert attacks.refused(source) is not None
        assert time.process_time() - begun < SECONDS_ALLOWED, name


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i8"])
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (7, 5), (2, 3, 4, 5)])
def test_every_kind_of_array_in_every_format(dtype, shape, tmp_path):
    array = (np.random.default_rng(0).standard_normal(shape) * 100).astype(dtype)
    with h5py.File(tmp_path / "a.h5", "w", libver="earliest") as file:
        file["x/y"] = array
        file.attrs["format_version"] = 1
    (tmp_path / "a.safetensors").write_bytes(save({"x.y": np.asarray(array)}))
    for reader in (checkpoint.H5File(tmp_path / "a.h5"), checkpoint.SafetensorsFile(tmp_path / "a.safetensors")):
        assert reader.shapes == {"x.y": shape}
        assert reader.read("x.y").dtype == array.dtype
        assert reader.read("x.y").tobytes() == array.tobytes()
        reader.close()


def test_number_of_attacks():
    """What SECURITY.md says."""
    assert len(attacks.ATTACKS) == 407
