"""RMSProp beside Keras' own, where Keras is installed (the extra `test-families`): it runs on PyTorch here."""

import os

import numpy as np
import pytest

from effnet_np.training.optimizers import RMSProp

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras", reason="Keras is not installed: pip install -e '.[test-families]'")


def test_rmsprop_is_keras():
    """50 steps; Keras lets the mean square start at 0, TensorFlow's older optimiser, the paper's, at 1: so it is set here."""
    random = np.random.default_rng(0)
    start, target = random.standard_normal((7, 5)), random.standard_normal((7, 5))
    ours, theirs = start.copy(), keras.Variable(start, dtype="float64")
    optimizer = RMSProp({"weight": ours}, 0.05, weight_decay=0.0)
    keras_optimizer = keras.optimizers.RMSprop(0.05, rho=0.9, momentum=0.9, epsilon=1e-3)
    keras_optimizer.build([theirs])
    for variable in keras_optimizer.variables:
        if "velocity" in variable.path:
            variable.assign(np.ones(variable.shape))
    for _ in range(50):
        optimizer.step({"weight": np.tanh(ours - target)})
        value = keras.ops.convert_to_numpy(theirs)
        keras_optimizer.apply([keras.ops.convert_to_tensor(np.tanh(value - target), "float64")], [theirs])
    difference = np.abs(ours - keras.ops.convert_to_numpy(theirs)).max()
    assert difference <= 1e-6 * np.abs(ours).max(), difference
    assert np.abs(ours - start).max() > 0.5
