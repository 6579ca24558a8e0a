"""Compiled models that are pickled and copied: same answers to the last bit, memory of their own, and clear refusals."""

import copy
import pickle
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest

import effnet_np
from effnet_np.kernels import compiled, library
from effnet_np.kernels.arena import ALIGN
from effnet_np.kernels.cores import default_threads

from helpers import CHELSEA, tiny_config


@pytest.fixture(scope="module")
def model():
    return effnet_np.EfficientNetForImageClassification(tiny_config(), seed=3)


@pytest.fixture(scope="module")
def pictures(model):
    return np.random.default_rng(0).standard_normal((3, 3, 64, 64), np.float32)


def copies(fast):
    return {
        "pickle": pickle.loads(pickle.dumps(fast)),
        "oldest protocol": pickle.loads(pickle.dumps(fast, 2)),
        "deepcopy": copy.deepcopy(fast),
        "copy": copy.copy(fast),
    }


@pytest.mark.parametrize("kind", ["classifier", "backbone"])
def test_copies_answer_the_same_to_the_last_bit(model, pictures, kind):
    fast = effnet_np.compile(model if kind == "classifier" else model.efficientnet, threads=2)
    expected = fast(pictures, output_hidden_states=True).to_tuple()
    for how, twin in copies(fast).items():
        assert twin.config.to_dict() == fast.config.to_dict()
        assert twin.threads == 2
        for mine, theirs in zip(twin(pictures, output_hidden_states=True).to_tuple(), expected, strict=True):
            for one, other in zip(*([m] if isinstance(m, np.ndarray) else m for m in (mine, theirs)), strict=True):
                np.testing.assert_array_equal(one, other, err_msg=how)


def test_a_copy_has_memory_of_its_own_and_a_shallow_one_shares_the_weights(model, pictures):
    fast = effnet_np.compile(model, threads=1)
    expected = fast(pictures).logits
    deep, shallow = copy.deepcopy(fast), copy.copy(fast)
    assert shallow._weights is fast._weights
    assert not np.shares_memory(deep._weights.data, fast._weights.data)
    assert deep._weights.address % ALIGN == 0
    assert deep.config is not fast.config
    for twin in (deep, shallow):
        twin(pictures)
        assert twin._lock is not fast._lock
        assert twin._pool is not fast._pool
        assert not np.shares_memory(twin._arena, fast._arena)
    deep._weights.data[:] = 0
    assert not deep(pictures).logits.any()
    np.testing.assert_array_equal(fast(pictures).logits, expected)


def test_copies_run_beside_each_other(model, pictures):
    """Four threads, each with a shallow copy: without an arena of its own each would write into the others' maps."""
    fast = effnet_np.compile(model, threads=1)
    expected = fast(pictures).logits
    wrong = []

    def work(twin):
        for _ in range(30):
            if not np.array_equal(twin(pictures).logits, expected):
                wrong.append(twin)

    threads = [threading.Thread(target=work, args=(copy.copy(fast),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_all_cores_means_those_of_where_it_arrives(model, monkeypatch):
    everywhere, two = pickle.dumps(effnet_np.compile(model)), pickle.dumps(effnet_np.compile(model, threads=2))
    monkeypatch.setenv("EFFNET_NP_THREADS", "7")
    assert default_threads() == 7
    assert pickle.loads(everywhere).threads == 7
    assert pickle.loads(two).threads == 2


def test_another_process_gets_the_same_answers_without_the_checkpoint(tmp_path):
    """Real weights, in a process in which no checkpoint may be opened: they came with the pickle."""
    effnet_np.classify(CHELSEA)
    from effnet_np.inference.classify import get_model

    fast = effnet_np.compile(get_model("lite0"), threads=1)
    (tmp_path / "fast.pickle").write_bytes(pickle.dumps(fast))
    code = f"""
import pickle, effnet_np.loading, effnet_np.checkpoints.checkpoint as checkpoint
checkpoint.open_checkpoint = checkpoint.Checkpoint = None
import effnet_np
fast = pickle.loads(open({str(tmp_path / "fast.pickle")!r}, "rb").read())
print(effnet_np.classify({str(CHELSEA)!r}, model=fast))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == f"{effnet_np.classify(CHELSEA, model=fast)}\n", done.stderr


@pytest.mark.parametrize("what", ["version", "registers", "code"])
def test_weights_that_were_packed_otherwise_are_refused_with_both_sides_named(model, monkeypatch, what):
    """The kernels would read them as they lie, and answer nonsense."""
    version, width, digest = compiled._packed_for()
    other = {"version": ("9.9.9", width, digest), "registers": (version, 2 * width, digest), "code": (version, width, "x")}
    fast = effnet_np.compile(model)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(compiled, "_packed_for", lambda: other[what])
        sent = pickle.dumps(fast)
    with pytest.raises(ValueError, match="send the model that it was compiled from") as refusal:
        pickle.loads(sent)
    assert f"effnet_np {other[what][0]}, registers of {other[what][1]}" in str(refusal.value)
    assert f"here is effnet_np {version}, {width} numbers" in str(refusal.value)


def test_what_numpy_answers_for_travels_too(pictures):
    """NaN among the weights: the reference answers, and goes along."""
    model = effnet_np.EfficientNetForImageClassification(tiny_config(), seed=3)
    model.classifier.bias[0] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fast = effnet_np.compile(model)
    twin = pickle.loads(pickle.dumps(fast))
    assert repr(twin) == repr(fast)
    assert "the NumPy model answers" in repr(twin)
    np.testing.assert_array_equal(twin(pictures).logits, fast(pictures).logits)


def test_nothing_but_numbers_and_the_configuration_travels(model):
    fast = effnet_np.compile(model)
    before = len(pickle.dumps(fast))
    fast(np.zeros((1, 3, 64, 64), np.float32))  # an arena, a scratch and a plan
    assert len(pickle.dumps(fast)) == before
    assert before < fast._weights.data.nbytes + 20_000
    assert library.sources_digest() in str(fast.__getstate__()["packed_for"])
