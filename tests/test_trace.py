"""Traces: what is recorded, what is kept of it, what files give back, and that a program in C can read them."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import effnet_np
from effnet_np import Trace
from effnet_np.tracing import trace_files
from effnet_np.tracing.trace import enliven
from effnet_np.tracing.trace_files import FORMATS

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
    effnet_np.checkpoints.h5_writer.save_h5(model, tmp_path / "weights.h5")
    with pytest.raises(ValueError, match=r"is it a checkpoint\?"):
        Trace.load(tmp_path / "weights.h5")
    evil = np.array([{"code": 1}], dtype=object)
    np.savez(tmp_path / "pickle.npz", evil=evil, allow_pickle=True)
    with pytest.raises(ValueError, match="pickle.npz is damaged at evil: it holds something else than an array of"):
        Trace.load(tmp_path / "pickle.npz")


# -- the command, and C -----------------------------------------------------------------------------------------------


def run(*arguments, **options):
    command = [sys.executable, "-m", "effnet_np.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


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
    """Convolutions of every kind, recomputed in C from the recorded input and weights; it reads nowhere where it must not."""
    program, golden = tmp_path / "read_golden", tmp_path / "golden"
    compile_it = ["cc", "-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, f"{ROOT}/read_golden.c", "-lm"]
    if subprocess.run([*compile_it, "-fsanitize=address,undefined"], capture_output=True).returncode:
        subprocess.run(compile_it, check=True)  # a compiler without the watch over memory
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}
    done = run("trace", "--model", "b0", "--random", 0, "-o", golden, "--format", "bin", "--inputs", "--weights")
    assert done.returncode == 0, done.stderr
    blocks = "efficientnet.encoder.blocks"
    for layer, size in (
        (f"{blocks}.2.depthwise_conv.depthwise_conv", "144 x 56 x 56"),
        (f"{blocks}.3.depthwise_conv.depthwise_conv", "144 x 28 x 28"),  # stride 2, 5 x 5
        (f"{blocks}.3.expansion.expand_conv", "144 x 56 x 56"),  # 1 x 1, other channels in than out
        (f"{blocks}.3.squeeze_excite.reduce", "6 x 1 x 1"),  # with a bias
        ("efficientnet.embeddings.convolution", "32 x 112 x 112"),
    ):
        done = subprocess.run([program, golden, layer], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.startswith(f"{layer}: {size}, ")
        file = golden / f"output/{layer}.bin"
        numbers = np.fromfile(file, "<f4")
        numbers[len(numbers) // 2] += 0.01 * np.abs(numbers).max()
        numbers.tofile(file)
        assert subprocess.run([program, golden, layer], capture_output=True, env=environment).returncode == 1, "a wrong number"
    for layer in (f"{blocks}.3.expansion.expand_bn", "nothing"):
        done = subprocess.run([program, golden, layer], capture_output=True, text=True, env=environment)
        assert done.returncode == 2
        assert "is no convolution" in done.stderr or "cannot read" in done.stderr


# -- what a port needs ------------------------------------------------------------------------------------------------


def port_in_torch(golden, mine):
    """Every layer of a golden folder computed again by a program that knows nothing but the files in it."""
    import torch
    import torch.nn.functional as F

    lines = [line.split() for line in (golden / "index.txt").read_text().splitlines() if line[0] != "#"]
    arrays = {}
    for kind, name, dtype, _, rank, *rest in lines:
        shape = tuple(map(int, rest[: int(rank)]))
        arrays[kind, name] = torch.from_numpy(np.fromfile(golden / rest[-1], np.dtype(dtype).newbyteorder("<")).reshape(shape))
    activations = {"swish": F.silu, "relu6": F.relu6, "sigmoid": torch.sigmoid}
    layers = [line.split() for line in (golden / "layers.txt").read_text().splitlines() if line[0] != "#"]
    made = {}
    for name, kind, _, stride, before, after, groups, eps, activation in layers:
        x, last = arrays["input", f"{name}.0"], made[next(reversed(made))] if made else None
        weight = {key: arrays.get(("weight", f"{name}.{key}")) for key in ("weight", "bias", "running_mean", "running_var")}
        before, after = int(before), int(after)
        if kind in ("pad", "conv"):
            x = F.pad(x, (before, after, before, after))
        made[name] = {
            "pad": lambda x=x: x,
            "conv": lambda x=x, w=weight, s=stride, g=groups: F.conv2d(x, w["weight"], w["bias"], int(s), 0, 1, int(g)),
            "batch_norm": lambda x=x, w=weight, e=eps: F.batch_norm(
                x, w["running_mean"], w["running_var"], w["weight"], w["bias"], False, 0, float(e)
            ),
            "activation": lambda x=x, a=activation: activations[a](x),
            "mean_pool": lambda x=x: x.mean((2, 3), keepdim=True),
            "linear": lambda x=x, w=weight: F.linear(x, w["weight"], w["bias"]),
            "dropout": lambda x=x: x,
            "scale_channels": lambda x=x, n=name: x * made[f"{n}.act_expand"],
            "add": lambda x=x, n=name: made[f"{n}.project_bn"] + x,
            "module": lambda last=last: last,
        }[kind]()
    (mine / "output").mkdir(parents=True)
    kept = ["# effnet_np trace 1"]
    for line in lines:
        if line[0] == "output" and line[1] in made:
            made[line[1]].numpy().tofile(mine / line[-1])
            kept.append(" ".join(line))
    (mine / "index.txt").write_text("\n".join(kept) + "\n")
    return made


def test_the_readmes_commands_and_a_port(tmp_path):
    """README's own command on the shell, a port from what it wrote, and the comparison, which ends with status 0."""
    readme = (Path(ROOT).parent / "README.md").read_text()
    (command,) = (line for line in readme.splitlines() if line.startswith("effnet-np trace notebooks/"))
    words = shlex.split(command)[2:]
    words[0] = str(CHELSEA)
    done = run("trace", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = port_in_torch(tmp_path / "golden", tmp_path / "mine")
    assert len(made) > 10
    assert "pixel_values" in Trace.load(tmp_path / "golden")
    done = run("compare", "mine", "golden", "-o", "report.html", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"OK: {len(made)} layers agree")


def test_squeeze_excite_without_a_network(tmp_path):
    """B0 with random weights that live, on an array of one's own: all of it, in C order, for a port of every kind of layer."""
    pixels = np.random.default_rng(3).standard_normal((2, 3, 64, 48), np.float32)
    np.save(tmp_path / "in.npy", pixels)
    golden = tmp_path / "golden"
    options = ("--model", "b0", "--random", 5, "--input", tmp_path / "in.npy", "--format", "bin", "--inputs", "--weights")
    done = run("trace", *options, "-o", golden)
    assert done.returncode == 0, done.stderr
    trace = Trace.load(golden)
    np.testing.assert_array_equal(trace["pixel_values"], pixels)
    assert all(1e-2 < np.abs(array).max() < 1e3 for array in trace.values())
    made = port_in_torch(golden, tmp_path / "mine")
    kinds = {line.split()[1] for line in (golden / "layers.txt").read_text().splitlines() if line[0] != "#"}
    assert kinds == {
        "pad",
        "conv",
        "batch_norm",
        "activation",
        "mean_pool",
        "linear",
        "dropout",
        "scale_channels",
        "add",
        "module",
    }
    assert len(made) == 310
    result = effnet_np.compare(tmp_path / "mine", golden)
    assert result.first_divergence is None, str(result)
    several = {
        "efficientnet.encoder.last_hidden_state",
        "efficientnet.last_hidden_state",
        "efficientnet.pooler_output",
        "logits",
    }
    assert {row.name for row in result.rows if row.status == "MISSING"} <= several | {"efficientnet.encoder", "efficientnet"}
    assert run("compare", tmp_path / "mine", golden).returncode == 1
    assert run("compare", tmp_path / "mine", golden, "--allow-missing").returncode == 0
    described = json.loads((golden / "config.json").read_text())
    assert described["width_coefficient"] == 1.0
    conv = next(row for row in described["layers"] if row["name"].endswith("blocks.1.depthwise_conv.depthwise_conv"))
    assert (conv["kind"], conv["kernel"], conv["stride"], conv["groups"]) == ("conv", 3, 2, 96)
    assert effnet_np.EfficientNetConfig.from_pretrained(golden).blocks() == effnet_np.EfficientNetConfig.preset("b0").blocks()
    for wrong, words in (
        (("--model", "b0"), "give a picture, --input FILE.npy, or --random SEED"),
        ((CHELSEA, "--input", "x.npy"), "not both"),
        (("--random", "0", "--input", tmp_path / "nothing.npy"), "nothing.npy is not there"),
    ):
        done = run("trace", *wrong, "-o", tmp_path / "no")
        assert (done.returncode, done.stdout) == (1, "")
        assert words in done.stderr
        assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("name", [f"b{n}" for n in range(8)])
def test_activations_live_in_every_preset(name):
    """At the full depth, in a width that is quick."""
    config = effnet_np.EfficientNetConfig.preset(name, width_coefficient=0.25, hidden_dim=320, num_labels=10)
    model = effnet_np.EfficientNetForImageClassification(config, initialize=False)
    enliven(model, 1)
    with Trace(model) as trace:
        model(pixels(config, height=64))
    assert all(1e-2 < array.std() < 1e2 for array in trace.values() if array.size >= 64)
    other = effnet_np.EfficientNetForImageClassification(config, initialize=False)
    enliven(other, 1)
    np.testing.assert_array_equal(other.classifier.weight, model.classifier.weight)


def test_whole_numbers_with_a_scale_and_halves(tmp_path):
    """What a quantised port writes: int8 and uint8 with scale and zero point, float16; in .bin and .npy."""
    rng = np.random.default_rng(0)
    q8, u8, half = rng.integers(-128, 128, (1, 3, 4, 5)), rng.integers(0, 256, (2, 7)), rng.standard_normal((1, 4, 5, 3))
    arrays = {"a": q8.astype(np.int8), "b": u8.astype(np.uint8), "c": half.astype(np.float16), "d": q8.astype(np.int16)}
    (tmp_path / "t").mkdir()
    for name, array in arrays.items():
        array.tofile(tmp_path / f"t/{name}.bin")
    np.save(tmp_path / "t/e.npy", arrays["a"])
    lines = [
        "# effnet_np trace 1",
        "output a int8 NCHW 4 1 3 4 5 a.bin scale=0.25",
        "output b uint8 NC 2 2 7 b.bin zero_point=128 scale=0.5",
        "output c float16 NHWC 4 1 4 5 3 c.bin",
        "output d int16 - 4 1 3 4 5 d.bin",
        "output e int8 NCHW 4 1 3 4 5 e.npy scale=2",
    ]
    (tmp_path / "t/index.txt").write_text("\n".join(lines))
    trace = Trace.load(tmp_path / "t")
    np.testing.assert_array_equal(trace["a"], np.float32(0.25) * q8.astype(np.float32))
    np.testing.assert_array_equal(trace["b"], (u8 - 128).astype(np.float32) / 2)
    np.testing.assert_array_equal(trace["c"], half.astype(np.float16).transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(trace["d"], q8)
    assert [trace[name].dtype.name for name in "abcde"] == ["float32", "float32", "float16", "int16", "float32"]
    reference = Trace.of({"a": q8 * np.float32(0.25), "c": half.transpose(0, 3, 1, 2).astype(np.float32)})
    assert effnet_np.compare(trace, reference, layers=["a", "c"], tolerance=1e-3).ok
    for wrong in ("scale=nan", "scale=1e999", "scale", "zero_point=1.5", "offset=3", "scale=1 2"):
        (tmp_path / "t/index.txt").write_text("\n".join([lines[0], f"output a int8 NCHW 4 1 3 4 5 a.bin {wrong}"]))
        with pytest.raises(ValueError, match="line 2 of the index"):
            Trace.load(tmp_path / "t")


def test_big_endian_and_fortran_order_of_other_programs(tmp_path):
    array = np.random.default_rng(0).standard_normal((2, 3, 4), np.float32)
    (tmp_path / "t").mkdir()
    np.save(tmp_path / "t/a.npy", array.astype(">f4"))
    np.save(tmp_path / "t/b.npy", np.asfortranarray(array))
    with open(tmp_path / "t/c.npy", "wb") as file:
        np.lib.format.write_array(file, array, version=(2, 0))
    trace = Trace.load(tmp_path / "t")
    for name in "abc":
        np.testing.assert_array_equal(trace[name], array)
        assert trace[name].dtype == np.float32


def test_the_limits_leave_room_for_b7(tmp_path):
    """All its arrays, inputs and weights included; at a fraction of its width, as limits count arrays."""
    config = effnet_np.EfficientNetConfig.preset("b7", width_coefficient=0.1, hidden_dim=128)
    model = effnet_np.EfficientNetForImageClassification(config, initialize=False)
    with Trace(model, inputs=True, weights=True) as trace:
        model(pixels(config, height=32), output_hidden_states=True)
    for name in ("b7.h5", "b7.npz"):
        trace.save(tmp_path / name)
        loaded = Trace.load(tmp_path / name)
        assert len(loaded) == len(trace)
        assert list(loaded.inputs) == list(trace.inputs)
        assert list(loaded.weights) == list(trace.weights)
    count = len(trace) + sum(map(len, trace.inputs.values())) + len(trace.weights)
    largest = max(np.prod(row.output_shape) for row in effnet_np.summary("b7").rows) * 4
    with zipfile.ZipFile(tmp_path / "b7.npz") as archive:
        index = archive.getinfo("index.npy").file_size
    assert 2 * count < trace_files.MAX_ARRAYS
    assert 2 * index < trace_files.MAX_INDEX
    assert 16 * largest < trace_files.MAX_ARRAY


# -- whole or absent --------------------------------------------------------------------------------------------------

FULL_DISK = """
import json, os, resource, signal, sys
from pathlib import Path
import numpy as np
from effnet_np import Trace, compare
arrays = {"a": np.ones((1, 64, 64), np.float32), "b": np.zeros((3, 4096))}
trace = Trace.of(arrays)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
base = Path(sys.argv[1])
result = compare(trace, Trace.of({name: array + 1 for name, array in arrays.items()}))
(base / "empty").mkdir()
def files():
    return {str(path): path.read_bytes() if path.is_file() else None for path in base.rglob("*")}
for save, names in ((trace.save, ("t.h5", "t.npz")), (result.save, ("r.txt", "r.json", "r.html"))):
    for name in names:
        save(base / name)
before, outcomes = files(), []
for room in (0, 500, 3000, 20000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    for save, name, *format in [
        (trace.save, "t.h5"), (trace.save, "t.npz"), (trace.save, "new/folder", "npy"), (trace.save, "folder", "bin"),
        (trace.save, "folder", "txt"), (trace.save, "empty", "npy"), (result.save, "r.json"), (result.save, "r.html"),
    ]:
        try:
            save(base / name, *format)
            outcome = "saved"
        except OSError as error:
            outcome = str(error)
        outcomes.append([room, name, outcome, files() == before])
print(json.dumps(outcomes))
"""


def test_a_full_disk(tmp_path):
    """No more than some bytes fit into a file: an OSError, what was there is there, and no more. libhdf5 crashed here."""
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert len(outcomes) == 32
    for room, name, outcome, same in outcomes:
        if outcome != "saved":
            assert "File too large" in outcome, (room, name)
            assert same, f"{name}, with room for {room} bytes: something changed or was left behind"
        else:
            assert (name, room) in (("r.json", 3000), ("r.json", 20000), ("r.html", 20000)), (room, name)


def test_an_empty_folder_is_filled_and_a_new_one_appears_whole(full, tmp_path):
    (tmp_path / "mount").mkdir()
    inode = (tmp_path / "mount").stat().st_ino
    full.save(tmp_path / "mount", "bin")
    full.save(tmp_path / "a/b/c", "bin")
    for folder in (tmp_path / "mount", tmp_path / "a/b/c"):
        assert {path.name for path in folder.iterdir()} == {
            "output",
            "input",
            "weight",
            "index.txt",
            "layers.txt",
            "config.json",
        }
        assert len(Trace.load(folder)) == len(full)
    assert (tmp_path / "mount").stat().st_ino == inode, "it could be a mount point"
    assert {path.name for path in tmp_path.iterdir()} == {"mount", "a"}


# -- forwards ---------------------------------------------------------------------------------------------------------


def test_a_forward_begins_where_it_begins(model, image):
    """After one that failed in the middle; and with the input given by its name."""
    with Trace(model) as trace:
        block = model.get_submodule(BLOCK)
        block.forward, before = None, list(trace)
        with pytest.raises(TypeError):
            model(image)
        del block.forward
        assert before == []
        model(pixel_values=image[:1])
    assert trace["pixel_values"].shape[0] == 1
    assert all(array.shape[0] == 1 for array in trace.values())
    block = model.get_submodule(f"{BLOCK}.expansion")
    with Trace(model.efficientnet.embeddings) as trace:
        model.efficientnet.embeddings(image)
    assert list(trace) == ["pixel_values", "padding", "convolution", "batchnorm", "activation", "output"]


def test_a_module_that_is_called_twice_does_not_begin_anew():
    import torch

    from effnet_np.inspection.compare import trace_torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.relu, self.linear = torch.nn.ReLU(), torch.nn.Linear(3, 4)

        def forward(self, x):
            return self.relu(self.linear(self.relu(x)))

    assert list(trace_torch(Net().eval(), np.ones((1, 3), np.float32))) == ["pixel_values", "relu", "linear", "output"]


def test_a_trace_of_arrays(tmp_path):
    array = np.arange(6.0).reshape(2, 3)
    trace = Trace.of({"a": array, "b": 1.5}, {"a": (array,)}, {"a.weight": array})
    assert list(trace) == ["a", "b"]
    assert not trace["a"].flags.writeable
    trace.save(tmp_path / "t.npz")
    loaded = Trace.load(tmp_path / "t.npz")
    np.testing.assert_array_equal(loaded.inputs["a"][0], array)
    assert loaded["b"].shape == ()
    assert repr(loaded) == repr(trace)


def test_names_that_differ_in_case_alone(tmp_path):
    trace = Trace.of({"conv": np.ones(2), "Conv": np.zeros(2)})
    trace.save(tmp_path / "t.npz")
    assert set(Trace.load(tmp_path / "t.npz")) == {"conv", "Conv"}
    with pytest.raises(ValueError, match=r"conv and Conv would be one file .* save the trace as .h5 or .npz"):
        trace.save(tmp_path / "t", format="npy")
    assert not (tmp_path / "t").exists()
