"""Interrupts by the thousand: a compiled model is called again and again while signals raise exceptions at random moments.

    python tests/interrupts.py [INTERRUPTS] [--threads 1 2 4] [--model tiny lite0]

counts wrong answers; a hang ends in a timeout of whoever called. `test_interrupts.py` runs a short version of it.
"""

import argparse
import random
import signal
import time

import numpy as np

import effnet_np
from effnet_np.architecture import round_filters
from effnet_np.kernels import pool


class Interrupt(BaseException):
    """What the signal raises: nothing in the library can catch it by mistake."""


def network(name):
    fields = {"width_coefficient": 0.125, "hidden_dim": round_filters(1280, 0.125), "image_size": 32, "num_labels": 5}
    config = (
        effnet_np.EfficientNetConfig.preset("b0", **fields) if name == "tiny" else effnet_np.EfficientNetConfig.preset(name)
    )
    model = effnet_np.EfficientNetForImageClassification(config, seed=0)
    generator = np.random.default_rng(0)
    for key, array in model.state_dict().items():
        if array.ndim > 1:
            array[...] = generator.standard_normal(array.shape) / np.sqrt(array[0].size)
        elif key.endswith("running_var"):
            array[...] = 0.5 + generator.random(array.shape)
    return model


def besiege(model, threads, interrupts, seed=0):
    """(interrupts that were raised, answers in between, wrong ones among them)"""
    pool.usable = lambda: 64  # as many threads as are asked for, whatever this machine has
    fast = effnet_np.compile(model, threads)
    generator = np.random.default_rng(1)
    size = model.config.image_size
    images = [generator.standard_normal((2, 3, size, size)).astype(np.float32) for _ in range(2)]
    expected = [effnet_np.compile(model, 1)(image).logits for image in images]
    began = time.perf_counter()
    for image in images:
        fast(image)
    duration = (time.perf_counter() - began) / 2
    chance = random.Random(seed)
    armed = False

    def ring(*_):
        if armed:
            raise Interrupt

    signal.signal(signal.SIGALRM, ring)
    raised = answers = wrong = call = 0
    while raised < interrupts:
        call += 1
        which = call % 2
        try:
            armed = True
            signal.setitimer(signal.ITIMER_REAL, max(1e-6, chance.uniform(0, 1.5 * duration)))
            logits = fast(images[which]).logits
            armed = False
            answers += 1
            wrong += not np.array_equal(logits, expected[which])
        except Interrupt:
            armed = False
            raised += 1
            if chance.random() < 0.3:  # at once the next call, which is judged
                logits = fast(images[which]).logits
                answers += 1
                wrong += not np.array_equal(logits, expected[which])
    signal.setitimer(signal.ITIMER_REAL, 0)
    return raised, answers, wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("interrupts", type=int, nargs="?", default=3000)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--model", nargs="+", default=["tiny", "lite0"])
    options = parser.parse_args()
    for name in options.model:
        for threads in options.threads:
            raised, answers, wrong = besiege(network(name), threads, options.interrupts)
            print(f"{name}, {threads} threads: {raised} interrupts, {answers} answers, {wrong} wrong", flush=True)
