"""Traces: what is recorded, what is kept of it, what files give back, and that a program in C can read them."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

import effnet_np
from effnet_np import Trace
from effnet_np.trace_files import FORMATS

from helpers import CHELSEA, pair, pixels, tiny_config

BLOCK = "efficientnet.encoder.blocks.3"
ROOT = __file__.rpartition("/")[0]


@pytest.fixture(scope="module")
def model():
    return pair(tiny_config())[1]


@pytest.fixture(scope="module")
def image():
    return pixels(tiny_config(), batch=2)


@pytest.fixture(scope="module")
def full(model, image):
    with Trace(model, inputs=True, weights=True) as trace:
        model(image)
    return trace


def test_every_module_that_runs_is_there_in_call_order(model, image, full):
    called = []
    hooks = [module.register_forward_hook(lambda *_, name=name: called.append(name)) for name, module in model.named_modules()]
    output = model(image)
    for hook in hooks:
        hook.remove()
    several = {"efficientnet.encoder": ["last_hidden_state"], "efficientnet": ["last_hidden_state", "pooler_output"]}
    expected = ["pixel_values"]
    for name in called[:-1]:  # the last is the model itself
        expected += [f"{name}.{field}" for field in several[name]] if name in several else [name]
    assert list(full) == [*expected, "logits"]
    assert len(full) > 200
    np.testing.assert_array_equal(full["pixel_values"], image)
    np.testing.assert_array_equal(full["logits"], output.logits)
    np.testing.assert_array_equal(full["classifier"], output.logits)


def test_inputs_are_the_outputs_of_the_layers_before(full):
    (x,) = full.inputs[f"{BLOCK}.expansion.expand_bn"]
    np.testing.assert_array_equal(x, full[f"{BLOCK}.expansion.expand_conv"])
    embeddings, hidden = full.inputs["efficientnet.encoder.blocks.2.projection"]  # a residual takes two
    np.testing.assert_array_equal(embeddings, full["efficientnet.encoder.blocks.1"])
    np.testing.assert_array_equal(hidden, full["efficientnet.encoder.blocks.2.squeeze_excite"])


def test_weights_are_the_state_dict(model, full):
    state = model.state_dict()
    assert list(full.weights) == list(state)
    assert all(full.weights[key] is not state[key] and np.shares_memory(full.weights[key], state[key]) for key in state)


def test_all_of_it_is_read_only(full):
    arrays = [*full.values(), *full.weights.values(), *(array for arrays in full.inputs.values() for array in arrays)]
    assert not any(array.flags.writeable for array in arrays)


def test_globs_bound_what_is_kept(model, image, full):
    with Trace(model, f"{BLOCK}.*", inputs=True, weights=True) as trace:
        model(image)
    assert list(trace) == [name for name in full if name.startswith(f"{BLOCK}.")]
    assert set(trace.inputs) == set(trace)
    assert all(key.startswith(f"{BLOCK}.") for key in trace.weights)
    assert len(trace.weights) == len([key for key in full.weights if key.startswith(f"{BLOCK}.")])
    assert "MB" in repr(trace)
    with Trace(model, ["classifier", "pixel_values", "efficientnet.pooler_output"]) as trace:
        model(image)
    assert list(trace) == ["pixel_values", "efficientnet.pooler_output", "classifier"]
    assert not trace.inputs
    assert not trace.weights


def test_a_glob_that_matches_nothing_is_an_error(model):
    with pytest.raises(ValueError, match=r"no layer of this model matches 'efficientnet.encoder.top_cov'; .*top_conv"):
        Trace(model, "efficientnet.encoder.top_cov")


def test_a_trace_holds_the_last_forward(model, image):
    with Trace(model) as trace:
        model(image, output_hidden_states=True)
        assert "hidden_states.0" in trace
        other = model(image[:1] + 1).logits
    assert "hidden_states.0" not in trace
    np.testing.assert_array_equal(trace["logits"], other)
    assert trace["pixel_values"].shape[0] == 1
    model(image)  # outside: not recorded
    np.testing.assert_array_equal(trace["logits"], other)
    assert not any(module._forward_hooks for _, module in model.named_modules())


def test_hooks_go_when_the_forward_fails(model, image):
    with pytest.raises(ValueError, match="channels"), Trace(model):
        model(image[:, :2])
    assert not any(module._forward_hooks for _, module in model.named_modules())


def test_a_block_alone(model, full):
    block = model.get_submodule(BLOCK)
    with Trace(block) as trace:
        block(full.inputs[BLOCK][0])
    np.testing.assert_array_equal(trace["output"], full[BLOCK])
    np.testing.assert_array_equal(trace["expansion.expand_bn"], full[f"{BLOCK}.expansion.expand_bn"])


def test_wrong_use(model, image):
    with pytest.raises(TypeError, match="got str"):
        Trace("b0")
    with pytest.raises(RuntimeError, match="needs the model"), Trace():
        pass
    trace = Trace(model, f"{BLOCK}.*")
    with pytest.raises(ValueError, match="this trace is empty"):
        trace.save("never")
    with trace, pytest.raises(RuntimeError, match="once at a time"), trace:
        pass
    with trace:
        model(image)
    with pytest.raises(KeyError, match=r"has no .*expand_bm.*expand_bn"):
        trace[f"{BLOCK}.expansion.expand_bm"]
    with pytest.raises(ValueError, match="layout must be one of NCHW, NHWC"):
        trace.save("never", layout="CHWN")
    with pytest.raises(ValueError, match="format must be one of"):
        trace.save("never", "csv")
    with pytest.raises(ValueError, match="golden.h5 names one file"):
        trace.save("golden.h5", "bin")
    with pytest.raises(ValueError, match="must have a name that ends in .npz"):
        trace.save("golden", "npz")


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("format", FORMATS)
def test_files_give_everything_back_bit_by_bit(format, layout, full, tmp_path):
    path = tmp_path / (f"golden.{format}" if format in ("h5", "npz") else "golden")
    full.save(path, format, layout)
    loaded = Trace.load(path)
    assert list(loaded) == list(full)
    assert list(loaded.inputs) == list(full.inputs)
    assert list(loaded.weights) == list(full.weights)
    for ours, theirs in (
        (loaded, full),
        (loaded.weights, full.weights),
        *(({0: a}, {0: b}) for name in full.inputs for a, b in zip(loaded.inputs[name], full.inputs[name], strict=True)),
    ):
        for name in theirs:
            assert ours[name].dtype == theirs[name].dtype
            assert not ours[name].flags.writeable
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=str(name))
    assert not list(tmp_path.glob(".*")), "a temporary file is left"


def test_float64_survives_text(tmp_path):
    config = tiny_config()
    model = pair(config)[1].to(np.float64)
    with Trace(model, "classifier") as trace:
        model(pixels(config).astype(np.float64))
    trace.save(tmp_path / "golden", "txt")
    np.testing.assert_array_equal(Trace.load(tmp_path / "golden")["classifier"], trace["classifier"])


def test_the_index_says_where_and_how_the_numbers_lie(full, tmp_path):
    full.save(tmp_path / "golden", "bin", "NHWC")
    rows = [line.split() for line in (tmp_path / "golden/index.txt").read_text().splitlines() if line[0] != "#"]
    by_name = {(row[0], row[1]): row[2:] for row in rows}
    n, c, h, w = full[BLOCK].shape
    assert by_name["output", BLOCK] == ["float32", "NHWC", "4", *map(str, (n, h, w, c)), f"output/{BLOCK}.bin"]
    raw = np.fromfile(tmp_path / f"golden/output/{BLOCK}.bin", "<f4").reshape(n, h, w, c)
    np.testing.assert_array_equal(raw.transpose(0, 3, 1, 2), full[BLOCK])
    weight = f"{BLOCK}.expansion.expand_conv.weight"
    assert by_name["weight", weight][1] == "OIHW"
    raw = np.fromfile(tmp_path / f"golden/weight/{weight}.bin", "<f4")
    np.testing.assert_array_equal(raw, full.weights[weight].ravel())
    assert by_name["weight", f"{BLOCK}.expansion.expand_bn.num_batches_tracked"][:3] == ["int64", "-", "0"]


def test_files_of_other_programs(full, tmp_path):
    np.savez_compressed(tmp_path / "dump.npz", **{BLOCK: full[BLOCK], "classifier": full["classifier"]})
    (tmp_path / "dump").mkdir()
    np.save(tmp_path / f"dump/{BLOCK}.npy", full[BLOCK])
    for path in (tmp_path / "dump.npz", tmp_path / "dump"):
        loaded = Trace.load(path)
        np.testing.assert_array_equal(loaded[BLOCK], full[BLOCK])
        assert not loaded.ordered


def test_a_folder_in_use_is_not_written_to(full, tmp_path):
    (tmp_path / "mine").write_text("precious")
    for path in (tmp_path, tmp_path / "mine"):
        with pytest.raises(FileExistsError, match="is not an empty folder"):
            full.save(path, "npy")
    assert (tmp_path / "mine").read_text() == "precious"


def edit(path, old, new):
    path.write_text(path.read_text().replace(old, new, 1))


def test_what_is_damaged_or_lies_is_refused(model, image, tmp_path):
    with Trace(model, "classifier") as trace:
        model(image)
    for format in ("npy", "txt", "bin"):
        folder = tmp_path / format
        index, file = folder / "index.txt", folder / f"output/classifier.{format}"

        def fresh(folder=folder, format=format):
            shutil.rmtree(folder, ignore_errors=True)
            trace.save(folder, format)

        fresh()
        edit(index, " 2 5 ", " 2 6 ")
        with pytest.raises(ValueError, match="classifier"):
            dict(Trace.load(folder))
        fresh()
        file.unlink()
        with pytest.raises(ValueError, match=f"classifier.{format} is not there"):
            dict(Trace.load(folder))
        fresh()
        file.write_bytes(file.read_bytes()[:-9])
        with pytest.raises(ValueError, match="classifier"):
            dict(Trace.load(folder))
        fresh()
        shutil.copy(file, tmp_path / f"outside.{format}")
        edit(index, f"output/classifier.{format}", f"../outside.{format}")
        with pytest.raises(ValueError, match="lies outside the folder"):
            dict(Trace.load(folder))
        fresh()
        file.unlink()
        file.symlink_to(tmp_path / f"outside.{format}")
        with pytest.raises(ValueError, match="lies outside the folder"):
            dict(Trace.load(folder))
        fresh()
        edit(index, " 2 2 5 ", f" 2 {10**12} {10**12} ")
        with pytest.raises(ValueError, match="classifier"):
            dict(Trace.load(folder))
        for old, new in (("float32", "object"), ("output c", "virus c"), (" 2 2 5 ", " 3 2 5 "), (" 2 2 5 ", " 2 -2 5 ")):
            fresh()
            edit(index, old, new)
            with pytest.raises(ValueError, match="line 2 of the index"):
                dict(Trace.load(folder))
        fresh()
        edit(index, "# effnet_np trace 1", "# something else")
        with pytest.raises(ValueError, match="must begin with '# effnet_np trace 1'"):
            dict(Trace.load(folder))


def test_what_is_no_trace_is_refused(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no trace"):
        Trace.load(tmp_path / "nothing.h5")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds neither index.txt nor .npy files"):
        Trace.load(tmp_path / "empty")
    for name in ("a.h5", "a.npz", "a.jpg"):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(ValueError, match=name):
            Trace.load(tmp_path / name)
    effnet_np.checkpoint.save_h5(model, tmp_path / "weights.h5")
    with pytest.raises(ValueError, match=r"is it a checkpoint\?"):
        Trace.load(tmp_path / "weights.h5")
    evil = np.array([{"code": 1}], dtype=object)
    np.savez(tmp_path / "pickle.npz", evil=evil, allow_pickle=True)
    with pytest.raises(ValueError, match="pickle.npz is damaged at evil: it holds something else than an array of"):
        Trace.load(tmp_path / "pickle.npz")


# -- the command, and C -----------------------------------------------------------------------------------------------


def run(*arguments):
    command = [sys.executable, "-m", "effnet_np.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command(tmp_path):
    done = run(
        "trace", CHELSEA, "-o", tmp_path / "golden.h5", "--layers", "classifier", "--layers", "pixel_values", "--weights"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'golden.h5'}: 2 outputs, 0 inputs, 2 weights\n"
    trace = Trace.load(tmp_path / "golden.h5")
    model = effnet_np.EfficientNetForImageClassification.from_pretrained("lite0")
    assert model.config.id2label[int(trace["classifier"].argmax())] == "tiger cat"
    np.testing.assert_array_equal(trace["classifier"], model(trace["pixel_values"]).logits)
    np.testing.assert_array_equal(trace.weights["classifier.bias"], model.classifier.bias)
    done = run("trace", CHELSEA, "-o", tmp_path / "golden.h5", "--layers", "clasifier")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no layer of this model matches 'clasifier'; is one of these meant: classifier?" in done.stderr
    done = run("trace", CHELSEA, "-o", tmp_path / "golden.h5", "--format", "txt")
    assert done.returncode == 1
    assert "give a folder's name" in done.stderr


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_program_in_c_reads_a_golden_folder(tmp_path):
    """A depthwise layer of stride 1 and one of stride 2, recomputed in C from the recorded input and weights."""
    program, golden = tmp_path / "read_golden", tmp_path / "golden"
    compile_it = ["cc", "-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, f"{ROOT}/read_golden.c", "-lm"]
    subprocess.run(compile_it, check=True)
    layers = ("--layers", "*.blocks.2.*", "--layers", "*.blocks.3.*")
    done = run("trace", CHELSEA, "-o", golden, "--format", "bin", "--inputs", "--weights", *layers)
    assert done.returncode == 0, done.stderr
    for block in (2, 3):
        layer = f"efficientnet.encoder.blocks.{block}.depthwise_conv.depthwise_conv"
        done = subprocess.run([program, golden, layer], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.startswith(f"{layer}: 144 x {(56, 28)[block - 2]} x")
        file = golden / f"output/{layer}.bin"
        numbers = np.fromfile(file, "<f4")
        numbers[len(numbers) // 2] += 0.01 * np.abs(numbers).max()
        numbers.tofile(file)
        assert subprocess.run([program, golden, layer], capture_output=True).returncode == 1, "a wrong number passes"
